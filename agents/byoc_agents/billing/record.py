"""`byoc.billing.usage.v1`, the usage record. This file is the allow-list of its fields.

Periods are half-open UTC intervals in FOCUS terms. CPU comes from a cumulative counter, so for two
neighboring records of one counter `counter.end` of the first equals `counter.start` of the second:
a reader can prove that no CPU second is missing or duplicated.
"""

from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import msgspec

from byoc_agents.app.cloudevents import (
    Event,
    OrganizationId,
    PodName,
    RegionName,
    ServiceId,
    describe,
    parse_rfc3339,
    stable_id,
)
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

    cpu_millicores_start: Annotated[int | None, describe("CPU limit at the start of the period.")]
    cpu_millicores_end: Annotated[int | None, describe("CPU limit at the end of the period.")]
    memory_bytes_start: Annotated[int | None, describe("Memory limit at the start of the period.")]
    memory_bytes_end: Annotated[int | None, describe("Memory limit at the end of the period.")]


class Allocated(msgspec.Struct, frozen=True, kw_only=True):
    """The container's limits as set by the customer. None = unknown, never guessed, never 0.

    The allocation over time is size x `counted_milliseconds`.
    """

    cpu_millicores: Annotated[int | None, describe("CPU limit of the container.")]
    memory_bytes: Annotated[int | None, describe("Memory limit of the container.")]
    source: Annotated[
        Literal["cgroup", "clickhouse", "downward_api", "unknown"],
        describe("Source of both limits in one word, as version 0.1.0 has it."),
    ]
    cpu_source: Annotated[
        SizeSource | None, describe("Source of `cpu_millicores`. Null in records of 0.1.0.")
    ] = None
    memory_source: Annotated[
        SizeSource | None, describe("Source of `memory_bytes`. Null in records of 0.1.0.")
    ] = None
    counted_milliseconds: Annotated[
        int | None,
        describe(
            "Time for which the limits are billed: allocation over time = limit x this. Null in "
            "records of 0.1.0: use the period, or 0 in a gap."
        ),
    ] = None
    resized: Annotated[
        Resized | None,
        describe("Limits at both ends of a period in which they changed between two readings."),
    ] = None


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """The usage in the period. All values are zero in a gap."""

    cpu_core_seconds: Annotated[
        Decimal, describe("CPU time used. Six digits: the counter's microseconds.")
    ]
    memory_byte_seconds: Annotated[
        int,
        describe(
            "Memory in use, integrated over the period by the trapezoid rule. Page cache is "
            "included if `source` is `cgroup.v1` or `cgroup.v2`."
        ),
    ]
    memory_max_bytes: Annotated[
        int, describe("Largest sample of the memory in use. Page cache as above.")
    ]


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """The source's cumulative CPU counter at both ends of the period, core seconds."""

    start: Annotated[Decimal, describe("Counter at the start of the period.")]
    end: Annotated[Decimal, describe("Counter at the end of the period.")]


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """The number of readings that the configured rate gives, and the actual number."""

    expected: Annotated[int, describe("Readings that the configured rate gives.")]
    observed: Annotated[int, describe("Readings that were made.")]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of a record."""

    organization_id: OrganizationId
    service_id: ServiceId
    replica: PodName
    region: RegionName
    pod_uid: Annotated[
        str, describe("A keyed form of the pod's uid, a UUID of version 8. Empty if unknown.")
    ] = msgspec.field(name="k8s.pod.uid")
    container_name: Annotated[
        str, describe("Name of the metered container in the pod: BYOC_CONTAINER_NAME.")
    ] = msgspec.field(name="k8s.container.name")
    container_id: Annotated[
        str, describe("Id of the metered container. Empty if it is not visible.")
    ] = msgspec.field(name="container.id")
    charge_period_start: Annotated[str, describe("Start of the period, RFC 3339, UTC. Inclusive.")]
    charge_period_end: Annotated[str, describe("End of the period, RFC 3339, UTC. Exclusive.")]
    elapsed_milliseconds: Annotated[
        int,
        describe(
            "Length of the period on a clock that is never set. Differs from the period after a "
            "clock step."
        ),
    ]
    allocated: Allocated
    used: Used
    counter: Annotated[
        Counter | None,
        describe("The source's cumulative CPU counter. Null in a gap that no reading bounds."),
    ]
    source: Annotated[SourceName | Literal["none"], describe("Source of the counters.")]
    incarnation: Annotated[
        str, describe("Identifies one run of the counter. A change means a restart.")
    ]
    samples: Samples
    quality: Annotated[
        Quality,
        describe(
            "`measured`: enough readings. `estimated`: too few readings. `gap`: the usage is "
            "unknown, and `used` is zero."
        ),
    ]
    gap_reason: Annotated[GapReason, describe("Reason of a gap. Empty otherwise.")] = ""
    restart_observed: Annotated[
        bool, describe("Whether this is the first record after a restart of the target.")
    ]
    source_changed: Annotated[
        bool,
        describe("Whether the source changed in the period. `used` is as the new source counts."),
    ]
    clock_step_milliseconds: Annotated[
        int, describe("By how much the wall clock was set in the period. 0 = not set.")
    ]
    epoch: Annotated[
        int,
        describe("Creation of the state directory. A later epoch numbers its records from 0."),
    ]
    sequence: Annotated[
        int,
        describe(
            "Number of the record in its epoch: 0, 1, 2 ... A missing number is a missing record."
        ),
    ]
    machine_cpus: Annotated[
        int | None,
        describe("CPUs of the target's machine, or a bound. Null in records of 0.1.0."),
    ] = None
    counter_milliseconds: Annotated[
        int | None,
        describe(
            "Upper bound of the time in which the counter rose from `counter.start` to "
            "`counter.end`. More than `elapsed_milliseconds` if CPU of an earlier time is "
            "included. Null in a gap and in records of 0.1.0."
        ),
    ] = None


class UsageRecord(Event, frozen=True, kw_only=True):
    """The CloudEvents envelope with the usage inside."""

    data: Usage


@lru_cache(maxsize=1)  # the scraper calls it for its oldest line at every sample
def charge_period_ms(line: bytes) -> tuple[int, int]:
    """Return start and end of an encoded record, milliseconds since 1970. Raises ValueError."""
    usage = msgspec.json.decode(line, type=UsageRecord).data
    return parse_rfc3339(usage.charge_period_start), parse_rfc3339(usage.charge_period_end)


class CpuBound(NamedTuple):
    """The bound of a record's CPU: the machine's CPUs, the elapsed time, and the slack."""

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
        return _bound_core_seconds(self)


@lru_cache(maxsize=256)  # most records of a fleet have the same bound
def _bound_core_seconds(bound: CpuBound) -> Decimal:
    return Decimal(bound.cpus * (bound.elapsed_ms + bound.slack_ms)) / 1000


def cpu_bound(usage: Usage, unknown_cpus: int = MAX_CPUS) -> CpuBound | None:
    """Return the bound of a record's CPU, with `unknown_cpus` if the number of CPUs is missing.

    It is what the machine could do while the record's counter rose: more must not be billed.

    None if there is no bound: for a gap, and for a record of 0.1.0 that may contain CPU of an
    earlier time (quality `estimated`).
    """
    elapsed_ms = usage.counter_milliseconds
    if usage.quality == "gap" or (elapsed_ms is None and usage.quality != "measured"):
        return None
    if elapsed_ms is None:
        elapsed_ms = usage.elapsed_milliseconds
    slack_ms = max(SLACK_MS.values()) if usage.source_changed else SLACK_MS[usage.source]
    return CpuBound(usage.machine_cpus or unknown_cpus, elapsed_ms, slack_ms)


def name_incarnation(reading: Reading) -> str:
    """Return the `incarnation` of a record: the name of one run of a counter."""
    if reading.run_name:
        return f"{reading.source}:{reading.run_name}"
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
