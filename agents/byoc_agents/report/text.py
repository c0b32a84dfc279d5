"""The ledger as text for a terminal."""

from collections.abc import Iterator

from byoc_agents.ledger.query import LedgerEvent, RecordedFact, RefusedConnections
from byoc_agents.ledger.verify import LedgerVerdict
from byoc_agents.report.cloudtrail import TrailVerdict

HEADING = (
    f"{'time':24} {'daemon':16} {'outcome':15} {'bytes':>9} {'events':>7}  type  destination  id"
)


def event_text(event: LedgerEvent) -> str:
    """Return one line. Other programs' text is made printable: it cannot control a terminal."""
    if isinstance(event, RefusedConnections):
        outcome, tail = "REFUSED", f"{event.count} x {event.refused}: {event.detail}"
        return _safe(f"{event.time:24} {event.daemon:16} {outcome:15} {0:9} {0:7}  {tail}")
    if isinstance(event, RecordedFact):
        values = " ".join(f"{name}={value}" for name, value in event.detail.items())
        tail = f"{event.reason}  {event.subject}  {values}".rstrip()
        return _safe(f"{event.time:24} {event.daemon:16} {event.fact:15} {0:9} {0:7}  {tail}")
    outcome = f"{event.reason} {event.status}" if event.status else event.reason
    facts = f"{event.time:24} {event.daemon:16} {outcome:15} {event.bytes:9} {event.events:7}"
    detail = f"  {event.reference or event.detail}" if event.reference or event.detail else ""
    return _safe(f"{facts}  {event.type}  {event.destination}  {event.id}{detail}")


def verdict_text(name: str, verdict: LedgerVerdict) -> Iterator[str]:
    """Yield the lines of one daemon's verdict; the first one is the summary."""
    yield f"{name}: {'OK' if verdict.ok else 'FAILED'}"
    for problem in verdict.problems:
        yield _safe(f"  problem  {problem}")
    if verdict.more_problems:
        yield f"  problem  and {verdict.more_problems} more"
    for note in verdict.notes:
        yield _safe(f"  note     {note}")
    yield (
        f"  {verdict.lines} lines in {verdict.files} files,"
        f" {verdict.first_time} to {verdict.last_time}"
    )
    yield (
        f"  {verdict.intents} sends announced, {verdict.receipts} with a receipt,"
        f" {verdict.unknown} unknown; {verdict.refused} refusals; {verdict.bodies} bodies checked"
    )
    if verdict.heads:
        yield f"  {verdict.heads} kept heads confirmed"
    yield f"  head {verdict.head}"
    if verdict.tree:
        yield f"  tree {verdict.tree}"


def trail_text(verdict: TrailVerdict) -> Iterator[str]:
    """Yield the lines of the comparison with CloudTrail; the first one is the summary."""
    yield f"cloudtrail: {'OK' if verdict.ok else 'FAILED'}"
    for problem in verdict.problems:
        yield _safe(f"  problem  {problem}")
    if verdict.more_problems:
        yield f"  problem  and {verdict.more_problems} more"
    for note in verdict.notes:
        yield _safe(f"  note     {note}")
    yield f"  {verdict.events} sends in the trail, {verdict.sends} sends in the ledgers"


def _safe(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
