"""The sums that a report shows, from one pass over the ledgers. Memory: a few bytes a send."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.ledger.query import NO_OUTCOME, STORED, UNKNOWN, Event, Refusal, Send

MAX_ROWS = 2000  # of the newest sends; the others are in the sums and in `ledger show`
MAX_BODIES = 200  # newest kept bodies of a type that are held to its schema
MAX_REFUSALS = 500  # different ones
MINUTE_MS = 60_000


@dataclass(slots=True)
class Bin:
    """What was announced in a span of time."""

    confirmed_bytes: int = 0
    other_bytes: int = 0
    confirmed: int = 0
    other: int = 0

    def add(self, other: "Bin") -> None:
        """Take the sums of another one."""
        self.confirmed_bytes += other.confirmed_bytes
        self.other_bytes += other.other_bytes
        self.confirmed += other.confirmed
        self.other += other.other


@dataclass(slots=True)
class Sum:
    """All sends of one destination or of one type."""

    total: Bin = field(default_factory=Bin)
    records: int = 0  # in confirmed messages
    first: str = ""
    last: str = ""
    agents: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)  # types of a destination, destinations of a type
    reasons: Counter[str] = field(default_factory=Counter)
    minutes: dict[int, Bin] = field(default_factory=dict)  # minutes since 1970
    bodies: deque[Send] = field(default_factory=lambda: deque(maxlen=MAX_BODIES))

    def add(self, send: Send, name: str) -> None:
        """Count one send."""
        one = _bin(send)
        self.total.add(one)
        minute = parse_rfc3339(send.time) // MINUTE_MS
        self.minutes.setdefault(minute, Bin()).add(one)
        self.records += send.records * one.confirmed
        self.first, self.last = self.first or send.time, send.time
        self.agents.add(send.agent)
        self.names.add(name)
        self.reasons[send.reason] += 1
        if send.body:
            self.bodies.append(send)


@dataclass(slots=True)
class Refused:
    """The same refusal, however often."""

    count: int = 0
    first: str = ""
    last: str = ""


@dataclass(slots=True)
class Picture:
    """Everything the page shows of the sends and refusals."""

    all: Sum = field(default_factory=Sum)
    destinations: dict[str, Sum] = field(default_factory=dict)
    types: dict[str, Sum] = field(default_factory=dict)
    refusals: dict[tuple[str, str, str], Refused] = field(default_factory=dict)
    refused: int = 0
    rows: deque[Send] = field(default_factory=lambda: deque(maxlen=MAX_ROWS))


def draw(events: Iterable[Event]) -> Picture:
    """Return the picture of these events, which come by time."""
    picture = Picture()
    for event in events:
        if isinstance(event, Refusal):
            _refuse(picture, event)
        else:
            picture.all.add(event, event.type)
            picture.destinations.setdefault(event.destination, Sum()).add(event, event.type)
            picture.types.setdefault(event.type, Sum()).add(event, event.destination)
            picture.rows.append(event)
    return picture


def outcome_class(reason: str) -> str:
    """Return ok, open (nobody knows yet, or ever) or failed."""
    if reason in STORED:
        return "ok"
    return "open" if reason in {NO_OUTCOME, UNKNOWN} else "failed"


def _bin(send: Send) -> Bin:
    if outcome_class(send.reason) == "ok":
        return Bin(confirmed_bytes=send.bytes, confirmed=1)
    return Bin(other_bytes=send.bytes, other=1)


def _refuse(picture: Picture, event: Refusal) -> None:
    picture.refused += event.count
    key = (event.agent, event.refused, event.detail)
    if key not in picture.refusals and len(picture.refusals) >= MAX_REFUSALS:
        key = (event.agent, "others", f"more than {MAX_REFUSALS} different ones")
    refused = picture.refusals.setdefault(key, Refused(first=event.time))
    refused.count += event.count
    refused.last = event.time
