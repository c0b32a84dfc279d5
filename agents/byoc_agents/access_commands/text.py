"""Grants as text for a terminal. Every text of others is made printable."""

from collections.abc import Iterator, Sequence

from byoc_agents.access_commands.state import GrantSummary
from byoc_agents.ledger.query import RecordedFact

HEADING = f"{'id':36}  {'state':17} {'engineer':16} {'ticket':12} {'role':16} {'for':>5}  until"


def grant_line(grant: GrantSummary) -> str:
    """Return one line of the list."""
    until = grant.closed_at or grant.ends_at
    return printable(
        f"{grant.id:36}  {grant.state:17} {grant.engineer:16} {grant.ticket:12} {grant.role:16}"
        f" {_duration(grant.duration_seconds):>5}  {until}".rstrip()
    )


def grant_text(
    grant: GrantSummary, facts: Sequence[RecordedFact], readable: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the lines about one grant, with its history; `readable` are the role's views."""
    fields = {
        "id": grant.id,
        "state": f"{grant.state}, since {grant.since}",
        "reason": grant.reason,
        "engineer": f"{grant.engineer} ({grant.engineer_name})",
        "why": f"{grant.kind}, {grant.ticket}: {grant.text}",
        "role": _asked(grant.role, grant.requested_role),
        "may read": ", ".join(readable),
        "endpoints": ", ".join(grant.endpoints),
        "user": grant.clickhouse_user or ("none in ClickHouse" if grant.opened_at else ""),
        "duration": _asked(_duration(grant.duration_seconds), _duration(grant.requested_seconds)),
        "signed by": ", ".join(grant.vendor_keys),
        "approved by": ", ".join(grant.approvers),
        "comments": "; ".join(grant.comments),
        "issued": grant.issued_at,
        "opened": grant.opened_at,
        "ends": grant.ends_at,
        "closed": grant.closed_at,
        "counts": ", ".join(f"{name} {value}" for name, value in grant.counts.items()),
        "replicas": ", ".join(grant.replicas),
        "request": f"sha256 {grant.request_sha256}",
        "policy": f"sha256 {grant.policy_sha256}",
    }
    yield from (printable(f"{name:12} {value}") for name, value in fields.items() if value)
    yield from map(fact_line, facts)


def fact_line(fact: RecordedFact) -> str:
    """Return a line of the ledger as one line of text."""
    detail = " ".join(f"{name}={value}" for name, value in fact.detail.items())
    return printable(f"{fact.time}  line {fact.sequence}: {fact.fact}: {fact.reason}  {detail}")


def _asked(approved: str, requested: str) -> str:
    return approved if approved == requested else f"{approved}, requested {requested}"


def _duration(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    minutes = f"{rest // 60}m" if rest % 60 == 0 else f"{rest}s"
    return f"{hours}h" if hours and not rest else f"{hours}h{minutes}" if hours else minutes


def printable(text: str) -> str:
    """Return the text without control characters: it may come from others."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
