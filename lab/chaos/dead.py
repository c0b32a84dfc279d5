"""Send dead letters again while the daemons run, as an operator does."""

import subprocess
from pathlib import Path

from lab.real.scraper import PROGRAM, clean_environ


def resent(state_dir: Path) -> list[tuple[str, str]]:
    """Queue all dead letters again; return (daemon, id) of each.

    A spool that cannot be used just now, as on a full disk, ends the command with exit code 2.
    """
    done = subprocess.run(
        [str(PROGRAM), "dead-letters", "--state-dir", str(state_dir), "resend", "all"],
        capture_output=True,
        text=True,
        env=clean_environ({}),
        timeout=120,
        check=False,
    )
    assert done.returncode in {0, 2}, done.stderr
    pairs = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return [(daemon, message_id) for daemon, message_id in pairs]
