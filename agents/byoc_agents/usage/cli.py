"""`byoc-agents usage`: read kept bodies of a ledger or billing objects; print the usage by day."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from byoc_agents.app.cloudevents import encode
from byoc_agents.app.command_line import CommandParser
from byoc_agents.audit import Audit
from byoc_agents.audit.cli import (
    Connect,
    ProgressLine,
    add_bounds,
    chosen_hours,
    is_partial,
    parse_target,
    read_target,
)
from byoc_agents.audit.readers import SCHEME, UnreadableError
from byoc_agents.audit.report import Report
from byoc_agents.report.cli import NoLedgerError, find_ledgers, standard_state_dir
from byoc_agents.usage.bodies import read_bodies
from byoc_agents.usage.report import UsageReport, report_usage
from byoc_agents.usage.text import usage_text

END = """A record belongs to the UTC day of its start. The figures in seconds of --json are
exact, and equal to those of totals.sql.

example: byoc-agents usage --since 2026-11-01 --until 2026-12-01 --html usage.html"""


def main(
    argv: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    connect: Connect | None = None,
) -> int:
    """Print the usage. Return 0 if the records are complete and sound, else 1.

    2 means that there is no result: wrong usage, nothing to read, or an unreadable target.
    """
    try:
        options = make_parser(environ).parse_args(argv)
    except SystemExit as stop:  # argparse has printed the reason
        return int(stop.code or 0)
    try:
        return _print_usage(options, connect)
    except UnreadableError as error:
        sys.stderr.write(f"byoc-agents usage: {error}\n")
        return 2


def make_parser(environ: Mapping[str, str] = os.environ) -> CommandParser:
    """Return the parser of the command."""
    variable, standard = standard_state_dir(environ)
    parser = CommandParser(
        prog="byoc-agents usage",
        description="Print the CPU and memory of each service by day, used and allocated.",
        epilog=END,
    )
    parser.add_argument(
        "target",
        nargs="?",
        default=standard,
        metavar="DIRECTORY|s3://BUCKET/PREFIX",
        type=parse_target,
        help="a state directory, whose ledgers keep the bodies of the sends, or a place with "
        f"billing objects; default {variable}, now {standard}",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--html", metavar="FILE", help="write one HTML page; - = stdout")
    form.add_argument("--json", action="store_true", help="print one JSON object")
    add_bounds(parser)
    return parser


def _print_usage(options: argparse.Namespace, connect: Connect | None) -> int:
    if options.html:  # before the work, because Jinja2 may be missing
        from byoc_agents.usage.page import Page  # noqa: PLC0415  an extra

        page = Page()
    usage, audited = _read(options, connect)
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    if options.html:
        _write_file(options.html, page.render(usage, audited))
    elif options.json:
        sys.stdout.write(f"{encode(usage).decode()}\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in usage_text(usage, audited))
    return 0 if audited.ok else 1


def _read(options: argparse.Namespace, connect: Connect | None) -> tuple[UsageReport, Report]:
    ledgers = _ledgers_of(options.target)
    audit = Audit(partial=bool(ledgers) or is_partial(options), by_day=True)
    unkept = 0
    if ledgers:
        unkept = read_bodies(audit, ledgers, chosen_hours(options), ProgressLine())
    else:
        read_target(audit, options, connect)
    audited, days = audit.report_days(options.target)
    if not days and audited.counts.keys() <= {"foreign_object"}:
        raise UnreadableError(
            f"{options.target}: no billing record: expected a state directory with a ledger that "
            "keeps bodies, or objects v1/org=ORG/service=SERVICE/date=DATE/hour=HOUR/NAME.jsonl.zst"
        )
    return report_usage(audited, days, unkept), audited


def _ledgers_of(target: str) -> Mapping[str, Path]:
    """Return daemon's name -> directory of its ledger; empty if the target has objects instead."""
    try:
        return {} if target.startswith(SCHEME) else find_ledgers([target], "")
    except NoLedgerError:
        return {}


def _write_file(name: str, text: str) -> None:
    if name == "-":
        sys.stdout.write(text)
        return
    try:
        Path(name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UnreadableError(f"--html {name}: {error.strerror}") from error
