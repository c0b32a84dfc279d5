"""Read a ledger as events: each send with its outcome, each refusal, and each fact."""

import heapq
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from byoc_agents.ledger.format import (
    FactLine,
    IntentLine,
    LedgerLine,
    LedgerOutcome,
    ReceiptLine,
    RefusedLine,
    UnknownLine,
    decode,
)
from byoc_agents.ledger.reader import raw_lines
from byoc_agents.ledger.segments import Segments

NO_OUTCOME = "in_flight"  # or a crash that no start has stated yet
UNKNOWN = "unknown"  # the outcome cannot be determined
STORED = frozenset({"ok", "already_stored"})


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """One message on its way out, once: a retry is another one."""

    daemon: str
    sequence: int  # of the intent's line
    time: str  # when it was announced
    destination: str
    id: str
    type: str
    bytes: int
    sha256: str
    events: int = msgspec.field(name="records")
    content_type: str
    reason: str  # byoc_agents.errors.Reason, or `unknown`, or `in_flight`
    status: int = 0
    reference: str = ""
    detail: str = ""
    ended: str = ""  # when the outcome was written
    body: str = ""  # the file with its exact bytes, if they were kept


class RefusedConnections(msgspec.Struct, frozen=True, kw_only=True):
    """Connections that the gate refused. Nothing left."""

    daemon: str
    sequence: int
    time: str
    refused: str  # why
    detail: str
    count: int


class RecordedFact(msgspec.Struct, frozen=True, kw_only=True):
    """A decision or a step of the access broker. Nothing left."""

    daemon: str
    sequence: int
    time: str
    fact: str
    subject: str  # the grant's id, or ""
    reason: str
    detail: dict[str, str]
    sha256: dict[str, str]


LedgerEvent = Send | RefusedConnections | RecordedFact


class Filter(msgspec.Struct, frozen=True):
    """Which events are wanted. Empty = all; type and destination may have * and ?."""

    since: str = ""  # RFC 3339 UTC, inclusive
    until: str = ""  # exclusive
    type: str = ""
    destination: str = ""
    id: str = ""

    def __call__(self, event: LedgerEvent) -> bool:
        """Return whether the filter selects the event."""
        if event.time < self.since or (self.until and event.time >= self.until):
            return False
        if isinstance(event, RefusedConnections):
            return not (self.type or self.destination or self.id)
        if isinstance(event, RecordedFact):
            return not (self.type or self.destination) and self.id in {"", event.subject}
        pairs = ((event.type, self.type), (event.destination, self.destination))
        fits = all(not pattern or fnmatchcase(value, pattern) for value, pattern in pairs)
        return fits and self.id in {"", event.id}


def events(ledgers: Mapping[str, Path], wanted: Filter) -> Iterator[LedgerEvent]:
    """Yield the sends, refusals and facts of these daemons, by time. Blocks. Raises OSError."""
    each = (filter(wanted, _of_daemon(name, path)) for name, path in ledgers.items())
    return heapq.merge(*each, key=lambda event: event.time)


def _of_daemon(daemon: str, directory: Path) -> Iterator[LedgerEvent]:
    segments = Segments(directory)
    in_flight: dict[int, tuple[int, IntentLine]] = {}
    for number in segments.numbers():
        for line in _lines(segments.path(number)):
            if isinstance(line, IntentLine):
                in_flight[line.sequence] = (number, line)
            elif isinstance(line, RefusedLine):
                yield _refusal(daemon, line)
            elif isinstance(line, FactLine):
                yield _fact(daemon, line)
            elif isinstance(line, ReceiptLine | UnknownLine) and line.intent in in_flight:
                yield from _sends(daemon, segments, in_flight.pop(line.intent), line)
    for pair in in_flight.values():
        yield from _sends(daemon, segments, pair, None)


def _lines(path: Path) -> Iterator[LedgerLine]:
    try:
        for raw in raw_lines(path):
            line = decode(raw.content) if raw.whole else None
            if line:
                yield line
    except FileNotFoundError:  # removed by rotation meanwhile
        return


def _refusal(daemon: str, line: RefusedLine) -> RefusedConnections:
    return RefusedConnections(
        daemon=daemon,
        sequence=line.sequence,
        time=line.time,
        refused=line.reason,
        detail=line.detail,
        count=line.count(),
    )


def _fact(daemon: str, line: FactLine) -> RecordedFact:
    return RecordedFact(
        daemon=daemon,
        sequence=line.sequence,
        time=line.time,
        fact=line.fact,
        subject=line.subject,
        reason=line.reason,
        detail=line.detail,
        sha256=line.sha256,
    )


def _sends(
    daemon: str,
    segments: Segments,
    pair: tuple[int, IntentLine],
    outcome: ReceiptLine | UnknownLine | None,
) -> Iterator[Send]:
    number, intent = pair
    for position, sent in enumerate(intent.messages):
        ended = _find_result(outcome, position)
        path = segments.body_path(number, sent.sha256)
        yield Send(
            daemon=daemon,
            sequence=intent.sequence,
            time=intent.time,
            destination=intent.destination,
            id=sent.id,
            type=sent.type,
            bytes=sent.bytes,
            sha256=sent.sha256,
            events=sent.events,
            content_type=sent.content_type,
            reason=ended.reason,
            status=ended.status,
            reference=ended.reference,
            detail=ended.detail,
            ended=outcome.time if outcome else "",
            body=str(path) if sent.kept else "",
        )


def _find_result(outcome: ReceiptLine | UnknownLine | None, position: int) -> LedgerOutcome:
    if isinstance(outcome, ReceiptLine) and position < len(outcome.outcomes):
        return outcome.outcomes[position]
    if isinstance(outcome, UnknownLine):
        return LedgerOutcome(id="", reason=UNKNOWN, detail=outcome.why)
    return LedgerOutcome(id="", reason=NO_OUTCOME)
