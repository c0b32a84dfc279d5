"""Signals that end the process, handled from its start.

SIGTERM, SIGINT and SIGHUP all request a graceful stop: close open records, drain within the grace
period, exit code 0. Before the daemons run there is nothing to close, so the process exits with 0
at once. A process that is PID 1 of a container has no default action for these signals: without a
handler they would be lost. This module imports nothing heavy, so that `install` can come first.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ended = False  # the daemons have stopped and the process is about to exit


def install() -> None:
    """Exit with 0 on each of NUMBERS until `stopping` takes over. Main thread only.

    A signal that is ignored stays ignored: `nohup` ignores SIGHUP.
    """
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(_number: int, _frame: FrameType | None) -> None:
    if not _ended:
        raise SystemExit(0)


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on each of NUMBERS; afterwards restore the old handlers. Main thread only.

    A signal that comes after the daemons have stopped changes nothing: the process is ending.
    """
    global _ended  # noqa: PLW0603  signals belong to the process
    kept = {
        number: handler
        for number in NUMBERS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in kept:
        signal.signal(number, lambda _number, _frame: stop())
    try:
        yield
    finally:
        _ended = True
        for number, handler in kept.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
