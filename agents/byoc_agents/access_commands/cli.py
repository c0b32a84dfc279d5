"""`byoc-agents access ...`: the customer's side of the vendor's access.

Exit codes: 0 success, 1 refused, not found or access is still open, 2 bad usage or no broker.
"""

import argparse
import base64
import datetime as dt
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from byoc_agents.access import clickhouse_sql
from byoc_agents.access.authority import create_authority
from byoc_agents.access.documents import (
    APPROVAL,
    REQUEST,
    AccessRequest,
    Approval,
    parse_document,
    sha256,
    utc_text,
)
from byoc_agents.access.errors import AuthorityError, DocumentError, PolicyError
from byoc_agents.access.orders import (
    ALL,
    Approve,
    CheckServers,
    Deny,
    Forget,
    Order,
    OrderFolder,
    Revoke,
    Submit,
)
from byoc_agents.access.policy import (
    MAX_POLICY_BYTES,
    Policy,
    find_wait,
    judge_request,
    load_policy,
    parse_duration,
)
from byoc_agents.access_commands.evidence import collect_evidence, write_evidence
from byoc_agents.access_commands.state import (
    BrokerState,
    NoBrokerError,
    is_ended,
    may_have_access,
    summarize,
)
from byoc_agents.access_commands.text import HEADING, fact_line, grant_line, grant_text, printable
from byoc_agents.access_commands.verify import verify_evidence
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.command_line import CommandParser
from byoc_agents.app.files import MAX_SECRET_BYTES, read_within
from byoc_agents.envelope import (
    KEY_BYTES,
    MAX_ENVELOPE_BYTES,
    VerifyingKey,
    open_envelope,
    read_unverified,
    sign,
)
from byoc_agents.errors import EnvelopeError, SpoolError
from byoc_agents.ledger.format import LinePosition
from byoc_agents.ledger.heads import parse_heads
from byoc_agents.ledger.query import RecordedFact
from byoc_agents.report.cli import standard_state_dir

ANSWER_SECONDS = 10.0  # for the broker's answer: it makes a pass each second
POLL_SECONDS = 0.1
REFUSALS = re.compile(
    r"refused|not an order|cannot be read|[^:]*: (?:not pending|unknown|already ended|nothing is)"
)
COMMANDS = {
    "list": ("List the requests and grants that have not ended.", "list --all --json"),
    "show": ("Show one request: who, why, and its history.", "show 0190a7c2"),
    "approve": ("Approve a request, in full or in part.", "approve 0190a7c2 --for 30m --by anna"),
    "deny": ("Deny a request.", "deny 0190a7c2 --comment 'not during the sale' --by anna"),
    "revoke": ("End a grant, or all of them, now.", "revoke all --by anna"),
    "kill": ("Set the kill switch: nothing opens, and everything ends.", "kill on --wait 60"),
    "status": ("Print whether anybody may have access.", "status"),
    "submit": ("Hand over a request of the vendor as a file.", "submit request.dsse.json"),
    "sign": (
        "Sign an approval with a key of yours, off the cluster.",
        "sign request.dsse.json --key anna.pem --key-id sec-1 --by anna > approval.json",
    ),
    "check": ("Let the broker check each server.", "check"),
    "forget-replica": (
        "Give up a server that will never answer again.",
        "forget-replica r1 --comment 'its disk is lost' --by anna",
    ),
    "policy": ("Check a policy file.", "policy policy.yaml"),
    "sql": ("Print the SQL that prepares each server.", "sql > access.sql"),
    "init-ca": ("Write a new certificate authority.", "init-ca ca --service svc-1"),
    "report": ("Report all requests and their use.", "report --html access.html"),
    "evidence": ("Write the evidence of one grant.", "evidence 0190a7c2 --out evidence"),
    "verify": (
        "Verify the evidence of one grant, without a broker.",
        "verify evidence --vendor-key vendor.pem --anchor 41:9f86d081884c7d659a2feaa0...",
    ),
}


class BadUsageError(Exception):
    """An argument cannot be used. `str()` states what is expected."""


def main(
    argv: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Run one of the commands; return the exit code."""
    try:
        options = make_parser(environ).parse_args(argv)
    except SystemExit as stop:  # argparse has printed the reason
        return int(stop.code or 0)
    options.state = BrokerState(Path(options.state_dir))
    options.environ, options.sleep = environ, sleep
    try:
        code: int = options.run(options)
    except (NoBrokerError, BadUsageError, SpoolError, AuthorityError) as error:
        sys.stderr.write(f"byoc-agents access: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"byoc-agents access: {error.filename}: {error.strerror}\n")
        return 2
    except ModuleNotFoundError as error:
        extra = f"{error.name} is not installed: pip install 'byoc-agents[access]'"
        sys.stderr.write(f"byoc-agents access: {extra}\n")
        return 2
    return code


def make_parser(environ: Mapping[str, str] = os.environ) -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="byoc-agents access",
        description="Approve, end and report access of the vendor's engineers.",
        epilog="example: byoc-agents access approve 0190a7c2 --for 30m --by anna",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    made = {name: _add(commands.add_parser, name, environ) for name in COMMANDS}
    for name in ("show", "approve", "deny", "evidence"):
        made[name].add_argument("id", type=_id, help="the id, or the beginning of it")
    made["revoke"].add_argument("id", type=_id, help="the id, the beginning of it, or `all`")
    for name in ("approve", "deny", "revoke", "forget-replica", "sign"):
        made[name].add_argument("--by", default=f"uid-{os.getuid()}", help="your name")
        made[name].add_argument("--comment", default="", help="for the record")
    for name in ("list", "show", "report", "status", "verify"):
        made[name].add_argument("--json", action="store_true", help="print JSON")
    made["list"].add_argument("--all", action="store_true", help="ended ones too")
    form = made["show"].add_mutually_exclusive_group()
    form.add_argument("--certificate", action="store_true", help="print only the certificate, PEM")
    form.add_argument("--envelope", action="store_true", help="print only the signed request")
    for name in ("approve", "sign"):
        made[name].add_argument("--for", dest="seconds", type=_seconds, help="at most: 30m")
        made[name].add_argument("--role", help="a role that the policy lists earlier")
    made["approve"].add_argument("--file", help="a signed approval, for `approval: signed`")
    made["kill"].add_argument("switch", choices=("on", "off", "status"))
    made["kill"].add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="until all access has ended"
    )
    made["submit"].add_argument("file", help="the envelope; - = standard input")
    made["sign"].add_argument("file", help="the signed request, of `show ID --envelope`")
    made["sign"].add_argument("--key", required=True, help="your Ed25519 private key, PEM")
    made["sign"].add_argument("--key-id", required=True, help="its id in the policy")
    made["sign"].add_argument("--deny", action="store_true", help="deny; needs --comment")
    made["forget-replica"].add_argument("replica", help="its name in BYOC_ACCESS_SERVERS")
    made["policy"].add_argument("file", help="the policy, YAML")
    made["policy"].add_argument(
        "--request", metavar="FILE", help="what would become of this signed request, and why"
    )
    made["sql"].add_argument(
        "--names",
        choices=[*clickhouse_sql.Names],
        default="hashed",
        help="as `tables` of the policy",
    )
    made["init-ca"].add_argument("directory", help="an existing directory")
    made["init-ca"].add_argument("--service", required=True, help="BYOC_SERVICE_ID")
    made["report"].add_argument("--html", metavar="FILE", help="write one HTML page; - = stdout")
    made["report"].add_argument(
        "--since", type=_since, default=0, metavar="TIME", help="issued then or later: 2026-11-01"
    )
    made["evidence"].add_argument("--out", required=True, metavar="DIRECTORY", help="a new one")
    made["verify"].add_argument("directory", help="the evidence")
    for side, keys in (("vendor", "vendor_keys"), ("approver", "approvers")):
        made["verify"].add_argument(
            f"--{side}-key",
            action="append",
            default=[],
            metavar="KEY",
            help=f"base64 as in `{keys}` of the policy, or a PEM file; may be given again"
            + ("; each approval must have a signature of one" if side == "approver" else ""),
        )
    made["verify"].add_argument(
        "--anchor",
        type=_anchor,
        action="append",
        default=[],
        metavar="SEQUENCE:SHA256",
        help="a line of the ledger that was kept elsewhere, from /status or the log",
    )
    return parser


def _add(
    add: Callable[..., argparse.ArgumentParser], name: str, environ: Mapping[str, str]
) -> argparse.ArgumentParser:
    sentence, example = COMMANDS[name]
    parser = add(
        name,
        help=sentence,
        description=sentence,
        epilog=f"example: byoc-agents access {example}",
    )
    variable, standard = standard_state_dir(environ)
    parser.add_argument("--state-dir", default=standard, help=f"default {variable}, now {standard}")
    parser.set_defaults(run=RUN[name])
    return parser


def _id(text: str) -> str:
    if text != ALL and not re.fullmatch(r"[0-9a-f-]{4,36}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected the id of a request")
    return text


def _seconds(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _since(text: str) -> int:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a date or a time") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return int(moment.timestamp() * 1000)


def _anchor(text: str) -> LinePosition:
    try:
        (head,) = parse_heads(text).anchors
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected SEQUENCE:SHA256") from None
    return head


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _write_json(value: object) -> None:
    _write(msgspec.json.encode(value).decode())


def _read(path: str, max_bytes: int) -> bytes:
    """Return a file's bytes, or those of standard input. Raises BadUsageError."""
    if path == "-":
        return sys.stdin.buffer.read(max_bytes + 1)
    try:
        return read_within(path, max_bytes)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadUsageError(f"{path}: {why}: expected a readable file") from None


# Reading.


def _list(options: argparse.Namespace) -> int:
    grants = [one for one in options.state.grants() if options.all or not is_ended(one)]
    facts = options.state.facts() if options.json else []
    if not options.json:
        _write(HEADING)
    for grant in grants:
        summary = summarize(grant, facts)
        _write_json(summary) if options.json else _write(grant_line(summary))
    return 0


def _show(options: argparse.Namespace) -> int:
    grant = options.state.grant(options.id)
    if grant is None:
        return _report_missing(options.id)
    if options.envelope:
        _write(grant.envelope.decode())
    elif options.certificate:
        sys.stdout.write(grant.certificate)
        return 0 if grant.certificate else 1
    else:
        facts = options.state.facts(grant.id)
        summary = summarize(grant, facts)
        meanwhile = options.state.facts_meanwhile(grant.id, facts)
        if options.json:
            _write_json({"grant": summary, "facts": facts, "meanwhile": meanwhile})
        else:
            history = sorted([*facts, *meanwhile], key=lambda fact: fact.sequence)
            lines = grant_text(summary, history, options.state.readable(grant))
            sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


def _report_missing(grant_id: str) -> int:
    sys.stderr.write(f"byoc-agents access: {grant_id}: no request, or several: expected one id\n")
    return 1


def _status(options: argparse.Namespace) -> int:
    open_now = [grant for grant in options.state.grants() if may_have_access(grant)]
    reason = _kill_reason(options)
    if options.json:
        found = {grant.id: grant.state.value for grant in open_now}
        _write_json({"open": found, "kill_switch": reason or None})
        return int(bool(open_now))
    for grant in open_now:
        _write(grant_line(summarize(grant, [])))
    _write(f"{len(open_now)} open" if open_now else "nobody has access")
    _write(f"kill switch: {f'on ({reason})' if reason else 'off'}")
    return int(bool(open_now))


def _kill_reason(options: argparse.Namespace) -> str:
    reason: str = options.state.kill_reason(options.environ.get("BYOC_ACCESS_KILL_SWITCH_FILE", ""))
    return reason


def _report(options: argparse.Namespace) -> int:
    if options.html:  # before the work, because Jinja2 may be missing
        from byoc_agents.access_commands.page import AccessPage  # noqa: PLC0415  an extra

        page = AccessPage()
    facts: dict[str, list[RecordedFact]] = {}
    since = rfc3339(options.since)
    for fact in options.state.facts():
        if fact.subject or fact.time >= since:
            facts.setdefault(fact.subject, []).append(fact)
    found = (one for one in options.state.grants() if one.request.issued_ms >= options.since)
    grants = [summarize(one, facts.get(one.id, ())) for one in found]
    if options.html:
        text = page.render(
            grants,
            facts,
            kill_switch=_kill_reason(options),
            written_at=utc_text(time.time_ns() // 1_000_000),
        )
        if options.html == "-":
            sys.stdout.write(text)
        else:
            Path(options.html).write_text(text, encoding="utf-8")
        return 0
    for grant in grants:
        if options.json:
            _write_json(grant)
        else:
            sys.stdout.writelines(f"{line}\n" for line in (*grant_text(grant, ()), ""))
    if not options.json:
        sys.stdout.writelines(f"{line}\n" for line in map(fact_line, facts.get("", ())))
    return 0


def _evidence(options: argparse.Namespace) -> int:
    grant = options.state.grant(options.id)
    if grant is None:
        return _report_missing(options.id)
    evidence = collect_evidence(options.state, grant, options.environ.get("BYOC_ACCESS_CA_DIR", ""))
    write_evidence(evidence, Path(options.out))
    _write(f"{options.out}: {len(evidence.files)} files; check them with sha256sum -c SHA256SUMS")
    sys.stderr.writelines(f"missing: {line}\n" for line in evidence.missing)
    return int(bool(evidence.missing))


def _verify(options: argparse.Namespace) -> int:
    vendor, approver = (
        [_read_key(text, f"{side} key {n}") for n, text in enumerate(given, 1)]
        for side, given in (("vendor", options.vendor_key), ("approver", options.approver_key))
    )
    verdict = verify_evidence(Path(options.directory), vendor, approver, options.anchor)
    if options.json:
        _write_json(verdict)
        return int(not verdict.ok)
    count = len(verdict.problems)
    found = f"{count} problem{'s' * (count > 1)} found" if count else "OK"
    _write(f"{options.directory}: {found}")
    for problem in verdict.problems:
        _write(printable(f"  problem: {problem}"))
    signed = ", ".join(dict.fromkeys(verdict.signed_by)) or "nobody"
    _write(
        printable(
            f"  grant {verdict.grant_id or 'unknown'}: {verdict.files} files, {verdict.lines}"
            f" lines of the ledger, {verdict.queries} queries; signed by {signed}"
        )
    )
    for note in verdict.notes:
        _write(printable(f"  note: {note}"))
    return int(not verdict.ok)


def _read_key(text: str, name: str) -> VerifyingKey:
    """Return a key from base64 or from a PEM file. Raises BadUsageError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415  an extra
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if len(raw) == KEY_BYTES:
        return VerifyingKey(name, raw)
    try:
        key = load_pem_public_key(_read(text, MAX_SECRET_BYTES))
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise BadUsageError(f"{text}: expected an Ed25519 public key, 32 bytes in base64 or PEM")
    return VerifyingKey(name, key.public_bytes_raw())


# Orders.


def _place(options: argparse.Namespace, order: Order) -> int:
    """Write an order, wait for the broker's answer, and print it."""
    options.state.check()
    folder = OrderFolder(options.state.directory)
    folder.create()
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"  # orders are taken in this order
    folder.place(name, order)
    for _ in range(int(ANSWER_SECONDS / POLL_SECONDS)):
        answer = folder.take_answer(name)
        if answer is not None:
            _write(answer)
            return int(any(REFUSALS.match(line) for line in answer.splitlines()))
        options.sleep(POLL_SECONDS)
    sys.stderr.write(
        f"byoc-agents access: no answer in {ANSWER_SECONDS:g} s: the order waits in"
        f" {options.state.directory}; does the broker run?\n"
    )
    return 1


def _convert(order: Callable[..., Order], **values: object) -> Order:
    """Return the order. Raises BadUsageError for a value that the broker would refuse."""
    made = order(**values)
    try:
        msgspec.convert(msgspec.to_builtins(made), type(made))
    except msgspec.ValidationError as error:
        raise BadUsageError(str(error)) from None
    return made


def _find(options: argparse.Namespace) -> str:
    """Return the whole id of `options.id`. Raises BadUsageError."""
    grant = options.state.grant(options.id)
    if grant is None:
        raise BadUsageError(f"{options.id}: no request, or several: expected one id")
    return str(grant.id)


def _approve(options: argparse.Namespace) -> int:
    envelope = _read(options.file, MAX_ENVELOPE_BYTES) if options.file else b""
    order = _convert(
        Approve,
        id=_find(options),
        by=options.by,
        duration_seconds=options.seconds,
        role=options.role,
        comment=options.comment,
        envelope=envelope,
    )
    return _place(options, order)


def _deny(options: argparse.Namespace) -> int:
    if not options.comment:
        raise BadUsageError("--comment: expected a reason for the denial")
    return _place(
        options, _convert(Deny, id=_find(options), by=options.by, comment=options.comment)
    )


def _revoke(options: argparse.Namespace) -> int:
    grant_id = ALL if options.id == ALL else _find(options)
    return _place(options, _convert(Revoke, id=grant_id, by=options.by, comment=options.comment))


def _forget(options: argparse.Namespace) -> int:
    if not options.comment:
        raise BadUsageError("--comment: expected a reason")
    order = _convert(Forget, replica=options.replica, by=options.by, comment=options.comment)
    return _place(options, order)


def _submit(options: argparse.Namespace) -> int:
    return _place(options, Submit(envelope=_read(options.file, MAX_ENVELOPE_BYTES)))


def _check(options: argparse.Namespace) -> int:
    return _place(options, CheckServers())


# The kill switch.


def _kill(options: argparse.Namespace) -> int:
    state: BrokerState = options.state
    unused = state.is_unused
    if options.switch == "on":
        state.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.kill_file.touch(mode=0o600)
    elif options.switch == "off":
        state.kill_file.unlink(missing_ok=True)
    reason = _kill_reason(options)
    _write(f"kill switch: {f'on ({reason})' if reason else 'off'}")
    if options.wait and unused:
        _write(f"nobody has access: no broker has ever run below {state.directory.parent}")
        return 0
    if options.wait:
        return _wait_until_closed(options)
    return 0


def _wait_until_closed(options: argparse.Namespace) -> int:
    for _ in range(int(options.wait / POLL_SECONDS) + 1):
        if not any(map(may_have_access, options.state.grants())):
            _write("nobody has access")
            return 0
        options.sleep(POLL_SECONDS)
    _write(f"not all access has ended in {options.wait:g} s")
    return 1


# Preparation.


def _sign(options: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415  an extra
        Ed25519PrivateKey,
    )
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(_read(options.key, MAX_SECRET_BYTES), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadUsageError(f"{options.key}: expected an Ed25519 private key in PEM, no password")
    try:
        payload = read_unverified(_read(options.file, MAX_ENVELOPE_BYTES))
        approval = msgspec.convert(
            {
                "id": msgspec.json.decode(payload)["id"],
                "request_sha256": sha256(payload),
                "decision": "deny" if options.deny else "approve",
                "by": options.by,
                "at": utc_text(time.time_ns() // 1_000_000),
                "duration_seconds": options.seconds,
                "role": options.role,
                "comment": options.comment,
            },
            Approval,
        )
    except (
        *(EnvelopeError, msgspec.MsgspecError, ValueError, KeyError, TypeError, RecursionError),
    ) as error:
        raise BadUsageError(f"{options.file}: {error}: expected the request of `show ID`") from None
    _write(sign(APPROVAL, msgspec.json.encode(approval), [(options.key_id, key)]).decode())
    return 0


def _policy(options: argparse.Namespace) -> int:
    try:
        policy = load_policy(_read(options.file, MAX_POLICY_BYTES))
    except PolicyError as error:
        sys.stderr.write(f"{options.file}: {error}\n")
        return 1
    _write(f"{options.file}: OK, sha256 {policy.sha256}")
    if options.request:
        return _explain(policy, _read(options.request, MAX_ENVELOPE_BYTES))
    for name, role in policy.file.roles.items():
        user = f"as {role.clickhouse_role}" if role.clickhouse_role else "without a user"
        where = ", ".join(role.endpoints)
        _write(f"  {name}: at most {policy.max_seconds(role)} s {user}, for {where}")
    return 0


def _explain(policy: Policy, raw: bytes) -> int:
    """Print what would become of a request now. Return 1 if it would be refused."""
    now_ms = time.time_ns() // 1_000_000
    try:
        verified = open_envelope(
            raw, (REQUEST,), policy.vendor_keys, threshold=policy.file.threshold, now_ms=now_ms
        )
        request = parse_document(REQUEST, verified.payload)
    except (EnvelopeError, DocumentError) as error:
        _write(f"refused: {error}")
        return 1
    assert isinstance(request, AccessRequest)  # noqa: S101  the only accepted type
    _write(f"signed by {', '.join(verified.key_ids)}")
    if rule := judge_request(policy, request, now_ms):
        _write(f"rejected: {rule}")
        return 1
    needed = policy.approvals_needed(request)
    people = "nobody needs to approve" if not needed else f"{needed} must approve"
    _write(f"{request.id}: accepted; {people} (approval: {policy.file.approval})")
    if wait := find_wait(policy, request, (), now_ms):
        _write(f"would not open now: {wait}")
    return 0


def _sql(options: argparse.Namespace) -> int:
    key = secrets.token_bytes(clickhouse_sql.KEY_BYTES)
    script = clickhouse_sql.setup_script(key, clickhouse_sql.Names(options.names))
    _write("-- Replace CHANGE_ME, and run this same file on every replica as an administrator.")
    _write(script)
    return 0


def _init_ca(options: argparse.Namespace) -> int:
    create_authority(Path(options.directory), options.service, time.time_ns() // 1_000_000)
    _write(f"{options.directory}: access-ca.crt is for the servers, access-ca.key for the broker")
    return 0


RUN: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": _list,
    "show": _show,
    "approve": _approve,
    "deny": _deny,
    "revoke": _revoke,
    "kill": _kill,
    "status": _status,
    "submit": _submit,
    "sign": _sign,
    "check": _check,
    "forget-replica": _forget,
    "policy": _policy,
    "sql": _sql,
    "init-ca": _init_ca,
    "report": _report,
    "evidence": _evidence,
    "verify": _verify,
}
