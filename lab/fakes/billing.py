"""Plausible billing records for tests: the history of one replica, minute by minute."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from random import Random

from msgspec.structs import replace

from byoc_agents.app.cloudevents import encode, rfc3339, source_uri
from byoc_agents.billing.objects import DEFAULT_PREFIX, Compression, runs, seal
from byoc_agents.billing.record import (
    TYPE,
    Allocated,
    Counter,
    GapReason,
    Quality,
    Samples,
    Usage,
    UsageRecord,
    Used,
    record_id,
)
from byoc_agents.message import Message

MINUTE_MS = 60_000
NOON_MS = 1_795_435_200_000  # 2026-11-23T12:00:00Z
NOTHING = Used(cpu_core_seconds=Decimal(0), memory_byte_seconds=0, memory_max_bytes=0)


def core_seconds(usec: int) -> Decimal:
    """Return a counter's microseconds as core seconds with 6 digits."""
    return Decimal(usec).scaleb(-6)


def event(usage: Usage) -> UsageRecord:
    """Return the record in its CloudEvents envelope."""
    return UsageRecord(
        id=record_id(usage),
        source=source_uri(usage.organization_id, usage.service_id, usage.replica),
        type=TYPE,
        time=usage.charge_period_end,
        data=usage,
    )


@dataclass
class ReplicaHistory:
    """The history of one replica. Each method returns the record that its scraper would write."""

    organization_id: str = "org-1"
    service_id: str = "service-1"
    replica: str = "clickhouse-0"
    pod_uid: str = "0b51c2f4-0000-4000-8000-000000000000"
    epoch: int = NOON_MS - 1
    now_ms: int = NOON_MS
    seed: int = 0
    sequence: int = 0
    born_ms: int = NOON_MS  # of the container
    counter_usec: int = 0
    incarnation: int = 1
    restarted: bool = False
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)

    def measured(self, *, period_ms: int = MINUTE_MS, quality: Quality = "measured") -> UsageRecord:
        """Return the record of one closed window."""
        start_usec = self.counter_usec
        self.counter_usec += self.random.randrange(period_ms * 4000)  # up to 4 cores
        most = self.random.randrange(1 << 30, 8 << 30)
        used = Used(
            cpu_core_seconds=core_seconds(self.counter_usec - start_usec),
            memory_byte_seconds=most * period_ms // 1100,
            memory_max_bytes=most,
        )
        counter = (start_usec, self.counter_usec)
        record = self._record(self.now_ms, self.now_ms + period_ms, used, counter, quality)
        self.restarted = False
        return record

    def gap(self, reason: GapReason, *, period_ms: int = MINUTE_MS, usec: int = 0) -> UsageRecord:
        """Return the record of a gap in which the counter rose by `usec`."""
        self.counter_usec += usec
        end_ms = self.now_ms + period_ms
        return self._record(self.now_ms, end_ms, NOTHING, None, "gap", reason)

    def restart(self) -> None:
        """Restart the container: a new id, a counter that begins at 0."""
        self.incarnation += 1
        self.born_ms = self.now_ms
        self.counter_usec = 0
        self.restarted = True

    def lose_state(
        self, reason: GapReason = "no_checkpoint", *, period_ms: int = MINUTE_MS, usec: int = 0
    ) -> UsageRecord:
        """Lose the state directory; the next scraper starts `period_ms` later.

        Its first record states the gap back to the container's birth.
        """
        self.now_ms += period_ms
        self.counter_usec += usec
        self.epoch = self.now_ms
        self.sequence = 0
        counter = (0, self.counter_usec)
        return self._record(self.born_ms, self.now_ms, NOTHING, counter, "gap", reason)

    def _record(  # noqa: PLR0917  test data
        self,
        start_ms: int,
        end_ms: int,
        used: Used,
        counter: tuple[int, int] | None,
        quality: Quality,
        gap_reason: GapReason = "",
    ) -> UsageRecord:
        usage = Usage(
            organization_id=self.organization_id,
            service_id=self.service_id,
            replica=self.replica,
            region="eu-west-1",
            pod_uid=self.pod_uid,
            container_name="clickhouse",
            container_id=f"{self.incarnation:064x}",
            charge_period_start=rfc3339(start_ms),
            charge_period_end=rfc3339(end_ms),
            elapsed_milliseconds=end_ms - start_ms,
            allocated=Allocated(cpu_millicores=4000, memory_bytes=16 << 30, source="cgroup"),
            used=used,
            counter=counter
            and Counter(start=core_seconds(counter[0]), end=core_seconds(counter[1])),
            source="none" if gap_reason else "cgroup.v2",
            incarnation="" if gap_reason else f"cgroup.v2:{self.incarnation}",
            samples=Samples(expected=12, observed=0 if gap_reason else 12),
            quality=quality,
            gap_reason=gap_reason,
            restart_observed=self.restarted and not gap_reason,
            source_changed=False,
            clock_step_milliseconds=0,
            epoch=self.epoch,
            sequence=self.sequence,
        )
        self.sequence += 1
        self.now_ms = end_ms
        return event(usage)


def eventful(history: ReplicaHistory) -> Iterator[UsageRecord]:
    """Yield 41 records, with an unreadable minute, a restart and a lost state directory."""
    yield from (history.measured() for _ in range(12))
    yield history.gap("target_unreadable", usec=7_000_000)
    yield history.measured(quality="estimated")
    yield from (history.measured() for _ in range(10))
    yield history.gap("target_restarted", period_ms=5_000)
    history.restart()
    yield history.measured(period_ms=MINUTE_MS - 5_000)
    yield from (history.measured() for _ in range(5))
    yield history.lose_state(usec=3_000_000)
    yield from (history.measured() for _ in range(9))


def objects(
    records: Iterable[UsageRecord],
    *,
    size: int = 5,
    compression: Compression = "zstd",
    prefix: str = DEFAULT_PREFIX,
) -> list[Message]:
    """Seal records into objects of at most `size` records; some records must begin a new object."""
    found = []
    for run in runs([encode(record) for record in records]):
        rest = iter(run)
        while lines := list(islice(rest, size)):
            found.append(seal(lines, created_at_ms=NOON_MS, prefix=prefix, compression=compression))
    return found


def altered(record: UsageRecord, **fields: object) -> UsageRecord:
    """Return a record with other usage fields and the same id."""
    return replace(record, data=replace(record.data, **fields))
