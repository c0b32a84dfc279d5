"""JSON logs on standard error: event constants with fields, one line each."""

import logging
import sys
from typing import Any, TextIO

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
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


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
