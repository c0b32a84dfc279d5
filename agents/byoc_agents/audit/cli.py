"""`byoc-agents verify`: read a bucket or a directory and report problems."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError

from byoc_agents.app.cloudevents import encode, parse_rfc3339, rfc3339
from byoc_agents.audit.audit import Audit
from byoc_agents.audit.readers import Hours, UnreadableError, read_bucket, read_directory
from byoc_agents.audit.render import text
from byoc_agents.audit.report import Report

PROGRESS_OBJECTS = 10_000  # per progress line on stderr
SCHEME = "s3://"

Connect = Callable[[str | None], AbstractAsyncContextManager[Any]]


def s3_client(region: str | None) -> AbstractAsyncContextManager[Any]:
    """Return an S3 client that botocore configures from the environment and its own files."""
    client: AbstractAsyncContextManager[Any] = get_session().create_client("s3", region_name=region)
    return client


def main(argv: Sequence[str], connect: Connect = s3_client) -> int:
    """Print the report. Return 0 if no problem was found, else 1.

    2 means that there is no result: wrong usage, or an unreadable bucket or directory.
    """
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the reason
        return int(stop.code or 0)
    audit = Audit(partial=bool(options.since) or "/date=" in options.target)
    try:
        _read(audit, options, connect)
    except (UnreadableError, BotoCoreError) as error:
        sys.stderr.write(f"byoc-agents verify: {error}\n")
        return 2
    report = audit.report(options.target)
    _write(report, as_json=options.json)
    return 0 if report.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="byoc-agents verify",
        description="Read billing objects back: missing, doubled, damaged records, and totals.",
        epilog="The loss of the newest records of the last epoch cannot be detected.\n\n"
        "example: byoc-agents verify s3://vendor-usage/v1/ --since 2026-11-23",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="s3://BUCKET/PREFIX|DIRECTORY", type=_target)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--since", type=_hour, metavar="TIME", help=_HOUR_HELP)
    parser.add_argument("--until", type=_hour, metavar="TIME", help="and before this")
    parser.add_argument("--region", help="of the bucket; default as botocore finds it")
    return parser


_HOUR_HELP = "only objects that begin in this UTC hour or later, e.g. 2026-11-23T12:00Z"


def _target(value: str) -> str:
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


def _read(audit: Audit, options: argparse.Namespace, connect: Connect) -> None:
    hours, progress = Hours(options.since or "", options.until or ""), _ProgressLine()
    if not options.target.startswith(SCHEME):
        read_directory(audit, Path(options.target), hours, progress)
        return
    bucket, _, prefix = options.target.removeprefix(SCHEME).partition("/")

    async def read() -> None:
        async with connect(options.region) as client:
            await read_bucket(audit, client, (bucket, prefix), hours, progress)

    asyncio.run(read())


class _ProgressLine:
    """Shows the progress on stderr: continuously on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._step = 100 if self._terminal else PROGRESS_OBJECTS
        self._next = self._step

    def __call__(self, objects: int) -> None:
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
