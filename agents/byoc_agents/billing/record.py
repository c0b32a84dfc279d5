"""`byoc.billing.usage.v1`, the usage record. This file is the allow-list of its fields.

Periods are half-open UTC intervals in FOCUS terms. CPU comes from a cumulative counter, so for two
neighbouring records of one counter `counter.end` of the first equals `counter.start` of the second:
a reader can prove that no CPU second is missing or duplicated.
"""

from decimal import Decimal
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from byoc_agents.app.cloudevents import Event, parse_rfc3339, stable_id
from byoc_agents.billing.sources.reading import Reading, SourceName

TYPE = "byoc.billing.usage.v1"

Quality = Literal["measured", "estimated", "gap"]
GapReason = Literal[
    "",
    "no_checkpoint",  # first start, or the state directory was lost: earlier usage is unknown
    "spool_corrupt",  # the spool was damaged; unsent records of the earlier epoch may be lost
    "target_absent",  # there was nothing to measure
    "target_unreadable",  # it may have run, but could not be read
    "target_restarted",  # between the last reading before a restart and the first one after it
    "counter_fell",  # a counter that only grows was lower: usage since the last reading is unknown
    "counter_impossible",  # it rose by more than the machine could provide: usage is unknown
    "source_changed",  # between two sources without a common reading
    "clock_step",  # the wall clock was set forward over this period
    "target_removed",  # it is metered no longer: it was taken from the list of servers
    "suspended",  # the machine slept: CLOCK_BOOTTIME continued, CLOCK_MONOTONIC did not
]
SizeSource = Literal["cgroup", "cgroup_ancestor", "clickhouse", "downward_api", "unknown"]

# If the number of CPUs is unknown: the largest cloud machine has 1,920 (AWS u7inh-32tb.480xlarge).
MAX_CPUS = 2048
# How much CPU per CPU of the machine a counter may show beyond the time it had. Kernel counters are
# at most one tick (10 ms at CLK_TCK = 100) behind on each CPU, and figures are rounded to
# milliseconds: five ticks. ClickHouse adds the CPU of a long step of a thread when the step is over
# (ThreadStatus.cpp): ten seconds.
SLACK_MS: dict[str, int] = {"cgroup.v2": 50, "cgroup.v1": 50, "process": 50, "clickhouse": 10_000}


class Resized(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes at both ends of a period in which the size changed unseen. None = unknown.

    The record's `allocated` then is the smaller of both for each figure. The true figure is larger
    by at most the difference over `counted_milliseconds`.
    """

    cpu_millicores_start: int | None
    cpu_millicores_end: int | None
    memory_bytes_start: int | None
    memory_bytes_end: int | None


class Allocated(msgspec.Struct, frozen=True, kw_only=True):
    """The container's limits as set by the customer. None = unknown, never guessed, never 0.

    The allocation over time is size x `counted_milliseconds`.
    """

    cpu_millicores: int | None  # thousandths of a core
    memory_bytes: int | None
    source: Literal[
        "cgroup", "clickhouse", "downward_api", "unknown"
    ]  # of both limits, as version 0.1 has it
    cpu_source: SizeSource | None = None  # of `cpu_millicores`; None in records of 0.1.0
    memory_source: SizeSource | None = None
    # The time for which the size is billed. None in records of 0.1.0: the period, but 0 in a gap.
    counted_milliseconds: int | None = None
    resized: Resized | None = None  # a change of the limits between two distant readings


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """The usage in the period. All values are zero in a gap."""

    cpu_core_seconds: Decimal  # 6 digits: the counter's microseconds
    memory_byte_seconds: int  # trapezoid over the samples
    memory_max_bytes: int  # largest sample


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """The source's cumulative CPU counter at both ends of the period, core seconds."""

    start: Decimal
    end: Decimal


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """The number of readings that the configured rate gives, and the actual number."""

    expected: int
    observed: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of a record."""

    organization_id: str
    service_id: str
    replica: str
    region: str
    pod_uid: str = msgspec.field(name="k8s.pod.uid")
    container_name: str = msgspec.field(name="k8s.container.name")
    container_id: str = msgspec.field(name="container.id")  # "" if it is not visible
    charge_period_start: str  # RFC 3339 UTC, inclusive
    charge_period_end: str  # exclusive
    elapsed_milliseconds: int  # on a clock that is never set: not the period at a clock step
    allocated: Allocated
    used: Used
    counter: Counter | None  # None in a gap that no counter bounds
    source: SourceName | Literal["none"]
    incarnation: str  # identifies one run of the counter; a change is a restart
    samples: Samples
    quality: Quality
    gap_reason: GapReason = ""
    restart_observed: bool  # this is the first record after a restart of the target
    source_changed: bool  # the source changed in the period; `used` is as the new one counts
    clock_step_milliseconds: int  # by how much the wall clock was set in the period; 0 = not set
    epoch: int  # state directory's creation, milliseconds since 1970
    sequence: int  # 0, 1, 2 ... in an epoch; a missing number is a missing record
    machine_cpus: int | None = None  # of the target's machine, or a bound; None in records of 0.1.0
    # Upper bound of the time in which the counter rose from `counter.start` to `counter.end`, on
    # the boot clock. More than `elapsed_milliseconds` if CPU of an earlier time is included.
    counter_milliseconds: int | None = None  # None in a gap and in records of 0.1.0


class UsageRecord(Event, frozen=True, kw_only=True):
    """The CloudEvents envelope with the usage inside."""

    data: Usage


@lru_cache(maxsize=1)  # the scraper calls it for its oldest line at every sample
def charge_period_ms(line: bytes) -> tuple[int, int]:
    """Return start and end of an encoded record, milliseconds since 1970. Raises ValueError."""
    usage = msgspec.json.decode(line, type=UsageRecord).data
    return parse_rfc3339(usage.charge_period_start), parse_rfc3339(usage.charge_period_end)


class CpuBound(NamedTuple):
    """What bounds the CPU of a record: the machine's CPUs, the time they had, and the slack."""

    cpus: int
    elapsed_ms: int
    slack_ms: int  # per CPU

    def needs_cpus(self, core_seconds: Decimal) -> int:
        """Return the smallest number of CPUs for which so much CPU is within the bound."""
        cpus, rest = divmod(core_seconds * 1000, self.elapsed_ms + self.slack_ms)
        return int(cpus) + (rest > 0)

    @property
    def core_seconds(self) -> Decimal:
        """Return the bound of one record by itself."""
        return Decimal(self.cpus * (self.elapsed_ms + self.slack_ms)) / 1000


def cpu_bound(usage: Usage, unknown_cpus: int = MAX_CPUS) -> CpuBound | None:
    """Return what bounds a record's CPU; `unknown_cpus` if it does not have the number of CPUs.

    None if nothing can be said: of a gap, and of a record of 0.1.0 that may hold CPU of an earlier
    time (quality `estimated`).
    """
    elapsed_ms = usage.counter_milliseconds
    if usage.quality == "gap" or (elapsed_ms is None and usage.quality != "measured"):
        return None
    if elapsed_ms is None:
        elapsed_ms = usage.elapsed_milliseconds
    slack_ms = max(SLACK_MS.values()) if usage.source_changed else SLACK_MS[usage.source]
    return CpuBound(usage.machine_cpus or unknown_cpus, elapsed_ms, slack_ms)


def most_core_seconds(usage: Usage) -> Decimal | None:
    """Return the CPU that the machine could do at most while the record's counter rose.

    More than that was never used: such a figure must not be billed. None as of `cpu_bound`.
    """
    bound = cpu_bound(usage)
    return bound and bound.core_seconds


def name_incarnation(reading: Reading) -> str:
    """Return the `incarnation` of a record: the name of one run of a counter."""
    born_ns = reading.named_born_boot_ns or reading.born_boot_ns or 0
    birth = f"@{born_ns // 10**9}s" if reading.source == "clickhouse" else ""
    return f"{reading.source}:{reading.incarnation}{birth}"


def record_id(usage: Usage) -> str:
    """Return the id: computed from the data, so that it is the same after the disk is lost.

    Periods of one container never overlap, so their start is sufficient. A gap's end is included,
    because two losses of the state directory record two gaps with the same start.
    """
    parts = [TYPE, usage.organization_id, usage.service_id, usage.pod_uid or usage.replica]
    parts += [usage.container_id or usage.incarnation, usage.charge_period_start]
    if usage.quality == "gap":
        parts += ["gap", usage.gap_reason, usage.charge_period_end]
    return stable_id(*parts)
