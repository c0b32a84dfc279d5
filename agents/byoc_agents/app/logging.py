"""JSON logs on standard error: event constants with fields, one line each."""

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

MAX_LIBRARY_TEXT = 300  # characters of a library's own message


def configure(level: str, stream: TextIO | None = None) -> None:
    """Set up structlog, and route the warnings of libraries through it."""
    out = stream or sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Lenient(out))),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class _Lenient:
    """A stream that drops what it cannot write, and says how much as soon as it can again.

    A full disk under the log, or a collector that went away, stops no daemon: an error raised here
    would end whatever was about to tell of another one.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = 0  # lines

    def write(self, text: str) -> None:
        """Write, or count."""
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)

    def flush(self) -> None:
        """Flush, once a line."""
        said = f'{{"event": "log.lost", "level": "error", "lines": {self._lost}}}\n'
        try:
            self._stream.flush()
            self._stream.write(said if self._lost else "")
            self._stream.flush()
        except (OSError, ValueError):
            self._lost += 1
        else:
            self._lost = 0


class _LibraryHandler(logging.Handler):
    """One line a record; of a trace only what was raised."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; a malformed one is not worth a trace either."""
        fields: dict[str, Any] = {"library": record.name}
        if record.exc_info and record.exc_info[0]:
            fields["error"] = record.exc_info[0].__name__
        try:
            text = record.getMessage()[:MAX_LIBRARY_TEXT]
        except (TypeError, ValueError):
            text = str(record.msg)[:MAX_LIBRARY_TEXT]
        structlog.get_logger().log(record.levelno, "library.log", text=text, **fields)
