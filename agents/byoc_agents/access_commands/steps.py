"""What the lines of one grant must say: its first step, its opening, and its summary. Pure.

Times of the summary and of the policy's hours are those of the broker's clock just before a line
was written: they may differ from the line's by TOLERANCE_MS.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from byoc_agents.access.clickhouse_admin import user_of
from byoc_agents.access.documents import AccessRequest, Approval, parse_time, utc_text
from byoc_agents.access.machine import CLOCK_TOLERANCE_MS, LIVE, WAITING, Cause, State
from byoc_agents.access.policy import Policy, judge_request
from byoc_agents.access_commands.state import GrantSummary, sum_counts
from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.ledger.format import FactLine, clean

TOLERANCE_MS = CLOCK_TOLERANCE_MS
FIRST_REASONS = {State.PENDING: Cause.NEEDS_APPROVAL, State.APPROVED: Cause.NEEDS_NO_APPROVAL}
CONSTANT = ("role", "duration_seconds", "endpoints")  # of all lines from the opening on
OPENED = frozenset({State.OPEN, State.COLLECTING, State.CLOSED, State.CLOSED_INCOMPLETE})
RELEASES = LIVE | WAITING  # their lines are never written late
WITH_REPLICAS = OPENED | LIVE | {State.CLOSING, State.FAILED}
STATES = frozenset(state.value for state in State)


class RecordedGrant(msgspec.Struct, kw_only=True):
    """The request of a grant, its lines, and the policies and signed approvals that they name."""

    request: AccessRequest
    request_sha256: str
    facts: Sequence[FactLine]  # at least one
    policies: Mapping[str, Policy]  # by SHA-256
    approvals: Mapping[str, Approval]  # by the SHA-256 of the envelope

    def policy_of(self, fact: FactLine) -> Policy | None:
        """Return the policy of a line, or None if the evidence does not have it."""
        return self.policies.get(fact.sha256.get("policy", ""))


def approval_digests(fact: FactLine) -> set[str]:
    """Return the digests of the signed approvals that a line names."""
    return {digest for name, digest in fact.sha256.items() if name.startswith("approval_")}


def find_step_problems(grant: RecordedGrant) -> Iterator[str]:
    """Yield what is wrong with the first step, each approval by no policy, and the opening."""
    yield from _find_first_problems(grant)
    openings = [fact for fact in grant.facts if fact.fact == State.OPENING]
    for opening in openings:
        for problem in _find_opening_problems(grant, opening):
            yield f"ledger.jsonl: line {opening.sequence}: {problem}"
    if openings:
        yield from _find_changed_details(grant.facts, openings[-1])
    states = {fact.fact for fact in grant.facts}
    if State.COLLECTING in states and State.OPEN not in states:
        yield "ledger.jsonl: the grant was collected, and no line says that it was open"


def _find_first_problems(grant: RecordedGrant) -> Iterator[str]:
    """Check that the first step is one with which a grant begins.

    A request that was rejected or withdrawn has the same line whether or not it waited for an
    approval first.
    """
    first = grant.facts[0]
    reason = FIRST_REASONS.get(State(first.fact)) if first.fact in STATES else None
    ended = first.fact in {State.REJECTED, State.WITHDRAWN}
    begins = ended or (reason is not None and first.reason == reason)
    if not begins or first.detail.get("approvers") or approval_digests(first):
        text = f"{first.fact} ({first.reason}) is not the first step of a grant"
        yield f"ledger.jsonl: line {first.sequence}: {text}: lines before it are missing"
    for fact in grant.facts:
        policy = grant.policy_of(fact)
        if fact.fact != State.APPROVED or fact.reason != Cause.NEEDS_NO_APPROVAL or not policy:
            continue
        known = grant.request.role in policy.file.roles
        if known and (needed := policy.approvals_needed(grant.request)):
            text = f"approved without an approval: the policy needs {needed}"
            yield f"ledger.jsonl: line {fact.sequence}: {text}"


def _find_opening_problems(grant: RecordedGrant, opening: FactLine) -> Iterator[str]:
    """Compare what opened with the request, the approvals, and the line `approved`."""
    request, detail = grant.request, opening.detail
    role, seconds = detail.get("role", ""), detail.get("duration_seconds", "")
    roles, longest = _find_limits(grant, approval_digests(opening))
    if role not in roles:
        yield f"the role {role!r}: the request allows {', '.join(sorted(roles))}"
    if not seconds.isdecimal() or int(seconds) > longest:
        yield f"for {seconds!r} s: the request and its signed approvals allow at most {longest} s"
    before = [f for f in grant.facts if f.sequence < opening.sequence and f.fact == State.APPROVED]
    if before:
        approved = before[-1].detail
        if role != (found := approved.get("role", "")):
            yield f"opened with the role {role!r}: approved was {found!r}"
        if seconds != (found := approved.get("duration_seconds", "")):
            yield f"opened for {seconds!r} s: approved was {found!r}"
    names = clean(", ".join(request.endpoints))
    if detail.get("endpoints", names) != names:
        yield f"the endpoints {detail['endpoints']!r}: the request is for {names}"
    if detail.get("kind", request.reason.kind) != request.reason.kind:
        yield f"the kind {detail['kind']!r}: the request is of the kind {request.reason.kind}"
    yield from _find_time_problems(grant, opening)


def _find_limits(grant: RecordedGrant, digests: set[str]) -> tuple[set[str], int]:
    """Return the roles, and the longest duration, that request and signed approvals allow."""
    request = grant.request
    roles, longest = {request.role}, request.duration_seconds
    given = [grant.approvals[digest] for digest in sorted(digests & grant.approvals.keys())]
    for approval in given:
        longest = min(longest, approval.duration_seconds or longest)
    policies = list(grant.policies.values())
    limits = [request.role, *(one.role for one in given if one.role is not None)]
    for name in {role for policy in policies for role in policy.file.roles}:
        if any(all(p.is_lesser_role(name, limit) for limit in limits) for p in policies):
            roles.add(name)
    if len(limits) > 1 and not any(
        all(p.is_lesser_role(request.role, limit) for limit in limits) for p in policies
    ):
        roles.discard(request.role)
    return roles, longest


def _find_time_problems(grant: RecordedGrant, opening: FactLine) -> Iterator[str]:
    """Check the end, the times of the request, and the policy of the opening."""
    request, detail = grant.request, opening.detail
    opened_ms = _time_of(opening)
    if opened_ms is None:
        yield "no time of the opening"
        return
    seconds, end = detail.get("duration_seconds", ""), detail.get("end_ms", "")
    if not (end.isdecimal() and seconds.isdecimal()) or (
        abs(int(end) - opened_ms - int(seconds) * 1000) > TOLERANCE_MS
    ):
        yield f"its end is not {seconds} s after the line"
    if opened_ms < request.not_before_ms - TOLERANCE_MS:
        yield "opened before `not_before` of the request"
    if opened_ms > request.expires_ms + TOLERANCE_MS:
        yield "opened after `expires_at` of the request"
    policy = grant.policy_of(opening)
    if policy is None or not seconds.isdecimal():
        return
    role = detail.get("role", "")
    approved = msgspec.structs.replace(request, role=role, duration_seconds=int(seconds))
    rule = judge_request(policy, approved, min(opened_ms, request.expires_ms - 1))
    hours = policy.file.hours
    moments = (opened_ms, opened_ms - TOLERANCE_MS)
    if not rule and hours is not None and not any(hours.contain(one) for one in moments):
        rule = "hours"
    if rule and rule != "role":  # a role that the policy does not have is a problem already
        yield f"the policy forbids it: {rule}"


def _find_changed_details(facts: Sequence[FactLine], opening: FactLine) -> Iterator[str]:
    """Check that the lines after the last opening have its role, duration, end and endpoints.

    After a crash that left the opening without effect, the grant may end without one.
    """
    for fact in facts:
        unopened = fact.fact in STATES and State(fact.fact) not in WITH_REPLICAS
        if fact.sequence > opening.sequence and not unopened:
            for name in (*CONSTANT, "end_ms"):
                if fact.detail.get(name) != opening.detail.get(name):
                    text = f"`{name}` is not that of line {opening.sequence}"
                    yield f"ledger.jsonl: line {fact.sequence}: {text}"


def find_summary_problems(grant: RecordedGrant, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield each field of a summary that is not that of the request and the lines.

    Versions before `clickhouse_user` did not state it, nor the endpoints.
    """
    expected = _expect_summary(grant)
    fields = GrantSummary.__struct_fields__
    old = () if "clickhouse_user" in found else ("clickhouse_user", "endpoints")
    for name in (*fields, *sorted(found.keys() - set(fields))):
        if name in old and name not in found:
            continue
        if name not in found or not _is_expected(grant, name, found[name], expected):
            yield name


def _expect_summary(grant: RecordedGrant) -> dict[str, Any]:
    """Return the fields whose values follow exactly; lists of names as the ledger has them."""
    request, last = grant.request, grant.facts[-1]
    detail, states = last.detail, [fact.fact for fact in grant.facts if fact.fact in STATES]
    state = states[-1] if states else ""
    openings = [fact for fact in grant.facts if fact.fact == State.OPENING]
    touched = openings[-1].detail.get("touched", "") if openings else ""
    replicas = touched if state in WITH_REPLICAS else ""
    end, seconds = detail.get("end_ms", ""), detail.get("duration_seconds", "")
    return {
        "id": request.id,
        "state": state,
        "reason": last.reason,
        "engineer": request.engineer.id,
        "engineer_name": request.engineer.name,
        "kind": request.reason.kind,
        "ticket": request.reason.ticket,
        "text": request.reason.text,
        "role": detail.get("role", ""),
        "requested_role": request.role,
        "endpoints": list(request.endpoints),
        "clickhouse_user": user_of(request.id) if replicas else "",
        "duration_seconds": int(seconds) if seconds.isdecimal() else -1,
        "requested_seconds": request.duration_seconds,
        "vendor_keys": detail.get("vendor_keys", ""),
        "approvers": detail.get("approvers", ""),
        "issued_at": request.issued_at,
        "ends_at": utc_text(int(end)) if end.isdecimal() and len(end) <= 14 else "",  # noqa: PLR2004
        "request_sha256": grant.request_sha256,
        "policy_sha256": last.sha256.get("policy", ""),
        "replicas": replicas,
        "counts": sum_counts(request.id, grant.facts),
    }


def _is_expected(grant: RecordedGrant, name: str, value: Any, expected: Mapping[str, Any]) -> bool:
    if name in {"vendor_keys", "approvers", "replicas"}:
        return _is_names(value) and clean(", ".join(value)) == expected[name]
    if name == "reason":  # the ledger cuts a long text
        return isinstance(value, str) and clean(value) == expected[name]
    if name == "comments":
        return _is_names(value) and _has_comments(grant, value)
    if name in {"since", "opened_at", "closed_at"}:
        return isinstance(value, str) and _has_time(grant, name, value, expected["state"])
    return name in expected and type(value) is type(expected[name]) and value == expected[name]


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _has_comments(grant: RecordedGrant, comments: Sequence[str]) -> bool:
    """Return whether the comments may be those of the approvals.

    Those of approvals without a signature are in no line: then only their number is compared.
    """
    last = grant.facts[-1]
    digests = approval_digests(last)
    if digests:
        given = [grant.approvals[one].comment for one in digests & grant.approvals.keys()]
        return set(comments) == {one for one in given if one}
    return len(comments) <= len(
        [one for one in last.detail.get("approvers", "").split(", ") if one]
    )


def _has_time(grant: RecordedGrant, name: str, text: str, state: str) -> bool:
    """Return whether a time is that of one of its lines.

    The lines of an end may have been written late, because an end waits for no disk: its time may
    be any from the first line on.
    """
    lines = {
        "since": {state},
        "opened_at": {State.OPEN.value},
        "closed_at": {State.COLLECTING.value, State.FAILED.value},
    }[name]
    possible = {
        "since": True,
        "opened_at": state in OPENED or state == State.CLOSING,
        "closed_at": state in OPENED - {State.OPEN} or state == State.FAILED,
    }[name]
    if not text:
        return not possible or (name == "opened_at" and state == State.CLOSING)
    try:
        time_ms = parse_time(text)
    except ValueError:
        return False
    times = [_time_of(fact) for fact in grant.facts if fact.fact in lines]
    if not possible or not times:
        return False
    late = name == "closed_at" or (name == "since" and state not in RELEASES)
    every = [one for one in map(_time_of, grant.facts) if one is not None]
    for one in times:
        if one is None:
            continue
        earliest = min(every) if late else one
        if earliest - TOLERANCE_MS <= time_ms <= one + TOLERANCE_MS:
            return True
    return False


def _time_of(fact: FactLine) -> int | None:
    try:
        return parse_rfc3339(fact.time)
    except ValueError:
        return None
