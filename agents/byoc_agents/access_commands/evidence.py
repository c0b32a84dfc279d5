"""The evidence of one grant: a folder that can be checked without this program.

`byoc-agents access verify` makes every check. Without it, `sha256sum -c SHA256SUMS` checks the
files, `openssl` the certificate, and any DSSE library the request and the signed approvals.
`ledger.jsonl` has whole lines of the ledger: each has the SHA-256 of the line before it in
`previous`.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from byoc_agents.access.authority import CERTIFICATE_FILE
from byoc_agents.access.broker import LOGS, POLICIES
from byoc_agents.access.documents import sha256
from byoc_agents.access.events import event_id
from byoc_agents.access.machine import Grant, State
from byoc_agents.access_commands.state import BrokerState, summarize
from byoc_agents.ledger.format import FactLine, IntentLine, ReceiptLine, decode
from byoc_agents.ledger.reader import raw_lines
from byoc_agents.ledger.segments import Segments

SUMS, MISSING = "SHA256SUMS", "missing.txt"
README = """Evidence of one grant of access, written by byoc-agents.

summary.json            who, why, when, and the counts of the queries
request.dsse.json       the vendor's signed request
approval-N.dsse.json    an approval, if it was signed
policy-SHA256.yaml      the policies under which the steps were taken
certificate.pem         the certificate of the engineer; access-ca.crt is its authority
ledger.jsonl            the ledger from the first to the last line about this grant and its events,
                        also `kill_switch` and `policy_changed` between them
*-queries.jsonl         the rows of each server's query_log about the grant's user
*-sessions.jsonl        the rows of each server's session_log
missing.txt             what could not be found, if anything

To check it, with your own copies of the keys and an anchor of the ledger that you have kept:
  byoc-agents access verify DIRECTORY --vendor-key KEY --approver-key KEY --anchor SEQUENCE:SHA256
Without byoc-agents:
  sha256sum -c SHA256SUMS
  openssl verify -CAfile access-ca.crt -no_check_time certificate.pem
  head -1 ledger.jsonl | tr -d '\\n' | sha256sum
The last command prints `previous` of the second line, and so on for each line.
The digests of the queries and sessions are in the ledger's lines `collected`: `queries_sha256` and
`sessions_sha256`.
"""
WITHOUT_USER = """
This grant had no user in ClickHouse: its endpoints are {endpoints}. So there are no rows of
query_log and session_log, and nothing here shows what the engineer did there. The Kubernetes API
has an audit log, and nginx logs each connection and each request for metrics.
"""


class Evidence(NamedTuple):
    """The files of the evidence by name, and what is missing."""

    files: dict[str, bytes]
    missing: list[str]


def collect_evidence(state: BrokerState, grant: Grant, ca_dir: str = "") -> Evidence:
    """Return the evidence of a grant. Raises OSError if the ledger cannot be read."""
    files = {"README.txt": README.encode(), "request.dsse.json": grant.envelope}
    missing: list[str] = []
    signed = [one.envelope for one in grant.approvals if one.envelope]
    files |= {f"approval-{n}.dsse.json": raw for n, raw in enumerate(dict.fromkeys(signed), 1)}
    if grant.certificate:
        files["certificate.pem"] = grant.certificate.encode()
        _add(files, missing, CERTIFICATE_FILE, Path(ca_dir or ".") / CERTIFICATE_FILE)
    lines = list(_lines_about(state.directory / "ledger", grant))
    files["ledger.jsonl"] = b"".join(raw + b"\n" for raw in lines)
    facts = [line for line in map(decode, lines) if isinstance(line, FactLine)]
    own = [fact for fact in facts if fact.subject == grant.id]
    if not own:
        missing.append("ledger.jsonl: the ledger has no line about the grant any more")
    for digest in sorted({fact.sha256["policy"] for fact in own if "policy" in fact.sha256}):
        path = state.directory / POLICIES / f"{digest}.yaml"
        _add(files, missing, f"policy-{digest}.yaml", path)
    folder = state.directory / LOGS / grant.id
    for fact in own:
        if fact.fact == "collected":
            for kind in ("queries", "sessions"):
                name = f"{fact.detail['replica']}-{kind}.jsonl"
                _add(files, missing, name, folder / name, fact.detail.get(f"{kind}_sha256", ""))
    summary = summarize(grant, state.facts(grant.id))
    if not summary.clickhouse_user and summary.opened_at:
        files["README.txt"] += WITHOUT_USER.format(endpoints=", ".join(summary.endpoints)).encode()
    files["summary.json"] = msgspec.json.format(msgspec.json.encode(summary)) + b"\n"
    if missing:
        files[MISSING] = "".join(f"{line}\n" for line in missing).encode()
    sums = "".join(f"{sha256(content)}  {name}\n" for name, content in sorted(files.items()))
    return Evidence({**files, SUMS: sums.encode()}, missing)


def write_evidence(evidence: Evidence, directory: Path) -> None:
    """Write the files into a new directory. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True)
    for name, content in evidence.files.items():
        (directory / name).write_bytes(content)


def _add(
    files: dict[str, bytes], missing: list[str], name: str, path: Path, digest: str = ""
) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        missing.append(f"{name}: {error.strerror}")
        return
    if digest and sha256(content) != digest:
        missing.append(f"{name}: the file is not the one that was collected")
    files[name] = content


def _lines_about(ledger: Path, grant: Grant) -> Iterator[bytes]:
    """Yield the whole lines of the ledger from the first to the last one about a grant.

    The lines about the events to the vendor count too: their receipts come after the last fact.
    """
    audience = grant.request.audience
    names = (audience.organization, audience.service, grant.id)
    ids = frozenset(event_id(*names, state) for state in State)
    about = [n for n, raw in enumerate(_whole_lines(ledger)) if _is_about(raw, grant.id, ids)]
    if about:
        yield from islice(_whole_lines(ledger), about[0], about[-1] + 1)


def _is_about(raw: bytes, grant_id: str, event_ids: frozenset[str]) -> bool:
    line = decode(raw)
    match line:
        case FactLine():
            return line.subject == grant_id
        case IntentLine():
            return any(sent.id in event_ids for sent in line.messages)
        case ReceiptLine():
            return any(ended.id in event_ids for ended in line.outcomes)
    return False


def _whole_lines(ledger: Path) -> Iterator[bytes]:
    segments = Segments(ledger)
    for number in segments.numbers():
        yield from (raw.content for raw in raw_lines(segments.path(number)) if raw.whole)
