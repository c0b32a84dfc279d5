"""Verify the evidence of one grant: every file, digest, signature and step, without a broker.

Evidence cannot prove that its own keys and ledger lines are genuine. Keys therefore come from
outside, or, if none are given, from the policy in the evidence. An anchor, the number and hash of a
ledger line that was kept elsewhere, confirms all lines before it.
"""

import datetime as dt
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from byoc_agents.access.authority import CERTIFICATE_FILE, read_signing_request, uri_of_grant
from byoc_agents.access.documents import (
    APPROVAL,
    CLICKHOUSE,
    REQUEST,
    AccessRequest,
    Approval,
    parse_document,
    sha256,
)
from byoc_agents.access.errors import AuthorityError, DocumentError, PolicyError
from byoc_agents.access.events import event_id
from byoc_agents.access.machine import ENDS, TABLE, State
from byoc_agents.access.policy import Policy, load_stored_policy
from byoc_agents.access_commands.evidence import MISSING, README, SUMS, WITHOUT_USER
from byoc_agents.access_commands.steps import (
    STATES,
    RecordedGrant,
    approval_digests,
    find_step_problems,
    find_summary_problems,
)
from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.envelope import VerifyingKey, open_envelope, read_unverified
from byoc_agents.errors import EnvelopeError, Reason
from byoc_agents.ledger.format import (
    MAX_TEXT,
    FactLine,
    IntentLine,
    LedgerLine,
    LinePosition,
    ReceiptLine,
    UnknownLine,
    decode,
    sha256_hex,
)

SUM = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+)")
RECEIVED = frozenset({Reason.OK.value, Reason.ALREADY_STORED.value})
STEPS = frozenset((state, row.to or state) for row in TABLE for state in row.states)


class EvidenceVerdict(msgspec.Struct, kw_only=True):
    """The result for one directory."""

    directory: str
    grant_id: str = ""
    problems: list[str] = []
    notes: list[str] = []
    files: int = 0
    lines: int = 0
    queries: int = 0
    signed_by: list[str] = []  # ids of the keys whose signatures were verified

    @property
    def ok(self) -> bool:
        """Return whether there is no problem."""
        return not self.problems


def verify_evidence(
    directory: Path,
    vendor_keys: Sequence[VerifyingKey] = (),
    approver_keys: Sequence[VerifyingKey] = (),
    anchors: Sequence[LinePosition] = (),
) -> EvidenceVerdict:
    """Return everything that is wrong with the evidence. Raises OSError if it cannot be read.

    Without keys, those of the policies in the evidence count. With the approvers' keys, every
    approval must be signed by one of them.
    """
    paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.is_symlink())
    files = {path.name: path.read_bytes() for path in paths}
    verdict = EvidenceVerdict(directory=str(directory), files=len(files))
    verdict.problems += _find_changed_files(files)
    for path in sorted(set(directory.rglob("*")) - set(paths)):  # the evidence has no directory
        verdict.problems.append(f"{path.relative_to(directory)}: not listed in {SUMS}")
    check = _EvidenceCheck(verdict, files, vendor_keys, approver_keys)
    verdict.problems += check.find_broken_chain(anchors)
    try:
        check.read_request()
    except (EnvelopeError, DocumentError, ValueError, RecursionError) as error:
        verdict.problems.append(f"request.dsse.json: not a request: {error}")
        return verdict
    check.run()
    return verdict


def _find_changed_files(files: Mapping[str, bytes]) -> Iterator[str]:
    """Compare every file with SHA256SUMS."""
    listed: dict[str, str] = {}
    for number, line in enumerate(_lines_of(files, SUMS), 1):
        if found := SUM.fullmatch(line):
            listed[found[2]] = found[1]
        else:
            yield f"{SUMS}: line {number} is not a digest and a name"
    if SUMS not in files:
        yield f"{SUMS}: no such file"
        return
    for name, expected in sorted(listed.items()):
        if name not in files:
            yield f"{name}: no such file, and {SUMS} lists it"
        elif sha256(files[name]) != expected:
            yield f"{name}: the file was changed: not the digest of {SUMS}"
    for name in sorted(files.keys() - listed.keys() - {SUMS}):
        yield f"{name}: not listed in {SUMS}"
    for line in _lines_of(files, MISSING):
        yield f"was not found when the evidence was written: {line}"


def _lines_of(files: Mapping[str, bytes], name: str) -> list[str]:
    """Return the lines as `sha256sum` reads them: only a line feed ends one."""
    text = files.get(name, b"").decode(errors="replace")
    return text.removesuffix("\n").split("\n") if text else []


class _EvidenceCheck:
    """The checks of one grant. Each adds what it finds to the verdict."""

    def __init__(
        self,
        verdict: EvidenceVerdict,
        files: Mapping[str, bytes],
        vendor_keys: Sequence[VerifyingKey],
        approver_keys: Sequence[VerifyingKey],
    ) -> None:
        self._verdict = verdict
        self._files = files
        self._vendor_keys = vendor_keys
        self._approver_keys = approver_keys
        raw = files.get("ledger.jsonl", b"")
        self._raw = [line for line in raw.split(b"\n") if line]
        self._lines: list[LedgerLine | None] = [decode(line) for line in self._raw]
        self._facts: list[FactLine] = []  # about the grant
        self._request: AccessRequest
        self._payload = b""
        self._policies: dict[str, Policy] = {}
        self._approvals: dict[str, Approval] = {}  # by the SHA-256 of the envelope

    def _add(self, problem: str) -> None:
        self._verdict.problems.append(problem)

    def find_broken_chain(self, anchors: Sequence[LinePosition]) -> Iterator[str]:
        """Compare each line with the hash in the next one, and the anchors with the lines."""
        self._verdict.lines = len(self._raw)
        hashes = {}
        for raw, line in zip(self._raw, self._lines, strict=True):
            if line is None:
                yield f"ledger.jsonl: not a line of a ledger: {raw[:60]!r}"
            else:
                hashes[line.sequence] = sha256_hex(raw)
        for (raw, _), (_, after) in itertools.pairwise(zip(self._raw, self._lines, strict=True)):
            if after is not None and after.previous != sha256_hex(raw):
                yield f"ledger.jsonl: line {after.sequence}: `previous` is not the line before it"
        numbers = [line.sequence for line in self._lines if line is not None]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers)) if numbers else []):
            yield "ledger.jsonl: the numbers of the lines have a gap"
        for anchor in anchors:
            found = hashes.get(anchor.sequence)
            if found is None:
                kept = f"{numbers[0]} to {numbers[-1]}" if numbers else "none"
                yield f"anchor {anchor.sequence}: the evidence has the lines {kept}"
            elif found != anchor.sha256:
                yield f"anchor {anchor.sequence}: another history: the line has another hash"

    def read_request(self) -> None:
        """Read the request, and the facts about it. Raises ValueError and more."""
        self._payload = read_unverified(self._files.get("request.dsse.json", b""))
        document = parse_document(REQUEST, self._payload)
        assert isinstance(document, AccessRequest)  # noqa: S101  the type of REQUEST
        self._request = document
        self._verdict.grant_id = document.id
        facts = (line for line in self._lines if isinstance(line, FactLine))
        self._facts = [fact for fact in facts if fact.subject == document.id]

    def run(self) -> None:
        """Make the checks that need the request."""
        if not self._facts:
            self._add("ledger.jsonl: no line about the grant")
            return
        self._check_steps()
        self._check_policies()
        self._check_request()
        self._check_approvals()
        self._verdict.problems += find_step_problems(self._recorded())
        self._check_certificate()
        self._check_logs()
        self._check_summary()
        self._check_names()
        self._count_receipts()

    def _recorded(self) -> RecordedGrant:
        return RecordedGrant(
            request=self._request,
            request_sha256=sha256(self._payload),
            facts=self._facts,
            policies=self._policies,
            approvals=self._approvals,
        )

    def _check_names(self) -> None:
        """Find files that neither the request nor a line of the ledger calls for."""
        expected = {"README.txt", "request.dsse.json", "ledger.jsonl", "summary.json", SUMS}
        approvals = {digest for fact in self._facts for digest in approval_digests(fact)}
        expected |= {f"approval-{number}.dsse.json" for number in range(1, len(approvals) + 1)}
        for fact in self._facts:
            if "policy" in fact.sha256:
                expected.add(f"policy-{fact.sha256['policy']}.yaml")
            if "certificate_pem" in fact.sha256:
                expected |= {"certificate.pem", CERTIFICATE_FILE}
            if fact.fact == "collected":
                replica = fact.detail.get("replica", "")
                expected |= {f"{replica}-{kind}.jsonl" for kind in ("queries", "sessions")}
        if self._files.get(MISSING):  # what it states is a problem of its own
            expected.add(MISSING)
        for name in sorted(self._files.keys() - expected):
            self._add(f"{name}: not a file of this evidence")
        readme = self._files.get("README.txt", b"").decode(errors="replace")
        if readme not in {README, README + WITHOUT_USER.format(endpoints=self._endpoints)}:
            self._verdict.notes.append("README.txt: not the text of this version")

    @property
    def _endpoints(self) -> str:
        return ", ".join(self._request.endpoints)

    def _states(self) -> list[str]:
        return [fact.fact for fact in self._facts if fact.fact in STATES]

    def _check_steps(self) -> None:
        """Check that each step follows from one before, up to an end.

        A crash between a line and its effect leaves a line without effect: the next step may then
        follow from the step before that line.
        """
        possible = {State.RECEIVED}
        for fact in self._facts:
            if fact.fact not in STATES:
                continue
            step = State(fact.fact)
            before = {one for one in possible if one is step or (one, step) in STEPS}
            if not before:
                known = " or ".join(sorted(possible))
                self._add(f"ledger.jsonl: line {fact.sequence}: {step} does not follow {known}")
            possible = {step, *before}
        states = self._states()
        if not states or states[-1] not in ENDS:
            last = states[-1] if states else "none"
            self._add(f"ledger.jsonl: the grant has not ended: its last step is {last}")
        elif states[-1] == State.CLOSED_INCOMPLETE:
            reason = self._facts[-1].reason
            self._add(f"the record of the servers' logs has a gap: {reason}")

    def _check_policies(self) -> None:
        named = {fact.sha256["policy"] for fact in self._facts if "policy" in fact.sha256}
        for name in sorted(named):
            content = self._files.get(f"policy-{name}.yaml")
            if content is None:
                self._add(f"policy-{name}.yaml: no such file, and the ledger names it")
            elif sha256(content) != name:
                self._add(f"policy-{name}.yaml: not the policy of the ledger")
            else:
                try:
                    self._policies[name] = load_stored_policy(content)
                except PolicyError as error:
                    self._add(f"policy-{name}.yaml: {error}")

    def _policy_of(self, fact: FactLine) -> Policy | None:
        return self._policies.get(fact.sha256.get("policy", ""))

    def _check_request(self) -> None:
        payload = sha256(self._payload)
        if any(fact.sha256.get("request", payload) != payload for fact in self._facts):
            self._add("request.dsse.json: not the request of the ledger")
        policy = self._policy_of(self._facts[0])
        keys = self._vendor_keys or (policy.vendor_keys if policy else ())
        threshold = policy.file.threshold if policy else 1
        if not self._vendor_keys:
            self._verdict.notes.append("the vendor's keys are those of the evidence's policy")
        self._verify("request.dsse.json", REQUEST, keys, threshold)

    def _verify(
        self, name: str, kind: str, keys: Sequence[VerifyingKey], threshold: int = 1
    ) -> tuple[bytes, tuple[str, ...]]:
        """Return the payload and the keys that signed it, or nothing and a problem."""
        first = self._facts[0]
        try:
            now_ms = parse_rfc3339(first.time)
        except ValueError:
            self._add(f"{name}: line {first.sequence} of the ledger has no time to verify it at")
            return b"", ()
        try:
            found = open_envelope(
                self._files[name],
                (kind,),
                keys,
                threshold=threshold,
                now_ms=now_ms,
            )
        except EnvelopeError as error:
            self._add(f"{name}: {error}")
            return b"", ()
        self._verdict.signed_by += found.key_ids
        return found.payload, found.key_ids

    def _check_approvals(self) -> None:
        """Check each signed approval, and that there were enough when the grant opened."""
        named = {
            value
            for fact in self._facts
            for name, value in fact.sha256.items()
            if name.startswith("approval_")
        }
        names = sorted(name for name in self._files if name.startswith("approval-"))
        of_name = {name: sha256(self._files[name]) for name in names}
        if missing := named - set(of_name.values()):
            self._add(f"approvals of the ledger that are not in the evidence: {len(missing)}")
        opening = next((fact for fact in self._facts if fact.fact == State.OPENING), None)
        policy = self._policy_of(opening or self._facts[-1])
        keys = self._approver_keys or (policy.approver_keys if policy else ())
        signers: set[str] = set()
        for name in names:
            if of_name[name] not in named:
                self._add(f"{name}: not an approval of the ledger")
            payload, key_ids = self._verify(name, APPROVAL, keys)
            if payload:
                self._check_approval(name, payload)
                signers.update(key_ids)
        self._check_unsigned(len(signers))
        if opening is None or policy is None:
            return
        signed = policy.file.approval == "signed"
        if signed and not self._approver_keys:
            self._verdict.notes.append("the approvers' keys are those of the evidence's policy")
        given = _split(opening, "approvers")
        self._check_enough(policy, opening, len(signers) if signed else len(given))
        if given and not (signed or self._approver_keys):
            who = ", ".join(given)
            self._verdict.notes.append(f"approved by {who}: a name as it was given, not signed")

    def _check_unsigned(self, signed: int) -> None:
        """With the approvers' keys, find approvals without a signature, also before an opening."""
        named = [fact for fact in self._facts if fact.detail.get("approvers")]
        given = _split(named[-1], "approvers") if named else []
        if self._approver_keys and signed < len(given):
            who, line = ", ".join(given), f"ledger.jsonl: line {named[-1].sequence}"
            found = f"approved by {who}: {signed} of {len(given)} approvals are signed"
            self._add(f"{line}: {found} by the given approver keys")

    def _check_approval(self, name: str, payload: bytes) -> None:
        try:
            approval = parse_document(APPROVAL, payload)
        except DocumentError as error:
            self._add(f"{name}: {error}")
            return
        assert isinstance(approval, Approval)  # noqa: S101  the type of APPROVAL
        if approval.request_sha256 != sha256(self._payload) or approval.decision != "approve":
            self._add(f"{name}: not an approval of this request")
        else:
            self._approvals[sha256(self._files[name])] = approval

    def _check_enough(self, policy: Policy, opening: FactLine, given: int) -> None:
        role = opening.detail.get("role", "")
        if role not in policy.file.roles:
            self._add(f"ledger.jsonl: line {opening.sequence}: the policy has no role {role!r}")
            return
        needed = policy.approvals_needed(msgspec.structs.replace(self._request, role=role))
        if given < needed:
            line = f"ledger.jsonl: line {opening.sequence}"
            self._add(f"{line}: opened with {given} approvals: the policy needs {needed}")
        if not needed:
            self._verdict.notes.append("opened without an approval: the policy needs none")

    def _check_certificate(self) -> None:
        """Check the certificate's digest, authority, name, key and end."""
        digests = {
            f.sha256["certificate_pem"] for f in self._facts if "certificate_pem" in f.sha256
        }
        content = self._files.get("certificate.pem", b"")
        if not digests and not content:
            return
        if digests != {sha256(content)}:
            self._add("certificate.pem: not the certificate of the ledger")
            return
        openings = [fact.sequence for fact in self._facts if fact.fact == State.OPENING]
        last = max(openings, default=0)  # an earlier one was left without effect by a crash
        ends = {
            f.detail["end_ms"] for f in self._facts if "end_ms" in f.detail and f.sequence >= last
        }
        for problem in self._find_certificate_problems(content, ends):
            self._add(f"certificate.pem: {problem}")

    def _find_certificate_problems(self, content: bytes, ends: set[str]) -> Iterator[str]:
        from cryptography import x509  # noqa: PLC0415  an extra
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

        try:
            made = x509.load_pem_x509_certificate(content)
            issuer = x509.load_pem_x509_certificate(self._files.get(CERTIFICATE_FILE, b""))
            made.verify_directly_issued_by(issuer)
            kind = x509.SubjectAlternativeName
            names = list(made.extensions.get_extension_for_class(kind).value)
            key = read_signing_request(self._request.csr).public_key
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, AuthorityError):
            yield f"expected a certificate that {CERTIFICATE_FILE} has signed"
            return
        uri = uri_of_grant(self._request.audience.service, self._request.id)
        if names != [x509.UniformResourceIdentifier(uri)]:
            yield f"expected the only name {uri}"
        if made.public_key() != key:
            yield "another key than the request's"
        end_ms = int(made.not_valid_after_utc.timestamp() * 1000)
        if ends != {str(end_ms)}:
            text = dt.datetime.fromtimestamp(end_ms / 1000, tz=dt.UTC).isoformat()
            yield f"it ends at {text}, and the ledger has another end of the grant"

    def _check_logs(self) -> None:
        """Check the rows of every server on which the grant had a user, and count them."""
        collected = {f.detail.get("replica", ""): f for f in self._facts if f.fact == "collected"}
        for replica, fact in sorted(collected.items()):
            for kind in ("queries", "sessions"):
                name, expected = f"{replica}-{kind}.jsonl", fact.detail.get(f"{kind}_sha256")
                if name not in self._files:
                    self._add(f"{name}: no such file, and the ledger names it")
                elif sha256(self._files[name]) != expected:
                    self._add(f"{name}: not the rows that were collected")
            self._count_rows(replica, fact, "queries", "QueryStart", "queries")
            self._count_rows(replica, fact, "sessions", "LoginFailure", "failed_logins")
        last = self._facts[-1]
        if (opening := self._find(State.OPENING)) is None:
            return
        touched = set(_split(opening, "touched"))
        if not touched:
            self._check_without_user(opening)
        if last.fact == State.CLOSED:
            for replica in sorted(touched - collected.keys()):
                self._add(f"{replica}: no rows were collected, and the grant is closed")

    def _check_without_user(self, opening: FactLine) -> None:
        """Check that a grant without a user in ClickHouse needed none, and note it."""
        names = ", ".join(self._request.endpoints)
        if CLICKHOUSE in self._request.endpoints:
            line = f"ledger.jsonl: line {opening.sequence}"
            self._add(f"{line}: opened without a server, and the request is for {names}")
        else:
            text = f"the grant had no user in ClickHouse (endpoints: {names})"
            self._verdict.notes.append(f"{text}: no server has a record of its use")

    def _find(self, state: State) -> FactLine | None:
        return next((fact for fact in self._facts if fact.fact == state), None)

    def _count_rows(self, replica: str, fact: FactLine, kind: str, row: str, count: str) -> None:
        """Compare the number of rows of one kind with the count in the ledger."""
        name, stated = f"{replica}-{kind}.jsonl", fact.detail.get(count, "")
        content = self._files.get(name, b"")
        lines = content.removesuffix(b"\n").split(b"\n") if content else []
        try:
            rows = [msgspec.json.decode(line, type=_CollectedRow) for line in lines]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._add(f"{name}: expected one JSON object per line")
            return
        found = sum(one.type == row for one in rows)
        if count == "queries":
            self._verdict.queries += found
        if stated and str(found) != stated:
            self._add(f"{name}: {found} rows {row}, and the ledger has {count} {stated}")

    def _check_summary(self) -> None:
        """Compare the summary, which the ledger has no digest of, with request and ledger."""
        try:
            found = json.loads(self._files.get("summary.json", b""), object_pairs_hook=_no_repeat)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self._add("summary.json: expected the summary of a grant")
            return
        for field in find_summary_problems(self._recorded(), found):
            self._add(f"summary.json: `{field}` is not that of the request and the ledger")

    def _count_receipts(self) -> None:
        """Note how many of the events about the grant the vendor has received."""
        audience, steps = self._request.audience, set(self._states())
        ids = {
            event_id(audience.organization, audience.service, self._request.id, State(step))
            for step in steps
        }
        received = {
            ended.id
            for line in self._lines
            if isinstance(line, ReceiptLine)
            for ended in line.outcomes
            if ended.reason in RECEIVED
        }
        count = f"{len(ids & received)} of {len(ids)}"
        self._verdict.notes.append(f"the vendor has received {count} events about the grant")
        ended = {line.intent for line in self._lines if isinstance(line, ReceiptLine | UnknownLine)}
        for line in self._lines:
            if not isinstance(line, IntentLine) or line.sequence in ended:
                continue
            if any(message.id in ids for message in line.messages):
                text = "sent events about the grant, and no later line has their result"
                self._verdict.notes.append(f"ledger.jsonl: line {line.sequence} {text}")


def _split(fact: FactLine, name: str) -> list[str]:
    """Return the names in a text of a line; the ledger cuts a long text after MAX_TEXT."""
    text = fact.detail.get(name, "")
    found = [one for one in text.split(", ") if one]
    return found if len(text) < MAX_TEXT else found[:-1]


class _CollectedRow(msgspec.Struct):
    type: str = ""


def _no_repeat(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. Raises ValueError if it has a name twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found
