"""`byoc.billing.usage.v1`: what a usage record says. This file is the allow-list of its fields.

Periods are half-open UTC intervals in FOCUS terms. CPU comes from a cumulative counter, so for two
neighbouring records of one counter `counter.end` of the first equals `counter.start` of the second:
a reader can prove that no CPU second is missing or there twice.
"""

from decimal import Decimal
from functools import lru_cache
from typing import Literal

import msgspec

from byoc_agents.app.cloudevents import Event, parse_rfc3339, stable_id
from byoc_agents.billing.sources.reading import Reading, SourceName

TYPE = "byoc.billing.usage.v1"

Quality = Literal["measured", "estimated", "gap"]
GapReason = Literal[
    "",
    "no_checkpoint",  # first start, or the state directory was lost: what came before is unknown
    "spool_corrupt",  # the spool was damaged; unsent records of the earlier epoch may be lost
    "target_absent",  # there was nothing to measure
    "target_unreadable",  # it may have run, but could not be read
    "target_restarted",  # between the last reading of one life and the first of the next
    "counter_fell",  # a counter that only grows was lower: usage since the last reading is unknown
    "source_changed",  # between two sources without a common reading
    "clock_step",  # the wall clock was set forward over this period
]


class Allocated(msgspec.Struct, frozen=True, kw_only=True):
    """The size the customer gave the container. None = unknown, never guessed."""

    cpu_millicores: int | None  # thousandths of a core
    memory_bytes: int | None
    source: Literal["cgroup", "clickhouse", "downward_api", "unknown"]


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """What it used in the period. All zero in a gap."""

    cpu_core_seconds: Decimal  # 6 digits: the counter's microseconds
    memory_byte_seconds: int  # trapezoid over the samples
    memory_max_bytes: int  # largest sample


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """The source's cumulative CPU counter at both ends of the period, core seconds."""

    start: Decimal
    end: Decimal


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """How many readings the period should have had at the configured rate, and how many it had."""

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
    container_id: str = msgspec.field(name="container.id")  # "" where it cannot be seen
    charge_period_start: str  # RFC 3339 UTC, inclusive
    charge_period_end: str  # exclusive
    elapsed_milliseconds: int  # on a clock that is never set: not the period at a clock step
    allocated: Allocated
    used: Used
    counter: Counter | None  # None in a gap that no counter bounds
    source: SourceName | Literal["none"]
    incarnation: str  # which life of the counter; a change is a restart
    samples: Samples
    quality: Quality
    gap_reason: GapReason = ""
    restart_observed: bool  # this is the first record of a new life of the target
    source_changed: bool  # the source changed inside the period; used is what the new one saw
    clock_step_milliseconds: int  # how far the wall clock was set inside the period; 0 = not at all
    epoch: int  # state directory's creation, milliseconds since 1970
    sequence: int  # 0, 1, 2 ... inside an epoch; a missing number is a missing record


class UsageRecord(Event, frozen=True, kw_only=True):
    """The CloudEvents envelope with the usage inside."""

    data: Usage


@lru_cache(maxsize=1)  # the scraper asks for its oldest line at every sample
def charge_period_ms(line: bytes) -> tuple[int, int]:
    """Return start and end of an encoded record, milliseconds since 1970. Raises ValueError."""
    usage = msgspec.json.decode(line, type=UsageRecord).data
    return parse_rfc3339(usage.charge_period_start), parse_rfc3339(usage.charge_period_end)


def life(reading: Reading) -> str:
    """Return the name of one life of a counter, as it stands in a record's `incarnation`."""
    birth = f"@{(reading.born_boot_ns or 0) // 10**9}s" if reading.source == "clickhouse" else ""
    return f"{reading.source}:{reading.incarnation}{birth}"


def record_id(usage: Usage) -> str:
    """Return the id: computed from the data, so that it is the same after the disk is lost.

    Periods of one container never overlap, so their start is enough; a gap's end counts as well,
    since two losses of the state directory state two gaps from the same start.
    """
    parts = [TYPE, usage.organization_id, usage.service_id, usage.pod_uid or usage.replica]
    parts += [usage.container_id or usage.incarnation, usage.charge_period_start]
    if usage.quality == "gap":
        parts += ["gap", usage.gap_reason, usage.charge_period_end]
    return stable_id(*parts)
