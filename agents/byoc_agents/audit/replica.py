"""The audit state of one replica: lanes, covered time, sums. Nothing is kept per record."""

from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import NamedTuple

from byoc_agents.audit.intervals import Spans
from byoc_agents.audit.report import Total, seconds, stamp
from byoc_agents.audit.sequences import SOFT_GAPS, Lane, Link
from byoc_agents.billing.record import Allocated, CpuBound, GapReason, Usage

MAX_UNRECORDED = 1000  # kept for each replica


class ReplicaName(NamedTuple):
    """Organization, service and replica."""

    organization_id: str
    service_id: str
    replica: str


class Timeline:
    """The time that the records of one container of one pod cover, milliseconds."""

    __slots__ = ("covered", "gaps", "soft")

    def __init__(self) -> None:
        self.covered = Spans()  # by records whose periods must not overlap
        self.gaps: dict[GapReason, Spans] = {}  # by reason
        self.soft: list[tuple[int, int, int, int, Allocated]] = []  # epoch, sequence, period, size

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
        """Add a gap whose counted time depends on records that may be read later."""
        if usage.gap_reason in SOFT_GAPS and usage.allocated.counted_milliseconds:
            self.soft.append((usage.epoch, usage.sequence, start_ms, end_ms, usage.allocated))

    def allocate(self, sums: "UsageSums") -> None:
        """Add the size of soft gaps over the time that no other record covers, each instant once.

        If two soft gaps overlap, the one with the lower (epoch, sequence) counts.
        """
        taken = Spans(*self.covered)
        for _, _, start_ms, end_ms, size in sorted(self.soft, key=lambda gap: gap[:2]):
            sums.allocate(size, sum(b - a for a, b in taken.find_uncovered(start_ms, end_ms)))
            taken.add(start_ms, end_ms)

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


@dataclass(slots=True)
class UsageSums:
    """Exact integer sums; `total` gives them their units."""

    objects: int = 0
    records: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    measured_ms: int = 0
    estimated_ms: int = 0
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
        if usage.gap_reason not in SOFT_GAPS:  # those are added by `Timeline.allocate`
            counted_ms = size.counted_milliseconds
            if counted_ms is None:  # a record of 0.1.0
                counted_ms = 0 if usage.quality == "gap" else end_ms - start_ms
            self.allocate(size, counted_ms)
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
        self.first_ms, self.last_ms = min(starts, default=None), max(ends, default=None)

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

    def total(self, name: ReplicaName) -> Total:
        """Return the sums with their units."""
        return Total(
            **name._asdict(),
            objects=self.objects,
            records=self.records,
            first_start=stamp(self.first_ms),
            last_end=stamp(self.last_ms),
            measured_seconds=seconds(self.measured_ms),
            estimated_seconds=seconds(self.estimated_ms),
            cpu_core_seconds=self.core_seconds,
            memory_byte_seconds=self.byte_seconds,
            allocated_core_seconds=Decimal(self.allocated_millicore_ms).scaleb(-6),
            allocated_byte_seconds=seconds(self.allocated_byte_ms),
            unallocated_seconds=seconds(self.unallocated_ms),
            unknown_allocated_cpu_seconds=seconds(self.unknown_cpu_ms),
            unknown_allocated_memory_seconds=seconds(self.unknown_memory_ms),
            excluded_records=self.excluded_records,
            excluded_core_seconds=self.excluded_core_seconds,
        )


_ADDED = tuple(f.name for f in fields(UsageSums) if f.name not in {"first_ms", "last_ms"})


@dataclass(slots=True)
class SizelessRecords:
    """Records of one pod that do not say how many CPUs the machine has (0.1.0 did not)."""

    sums: UsageSums
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
    lanes: dict[int, Lane] = field(default_factory=dict)  # by epoch
    timelines: dict[tuple[str, str], Timeline] = field(default_factory=dict)  # by pod, container
    sums: UsageSums = field(default_factory=UsageSums)
    unrecorded: list[Link] = field(default_factory=list)
    machine_cpus: dict[str, int] = field(default_factory=dict)  # the largest known, by pod
    # By pod and by the number of CPUs that a record needs to be possible.
    sizeless: dict[tuple[str, int], SizelessRecords] = field(default_factory=dict)

    def lane(self, epoch: int) -> Lane:
        """Return the lane of an epoch."""
        return self.lanes.setdefault(epoch, Lane())

    def timeline(self, usage: Usage) -> Timeline:
        """Return the timeline that a record belongs to."""
        pod = usage.pod_uid or usage.replica
        return self.timelines.setdefault((pod, usage.container_name), Timeline())

    def note_unrecorded(self, link: Link) -> None:
        """Add CPU across a stated gap."""
        if len(self.unrecorded) < MAX_UNRECORDED:
            self.unrecorded.append(link)

    def add(self, usage: Usage, start_ms: int, end_ms: int, name: str, bound: CpuBound) -> None:
        """Add a record to the sums, or postpone it if its number of CPUs is unknown."""
        pod = usage.pod_uid or usage.replica
        needed = bound.needs_cpus(usage.used.cpu_core_seconds)
        if usage.machine_cpus is not None or needed <= self.machine_cpus.get(pod, 1):
            self.sums.add(usage, start_ms, end_ms)
            return
        found = self.sizeless.get((pod, needed))
        if found is None:
            found = self.sizeless[pod, needed] = SizelessRecords(
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
        for (pod, needed), found in self.sizeless.items():
            cpus = self.machine_cpus.get(pod)
            if cpus is None or needed <= cpus:
                self.sums.merge(found.sums)
            else:
                self.sums.excluded_records += found.sums.records
                self.sums.excluded_core_seconds += found.sums.core_seconds
                refused.append((found, needed, cpus))
        return refused
