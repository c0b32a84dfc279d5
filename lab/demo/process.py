"""Start and end one process of the demo by its pid; none is left running."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

STOP_SECONDS = 30.0  # for a shutdown in good order, on a machine that is busy

Child = asyncio.subprocess.Process


class DemoError(Exception):
    """The demo cannot continue. The message states the reason."""


@asynccontextmanager
async def started(
    argv: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Child]:
    """Start a process that writes into `log`; it is always ended at the exit."""
    with log.open("wb") as out:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | dict(environ or {}),
            start_new_session=True,  # Ctrl-C is for the demo, which then stops it in good order
        )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def end(child: Child, number: signal.Signals) -> int:
    """Send a signal and return the exit code. Raises DemoError if the process does not end."""
    child.send_signal(number)
    try:
        return await asyncio.wait_for(child.wait(), STOP_SECONDS)
    except TimeoutError:
        raise DemoError(f"process {child.pid} goes on after {number.name}") from None


async def written(log: Path, text: str, child: Child, seconds: float = STOP_SECONDS) -> str:
    """Wait for a line of the log that holds `text`, and return it. Raises DemoError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := [line for line in whole_lines(log) if text in line]:
            return found[-1]
        if child.returncode is not None:
            break
        await asyncio.sleep(0.05)
    raise DemoError(f"no {text!r} in {log.name}; its last lines:\n{tail(log)}")


def whole_lines(log: Path) -> list[str]:
    """Return the complete lines of a log."""
    return log.read_text(errors="replace").split("\n")[:-1]


def tail(log: Path, lines: int = 5) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def forget_accounts(environ: MutableMapping[str, str]) -> None:
    """Remove the variables of a person's own account, daemons or proxy from an environment."""
    foreign = ("AWS_", "BYOC_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for name in [name for name in environ if name.upper().startswith(foreign)]:
        del environ[name]
