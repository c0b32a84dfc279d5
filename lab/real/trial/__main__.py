"""Run the trial and show arrivals until Ctrl-C; with --once until one of each kind."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from lab.demo.process import forget_accounts
from lab.real.parts.localstack import CREDENTIALS, REGION
from lab.real.parts.process import PartError
from lab.real.trial import parts
from lab.real.trial.arrivals import BUCKET, Arrivals
from lab.real.trial.files import DAEMONS

LOOK_SECONDS = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 after Ctrl-C, or with --once if all kinds arrived and verify; else 1."""
    parser = argparse.ArgumentParser(prog="make localstack", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end when one of each has arrived")
    parser.add_argument("--seconds", type=float, default=180, help="patience of --once (180)")
    options = parser.parse_args(argv)
    forget_accounts(os.environ)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="byoc-trial-") as directory, ExitStack() as running:
        try:
            started = parts.start(Path(directory), running, say)
            return watch(started, options.seconds if options.once else None)
        except PartError as error:
            say(str(error))
            return 1
        except KeyboardInterrupt:
            say("stopping ...")
            return 130 if options.once else 0


def say(line: str) -> None:
    """Print without buffering."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def watch(started: parts.Started, patience_seconds: float | None) -> int:
    """Show arrivals until interrupted, or until one of each arrived; then stop and verify."""
    plane, deadline = started["control-plane"].url, time.monotonic() + (patience_seconds or 0)
    say("\nwhat arrives (Ctrl-C stops all of it):")
    with closing(Arrivals(started["localstack"].url, plane)) as arrivals:
        while patience_seconds is None or not arrivals.complete:
            for line in arrivals.look():
                say(line)
            if patience_seconds is not None and time.monotonic() > deadline:
                return _missing(arrivals, started)
            time.sleep(LOOK_SECONDS)
        for name in DAEMONS:
            started[name].stop()  # an orderly stop: open windows are closed and sent
        for line in arrivals.look():
            say(line)
        return _verify(arrivals.localstack_url)


def _missing(arrivals: Arrivals, started: parts.Started) -> int:
    missing = [kind for kind, count in arrivals.seen.items() if not count]
    say(f"did not arrive: {', '.join(missing)}")
    for name in DAEMONS:
        say(f"{name}:\n{started[name].log_tail()}")
    return 1


def _verify(url: str) -> int:
    keys = {name.upper(): value for name, value in CREDENTIALS.items()}
    place = {"AWS_ENDPOINT_URL_S3": url, "AWS_DEFAULT_REGION": REGION}
    command = [str(parts.PROGRAM), "verify", f"s3://{BUCKET}/v1/"]
    say(f"\n{' '.join(command[1:])}")
    return subprocess.run(command, env={**os.environ, **place, **keys}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
