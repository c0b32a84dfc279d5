"""The audit state of one replica: lanes, covered time, sums. Nothing is kept per record."""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from byoc_agents.audit.intervals import Spans
from byoc_agents.audit.report import Total, seconds, shift_point, stamp
from byoc_agents.audit.sequences import SOFT_GAPS, Lane, Link
from byoc_agents.billing.record import Allocated, CpuBound, GapReason, Usage

MAX_UNRECORDED = 1000  # kept for each replica
DAY_MS = 86_400_000


class ReplicaName(NamedTuple):
    """Organization, service and replica."""

    organization_id: str
    service_id: str
    replica: str


class SoftGap(NamedTuple):
    """A gap that may lie over other records: what it adds to the sums is known at the end."""

    epoch: int
    sequence: int
    reason: GapReason
    start_ms: int
    end_ms: int
    size: Allocated


class Timeline:
    """The time that the records of one container of one pod cover, milliseconds."""

    __slots__ = ("covered", "gaps", "soft")

    def __init__(self) -> None:
        self.covered = Spans()  # by records whose periods must not overlap
        self.gaps: dict[GapReason, Spans] = {}  # by reason
        self.soft: list[SoftGap] = []

    def add(self, usage: Usage, start_ms: int, end_ms: int) -> list[tuple[int, int]]:
        """Add a period; return the parts that were covered before."""
        twice = []
        if usage.quality == "gap":
            self.gaps.setdefault(usage.gap_reason, Spans()).add(start_ms, end_ms)
        if usage.gap_reason not in SOFT_GAPS:
            twice = self.covered.overlap(start_ms, end_ms)
            self.covered.add(start_ms, end_ms)
        return twice

    def add_soft(self, usage: Usage, start_ms: int, end_ms: int) -> None:
        """Add a gap whose time depends on records that may be read later."""
        if (reason := usage.gap_reason) in SOFT_GAPS:
            place = (usage.epoch, usage.sequence)
            self.soft.append(SoftGap(*place, reason, start_ms, end_ms, usage.allocated))

    def settle(self, sums_at: Callable[[int], "UsageSums"]) -> None:
        """Add the soft gaps over the time that no other record covers, each instant once.

        If two overlap, the one with the lower (epoch, sequence) counts. A gap whose size is not
        counted takes no time from the size of another one. `sums_at` returns the sums of a
        record's start.
        """
        stated, allocated = Spans(*self.covered), Spans(*self.covered)
        for gap in sorted(self.soft, key=lambda gap: gap[:2]):
            period = (gap.start_ms, gap.end_ms)
            sums = sums_at(gap.start_ms)
            sums.add_gap(gap.reason, *period, _length(stated.find_uncovered(*period)))
            stated.add(*period)
            if gap.size.counted_milliseconds:
                sums.allocate(gap.size, _length(allocated.find_uncovered(*period)))
                allocated.add(*period)

    def knows(self, usage: Usage, start_ms: int, end_ms: int) -> bool:
        """Return whether records of this kind already cover the whole period."""
        soft = usage.gap_reason in SOFT_GAPS
        spans = self.gaps.get(usage.gap_reason, Spans()) if soft else self.covered
        return not spans.find_uncovered(start_ms, end_ms)

    def stated(self) -> dict[GapReason, Spans]:
        """Return the gaps, without the time that records cover if gaps may overlap them."""
        return {
            reason: spans.minus(self.covered) if reason in SOFT_GAPS else spans
            for reason, spans in self.gaps.items()
        }

    def holes(self) -> Spans:
        """Return the time between the first and the last record that no record covers."""
        known = Spans(*self.covered)
        for spans in self.gaps.values():
            known.update(spans)
        return known.holes()


def _length(spans: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans)


@dataclass(slots=True)
class UsageSums:
    """Exact integer sums; `total` gives them their units."""

    records: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    measured_ms: int = 0
    estimated_ms: int = 0
    gap_ms: dict[GapReason, int] = field(default_factory=dict)  # by reason
    covered_gap_ms: int = 0  # of soft gaps: time that other records cover, not in `gap_ms`
    core_seconds: Decimal = Decimal(0)
    byte_seconds: int = 0
    allocated_millicore_ms: int = 0
    allocated_byte_ms: int = 0
    unallocated_ms: int = 0
    unknown_cpu_ms: int = 0
    unknown_memory_ms: int = 0
    excluded_records: int = 0
    excluded_core_seconds: Decimal = Decimal(0)

    def add(self, usage: Usage, start_ms: int, end_ms: int) -> None:
        """Add one record."""
        self.records += 1
        self.first_ms = start_ms if self.first_ms is None else min(self.first_ms, start_ms)
        self.last_ms = end_ms if self.last_ms is None else max(self.last_ms, end_ms)
        size = usage.allocated
        if usage.gap_reason not in SOFT_GAPS:  # those are added by `Timeline.settle`
            counted_ms = size.counted_milliseconds
            if counted_ms is None:  # a record of 0.1.0
                counted_ms = 0 if usage.quality == "gap" else end_ms - start_ms
            self.allocate(size, counted_ms)
            if usage.quality == "gap":
                self.add_gap(usage.gap_reason, start_ms, end_ms, end_ms - start_ms)
        if usage.quality == "gap":
            return
        period_ms = end_ms - start_ms
        if usage.quality == "measured":
            self.measured_ms += period_ms
        else:
            self.estimated_ms += period_ms
        self.core_seconds += usage.used.cpu_core_seconds
        self.byte_seconds += usage.used.memory_byte_seconds

    def merge(self, other: "UsageSums") -> None:
        """Add all records of the other sums."""
        starts = [ms for ms in (self.first_ms, other.first_ms) if ms is not None]
        ends = [ms for ms in (self.last_ms, other.last_ms) if ms is not None]
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, gap_ms in other.gap_ms.items():
            self.gap_ms[reason] = self.gap_ms.get(reason, 0) + gap_ms
        self.first_ms, self.last_ms = min(starts, default=None), max(ends, default=None)

    def add_gap(self, reason: GapReason, start_ms: int, end_ms: int, own_ms: int) -> None:
        """Add a gap, `own_ms` of which no other record covers."""
        self.gap_ms[reason] = self.gap_ms.get(reason, 0) + own_ms
        self.covered_gap_ms += end_ms - start_ms - own_ms

    def allocate(self, size: Allocated, counted_ms: int) -> None:
        """Add a size over time; for a figure that is unknown add the time to the unknown time."""
        if size.cpu_millicores is None or size.memory_bytes is None:
            self.unallocated_ms += counted_ms
        if size.cpu_millicores is None:
            self.unknown_cpu_ms += counted_ms
        else:
            self.allocated_millicore_ms += size.cpu_millicores * counted_ms
        if size.memory_bytes is None:
            self.unknown_memory_ms += counted_ms
        else:
            self.allocated_byte_ms += size.memory_bytes * counted_ms

    def exclude(self, usage: Usage) -> None:
        """Count a record whose CPU is impossible; none of its figures is in another sum."""
        self.excluded_records += 1
        self.excluded_core_seconds += usage.used.cpu_core_seconds

    def total(self, name: ReplicaName, objects: int) -> Total:
        """Return the sums with their units."""
        return Total(
            **name._asdict(),
            objects=objects,
            records=self.records,
            first_start=stamp(self.first_ms),
            last_end=stamp(self.last_ms),
            measured_seconds=seconds(self.measured_ms),
            estimated_seconds=seconds(self.estimated_ms),
            cpu_core_seconds=self.core_seconds,
            memory_byte_seconds=self.byte_seconds,
            allocated_core_seconds=shift_point(self.allocated_millicore_ms, 6),
            allocated_byte_seconds=seconds(self.allocated_byte_ms),
            unallocated_seconds=seconds(self.unallocated_ms),
            unknown_allocated_cpu_seconds=seconds(self.unknown_cpu_ms),
            unknown_allocated_memory_seconds=seconds(self.unknown_memory_ms),
            excluded_records=self.excluded_records,
            excluded_core_seconds=self.excluded_core_seconds,
        )


_ADDED = (
    *("records", "measured_ms", "estimated_ms", "covered_gap_ms", "core_seconds", "byte_seconds"),
    *("allocated_millicore_ms", "allocated_byte_ms", "unallocated_ms", "unknown_cpu_ms"),
    *("unknown_memory_ms", "excluded_records", "excluded_core_seconds"),
)


@dataclass(slots=True)
class SizelessRecords:
    """Records of one pod that do not say how many CPUs the machine has (0.1.0 did not)."""

    sums: UsageSums  # of records that start on one day, if the audit is by day
    # Of the first record that was read:
    record_id: str
    epoch: int
    sequence: int
    start_ms: int
    end_ms: int
    core_seconds: Decimal


@dataclass(slots=True)
class ReplicaAudit:
    """The evidence on one replica."""

    name: ReplicaName
    by_day: bool = False
    objects: int = 0
    lanes: dict[int, Lane] = field(default_factory=dict)  # by epoch
    read: dict[int, Spans] = field(default_factory=dict)  # by epoch, instead of `lanes`
    timelines: dict[tuple[str, str], Timeline] = field(default_factory=dict)  # by pod, container
    # By the UTC day of the records' start, days since 1970; unless `by_day`, all of them under 0.
    sums: dict[int, UsageSums] = field(default_factory=dict)
    unrecorded: list[Link] = field(default_factory=list)
    machine_cpus: dict[str, int] = field(default_factory=dict)  # the largest known, by pod
    # By pod, by the number of CPUs that a record needs to be possible, and by day as `sums`.
    sizeless: dict[tuple[str, int, int], SizelessRecords] = field(default_factory=dict)

    def sequences(self, epoch: int) -> Spans:
        """Return the sequences that were read, of an audit that has no lanes."""
        found = self.read.get(epoch)
        if found is None:
            found = self.read[epoch] = Spans()
        return found

    def lane(self, epoch: int) -> Lane:
        """Return the lane of an epoch."""
        found = self.lanes.get(epoch)
        if found is None:
            found = self.lanes[epoch] = Lane()
        return found

    def timeline(self, usage: Usage) -> Timeline:
        """Return the timeline that a record belongs to."""
        place = (usage.pod_uid or usage.replica, usage.container_name)
        found = self.timelines.get(place)
        if found is None:
            found = self.timelines[place] = Timeline()
        return found

    def sums_at(self, start_ms: int) -> UsageSums:
        """Return the sums of the records that start at a time."""
        day = start_ms // DAY_MS if self.by_day else 0
        found = self.sums.get(day)
        if found is None:
            found = self.sums[day] = UsageSums()
        return found

    def total(self) -> Total:
        """Return the sums of all days with their units."""
        sums = UsageSums()
        for one in self.sums.values():
            sums.merge(one)
        return sums.total(self.name, self.objects)

    def note_unrecorded(self, link: Link) -> None:
        """Add CPU across a stated gap."""
        if len(self.unrecorded) < MAX_UNRECORDED:
            self.unrecorded.append(link)

    def add(self, usage: Usage, start_ms: int, end_ms: int, name: str, bound: CpuBound) -> None:
        """Add a record to the sums, or postpone it if its number of CPUs is unknown."""
        pod = usage.pod_uid or usage.replica
        needed = bound.needs_cpus(usage.used.cpu_core_seconds)
        if usage.machine_cpus is not None or needed <= self.machine_cpus.get(pod, 1):
            self.sums_at(start_ms).add(usage, start_ms, end_ms)
            return
        place = (pod, needed, start_ms // DAY_MS if self.by_day else 0)
        found = self.sizeless.get(place)
        if found is None:
            found = self.sizeless[place] = SizelessRecords(
                UsageSums(),
                name,
                usage.epoch,
                usage.sequence,
                start_ms,
                end_ms,
                usage.used.cpu_core_seconds,
            )
        found.sums.add(usage, start_ms, end_ms)

    def note_cpus(self, usage: Usage) -> None:
        """Update the largest number of CPUs in the possible records of a pod."""
        if usage.machine_cpus is not None:
            pod = usage.pod_uid or usage.replica
            self.machine_cpus[pod] = max(self.machine_cpus.get(pod, 0), usage.machine_cpus)

    def decide(self) -> list[tuple[SizelessRecords, int, int]]:
        """Add the postponed records to the sums. Called once, at the end.

        Return the impossible ones, with the number of CPUs that they need and that exist.
        """
        refused = []
        for (pod, needed, _), found in self.sizeless.items():
            cpus = self.machine_cpus.get(pod)
            sums = self.sums_at(found.start_ms)
            if cpus is None or needed <= cpus:
                sums.merge(found.sums)
            else:
                sums.excluded_records += found.sums.records
                sums.excluded_core_seconds += found.sums.core_seconds
                refused.append((found, needed, cpus))
        return refused
