"""JSON logs on standard error: event constants with fields, one line each.

Logging never blocks the event loop. Lines for standard error go through a bounded queue to a
separate thread: a pipe that nobody reads blocks that thread only. Lines that do not fit into the
queue or cannot be written are counted; `log.lost` reports the number as soon as writing succeeds.
"""

import logging
import os
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

MAX_LIBRARY_TEXT = 300  # characters of a library's own message
MAX_QUEUED_BYTES = 1 << 20  # queued lines; about 5,000 of usual length
CLOSE_SECONDS = 2.0  # limit for writing the last lines at exit


def configure(level: str, stream: TextIO | None = None) -> None:
    """Set up structlog, and route the warnings of libraries through it.

    Without `stream` a thread writes the lines to standard error; see `close`.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    out = _Lenient(stream) if stream else _standard_error()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", out)),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class QueuedOutput:
    """A file descriptor behind a bounded queue and a thread. `write` never blocks or raises."""

    def __init__(
        self,
        descriptor: int,
        *,
        max_bytes: int = MAX_QUEUED_BYTES,
        on_lost: Callable[[int], None] = lambda _lines: None,
    ) -> None:
        """Write to `descriptor`, which stays open; call `on_lost` with numbers of lost lines."""
        self.on_lost = on_lost
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._lines: list[bytes] = []
        self._bytes = 0
        self._lost = 0  # lines that no `log.lost` has reported yet
        self._writing = False
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    def write(self, text: str) -> None:
        """Queue one line, or count it as lost. From any thread."""
        line = text.encode(errors="backslashreplace")
        with self._changed:
            if self._bytes + len(line) > self._max_bytes:
                self._lose(1)
                return
            self._lines.append(line)
            self._bytes += len(line)
            if self._thread is None:  # started late: threads do not survive a fork
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Do nothing: the thread writes as soon as it can."""

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until all lines are written, but no longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._writing, seconds)

    def _lose(self, lines: int) -> None:
        self._lost += lines
        self.on_lost(lines)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                lines, self._lines, self._bytes = self._lines, [], 0
                self._writing = True
            self._write_group(lines)

    def _write_group(self, lines: list[bytes]) -> None:
        try:
            self._write_all(b"".join(lines))
        except OSError:  # a full disk, or a closed pipe
            with self._changed:
                self._lose(len(lines))
            return
        with self._changed:
            lost, self._lost = self._lost, 0
        if lost:
            try:
                self._write_all(_lost_line(lost).encode())
            except OSError:
                with self._changed:
                    self._lost += lost

    def _write_all(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # another process made the shared file non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


_output: QueuedOutput | None = None


def _standard_error() -> "QueuedOutput | _Lenient":
    """Return the queue for standard error, or a lenient stream if it has no descriptor."""
    global _output  # noqa: PLW0603  one standard error per process
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # closed at the start, or replaced by a test
        return _Lenient(sys.stderr or open(os.devnull, "w"))  # noqa: PTH123
    _output = QueuedOutput(descriptor)
    return _output


def count_lost(on_lost: Callable[[int], None]) -> None:
    """Call `on_lost` with the number of lines whenever some are lost. From any thread."""
    if _output:
        _output.on_lost = on_lost


def close() -> None:
    """Wait for the last lines, at most CLOSE_SECONDS."""
    if _output:
        _output.close()


def _lost_line(lines: int) -> str:
    return f'{{"event": "log.lost", "level": "error", "lines": {lines}}}\n'


class _Lenient:
    """A stream that drops lines it cannot write, and reports their number after the next success.

    A full disk or a stopped log collector must not stop a daemon: an error raised here would
    replace the error that was about to be logged.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = 0  # lines

    def write(self, text: str) -> None:
        """Write, or count."""
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)

    def flush(self) -> None:
        """Flush; called once per line."""
        try:
            self._stream.flush()
            self._stream.write(_lost_line(self._lost) if self._lost else "")
            self._stream.flush()
        except (OSError, ValueError):
            self._lost += 1
        else:
            self._lost = 0


class _LibraryHandler(logging.Handler):
    """Writes one line per record; of a traceback only the type of the exception."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; a malformed one is written without its arguments."""
        fields: dict[str, Any] = {"library": record.name}
        if record.exc_info and record.exc_info[0]:
            fields["error"] = record.exc_info[0].__name__
        try:
            text = record.getMessage()[:MAX_LIBRARY_TEXT]
        except (TypeError, ValueError):
            text = str(record.msg)[:MAX_LIBRARY_TEXT]
        structlog.get_logger().log(record.levelno, "library.logged", text=text, **fields)
