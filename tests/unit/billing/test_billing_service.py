"""One scraper for the replicas of a service: shared objects, and each replica's own sequence."""

import asyncio
import shutil
from collections import Counter
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_agents.audit import Report
from byoc_agents.billing.objects import parse_key, unseal
from byoc_agents.billing.streams import checkpoint_key
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolFullError
from lab.fakes.core import settle
from tests.unit.billing.buckets import pressed
from tests.unit.billing.service_harness import SAMPLE_SECONDS, Process, Service

NAMES = ("r0", "r1", "r2")


class Bounded(Spool):
    """A spool that has no room for objects while `full` is set."""

    full = False

    async def commit(self, change: WriteBatch) -> None:
        if self.full and change.messages:
            raise SpoolFullError("full")
        await super().commit(change)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    made = Service(tmp_path / "state")
    made.add(*NAMES)
    return made


async def stop(process: Process) -> None:
    await process.source.finish()
    await process.ship()


def billed(report: Report) -> dict[str, Decimal]:
    """Return the core seconds of each replica, also those across stated gaps."""
    found: Counter[str] = Counter()
    for total in report.replicas:
        found[total.replica] += total.cpu_core_seconds  # type: ignore[assignment]
    for one in report.unrecorded:
        found[one.replica] += one.core_seconds  # type: ignore[assignment]
    return dict(found)  # type: ignore[arg-type]


async def test_the_replicas_share_objects_and_keep_their_own_sequences(service: Service) -> None:
    async with service.process() as process:
        first_usec = {name: one.cpu_usec() for name, one in service.servers.items()}
        await process.ticks(46)
        await stop(process)
    report = service.report()
    assert report.findings == []
    assert report.objects <= 6  # one per seal interval and hour, not one per replica
    assert report.services[0].objects == report.objects
    keys = [parse_key(key) for key in service.bucket]
    assert all(key and key.shared and key.pod == "scraper" for key in keys)
    for name in NAMES:
        own = [one for one in service.records() if one.replica == name]
        assert [one.sequence for one in own] == list(range(len(own)))
        assert len({one.epoch for one in own}) == 1
        used = service.servers[name].cpu_usec() - first_usec[name] - SAMPLE_SECONDS * 10**6
        assert billed(report)[name] == Decimal(used) / 10**6


async def test_an_object_without_room_takes_no_numbers(service: Service) -> None:
    async with Bounded(service.directory, max_bytes=1 << 22, clock=service.clock) as spool:
        process = Process(service, spool)
        await process.ticks(10)
        spool.full = True
        with pytest.raises(SpoolFullError):
            await process.sealer.seal_all()
        staged = process.sealer.staged
        spool.full = False
        await process.sealer.seal_all()
        assert (staged > 0, process.sealer.staged) == (True, 0)
        await process.ticks(10)
        await stop(process)
    keys = sorted((key.first, key.last) for key in map(parse_key, service.bucket) if key)
    assert [first for first, _ in keys] == [0, *(last + 1 for _, last in keys[:-1])]
    assert service.report().findings == []


async def test_a_replica_that_hangs_delays_no_other(service: Service) -> None:
    service.servers["r1"].blocked = asyncio.Event()
    async with service.process() as process:
        run = asyncio.create_task(process.source.run())
        for _ in range(18):
            waits = await service.clock.parked(2)
            await service.clock.advance(waits[0])
            await service.clock.parked(2)
        assert service.servers["r0"].reads >= 15
        assert service.servers["r1"].reads == 1
        run.cancel()
        await asyncio.wait([run])
        service.servers["r1"].blocked = None
        await stop(process)
    assert service.report().findings == []


async def test_a_replica_that_is_down_has_gaps_and_the_others_have_none(service: Service) -> None:
    async with service.process() as process:
        await process.ticks(10)
        service.servers["r1"].up = False
        await process.ticks(20)
        await stop(process)
    gaps = {gap.replica: gap.reason for gap in service.report().gaps}
    assert gaps == {"r0": "no_checkpoint", "r1": "target_unreadable", "r2": "no_checkpoint"}
    assert service.report().findings == []


class DefectError(Exception):
    """An error that the code under test does not know."""


async def test_a_defect_of_one_replica_ends_only_its_own_task(service: Service) -> None:
    async def fail(**_: bool) -> None:
        raise DefectError

    service.servers["r1"].read = fail  # type: ignore[method-assign, assignment]
    async with service.process() as process:
        run = asyncio.create_task(process.source.run())
        for _ in range(12):
            waits = await service.clock.parked(3)
            await service.clock.advance(waits[0])
            await service.clock.parked(3)
        assert not run.done()
        assert service.servers["r0"].reads > 2
        run.cancel()
        await asyncio.wait([run])
    labels = {"daemon": "billing-scraper", "task": "source"}
    failures = service.metrics.registry.get_sample_value("byoc_task_failures_total", labels)
    assert failures is not None
    assert failures > 1


async def test_the_end_of_a_removed_replica_is_stated_once(service: Service) -> None:
    async with service.process() as process:
        await process.ticks(10)
        await stop(process)
    service.names = ("r0", "r2")
    for _ in range(2):
        async with service.process() as process:
            run = asyncio.create_task(process.source.run())
            await service.clock.parked(2)
            run.cancel()
            await asyncio.wait([run])
            await process.ticks(5)
            await stop(process)
    report = service.report()
    assert report.findings == []
    assert [gap.replica for gap in report.gaps if gap.reason == "target_removed"] == ["r1"]


async def test_a_replica_that_returns_is_not_billed_for_the_time_in_between(
    service: Service,
) -> None:
    async with service.process() as process:
        await process.ticks(10)
        await stop(process)
    before = billed(service.report())["r1"]
    service.names = ("r0", "r2")
    async with service.process() as process:
        run = asyncio.create_task(process.source.run())
        await service.clock.parked(2)
        run.cancel()
        await asyncio.wait([run])
        await process.ticks(30)
        await stop(process)
    service.names = NAMES
    async with service.process() as process:
        await process.ticks(1)
        first_usec = service.servers["r1"].cpu_usec()
        await process.ticks(9)
        await stop(process)
    report = service.report()
    assert report.findings == []
    used = Decimal(service.servers["r1"].cpu_usec() - first_usec) / 10**6
    (total,) = [one for one in report.replicas if one.replica == "r1"]
    assert total.cpu_core_seconds == before + used
    own = [one.sequence for one in service.records() if one.replica == "r1"]
    assert sorted(own) == list(range(len(own)))


async def test_a_replica_that_is_added_begins_an_epoch_of_its_own(service: Service) -> None:
    async with service.process() as process:
        await process.ticks(10)
        await stop(process)
    service.add("r3")
    async with service.process() as process:
        await process.ticks(10)
        await stop(process)
    report = service.report()
    assert report.findings == []
    epochs = {one.replica: one.epoch for one in service.records()}
    assert len(set(epochs.values())) == len(epochs)
    assert [gap.reason for gap in report.gaps if gap.replica == "r3"] == ["no_checkpoint"]


async def test_a_damaged_checkpoint_concerns_its_replica_only(service: Service) -> None:
    async with service.process() as process:
        await process.ticks(10)
        await process.ship()
        await process.spool.commit(WriteBatch(state={checkpoint_key("r1"): b'{"from": "space"}'}))
    async with service.process() as process:
        await process.ticks(10)
        await stop(process)
    report = service.report()
    assert report.findings == []
    assert [(one.replica, one.last_sequence > 0) for one in report.epoch_ends] == [("r1", True)]


async def test_damage_that_one_replica_finds_is_stated_by_all(service: Service) -> None:
    async with service.process() as process:
        await process.ticks(10)
        (service.directory / "spool.db").unlink()
        await process.ticks(10)
        await stop(process)
    report = service.report()
    assert {one.detail for one in report.findings} <= {"stated: spool_corrupt"}
    stated = {gap.replica for gap in report.gaps if gap.reason == "spool_corrupt"}
    stated |= {one.replica for one in report.epoch_ends}
    assert stated == set(NAMES)


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "answer lost"])
@pytest.mark.parametrize("lost", [0, 5, 40])
async def test_a_spool_that_is_rolled_back_repeats_no_record(
    service: Service, tmp_path: Path, lost: int, *, stored: bool
) -> None:
    """Objects of the lost time that may not be stored are sent again under their own keys."""
    async with service.process() as process:
        await process.ticks(20)
    shutil.copytree(service.directory, tmp_path / "earlier")
    async with service.process() as process:
        await process.ticks(lost)
        await process.source.finish()
        if stored:
            await process.ship()
        else:
            await process.announce()
    shutil.rmtree(service.directory)
    (tmp_path / "earlier").rename(service.directory)
    async with service.process() as process:
        await process.ticks(20)
        await stop(process)
    report = service.report()
    assert {one.detail for one in report.findings} <= {"stated: spool_corrupt"}
    lanes = [(one.replica, one.epoch, one.sequence) for one in service.records()]
    assert len(set(lanes)) == len(lanes)
    first_usec = 60 * 10**6 + SAMPLE_SECONDS * 10**6
    for name, seconds in billed(report).items():
        truth = Decimal(service.servers[name].cpu_usec() - first_usec) / 10**6
        missing = sum(
            (one.core_seconds or Decimal(0) for one in report.findings if one.replica == name),
            Decimal(0),
        )
        assert seconds + missing == truth


async def test_a_lost_object_is_found_also_if_it_is_the_last_of_a_replica(
    service: Service,
) -> None:
    async with service.process() as process:
        await process.ticks(20)
        await process.ship()
        await process.ticks(20)
        await stop(process)
    removed = sorted(service.bucket)[-2]
    service.bucket.pop(removed)
    kinds = service.report().counts
    assert kinds["missing_object"] == 1
    assert kinds["missing_sequence"] >= len(NAMES)


async def test_a_shared_object_with_a_line_less_is_found(service: Service) -> None:
    async with service.process() as process:
        await process.ticks(20)
        await stop(process)
    key = max(service.bucket)
    lines = unseal(key, service.bucket[key])
    service.bucket[key] = pressed(b"".join(line + b"\n" for line in lines[:-1]))
    assert service.report().counts == {"altered_object": 1}


STEPS = [
    *("ticks", "ticks", "ticks", "kill", "stop", "ship", "down", "up", "restart", "idle"),
    *("remove", "add", "damage"),
]


MIXED = st.lists(st.sampled_from(STEPS), min_size=4, max_size=16)
QUIET = st.lists(st.sampled_from(["ticks", "kill", "ship", "idle"]), min_size=4, max_size=16)


@given(MIXED | QUIET, st.integers(0, 2**32))
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_any_sequence_of_steps_is_billed_once_and_without_a_hole(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], seed: int
) -> None:
    asyncio.run(run_steps(tmp_path_factory.mktemp("steps"), steps, Random(seed)))


async def run_steps(place: Path, steps: list[str], random: Random) -> None:
    """Run the steps; check the bucket against the rules of the records."""
    service = Service(place / "state")
    service.add(*NAMES)
    left = [*steps, "stop"]
    while left:
        await service.clock.advance(1)
        async with service.process() as process:
            run = asyncio.create_task(process.source.run())
            await settle()
            run.cancel()
            await asyncio.wait([run])
            while left and (step := left.pop(0)) not in {"kill", "stop", "remove", "add", "damage"}:
                await happen(step, process, random)
            if step == "stop":
                await stop(process)
            if step == "damage":
                key = checkpoint_key(random.choice(service.names))
                await process.spool.commit(WriteBatch(state={key: b"damaged"}))
        if step == "remove" and len(service.names) > 1:
            gone = random.choice(service.names)
            service.names = tuple(name for name in service.names if name != gone)
        if step == "add":
            service.add(random.choice(sorted({*NAMES, "r3"} - set(service.names)) or ["r9"]))
            service.names = tuple(dict.fromkeys(service.names))
    report = service.report()
    assert report.findings == []
    records = service.records()
    lanes = Counter((one.replica, one.epoch, one.sequence) for one in records)
    assert max(lanes.values(), default=1) == 1
    for name, seconds in billed(report).items():
        server = service.servers[name]
        assert seconds * 10**6 <= server.used_usec()
        if not {*steps} & {"down", "restart", "remove", "add", "damage"}:
            first = min((one for one in records if one.replica == name), key=lambda x: x.sequence)
            assert first.counter is not None
            assert seconds == Decimal(server.used_usec()) / 10**6 - first.counter.end


async def happen(step: str, process: Process, random: Random) -> None:
    service = process.service
    server = service.servers[random.choice(service.names)]
    match step:
        case "ticks":
            await process.ticks(random.randrange(1, 12))
        case "ship":
            await process.ship()
        case "down" | "up":
            server.up = step == "up"
        case "restart":
            server.restart()
        case "idle":
            await service.clock.advance(random.randrange(1, 4000))
