"""`byoc-agents ledger show | verify | checkpoint | prove | report`: the data that left.

Exit codes: 0 success, 1 problems found or no such message, 2 bad usage.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from byoc_agents.app.cloudevents import parse_rfc3339, rfc3339
from byoc_agents.app.command_line import CommandParser, color_verdict
from byoc_agents.app.settings import CoreSettings, settings_of, size
from byoc_agents.ledger.format import LinePosition
from byoc_agents.ledger.heads import ANCHOR, KeptHeads
from byoc_agents.ledger.query import Filter, Send, events
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.verify import LedgerVerdict, verify
from byoc_agents.report import checkpoint
from byoc_agents.report.bodies import plain, read_kept
from byoc_agents.report.cloudtrail import compare
from byoc_agents.report.text import HEADING, event_text, trail_text, verdict_text

SENTENCE = {
    "show": "Print every send, every refused connection and every fact, one line each.",
    "verify": "Check the hash chain, kept bodies, and kept heads. Exit code 1: problems found.",
    "checkpoint": "Print the size and the root of each ledger, signed with a key of yours.",
    "prove": "Print a proof that a line, or an earlier size, is part of the ledger.",
    "report": "Write one self-contained HTML page for a security reviewer.",
}
EXAMPLES = {
    "show": "byoc-agents ledger show --since 2026-11-23 --destination 's3://*' --json",
    "verify": "byoc-agents ledger verify --daemon billing-scraper",
    "checkpoint": "byoc-agents ledger checkpoint --key key.pem >> heads.txt",
    "prove": "byoc-agents ledger prove --daemon billing-scraper --line 41 --key key.pem",
    "report": "byoc-agents ledger report --html report.html",
}
END = """Without --heads, a change of the very last line, lines missing at the very end and a ledger
that was replaced as a whole cannot be detected. Keep heads elsewhere: the output of `byoc-agents
ledger checkpoint`, and size and root of the heartbeats, of /status or of the log event
ledger.segment_started."""


class NoLedgerError(Exception):
    """No ledger was found. `str()` names the directories."""


def main(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Run one of the commands; return the exit code."""
    try:
        options = make_parser(environ).parse_args(argv)
    except SystemExit as stop:  # argparse has printed the reason
        return int(stop.code or 0)
    try:
        code: int = options.run(options)
    except (NoLedgerError, checkpoint.UsageError) as error:
        sys.stderr.write(f"byoc-agents ledger: {error}\n")
        return 2
    except BrokenPipeError:  # the reader, `head` perhaps, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        known = error.filename and error.strerror
        reason = f"{error.filename}: {error.strerror}" if known else str(error)
        sys.stderr.write(f"byoc-agents ledger: {reason}\n")
        return 2
    return code


def make_parser(environ: Mapping[str, str] = os.environ) -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="byoc-agents ledger",
        description="Show, verify, prove or report the data that left this machine.",
        epilog=f"example: {EXAMPLES['show']}",
    )
    commands = parser.add_subparsers(required=True, metavar=" | ".join(SENTENCE))
    show = _command(commands.add_parser, "show", _show, environ)
    _add_filters(show)
    show.add_argument(
        "--id", default="", help="one message: S3 key, event id or delivery id; or one grant"
    )
    show.add_argument("--body", action="store_true", help="with --id: its exact content, unpacked")
    show.add_argument("--raw", action="store_true", help="with --body: its exact bytes")
    show.add_argument("--json", action="store_true", help="one JSON object per line")
    check = _command(commands.add_parser, "verify", _verify, environ)
    check.epilog = f"{END}\n\n{check.epilog}"
    check.add_argument(
        "--anchor", action="append", default=[], type=_anchor, help="SEQUENCE:SHA256"
    )
    check.add_argument(
        "--heads", metavar="FILE", help="all heads that you have kept: checkpoints, SIZE ROOT lines"
    )
    check.add_argument(
        "--origin", default="", metavar="NAME", help="with --heads: only those named NAME/DAEMON"
    )
    check.add_argument(
        "--key", metavar="FILE", help="accept only --heads that are signed with this key"
    )
    _add_bound(check, environ)
    check.add_argument(
        "--cloudtrail",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="compare with your CloudTrail data events: files or directories; may be repeated",
    )
    check.add_argument(
        "--identity", default="", help="with --cloudtrail: only events of this ARN, or a part of it"
    )
    check.add_argument("--json", action="store_true", help="one JSON object per daemon")
    checkpoint.add_arguments(_command(commands.add_parser, "checkpoint", _checkpoint, environ))
    proof = _command(commands.add_parser, "prove", _prove, environ)
    checkpoint.add_arguments(proof)
    checkpoint.add_proof_arguments(proof)
    page = _command(commands.add_parser, "report", _report, environ)
    page.add_argument("--html", required=True, metavar="FILE", help="where to write it; - = stdout")
    _add_bound(page, environ)
    _add_filters(page)
    return parser


def _command(
    add: Callable[..., argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    environ: Mapping[str, str],
) -> argparse.ArgumentParser:
    parser = add(
        name,
        description=SENTENCE[name],
        epilog=f"example: {EXAMPLES[name]}",
    )
    parser.set_defaults(run=run)
    variable, standard = standard_state_dir(environ)
    parser.add_argument(
        "directories",
        nargs="*",
        default=[standard],
        metavar="DIRECTORY",
        help=f"state directory, or one daemon's; default {variable}, now {standard}",
    )
    parser.add_argument("--daemon", default="", help="only this one, e.g. billing-scraper")
    return parser


def standard_state_dir(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that names the state directory, and the directory."""
    setting, _ = settings_of(CoreSettings)["state_dir"]
    fields = msgspec.structs.fields(CoreSettings)
    default = next(str(field.default) for field in fields if field.name == "state_dir")
    return setting.variable, environ.get(setting.variable) or default


def _add_bound(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> None:
    variable, bound = _standard_bound(environ)
    parser.set_defaults(standard_bound=bound)
    parser.add_argument(
        "--max-bytes",
        action="append",
        default=[],
        type=_size,
        metavar="SIZE",
        help=f"bound of the ledger; once for each value that {variable} ever had; now {bound}",
    )


def _bounds(options: argparse.Namespace) -> list[int]:
    """Return the bounds that the user names, or the one of the setting. Raises UsageError."""
    try:
        return options.max_bytes or [_size(options.standard_bound)]
    except argparse.ArgumentTypeError as error:
        raise checkpoint.UsageError(f"BYOC_LEDGER_MAX_BYTES: {error}") from error


def _standard_bound(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that bounds the ledger, and its value or the default."""
    setting, _ = settings_of(CoreSettings)["ledger_max_bytes"]
    fields = msgspec.structs.fields(CoreSettings)
    default = next(str(field.default) for field in fields if field.name == "ledger_max_bytes")
    return setting.variable, environ.get(setting.variable) or default


def _size(value: str) -> int:
    try:
        return size(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value}: {error}") from error


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=_moment, default="", metavar="TIME", help=_TIME)
    parser.add_argument("--until", type=_moment, default="", metavar="TIME", help="and before this")
    parser.add_argument("--type", default="", help="event type; * and ? are allowed")
    parser.add_argument(
        "--destination", default="", help="s3://..., sqs://..., https://...; * and ?"
    )


_TIME = "from this time on, e.g. 2026-11-23 or 2026-11-23T12:00Z"


def _moment(value: str) -> str:
    """Return RFC 3339 in UTC of a date, or of a date and time with a zone."""
    if not value:
        return ""
    try:
        return rfc3339(parse_rfc3339(value if "T" in value else f"{value}T00:00Z"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value}: {error}") from error


def _anchor(value: str) -> tuple[int, str]:
    sequence, _, sha256 = value.partition(":")
    if not ANCHOR.fullmatch(value):
        raise argparse.ArgumentTypeError(f"{value}: expected SEQUENCE:SHA256, the head of /status")
    return int(sequence), sha256.lower()


def _filter(options: argparse.Namespace, message_id: str = "") -> Filter:
    return Filter(options.since, options.until, options.type, options.destination, message_id)


# show


def _show(options: argparse.Namespace) -> int:
    found = events(find_ledgers(options.directories, options.daemon), _filter(options, options.id))
    if options.body or options.raw:
        return _show_body(options)
    if not options.json:
        sys.stdout.write(f"{HEADING}\n")
    count = 0
    for event in found:
        count += 1
        line = msgspec.json.encode(event).decode() if options.json else event_text(event)
        sys.stdout.write(f"{line}\n")
    return 0 if count or not options.id else 1


def _show_body(options: argparse.Namespace) -> int:
    if not options.id:
        sys.stderr.write("byoc-agents ledger show: --body requires --id\n")
        return 2
    where = find_ledgers(options.directories, options.daemon)
    for event in events(where, _filter(options, options.id)):
        body = read_kept(event) if isinstance(event, Send) else None
        if body is not None:
            sys.stdout.buffer.write(body if options.raw else plain(body))
            sys.stdout.buffer.flush()
            return 0
    sys.stderr.write("byoc-agents ledger show: no body of this id is kept\n")
    return 1


# verify


def _verify(options: argparse.Namespace) -> int:
    where = find_ledgers(options.directories, options.daemon)
    if options.anchor and len(where) > 1:
        sys.stderr.write("byoc-agents ledger verify: --anchor is for one ledger: add --daemon\n")
        return 2
    heads = checkpoint.read_heads(options.heads, options.key) if options.heads else KeptHeads()
    if options.origin and not (heads := heads.of_origin(options.origin)).heads:
        raise checkpoint.UsageError(f"{options.heads}: no head is named {options.origin}/DAEMON")
    daemons = {_daemon_of(path) for path in where.values()}
    unnamed = len(daemons) > 1 and any(not head.name for head in heads.heads)
    if unnamed or (len(where) > 1 and heads.anchors):
        text = "heads without a name: add --daemon, or the directory of one ledger"
        sys.stderr.write(f"byoc-agents ledger verify: {text}\n")
        return 2
    heads = heads._replace(
        anchors=(*heads.anchors, *(LinePosition(*one) for one in options.anchor))
    )
    ok = _compare_heads(where, heads, options)
    return 0 if _compare_trail(where, options) and ok else 1


def _compare_heads(
    where: Mapping[str, Path], heads: KeptHeads, options: argparse.Namespace
) -> bool:
    """Verify each ledger, and print its verdict. Return whether there is no problem."""
    bounds = _bounds(options)
    same: dict[str, list[str]] = {}
    for name, path in where.items():
        same.setdefault(_daemon_of(path), []).append(name)
    ok = True
    for daemon, names in same.items():
        paths = [where[name] for name in names]
        for name, verdict in zip(
            names, checkpoint.verify_with(heads, daemon, paths, bounds), strict=True
        ):
            _write_verdict(name, verdict, as_json=options.json)
            ok = ok and verdict.ok
    foreign = checkpoint.find_foreign(heads, same.keys())
    for name in foreign:
        if options.daemon:
            text = f"kept heads named {name} were not compared: --daemon is {options.daemon}"
        else:
            text = f"kept heads named {name} are of no ledger here: is it deleted, or elsewhere?"
        sys.stderr.write(f"byoc-agents ledger verify: {text}\n")
    return ok and (bool(options.daemon) or not foreign)


def _compare_trail(where: Mapping[str, Path], options: argparse.Namespace) -> bool:
    """Compare with CloudTrail, if asked for. Return whether nothing differs."""
    if not options.cloudtrail:
        return True
    try:
        verdict = compare(where, options.cloudtrail, options.identity)
    except ValueError as error:
        raise checkpoint.UsageError(str(error)) from error
    if options.json:
        described = {"daemon": "cloudtrail", "ok": verdict.ok} | msgspec.to_builtins(verdict)
        sys.stdout.write(f"{msgspec.json.encode(described).decode()}\n")
    else:
        _write_lines(trail_text(verdict), ok=verdict.ok)
    return verdict.ok


def _write_lines(lines: Iterator[str], *, ok: bool) -> None:
    first, *others = lines
    sys.stdout.write(f"{color_verdict(first, sys.stdout, ok=ok)}\n")
    sys.stdout.writelines(f"{line}\n" for line in others)


def _write_verdict(name: str, verdict: LedgerVerdict, *, as_json: bool) -> None:
    if as_json:
        described = {"daemon": name, "ok": verdict.ok} | msgspec.to_builtins(verdict)
        sys.stdout.write(f"{msgspec.json.encode(described).decode()}\n")
    else:
        _write_lines(verdict_text(name, verdict), ok=verdict.ok)


# checkpoint and prove


def _checkpoint(options: argparse.Namespace) -> int:
    return checkpoint.print_checkpoints(find_ledgers(options.directories, options.daemon), options)


def _prove(options: argparse.Namespace) -> int:
    return checkpoint.print_proof(find_ledgers(options.directories, options.daemon), options)


# report


def _report(options: argparse.Namespace) -> int:
    from byoc_agents.report.page import render_page  # noqa: PLC0415  the schemas cost 0.2 s

    where = find_ledgers(options.directories, options.daemon)
    verdicts = {name: verify(path, bounds=_bounds(options)) for name, path in where.items()}
    html = render_page(where, verdicts, _filter(options))
    if options.html == "-":
        sys.stdout.write(html)
    else:
        Path(options.html).write_text(html, encoding="utf-8")
    return 0 if all(verdict.ok for verdict in verdicts.values()) else 1


# Finds ledgers by state directory, by a daemon's directory, or by the ledger's own.


def find_ledgers(directories: Sequence[str], daemon: str) -> Mapping[str, Path]:
    """Return daemon's name -> directory of its ledger. Raises NoLedgerError."""
    found: dict[str, Path] = {}
    for directory in map(Path, directories):
        for path in _below(directory):
            name = _daemon_of(path)
            found[name if name not in found else str(path)] = path
    chosen = {name: path for name, path in found.items() if daemon in {"", name, _daemon_of(path)}}
    if not chosen:
        of_daemon = f" of {daemon}" if daemon else ""
        raise NoLedgerError(f"no ledger{of_daemon} below {', '.join(directories)}")
    return chosen


def _daemon_of(path: Path) -> str:
    """Return the daemon's name: of the directory of its ledger, or of the one above `ledger`."""
    return path.resolve().parent.name if path.name == "ledger" else path.name


def _below(directory: Path) -> list[Path]:
    if _is_ledger(directory):
        return [directory]
    near = [directory / "ledger", *sorted(directory.glob("*/ledger"))]
    return [path for path in near if _is_ledger(path)]


def _is_ledger(directory: Path) -> bool:
    return directory.is_dir() and ((directory / "lock").exists() or _has_files(directory))


def _has_files(directory: Path) -> bool:
    return bool(Segments(directory).numbers())
