"""Progress: an interruption or a backlog starts the count of silence again, a restart does not."""

import asyncio
from contextlib import suppress

import pytest

from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import PROGRESS, Progress, SilenceWatch
from byoc_control_plane.store import StoreError
from lab.control_plane.memory_store import MemoryStore
from lab.fakes.core import START_MS, FakeClock

HOUR_MS = 3_600_000


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def made(store: MemoryStore) -> Progress:
    return Progress(store, FakeClock(), "state", "a", redelivery_seconds=30)


async def written(store: MemoryStore, progress: Progress) -> tuple[str, str]:
    await progress.write()
    row = store.rows["byoc_progress"][-1]
    return row["at"][11:19], row["steady_since"][11:19]


async def test_nothing_is_written_before_something_was_received(store: MemoryStore) -> None:
    await made(store).write()
    assert store.rows == {}


async def test_reception_is_steady_until_it_is_interrupted(store: MemoryStore) -> None:
    progress = made(store)
    found = []
    for seconds, caught_up in ((0, True), (10, True), (21, True), (22, True), (23, False)):
        progress.observe(START_MS + seconds * 1000, caught_up=caught_up)
        found.append(await written(store, progress))
    assert found == [
        ("12:00:00", "12:00:00"),
        ("12:00:10", "12:00:00"),
        ("12:00:21", "12:00:21"),  # more than ten seconds without a reception
        ("12:00:22", "12:00:21"),
        ("12:00:23", "12:00:23"),  # old messages arrive
    ]


async def test_an_older_reception_does_not_turn_the_time_back(store: MemoryStore) -> None:
    progress = made(store)
    progress.observe(START_MS + 5000, caught_up=True)
    progress.observe(START_MS, caught_up=True)
    assert await written(store, progress) == ("12:00:05", "12:00:05")


async def test_a_restart_within_seconds_continues(store: MemoryStore) -> None:
    store.results = [
        (PROGRESS, [{"stream": "state", "at_ms": START_MS, "steady_ms": START_MS - HOUR_MS}])
    ]
    for seconds, expected in ((9, "11:00:00"), (11, "12:00:11")):
        progress = made(store)
        await progress.load()
        progress.observe(START_MS + seconds * 1000, caught_up=True)
        assert (await written(store, progress))[1] == expected


async def test_a_store_that_was_away_begins_the_count_anew(store: MemoryStore) -> None:
    progress = made(store)
    progress.observe(START_MS, caught_up=True)
    await progress.write()
    store.error = StoreError("away")
    for seconds in range(1, 13):
        progress.observe(START_MS + seconds * 1000, caught_up=True)
        with pytest.raises(StoreError):
            await progress.write()
    store.error = None
    progress.observe(START_MS + 13_000, caught_up=True)
    assert await written(store, progress) == ("12:00:13", "12:00:13")


async def test_silent_daemons_are_series_and_those_that_return_are_not(store: MemoryStore) -> None:
    metrics = PlaneMetrics()
    watch = SilenceWatch(store, FakeClock(), metrics)
    names = {"organization_id": "o", "service_id": "s", "replica": "r", "daemon": "state-exporter"}
    store.results = [
        ("silent_now", [names | {"silent_seconds": 181.5}]),
        ("count()", [{"daemon": "state-exporter", "daemons": 7}]),
        (PROGRESS, [{"stream": "state", "at_ms": START_MS, "steady_ms": START_MS - 1000}]),
    ]
    await watch.refresh()

    def sample(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert sample("byoc_plane_silent_seconds", **names) == 181.5
    assert sample("byoc_plane_silent_daemons", daemon="state-exporter") == 1
    assert sample("byoc_plane_daemons", daemon="state-exporter") == 7
    assert sample("byoc_plane_progress_timestamp_seconds", stream="state") == START_MS / 1000
    store.results[0] = ("silent_now", [])
    await watch.refresh()
    assert sample("byoc_plane_silent_seconds", **names) is None
    assert sample("byoc_plane_silent_daemons", daemon="state-exporter") == 0


async def test_slow_queries_are_asked_less_often(store: MemoryStore) -> None:
    clock = FakeClock()
    watch = asyncio.ensure_future(SilenceWatch(store, clock, PlaneMetrics()).run())
    assert await clock.parked() == [1.0]
    store.entered.clear()
    store.released.clear()
    await clock.advance(1)
    await store.entered.wait()
    await clock.advance(0.8)
    store.released.set()
    (seconds,) = await clock.parked()
    assert seconds == pytest.approx(3.2)
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch


async def test_the_last_figures_stay_while_the_store_is_away(store: MemoryStore) -> None:
    clock, metrics = FakeClock(), PlaneMetrics()
    store.results = [("count()", [{"daemon": "state-exporter", "daemons": 7}])]
    watch = asyncio.ensure_future(SilenceWatch(store, clock, metrics).run())
    await clock.parked()
    store.error = StoreError("away")
    await clock.advance(1)
    await clock.parked()
    labels = {"daemon": "state-exporter"}
    assert metrics.registry.get_sample_value("byoc_plane_daemons", labels) == 7
    assert metrics.registry.get_sample_value("byoc_plane_store_errors_total") == 1
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch
