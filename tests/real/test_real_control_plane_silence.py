"""Silence over time: one second of a simulated clock per step, chdb behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import chdb.session
import pytest
from aiobotocore.session import get_session

from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_control_plane.consumer import Consumer
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import Progress, SilenceWatch
from byoc_control_plane.store import EmbeddedStore
from lab.control_plane.messages import Replica, message_id
from lab.fakes.core import FakeClock
from lab.fakes.fifo import FakeFifo
from tests.real.control_plane_tables import empty

pytestmark = pytest.mark.real

HEARTBEAT = 20
STEADY = HeartbeatIntervals(HEARTBEAT, HEARTBEAT)
DEFAULT = HeartbeatIntervals.choose("BYOC_STATE", 60, None)  # 300 s after ten minutes
ALLOWED = 3 * HEARTBEAT + 5  # seconds
OUTAGE = 1800
BATCHES = 40  # that a backlog may need within one step


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


@dataclass
class Fleet:
    """Exporters that send a heartbeat after each interval, and state the next one."""

    queue: FakeFifo
    clock: FakeClock
    intervals: HeartbeatIntervals = STEADY
    alive: dict[str, Replica] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)  # second of the last message
    changed: dict[str, int] = field(default_factory=dict)  # second of the last start
    second: int = 0

    def start(self, name: str) -> None:
        """Start an exporter, with a new epoch."""
        now_ms = self.clock.wall_ns() // 1_000_000
        self.alive[name] = Replica(replica=name, epoch=now_ms)
        self.changed[name] = self.second
        self._state_interval(name)
        self._send(name, self.alive[name].message(now_ms))

    def stop(self, name: str) -> None:
        """Stop it in good order."""
        self._send(name, self.alive[name].stop(self.clock.wall_ns() // 1_000_000))
        del self.alive[name]

    def kill(self, name: str) -> None:
        """End it without a message."""
        del self.alive[name]

    def beat(self) -> None:
        """Let one second pass for every exporter."""
        self.second += 1
        now_ms = self.clock.wall_ns() // 1_000_000
        for name, replica in self.alive.items():
            if self.second - self.last[name] >= replica.heartbeat:
                self._state_interval(name)
                self._send(name, replica.message(now_ms))

    def _state_interval(self, name: str) -> None:
        unchanged_ns = (self.second - self.changed[name]) * 10**9
        self.alive[name].heartbeat = self.intervals.after(unchanged_ns)

    def _send(self, name: str, body: bytes) -> None:
        self.last[name] = self.second
        self.queue.add(self.alive[name].group, message_id(body), body.decode())


@dataclass
class Harness:
    """A fleet, a queue, and processes that may be away."""

    clock: FakeClock
    queue: FakeFifo
    store: EmbeddedStore
    client: Any
    fleet: Fleet
    metrics: PlaneMetrics = field(default_factory=PlaneMetrics)
    starts: int = 0

    async def connect(self, inserter: Inserter) -> tuple[Consumer, Progress]:
        """Start a consumer as after a restart."""
        self.starts += 1
        progress = Progress(self.store, self.clock, "state", "a", redelivery_seconds=30)
        await progress.load()
        consumer = Consumer(
            self.client,
            self.queue.queue_url,
            inserter,
            progress,
            self.metrics,
            self.clock,
        )
        return consumer, progress

    async def pass_second(self) -> None:
        """Move the clock, and let the exporters act."""
        await self.clock.advance(1)
        self.fleet.beat()

    async def silent(self) -> set[str]:
        """Return the replicas that have a series."""
        await SilenceWatch(self.store, self.clock, self.metrics).refresh()
        return {
            sample.labels["replica"]
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "byoc_plane_silent_seconds"
        }


@pytest.fixture
async def harness(engine: chdb.session.Session) -> AsyncIterator[Harness]:
    empty(engine)
    clock, looks = FakeClock(), iter(range(10**9))
    queue = FakeFifo(
        wall_ms=lambda: clock.wall_ns() // 1_000_000,
        monotonic=lambda: clock.boot_ns() / 1e9 + next(looks),  # a long poll ends at once
    )
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    with ThreadPoolExecutor(max_workers=1) as thread:
        async with queue:
            place: dict[str, Any] = {"endpoint_url": queue.http.url, "region_name": "us-east-1"}
            async with get_session().create_client("sqs", **place, **keys) as client:
                store = EmbeddedStore(engine, thread)
                yield Harness(clock, queue, store, client, Fleet(queue, clock))


@dataclass
class Watched:
    """The harness with a running consumer, and the second in which each silence was found."""

    harness: Harness
    inserter: Inserter
    consumer: Consumer
    progress: Progress
    found: dict[str, int] = field(default_factory=dict)

    async def receive(self) -> None:
        """Do what the processes do in one second."""
        for _ in range(BATCHES):
            if not await self.consumer.poll():
                break
        await self.progress.write()
        for name in await self.harness.silent():
            self.found.setdefault(name, self.harness.fleet.second)

    async def receive_until(
        self, second: int, changes: dict[int, Callable[[], None]], *, step: int = 1
    ) -> None:
        """Let time pass with a consumer that is started again at two moments.

        It receives every `step` seconds.
        """
        fleet = self.harness.fleet
        while fleet.second < second:
            await self.harness.pass_second()
            changes.get(fleet.second, lambda: None)()
            if fleet.second in {70, 75}:
                await self.restart()
            if fleet.second % step == 0:
                await self.receive()

    async def restart(self) -> None:
        """Start the consumer again."""
        self.consumer, self.progress = await self.harness.connect(self.inserter)


@pytest.fixture
async def watched(harness: Harness) -> AsyncIterator[Watched]:
    inserter = Inserter(harness.store, harness.metrics)
    inserting = asyncio.ensure_future(inserter.run())
    yield Watched(harness, inserter, *await harness.connect(inserter))
    inserting.cancel()
    with suppress(asyncio.CancelledError):
        await inserting


async def test_a_silenced_replica_is_found_and_nobody_else_ever_is(watched: Watched) -> None:
    """Restarts, deletions, a crash, two restarts of the consumer, and its outage of 30 minutes."""
    harness, fleet, found = watched.harness, watched.harness.fleet, watched.found
    for number in range(30):
        fleet.start(f"r-{number}")
    crashed = fleet.alive["r-3"]
    changes: dict[int, Callable[[], None]] = {
        19: partial(fleet.stop, "r-1"),  # deleted
        20: partial(fleet.stop, "r-2"),  # stopped, and started again
        110: partial(fleet.start, "r-2"),
        30: partial(fleet.kill, "r-3"),  # crashed; the same spool goes on with the next sequence
        60: partial(fleet.alive.__setitem__, "r-3", crashed),
        61: partial(fleet.kill, "r-4"),  # silenced
    }
    await watched.receive_until(180, changes)
    assert set(found) == {"r-4"}
    assert found["r-4"] <= fleet.last["r-4"] + ALLOWED

    for _ in range(OUTAGE):  # nobody receives
        await harness.pass_second()
        if fleet.second == 400:
            fleet.stop("r-5")
        if fleet.second == 500:
            fleet.kill("r-6")
    await watched.restart()
    back = fleet.second
    await watched.receive_until(back + ALLOWED + 10, {})
    assert set(found) == {"r-4", "r-6"}
    assert back + 3 * HEARTBEAT <= found["r-6"] <= back + ALLOWED + 2
    assert await harness.silent() == {"r-4", "r-6"}
    fleet.start("r-4")
    await watched.receive_until(fleet.second + 1, {})
    assert await harness.silent() == {"r-6"}


async def test_the_interval_that_a_replica_stated_last_decides(watched: Watched) -> None:
    """60 s for ten minutes after a start, then 300 s, and an outage of the consumer in between."""
    harness, fleet, found = watched.harness, watched.harness.fleet, watched.found
    fleet.intervals, step = DEFAULT, 5
    fast, slow = 3 * 60 + 5, 3 * 300 + 5
    for number in range(10):
        fleet.start(f"r-{number}")
    changes: dict[int, Callable[[], None]] = {
        130: partial(fleet.kill, "r-1"),  # it had stated 60 s
        1000: partial(fleet.kill, "r-2"),  # it had stated 300 s
        1100: partial(fleet.start, "r-3"),  # started again: 60 s
        1500: partial(fleet.stop, "r-4"),
    }
    await watched.receive_until(1200, changes, step=step)
    assert set(found) == {"r-1"}
    assert fleet.last["r-1"] + 3 * 60 <= found["r-1"] <= fleet.last["r-1"] + fast + step
    await watched.receive_until(1900, changes, step=step)
    assert set(found) == {"r-1", "r-2"}
    assert fleet.last["r-2"] + 3 * 300 <= found["r-2"] <= fleet.last["r-2"] + slow + step

    for _ in range(OUTAGE):  # nobody receives
        await harness.pass_second()
        if fleet.second == 2500:
            fleet.kill("r-5")
    await watched.restart()
    back = fleet.second
    await watched.receive_until(back + slow + 2 * step, {}, step=step)
    assert set(found) == {"r-1", "r-2", "r-5"}
    assert back + 3 * 300 <= found["r-5"] <= back + slow + 2 * step
