"""Check the sequences and the CPU counter of a replica for missing and duplicate usage.

A lane is one epoch of one replica. Neighboring records are merged into runs, so a lane without
problems is a single run, for any length and any order of reading.
"""

from bisect import bisect_right
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple

from byoc_agents.audit.intervals import Spans
from byoc_agents.billing.record import CpuBound, Usage

CUT = "cut"  # the incarnation of a point that is not compared: the counter has fallen
CUT_GAPS = ("counter_fell", "counter_impossible")  # the difference across them is not CPU used
CLOCK_PPM = 500  # see `load_of`
SOFT_GAPS = ("no_checkpoint", "spool_corrupt")  # may lie over records of earlier epochs


class Point(NamedTuple):
    """The cumulative counter at one end of a record. `incarnation` is "" for a gap."""

    incarnation: str
    core_seconds: Decimal
    ms: int
    announced: bool  # the record states that a new incarnation or another source begins with it


class Link(NamedTuple):
    """Two points that should be equal. `core_seconds` is their difference, never negative."""

    kind: Literal["unrecorded", "lost_cpu", "doubled_cpu", "unannounced_incarnation"]
    start_ms: int
    end_ms: int
    core_seconds: Decimal


class Stretch(NamedTuple):
    """Neighboring records of one counter, with their used CPU and the CPU that was possible."""

    first: int  # sequences
    last: int
    first_id: str
    last_id: str
    start_ms: int
    end_ms: int
    used_usec: int
    possible_usec: int  # without the slack
    slack_usec: int  # the largest slack of all records; it is applied once

    @property
    def excess_usec(self) -> int:
        """Return how much more CPU was used than possible, without the slack."""
        return self.used_usec - self.possible_usec

    def join(self, after: "Stretch") -> "Stretch":
        """Return the stretch of this one and the one after it."""
        return Stretch(
            self.first,
            after.last,
            self.first_id,
            after.last_id,
            self.start_ms,
            after.end_ms,
            self.used_usec + after.used_usec,
            self.possible_usec + after.possible_usec,
            max(self.slack_usec, after.slack_usec),
        )


class Load(NamedTuple):
    """The stretches of a run that suffice to find the worst one in any order of reading."""

    whole: Stretch | None = None  # None if the run is not a single stretch
    # The worst that begins with the run's first record and the worst that ends with its last one.
    # None if each uses less than possible: such a stretch is part of no worst one.
    head: Stretch | None = None
    tail: Stretch | None = None
    worst: Stretch | None = None

    def join(self, after: "Load", *, same_counter: bool) -> "Load":
        """Return the load of two neighboring runs."""
        worst = _by_breach(self.worst, after.worst)
        if not same_counter:
            return Load(None, self.head, after.tail, worst)
        tail, head = self.tail, after.head
        if tail and head:
            worst = _by_breach(worst, tail.join(head))
        return Load(
            _join(self.whole, after.whole),
            _by_excess(self.head, head and _join(self.whole, head)),
            _by_excess(after.tail, tail and _join(tail, after.whole)),
            worst,
        )


def _join(left: Stretch | None, right: Stretch | None) -> Stretch | None:
    return left.join(right) if left and right else None


def _by_excess(one: Stretch | None, other: Stretch | None) -> Stretch | None:
    """Return the one with the larger excess, or None if neither has any."""
    found = [s for s in (one, other) if s is not None and s.excess_usec > 0]
    return max(found, key=lambda s: s.excess_usec, default=None)


def _by_breach(one: Stretch | None, other: Stretch | None) -> Stretch | None:
    """Return the one that exceeds its slack by more, or None if neither does."""
    if one is None and other is None:
        return None
    found = [s for s in (one, other) if s is not None and s.excess_usec > s.slack_usec]
    return max(found, key=lambda s: s.excess_usec - s.slack_usec, default=None)


def load_of(
    usage: Usage, start_ms: int, end_ms: int, record_id: str, bound: CpuBound | None
) -> Load:
    """Return the load of a single record.

    The slack is how far a counter is behind at one moment. What it is behind at a record's end is
    in the next record, so neighboring records have it once. The rate of the clock, however, can be
    wrong all the time: by up to 500 parts per million (MAXFREQ of the kernel's NTP).
    """
    if bound is None:
        return Load()
    # 0.1.0 rounded the elapsed time: up to 1 ms of each record.
    elapsed_ms = bound.elapsed_ms + (usage.counter_milliseconds is None)
    stretch = Stretch(
        usage.sequence,
        usage.sequence,
        record_id,
        record_id,
        start_ms,
        end_ms,
        int(usage.used.cpu_core_seconds * 10**6),
        -(-bound.cpus * elapsed_ms * (10**6 + CLOCK_PPM) // 1000),
        bound.cpus * bound.slack_ms * 1000,
    )
    hot = stretch if stretch.excess_usec > 0 else None
    return Load(stretch, hot, hot, None)


@dataclass(slots=True)
class Run:
    """Records without a missing sequence between them."""

    first: int
    last: int
    start_ms: int
    end_ms: int
    head: Point | None  # the first counter, or None if no record has one
    tail: Point | None  # the last counter
    head_gap: bool  # a stated gap without a counter precedes `head`
    tail_gap: bool  # a stated gap without a counter follows `tail`
    load: Load


class Hole(NamedTuple):
    """Sequences [first, last] without a valid record, and the runs on both sides."""

    first: int
    last: int
    left: Run | None
    right: Run | None


def run_of(usage: Usage, start_ms: int, end_ms: int, load: Load) -> Run:
    """Return the run of a single record."""
    head = tail = None
    if usage.gap_reason in CUT_GAPS:
        head = tail = Point(CUT, Decimal(0), end_ms, announced=False)
    elif usage.counter is not None and usage.gap_reason not in SOFT_GAPS:
        incarnation = "" if usage.quality == "gap" else usage.incarnation
        announced = usage.restart_observed or usage.source_changed
        head = Point(incarnation, usage.counter.start, start_ms, announced)
        tail = Point(incarnation, usage.counter.end, end_ms, announced)
    bare = head is None
    return Run(usage.sequence, usage.sequence, start_ms, end_ms, head, tail, bare, bare, load)


def link(tail: Point | None, head: Point | None, *, stated: bool) -> Link | None:
    """Compare the counters of two neighboring runs. Return None if there is no problem.

    `stated`: a gap record is between them, so a rise is unrecorded instead of lost.
    """
    if tail is None or head is None or CUT in {tail.incarnation, head.incarnation}:
        return None
    if tail.core_seconds == head.core_seconds:
        return None  # the incarnation's name may change if its birth is only known to the second
    if head.announced and tail.incarnation == head.incarnation:
        return None  # a counter that was set to 0 under its old name
    if tail.incarnation != head.incarnation and (
        (tail.incarnation and head.incarnation) or head.announced
    ):
        announced = head.announced or stated
        return None if announced else Link("unannounced_incarnation", tail.ms, head.ms, Decimal(0))
    apart = head.core_seconds - tail.core_seconds
    rise: Literal["unrecorded", "lost_cpu"] = "unrecorded" if stated else "lost_cpu"
    return Link(rise if apart > 0 else "doubled_cpu", tail.ms, head.ms, abs(apart))


def compare_runs(left: Run, right: Run) -> Link | None:
    """Compare the counters of two neighboring runs."""
    return link(left.tail, right.head, stated=left.tail_gap or right.head_gap)


class Lane:
    """The runs of one epoch, sorted."""

    __slots__ = ("runs",)

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def holds(self, sequence: int) -> bool:
        """Return whether a record with this sequence was added."""
        place = self._after(sequence)
        return place > 0 and sequence <= self.runs[place - 1].last

    def add(self, run: Run) -> list[Link]:
        """Add a record with a new sequence. Return the breaks of the counter next to it."""
        links = []
        place = self._after(run.first)
        if place < len(self.runs) and self.runs[place].first == run.last + 1:
            right = self.runs.pop(place)
            links += [compare_runs(run, right)]
            _extend(run, right)
        if place > 0 and self.runs[place - 1].last + 1 == run.first:
            left = self.runs[place - 1]
            links += [compare_runs(left, run)]
            _extend(left, run)
        else:
            self.runs.insert(place, run)
        return [link for link in links if link is not None]

    def holes(self, expected: Spans) -> list[Hole]:
        """Return the expected sequences that are in no run."""
        held = Spans(*((run.first, run.last + 1) for run in self.runs))
        found = []
        for first, end in expected.minus(held):
            place = self._after(first)
            left = self.runs[place - 1] if place else None
            right = self.runs[place] if place < len(self.runs) else None
            found.append(Hole(first, end - 1, left, right))
        return found

    def _after(self, sequence: int) -> int:
        if self.runs and sequence >= self.runs[-1].first:
            return len(self.runs)
        return bisect_right(self.runs, sequence, key=lambda run: run.first)


def _extend(left: Run, right: Run) -> None:
    """Merge the right run into the left run, at whose end it begins."""
    left.load = left.load.join(right.load, same_counter=_same_counter(left, right))
    left.last = right.last
    left.end_ms = right.end_ms
    if left.head is None:
        left.head, left.head_gap = right.head, True
    if right.tail is not None:
        left.tail, left.tail_gap = right.tail, right.tail_gap
    else:
        left.tail_gap = True


def _same_counter(left: Run, right: Run) -> bool:
    """Return whether the counter of the left run continues in the right run."""
    tail, head = left.tail, right.head
    if tail is None or head is None or left.tail_gap or right.head_gap:
        return False
    return not head.announced and tail.core_seconds == head.core_seconds
