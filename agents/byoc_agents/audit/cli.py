"""`byoc-agents verify`: read a bucket or a directory and report problems."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

from byoc_agents.app.cloudevents import encode, parse_rfc3339, rfc3339
from byoc_agents.app.command_line import CommandParser
from byoc_agents.audit.audit import Audit
from byoc_agents.audit.readers import SCHEME, Hours, UnreadableError, read_directory
from byoc_agents.audit.render import text
from byoc_agents.audit.report import Report

PROGRESS_OBJECTS = 10_000  # per progress line on stderr

Connect = Callable[[str | None], AbstractAsyncContextManager[Any]]


def main(argv: Sequence[str], connect: Connect | None = None) -> int:
    """Print the report. Return 0 if no problem was found, else 1.

    2 means that there is no result: wrong usage, or an unreadable bucket or directory.
    """
    try:
        options = make_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the reason
        return int(stop.code or 0)
    audit = Audit(partial=is_partial(options))
    try:
        read_target(audit, options, connect)
    except UnreadableError as error:
        sys.stderr.write(f"byoc-agents verify: {error}\n")
        return 2
    report = audit.report(options.target)
    _write(report, as_json=options.json)
    return 0 if report.ok else 1


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="byoc-agents verify",
        description="Read billing objects back: missing, doubled, damaged records, and totals.",
        epilog="The loss of the newest records of the last epoch cannot be detected.\n\n"
        "example: byoc-agents verify s3://vendor-usage/v1/ --since 2026-11-23",
    )
    parser.add_argument("target", metavar="s3://BUCKET/PREFIX|DIRECTORY", type=parse_target)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    add_bounds(parser)
    return parser


_HOUR_HELP = "only objects that begin in this UTC hour or later, e.g. 2026-11-23T12:00Z"


def add_bounds(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what of a target is read."""
    parser.add_argument("--since", type=_hour, metavar="TIME", help=_HOUR_HELP)
    parser.add_argument("--until", type=_hour, metavar="TIME", help="and before this")
    parser.add_argument("--region", help="of the bucket; default as botocore finds it")


def is_partial(options: argparse.Namespace) -> bool:
    """Return whether the beginning of the target's epochs is left out on purpose."""
    return bool(options.since) or "/date=" in options.target


def parse_target(value: str) -> str:
    """Return a target that exists, or names a bucket. Raises ArgumentTypeError."""
    if value.startswith(SCHEME):
        if not value.removeprefix(SCHEME).partition("/")[0]:
            raise argparse.ArgumentTypeError(f"{value} names no bucket")
    elif not Path(value).is_dir():
        raise argparse.ArgumentTypeError(f"{value}: expected a directory or an {SCHEME} URL")
    return value


def _hour(value: str) -> str:
    """Return `YYYY-MM-DDTHH` of a date, or of a date and time with a zone."""
    try:
        return rfc3339(parse_rfc3339(value if "T" in value else f"{value}T00:00Z"))[:13]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value}: {error}") from error


def chosen_hours(options: argparse.Namespace) -> Hours:
    """Return the hours of the options of `add_bounds`."""
    return Hours(options.since or "", options.until or "")


def read_target(audit: Audit, options: argparse.Namespace, connect: Connect | None = None) -> None:
    """Audit the objects of a bucket or a directory. Raises UnreadableError."""
    hours, progress = chosen_hours(options), ProgressLine()
    if not options.target.startswith(SCHEME):
        read_directory(audit, Path(options.target), hours, progress)
        return
    from byoc_agents.audit.bucket import read_url, s3_client  # noqa: PLC0415  costs 20 MiB

    connection = partial(connect or s3_client, options.region)
    read_url(audit, options.target, hours, progress, connection)


class ProgressLine:
    """Shows the progress on stderr: continuously on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._step = 100 if self._terminal else PROGRESS_OBJECTS
        self._next = self._step

    def __call__(self, objects: int) -> None:
        """Show that so many objects have been read."""
        if objects >= self._next:
            self._next = objects + self._step
            line = f"\r{objects} objects" if self._terminal else f"{objects} objects\n"
            sys.stderr.write(line)


def _write(report: Report, *, as_json: bool) -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    if as_json:
        sys.stdout.write(f"{encode(report).decode()}\n")
        return
    for line in text(report):
        sys.stdout.write(f"{line}\n")
