"""The sums that the report shows, from one pass over the ledgers. A few bytes per send."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.ledger.query import (
    NO_OUTCOME,
    STORED,
    UNKNOWN,
    LedgerEvent,
    RefusedConnections,
    Send,
)

MAX_ROWS = 2000  # of the newest sends; the sums and `ledger show` include older ones
MAX_BODIES = 200  # newest kept bodies of a type that are checked against its schema
MAX_REFUSALS = 500  # distinct refusals
MINUTE_MS = 60_000
DAY_MINUTES = 1440
MIN_BARS = 12
# Minutes per bar, maximum number of bars, unit. The last one is for all longer spans.
STEPS = (
    (1, 180, "minute"),
    (60, 170, "hour"),
    (360, 170, "6 hours"),
    (DAY_MINUTES, 400, "day"),
    (10_080, 10_000, "week"),
)


class Volume(msgspec.Struct):
    """Sends and bytes announced in a period, confirmed by the receiver or not."""

    confirmed_bytes: int = 0
    other_bytes: int = 0
    confirmed: int = 0
    other: int = 0

    @property
    def sends(self) -> int:
        """Return the number of sends."""
        return self.confirmed + self.other

    def add(self, other: "Volume") -> None:
        """Add another volume to this one."""
        self.confirmed_bytes += other.confirmed_bytes
        self.other_bytes += other.other_bytes
        self.confirmed += other.confirmed
        self.other += other.other


def _newest_bodies() -> deque[Send]:
    return deque(maxlen=MAX_BODIES)


def _newest_rows() -> deque[Send]:
    return deque(maxlen=MAX_ROWS)


class Sums(msgspec.Struct):
    """All sends to one destination, or of one type."""

    total: Volume = msgspec.field(default_factory=Volume)
    events: int = 0  # in confirmed messages
    first: str = ""  # RFC 3339
    last: str = ""
    daemons: set[str] = msgspec.field(default_factory=set)
    names: set[str] = msgspec.field(default_factory=set)  # types, or destinations
    reasons: Counter[str] = msgspec.field(default_factory=Counter)
    minutes: dict[int, Volume] = msgspec.field(default_factory=dict)  # minutes since 1970
    bodies: deque[Send] = msgspec.field(default_factory=_newest_bodies)

    def add(self, send: Send, name: str) -> None:
        """Count one send."""
        volume = _volume_of(send)
        self.total.add(volume)
        minute = parse_rfc3339(send.time) // MINUTE_MS
        self.minutes.setdefault(minute, Volume()).add(volume)
        self.events += send.events * volume.confirmed
        self.first, self.last = self.first or send.time, send.time
        self.daemons.add(send.daemon)
        self.names.add(name)
        self.reasons[send.reason] += 1
        if send.body:
            self.bodies.append(send)


class RefusalCount(msgspec.Struct):
    """The number of refusals of the same connection."""

    count: int = 0
    first: str = ""  # RFC 3339
    last: str = ""


class Summary(msgspec.Struct):
    """Everything that the page shows of sends and refusals."""

    all: Sums = msgspec.field(default_factory=Sums)
    destinations: dict[str, Sums] = msgspec.field(default_factory=dict)
    types: dict[str, Sums] = msgspec.field(default_factory=dict)
    refusals: dict[tuple[str, str, str], RefusalCount] = msgspec.field(default_factory=dict)
    refused: int = 0
    rows: deque[Send] = msgspec.field(default_factory=_newest_rows)


def summarize(events: Iterable[LedgerEvent]) -> Summary:
    """Return the sums of these events, which are ordered by time."""
    summary = Summary()
    for event in events:
        if isinstance(event, RefusedConnections):
            _add_refusal(summary, event)
        elif isinstance(event, Send):
            summary.all.add(event, event.type)
            summary.destinations.setdefault(event.destination, Sums()).add(event, event.type)
            summary.types.setdefault(event.type, Sums()).add(event, event.destination)
            summary.rows.append(event)
    return summary


def outcome_class(reason: str) -> str:
    """Return ok, open (not known yet, or lost) or failed."""
    if reason in STORED:
        return "ok"
    return "open" if reason in {NO_OUTCOME, UNKNOWN} else "failed"


def _volume_of(send: Send) -> Volume:
    if outcome_class(send.reason) == "ok":
        return Volume(confirmed_bytes=send.bytes, confirmed=1)
    return Volume(other_bytes=send.bytes, other=1)


def _add_refusal(summary: Summary, event: RefusedConnections) -> None:
    summary.refused += event.count
    key = (event.daemon, event.refused, event.detail)
    if key not in summary.refusals and len(summary.refusals) >= MAX_REFUSALS:
        key = (event.daemon, "others", f"more than {MAX_REFUSALS} different ones")
    refusal = summary.refusals.setdefault(key, RefusalCount(first=event.time))
    refusal.count += event.count
    refusal.last = event.time


# The bars of a chart.


class ChartSpan(NamedTuple):
    """The minutes that a chart shows, and the number of minutes per bar."""

    first: int  # minutes since 1970, a multiple of `step`
    bars: int
    step: int  # minutes
    unit: str


class Series(NamedTuple):
    """One figure per bar: confirmed below, the rest above it."""

    confirmed: list[int]
    other: list[int]


def span_of(minutes: Mapping[int, Volume]) -> ChartSpan:
    """Return a span over all of these minutes with a readable number of bars."""
    first, last = min(minutes), max(minutes)
    for step, most, unit in STEPS:
        begin = first // step * step
        bars = (last - begin) // step + 1
        if bars <= most:
            return ChartSpan(begin, max(bars, MIN_BARS), step, unit)
    raise ValueError("a ledger of more than a hundred years")


def series_of(minutes: Mapping[int, Volume], span: ChartSpan) -> tuple[Series, Series]:
    """Return bytes and sends of each bar."""
    bars = [Volume() for _ in range(span.bars)]
    for minute, volume in minutes.items():
        bars[(minute - span.first) // span.step].add(volume)
    sizes = Series([bar.confirmed_bytes for bar in bars], [bar.other_bytes for bar in bars])
    return sizes, Series([bar.confirmed for bar in bars], [bar.other for bar in bars])
