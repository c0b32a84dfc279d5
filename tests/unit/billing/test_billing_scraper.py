"""The scraper between a target and a spool, on a fake clock."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.billing.objects import unseal
from byoc_agents.billing.record import Usage, UsageRecord
from byoc_agents.billing.sources.target import TargetObservation
from byoc_agents.billing.streams import CHECKPOINT
from byoc_agents.billing.window import HOUR_MS
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolFullError, SpoolUnavailableError
from tests.unit.billing.scraper_harness import SECOND, Harness

HOURS = 3


class Deaf(Spool):
    """A spool whose n-th commit is stored but never returns."""

    def __init__(self, spool: Spool, number: int) -> None:
        self.__dict__ = dict(spool.__dict__)
        self.made = asyncio.Event()
        self._number = number

    async def commit(self, change: WriteBatch) -> None:
        await super().commit(change)
        self._number -= 1
        if self._number == 0:
            self.made.set()
            await asyncio.Event().wait()


class Unsure(Spool):
    """A spool whose next commit is made and then reported as failed."""

    def __init__(self, spool: Spool) -> None:
        self.__dict__ = dict(spool.__dict__)
        self._failed = False

    async def commit(self, change: WriteBatch) -> None:
        await super().commit(change)
        if not self._failed:
            self._failed = True
            raise SpoolUnavailableError("disk")


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    made = Harness(tmp_path / "state")
    await made.spool.__aenter__()
    yield made
    await made.spool.__aexit__()


async def test_a_minute_is_staged_with_its_checkpoint_and_sealed_later(harness: Harness) -> None:
    await harness.ticks(25)
    records = await harness.records()
    assert [r.data.gap_reason for r in records] == ["no_checkpoint", "", ""]
    assert [r.data.sequence for r in records] == [0, 1, 2]
    assert await harness.spool.peek(10) == []
    await harness.ticks(60)  # over 12:05, the phase; the gap is of the hour before
    assert [m.events for m in await harness.spool.peek(10)] == [1, 5]


async def test_a_daemon_that_is_often_killed_still_seals_in_time(harness: Harness) -> None:
    for _ in range(8):
        await harness.ticks(13)
        harness.scraper = harness.made()
    assert sum(m.events for m in await harness.spool.peek(10)) > 4


async def test_an_object_ends_with_the_hour(harness: Harness) -> None:
    await harness.ticks(1)
    await harness.clock.advance(3600 - 125)
    await harness.ticks(26)
    *_, message = await harness.spool.peek(10)
    lines = [msgspec.json.decode(x, type=UsageRecord) for x in unseal(message.id, message.body)]
    assert lines[-1].data.charge_period_end == "2026-11-23T13:00:00.000Z"


async def test_all_sources_are_read_once_a_window(harness: Harness) -> None:
    await harness.ticks(36)
    assert sum(harness.target.secondary_reads) in {3, 4}


async def test_a_new_scraper_goes_on_from_the_checkpoint(harness: Harness) -> None:
    await harness.ticks(30)
    harness.scraper = harness.made()
    await harness.ticks(30)
    data = [r.data for r in await harness.records()]
    assert [d.sequence for d in data] == list(range(len(data)))
    assert len({d.epoch for d in data}) == 1
    ends = [d.counter.end for d in data if d.counter]
    starts = [d.counter.start for d in data if d.counter]
    assert ends[:-1] == starts[1:]


async def test_a_checkpoint_of_another_version_begins_a_stated_epoch(harness: Harness) -> None:
    await harness.ticks(30)
    await harness.spool.commit(WriteBatch(state={CHECKPOINT: b'{"from": "the future"}'}))
    harness.scraper = harness.made()
    await harness.ticks(15)
    data = [r.data for r in await harness.records()]
    assert len({d.epoch for d in data}) == 2
    assert len({(d.epoch, d.sequence) for d in data}) == len(data)
    assert data[-2].gap_reason == "no_checkpoint"


async def test_a_state_directory_that_vanishes_under_us_is_stated(harness: Harness) -> None:
    await harness.ticks(30)
    shutil.rmtree(harness.directory)
    await harness.ticks(30)
    data = [r.data for r in await harness.records()]
    reasons = [d.gap_reason for d in data if d.gap_reason]
    assert reasons[-1] == "spool_corrupt"
    assert len({(d.epoch, d.sequence) for d in data}) == len(data)


async def test_a_full_spool_makes_one_long_record(harness: Harness) -> None:
    await harness.ticks(13)
    staged = len(await harness.records())
    await harness.reopen(max_bytes=1)
    await harness.ticks(60)
    assert "bytes are over" in harness.scraper.status()["spool_error"]
    assert len(await harness.records()) == staged
    scraper = harness.scraper
    await harness.reopen(max_bytes=1 << 20)
    harness.scraper = scraper
    await harness.ticks(13)
    assert harness.scraper.status()["spool_error"] == ""
    longest = max((await harness.records())[1:], key=lambda r: r.data.elapsed_milliseconds).data
    assert longest.elapsed_milliseconds > 300_000
    assert longest.quality == "measured"
    assert longest.samples.observed >= longest.samples.expected - 1


async def test_without_room_for_the_last_window_the_staged_records_are_sealed(
    harness: Harness,
) -> None:
    await harness.ticks(25)
    staged = len(await harness.spool.staged())
    assert staged > 0
    scraper = harness.scraper
    await harness.reopen(max_bytes=harness.spool.totals.bytes)
    with pytest.raises(SpoolFullError):
        await scraper.finish()
    assert await harness.spool.staged() == []
    sealed = await harness.spool.peek(9)
    assert sum(message.events for message in sealed) == staged
    await harness.spool.remove([message.id for message in sealed])
    await scraper.finish()
    assert harness.target.closed
    assert len(await harness.spool.peek(9)) == 1


@pytest.mark.parametrize("end", ["room", "stop", "kill"])
async def test_a_spool_that_is_full_for_hours_gives_a_record_an_hour(
    harness: Harness, end: str
) -> None:
    """The figures of each hour are its own; where a kill took them, they are spread evenly."""
    harness.sample_seconds = 60
    await harness.reopen(max_bytes=1 << 20)
    await harness.ticks(2)
    await harness.reopen(max_bytes=1)
    await harness.ticks(HOURS * 60)
    scraper = harness.scraper
    await harness.reopen(max_bytes=1 << 20)
    if end != "kill":
        harness.scraper = scraper
    await (scraper.finish() if end == "stop" else harness.ticks(3))
    data = [record.data for record in await harness.records()]
    assert [one.sequence for one in data] == list(range(len(data)))
    spans = [span(one) for one in data if one.quality != "gap"]
    assert all(one[1] == following[0] for one, following in pairwise(spans))
    assert all((stop - 1) // HOUR_MS == start // HOUR_MS for start, stop in spans)
    whole = [one for one in data if one.elapsed_milliseconds == HOUR_MS]
    assert len(whole) >= HOURS - 1
    assert {one.quality for one in whole} == {"estimated" if end == "kill" else "measured"}
    assert {one.used.cpu_core_seconds for one in whole} == {3600}


async def test_a_stop_while_it_is_full_writes_nothing_over_the_hours_that_wait(
    harness: Harness,
) -> None:
    harness.sample_seconds = 60
    await harness.reopen(max_bytes=1 << 20)
    await harness.ticks(2)
    await harness.reopen(max_bytes=1)
    before = await harness.spool.state(CHECKPOINT)
    await harness.ticks(HOURS * 60)
    with pytest.raises(SpoolFullError):
        await harness.scraper.finish()
    assert await harness.spool.state(CHECKPOINT) == before


def span(usage: Usage) -> tuple[int, int]:
    """Return a record's period in milliseconds since 1970."""
    return parse_rfc3339(usage.charge_period_start), parse_rfc3339(usage.charge_period_end)


async def test_finish_seals_the_open_window_and_closes_the_target(harness: Harness) -> None:
    await harness.ticks(15)
    await harness.scraper.finish()
    *_, message = await harness.spool.peek(10)
    last = msgspec.json.decode(unseal(message.id, message.body)[-1], type=UsageRecord)
    assert last.data.quality == "measured"
    assert harness.target.closed
    assert await harness.spool.staged() == []


@pytest.mark.parametrize("write", [1, 2, 6], ids=["first record", "second record", "seal"])
async def test_a_stop_in_the_midst_of_a_write_loses_and_repeats_nothing(
    harness: Harness, write: int
) -> None:
    """The write is stored nevertheless: `finish` must not continue from the state before it."""
    await harness.ticks(2)
    await harness.sealer.seal_all()  # the gap before the first sample
    harness.handle.spool = deaf = Deaf(harness.spool, write)
    run = asyncio.create_task(harness.ticks(73))  # five windows, and the seal of all
    await deaf.made.wait()
    run.cancel()
    await asyncio.wait([run])
    await harness.clock.advance(5)
    await harness.scraper.finish()
    data = [record.data for record in await harness.records()]
    counters = [d.counter for d in data if d.counter]
    assert [d.sequence for d in data] == list(range(len(data)))
    assert counters[-1].end == harness.clock.boot_ns() // SECOND
    assert [c.end for c in counters[:-1]] == [c.start for c in counters[1:]]
    assert await harness.spool.staged() == []


async def test_a_last_window_stored_despite_an_error_is_not_stored_again(harness: Harness) -> None:
    await harness.ticks(2)
    harness.handle.spool = Unsure(harness.spool)
    await harness.clock.advance(60)
    await harness.scraper.finish()
    data = [record.data for record in await harness.records()]
    counters = [d.counter for d in data if d.counter]
    assert [d.sequence for d in data] == list(range(len(data)))
    assert counters[-1].end == harness.clock.boot_ns() // SECOND
    assert [c.end for c in counters[:-1]] == [c.start for c in counters[1:]]


async def test_trouble_is_logged_once_and_shown(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    harness.target.observation = TargetObservation(None, error="cgroup.v2: not there", absent=True)
    await harness.ticks(30)
    assert harness.scraper.status()["target_error"] == "cgroup.v2: not there"
    assert capsys.readouterr().out.count("not there") == 1
    gaps = [r.data.gap_reason for r in await harness.records()]
    assert set(gaps) == {"target_absent"}


async def test_samples_fall_on_full_intervals_of_the_wall_clock(harness: Harness) -> None:
    seen: list[int] = []
    read = harness.target.read

    async def noted(*, secondary: bool = False) -> TargetObservation:
        seen.append(harness.clock.wall_ns() % (5 * SECOND))
        return await read(secondary=secondary)

    harness.target.read = noted  # type: ignore[method-assign]
    await harness.clock.advance(1.3)
    run = asyncio.create_task(harness.scraper.run())
    for _ in range(5):
        await asyncio.sleep(0)
        (wait,) = await harness.clock.parked()
        await harness.clock.advance(wait)
    run.cancel()
    await asyncio.wait([run])
    assert seen[1:] == [0] * len(seen[1:])
