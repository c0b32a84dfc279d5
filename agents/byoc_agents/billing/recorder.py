"""Periods to usage records: identity, exact figures, quality."""

from decimal import Decimal

import msgspec

from byoc_agents.app.cloudevents import rfc3339, source_uri
from byoc_agents.billing.record import (
    TYPE,
    Allocated,
    Counter,
    Quality,
    Resized,
    Samples,
    SizeSource,
    Usage,
    UsageRecord,
    Used,
    name_incarnation,
    record_id,
)
from byoc_agents.billing.window import NS_PER_MS, Period, Size, Window, size_at

MISSED_SAMPLES = 2.5  # sample intervals without a reading that make a period estimated
NOTHING = Used(cpu_core_seconds=Decimal(0), memory_byte_seconds=0, memory_max_bytes=0)


class UsageIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The metered container, and its limits by the downward API, used if no source shows them."""

    organization_id: str
    service_id: str
    replica: str
    region: str
    pod_uid: str
    container_name: str
    cpu_limit_millicores: int | None = None
    memory_limit_bytes: int | None = None


class Recorder(msgspec.Struct, frozen=True, kw_only=True):
    """Converts periods to usage records."""

    identity: UsageIdentity
    sample_ms: int

    def record(self, period: Period, epoch: int, sequence: int) -> UsageRecord:
        """Return the record of one period. The same period gives the same id."""
        who, window = self.identity, period.window
        reading = window.reading if window else period.until
        usage = Usage(
            organization_id=who.organization_id,
            service_id=who.service_id,
            replica=who.replica,
            region=who.region,
            pod_uid=who.pod_uid,
            container_name=who.container_name,
            container_id=reading.container_id if reading else "",
            charge_period_start=rfc3339(period.start_ms),
            charge_period_end=rfc3339(period.end_ms),
            elapsed_milliseconds=window.elapsed_ns // NS_PER_MS if window else 0,
            allocated=self._compute_allocated(period),
            used=_compute_used(window) if window else NOTHING,
            counter=_counter(period),
            source=window.reading.source if window else "none",
            incarnation=name_incarnation(reading) if reading else "",
            samples=self._samples(period),
            quality=self._quality(window),
            gap_reason=period.gap_reason,
            restart_observed=window is not None and window.restart_observed,
            source_changed=window is not None and window.source_changed,
            clock_step_milliseconds=window.clock_step_ms if window else 0,
            epoch=epoch,
            sequence=sequence,
            machine_cpus=window.machine_cpus if window else None,
            counter_milliseconds=-(-window.counter_ns // NS_PER_MS) if window else None,
        )
        return UsageRecord(
            id=record_id(usage),
            source=source_uri(who.organization_id, who.service_id, who.replica),
            type=TYPE,
            subject=who.container_name,
            time=usage.charge_period_end,
            data=usage,
        )

    def _compute_allocated(self, period: Period) -> Allocated:
        start, end = _sizes(period)
        before, after = self._add_declared_limits(start), self._add_declared_limits(end)
        cpu_source: SizeSource = before.cpu_source or "unknown"
        memory_source: SizeSource = before.memory_source or "unknown"
        first = cpu_source if cpu_source != "unknown" else memory_source
        return Allocated(
            cpu_millicores=_smaller(before.cpu_millicores, after.cpu_millicores),
            memory_bytes=_smaller(before.memory_bytes, after.memory_bytes),
            source="cgroup" if first == "cgroup_ancestor" else first,
            cpu_source=cpu_source,
            memory_source=memory_source,
            counted_milliseconds=period.window.counted_ms if period.window else period.counted_ms,
            resized=_limits_changed(before, after),
        )

    def _add_declared_limits(self, size: Size | None) -> Size:
        """Return the size, with the downward API's value for each limit that no source shows.

        A limit whose source is `unknown` stays None: see `LimitSource`.
        """
        who = self.identity
        cpu, memory = (size.cpu_millicores, size.memory_bytes) if size else (None, None)
        declared_cpu = None if size and size.cpu_source == "unknown" else who.cpu_limit_millicores
        declared_memory = (
            None if size and size.memory_source == "unknown" else who.memory_limit_bytes
        )
        cpu_source: SizeSource = "downward_api" if declared_cpu else "unknown"
        memory_source: SizeSource = "downward_api" if declared_memory else "unknown"
        return Size(
            cpu_millicores=declared_cpu if cpu is None else cpu,
            memory_bytes=declared_memory if memory is None else memory,
            cpu_source=size.cpu_source if size and cpu is not None else cpu_source,
            memory_source=size.memory_source if size and memory is not None else memory_source,
            by=size.by if size else "process",
        )

    def _samples(self, period: Period) -> Samples:
        expected = max(1, round((period.end_ms - period.start_ms) / self.sample_ms))
        return Samples(expected=expected, observed=period.window.samples if period.window else 0)

    def _quality(self, window: Window | None) -> Quality:
        if window is None:
            return "gap"
        missed = window.longest_ns > MISSED_SAMPLES * self.sample_ms * NS_PER_MS
        doubt = window.estimated or window.source_changed or window.clock_step_ms
        return "estimated" if missed or doubt else "measured"


def _sizes(period: Period) -> tuple[Size | None, Size | None]:
    """Return the sizes at both ends of a period, None if no reading shows them."""
    if period.window is None:
        return period.sizes or (None, None)
    start = size_at(period.window)
    return start, period.window.resized_to or start


def _smaller(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two limits, which is billed; None if one is unknown."""
    return None if one is None or other is None else min(one, other)


def _limits_changed(start: Size, end: Size) -> Resized | None:
    if (start.cpu_millicores, start.memory_bytes) == (end.cpu_millicores, end.memory_bytes):
        return None
    return Resized(
        cpu_millicores_start=start.cpu_millicores,
        cpu_millicores_end=end.cpu_millicores,
        memory_bytes_start=start.memory_bytes,
        memory_bytes_end=end.memory_bytes,
    )


def _compute_used(window: Window) -> Used:
    return Used(
        cpu_core_seconds=_core_seconds(window.reading.cpu_usec - window.cpu_start_usec),
        memory_byte_seconds=window.memory_byte_ns // 10**9,
        memory_max_bytes=window.memory_max_bytes,
    )


def _counter(period: Period) -> Counter | None:
    if period.window:
        ends = period.window.cpu_start_usec, period.window.reading.cpu_usec
    elif period.until:
        ends = 0, period.until.cpu_usec
    else:
        return None
    return Counter(start=_core_seconds(ends[0]), end=_core_seconds(ends[1]))


def _core_seconds(microseconds: int) -> Decimal:
    return Decimal(microseconds) / 1_000_000
