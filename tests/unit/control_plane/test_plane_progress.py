"""Progress: an interruption or a backlog starts the count of silence again, a restart does not."""

import asyncio
from contextlib import suppress

import pytest

from byoc_agents.app.cloudevents import rfc3339
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import (
    AHEAD,
    DELAYED,
    MAX_SERIES,
    PROGRESS,
    Progress,
    SilenceWatch,
    share_series,
)
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
    row = [row for row in store.rows["byoc_progress"] if not row["organization_id"]][-1]
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


def delayed(store: MemoryStore) -> list[tuple[str, str]]:
    found = [row for row in store.rows["byoc_progress"] if row["organization_id"]]
    return [(row["organization_id"], row["steady_since"][11:19]) for row in found]


async def test_a_backlog_of_one_organization_alone_is_its_own(store: MemoryStore) -> None:
    progress = made(store)
    late: list[set[str]] = [set(), {"org-1"}, {"org-1"}, set(), {"org-1"}]
    for seconds, names in enumerate(late):
        progress.observe(START_MS + seconds * 1000, late=names)
        assert (await written(store, progress))[1] == "12:00:00"
    assert delayed(store) == [("org-1", f"12:00:0{seconds}") for seconds in (1, 2, 4)]


@pytest.mark.parametrize(("after", "steady"), [(10, "12:00:11"), (11, "12:00:00")])
async def test_a_backlog_of_several_organizations_is_of_this_side(
    store: MemoryStore, after: int, steady: str
) -> None:
    progress = made(store)
    progress.observe(START_MS)
    progress.observe(START_MS + 1000, late={"org-1"})
    progress.observe(START_MS + 5000)
    progress.observe(START_MS + 1000 + after * 1000, late={"org-2"})
    assert (await written(store, progress))[1] == steady


async def test_after_an_interruption_every_backlog_is_of_this_side_until_it_is_gone(
    store: MemoryStore,
) -> None:
    progress = made(store)
    progress.observe(START_MS)
    found = []
    for seconds, late in (
        (60, {"org-1"}),
        (75, {"org-1"}),
        (76, {"org-1"}),
        (77, set()),
        (78, {"org-1"}),
    ):
        progress.observe(START_MS + seconds * 1000, late=late)
        found.append((await written(store, progress))[1])
    assert found == ["12:01:00", "12:01:15", "12:01:16", "12:01:16", "12:01:16"]
    assert delayed(store) == [("org-1", "12:01:18")]


async def test_an_organization_whose_messages_were_refused_is_written_once_the_store_is_back(
    store: MemoryStore,
) -> None:
    progress = made(store)
    progress.observe(START_MS)
    progress.delay("org-1")
    progress.delay("")  # a sender without an organization
    store.error = StoreError("away")
    with pytest.raises(StoreError):
        await progress.write()
    store.error = None
    await progress.write()
    progress.observe(START_MS + 1000)
    await progress.write()
    assert delayed(store) == [("org-1", "12:00:00")]


def test_a_customer_with_many_silent_daemons_hides_no_other() -> None:
    rows = [{"organization_id": "many", "silent_seconds": 9000 - n} for n in range(2000)]
    rows += [{"organization_id": "few", "silent_seconds": 200 - n} for n in range(2)]
    shown = share_series(rows, MAX_SERIES)
    assert len(shown) == MAX_SERIES
    assert [row["silent_seconds"] for row in shown if row["organization_id"] == "few"] == [200, 199]
    assert shown[0]["silent_seconds"] == 9000
    assert share_series(rows[-2:], MAX_SERIES) == rows[-2:]


async def test_an_older_reception_does_not_turn_the_time_back(store: MemoryStore) -> None:
    progress = made(store)
    progress.observe(START_MS + 5000, caught_up=True)
    progress.observe(START_MS, caught_up=True)
    assert await written(store, progress) == ("12:00:05", "12:00:05")


@pytest.mark.parametrize("set_back", ["between writes", "during a write"])
async def test_a_clock_that_was_ahead_once_begins_the_count_again(
    store: MemoryStore, set_back: str
) -> None:
    progress = made(store)
    progress.observe(START_MS + 24 * HOUR_MS)
    progress.delay("org-1")
    if set_back == "between writes":
        await progress.write()
        progress.observe(START_MS)
    else:
        store.released.clear()
        writing = asyncio.ensure_future(progress.write())
        await store.entered.wait()
        progress.observe(START_MS)
        store.released.set()
        await writing
    assert await written(store, progress) == ("12:00:00", "12:00:00")
    progress.observe(START_MS + 1000)
    assert await written(store, progress) == ("12:00:01", "12:00:00")


async def test_a_clock_set_back_during_a_failed_write_delays_nobody_until_later(
    store: MemoryStore,
) -> None:
    progress = made(store)
    progress.observe(START_MS + 24 * HOUR_MS)
    progress.delay("org-1")
    store.released.clear()
    writing = asyncio.ensure_future(progress.write())
    await store.entered.wait()
    progress.observe(START_MS)
    store.error = StoreError("away")
    store.released.set()
    with pytest.raises(StoreError):
        await writing
    store.error = None
    await progress.write()
    assert delayed(store) == [("org-1", "12:00:00")]
    assert {row["at"] for row in store.rows["byoc_progress"]} == {rfc3339(START_MS)}
    assert {row["steady_since"] for row in store.rows["byoc_progress"]} == {rfc3339(START_MS)}


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
        (AHEAD, [{"stream": "state", "ahead_seconds": 90.5}]),
        (DELAYED, [{"stream": "state", "organization_id": "o", "until_ms": START_MS - 2000}]),
    ]
    await watch.refresh()

    def sample(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert sample("byoc_plane_silent_seconds", **names) == 181.5
    assert sample("byoc_plane_silent_daemons", daemon="state-exporter") == 1
    assert sample("byoc_plane_daemons", daemon="state-exporter") == 7
    assert sample("byoc_plane_progress_timestamp_seconds", stream="state") == START_MS / 1000
    assert sample("byoc_plane_progress_ahead_seconds", stream="state") == 90.5
    late = {"stream": "state", "organization_id": "o"}
    assert sample("byoc_plane_delayed_timestamp_seconds", **late) == START_MS / 1000 - 2
    store.results[0] = ("silent_now", [])
    store.results.pop()
    await watch.refresh()
    assert sample("byoc_plane_delayed_timestamp_seconds", **late) is None
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
