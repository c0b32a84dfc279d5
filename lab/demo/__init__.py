"""`make demo`: the daemons against an embedded S3, in one command, in about a minute."""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from byoc_agents.errors import ConfigError
from lab.demo.process import DemoError, forget_accounts


def main(argv: Sequence[str]) -> int:
    """Play the demo. Return 0 if all figures agree, else 1. Raises ConfigError."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the logs, the spool, the objects")
    options = parser.parse_args(argv)
    if mistakes := _missing():
        raise ConfigError(mistakes)
    forget_accounts(os.environ)
    directory = Path(tempfile.mkdtemp(prefix="byoc-demo-"))
    try:
        return asyncio.run(_play(directory))
    finally:
        _leave(directory, keep=options.keep)


def _missing() -> list[str]:
    """Return the missing requirements of this machine."""
    lacks = []
    if not Path("/proc/self/stat").exists():
        lacks.append("demo: meters a process by Linux's /proc, which is not here")
    try:
        import moto.server  # noqa: F401, PLC0415
        import rich  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        lacks.append(f"demo: no {error.name} here; `make demo` installs it")
    return lacks


async def _play(directory: Path) -> int:
    from lab.demo import script  # noqa: PLC0415  needs the extra

    playing = asyncio.ensure_future(script.play(directory))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, playing.cancel)
    try:
        return await playing
    except asyncio.CancelledError:
        sys.stderr.write("stopped; every process of the demo has ended\n")
        return 130
    except DemoError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1


def _leave(directory: Path, *, keep: bool) -> None:
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
        return
    sys.stdout.write(
        f"kept in {directory}:\n"
        f"  byoc-agents verify {directory / 'bucket'}\n"
        f"  byoc-agents ledger report --html report.html {directory / 'state'}\n"
    )
