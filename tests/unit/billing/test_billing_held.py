"""Periods that the spool cannot accept are deferred in memory, with unchanged values."""

from collections.abc import AsyncIterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from byoc_agents.billing.record import Usage
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.sources.target import TargetObservation
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolUnavailableError
from tests.unit.billing.scraper_harness import SECOND, Harness

GIB = 1 << 30


class Refusing(Spool):
    """A spool that refuses writes while `refuses` is set."""

    refuses = False

    def __init__(self, spool: Spool) -> None:
        self.__dict__ = dict(spool.__dict__)

    async def commit(self, change: WriteBatch) -> None:
        if self.refuses:
            raise SpoolUnavailableError("disk full")
        await super().commit(change)


class Container:
    """A target of one busy core whose size and incarnation a test changes."""

    def __init__(self, harness: Harness) -> None:
        self.clock = harness.clock
        self.incarnation = 1
        self.born_ns = self.clock.boot_ns() - 100 * SECOND
        self.memory = 8 * GIB
        self.cpu = 2000
        self.running = True

    def __repr__(self) -> str:
        return "container"

    def restart(self) -> None:
        self.incarnation += 1
        self.born_ns = self.clock.boot_ns()
        self.running = True

    async def read(self, *, secondary: bool = False) -> TargetObservation:
        assert secondary in {True, False}
        if not self.running:
            return TargetObservation(None, absent=True)
        return TargetObservation(
            Reading(
                source="cgroup.v2",
                incarnation=f"boot-1-{self.incarnation}",
                container_id=f"{self.incarnation:064x}",
                cpu_usec=(self.clock.boot_ns() - self.born_ns) // 1000,
                memory_bytes=GIB,
                born_boot_ns=self.born_ns,
                cpu_limit_millicores=self.cpu,
                memory_limit_bytes=self.memory,
            )
        )

    def close(self) -> None: ...


class Outage:
    """A scraper on a spool that refuses for a while."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.spool = Refusing(harness.spool)
        harness.spool = self.spool
        self.container = Container(harness)
        harness.target = self.container  # type: ignore[assignment]
        harness.scraper = harness.made()

    async def usages(self) -> list[Usage]:
        return [record.data for record in await self.harness.records()]


@pytest.fixture
async def outage(tmp_path: Path) -> AsyncIterator[Outage]:
    harness = Harness(tmp_path / "state")
    await harness.spool.__aenter__()
    yield Outage(harness)
    await harness.spool.__aexit__()


def allocated(usages: list[Usage]) -> Decimal:
    """Return GiB seconds."""
    sizes = [one.allocated for one in usages]
    whole = sum((s.memory_bytes or 0) * (s.counted_milliseconds or 0) for s in sizes)
    return Decimal(whole) / GIB / 1000


def used(usages: list[Usage]) -> Decimal:
    return sum((one.used.cpu_core_seconds for one in usages), Decimal(0))


PHASES = [0, 0.003, 2.5]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("before", "after"), [(8, 64), (64, 8)], ids=["up", "down"])
async def test_a_resize_in_an_outage_of_hours_counts_both_sizes(
    outage: Outage, phase: float, before: int, after: int
) -> None:
    harness, container = outage.harness, outage.container
    container.memory = before * GIB
    await harness.clock.advance(phase)
    await harness.ticks(14)
    outage.spool.refuses = True
    await harness.ticks(12)
    container.memory = after * GIB
    await harness.ticks(12 * 60 * 4)
    outage.spool.refuses = False
    await harness.ticks(14)
    await harness.scraper.finish()
    usages = await outage.usages()
    truth = Decimal(before) * (100 + 26 * 5) + Decimal(after) * (12 * 60 * 4 + 14) * 5
    one_sample = Decimal(abs(after - before) * 5)
    assert abs(allocated(usages) - truth - before * Decimal(str(phase))) <= one_sample
    assert all(a.charge_period_end == b.charge_period_start for a, b in pairwise(usages))


@pytest.mark.parametrize("phase", PHASES)
async def test_a_container_that_started_and_ended_in_an_outage_has_its_own_records(
    outage: Outage, phase: float
) -> None:
    harness, container = outage.harness, outage.container
    await harness.clock.advance(phase)
    await harness.ticks(14)
    outage.spool.refuses = True
    await harness.ticks(3)
    for _ in range(3):  # three incarnations of ten minutes, 15 s apart
        container.running = False
        await harness.ticks(3)
        container.restart()
        await harness.ticks(120)
    outage.spool.refuses = False
    await harness.ticks(3)
    await harness.scraper.finish()
    usages = await outage.usages()
    containers = {one.container_id for one in usages if one.quality != "gap"}
    assert len(containers) == 4
    for container_id in sorted(containers)[1:3]:
        assert used([one for one in usages if one.container_id == container_id]) == 600
    assert [one.sequence for one in usages] == list(range(len(usages)))


async def test_a_kill_in_an_outage_loses_what_was_held_and_no_cpu(outage: Outage) -> None:
    harness, container = outage.harness, outage.container
    await harness.ticks(14)
    outage.spool.refuses = True
    container.memory = 64 * GIB
    await harness.ticks(12 * 90)
    outage.spool.refuses = False
    harness.scraper = harness.made()
    await harness.ticks(2)
    await harness.scraper.finish()
    usages = await outage.usages()
    first = usages[0].counter
    assert first
    assert used(usages) == Decimal((14 + 12 * 90 + 2 + 1) * 5) - 5 - 5  # from the first sample on
    unseen = [one.allocated.resized for one in usages if one.allocated.resized]
    assert unseen
    assert {(one.memory_bytes_start, one.memory_bytes_end) for one in unseen} == {
        (8 * GIB, 64 * GIB)
    }


async def test_with_no_room_in_memory_either_cpu_is_still_exact(outage: Outage) -> None:
    harness, container = outage.harness, outage.container
    harness.scraper = harness.made(max_deferred=10)
    await harness.ticks(14)
    outage.spool.refuses = True
    for number in range(40):
        container.memory = (8 + number % 2) * GIB
        await harness.ticks(2)
    assert harness.scraper.status()["deferred_periods"] <= 10
    outage.spool.refuses = False
    await harness.ticks(3)
    await harness.scraper.finish()
    assert used(await outage.usages()) == Decimal((14 + 80 + 3 - 1) * 5)


async def test_deferred_periods_are_never_part_of_the_checkpoint(outage: Outage) -> None:
    harness = outage.harness
    await harness.ticks(14)
    outage.spool.refuses = True
    await harness.ticks(12 * 130)
    assert harness.scraper.status()["deferred_periods"] == 2
    stored = await harness.spool.state("billing/meter")
    assert b"held" not in stored["billing/meter"]
    assert msgspec.json.decode(stored["billing/meter"])["sequence"] == 2
