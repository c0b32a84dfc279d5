"""Consumers and receivers that are killed at random: every message is one row, none is missing.

`PLANE_KILLS=1000 make test-real PYTEST_ARGS=tests/real/test_real_control_plane_kill.py` kills more.
"""

import asyncio
import base64
import os
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import chdb.session
import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.app.cloudevents import encode
from byoc_agents.errors import Reason
from byoc_agents.message import Message
from byoc_agents.sinks.https import HttpsSink
from lab.control_plane.chdb_http import ChdbServer, serving_chdb
from lab.control_plane.messages import Replica, message_id, watch_alert
from lab.control_plane.processes import KEYS, plane_environment, running_plane
from lab.fakes.fifo import FakeFifo
from lab.real.parts.process import free_port
from tests.real.control_plane_tables import empty, rows

pytestmark = pytest.mark.real

KILLS = int(os.environ.get("PLANE_KILLS", "12"))
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


@pytest.fixture
async def server(engine: chdb.session.Session) -> AsyncIterator[ChdbServer]:
    empty(engine)
    async with serving_chdb(engine) as server:
        yield server


class Feeder:
    """Sends messages of many replicas into the queue, as exporters do."""

    def __init__(self, queue: FakeFifo) -> None:
        self.sent: list[str] = []
        self._queue = queue
        self._replicas = [Replica(replica=f"r-{n}") for n in range(30)]

    async def run(self) -> None:
        """Send 1,000 messages per second, in bursts, until cancelled."""
        while True:
            for replica in self._replicas:
                self.send(replica)
            await asyncio.sleep(0.03)

    def send(self, replica: Replica) -> None:
        body = replica.message(SystemClock().wall_ns() // 1_000_000)
        self.sent.append(message_id(body))
        self._queue.add(replica.group, self.sent[-1], body.decode())


def consumer_settings(queue: FakeFifo, store_url: str, name: str) -> dict[str, str]:
    return KEYS | {
        "BYOC_PLANE_QUEUE_URL": queue.queue_url,
        "BYOC_PLANE_STORE_URL": store_url,
        "BYOC_PLANE_VISIBILITY_SECONDS": "1",
        "BYOC_PLANE_NAME": name,
    }


async def emptied(queue: FakeFifo) -> None:
    async with asyncio.timeout(120):
        while queue.waiting:  # noqa: ASYNC110  other processes empty it
            await asyncio.sleep(0.1)


async def test_two_consumers_that_are_killed_store_every_message_once(
    engine: chdb.session.Session, server: ChdbServer, tmp_path: Path
) -> None:
    chance = random.Random(KILLS)
    async with FakeFifo() as queue, AsyncExitStack() as stack:
        feeder = Feeder(queue)

        lasts = [asyncio.Event(), asyncio.Event()]

        async def consume(name: str, kills: int, reached_last: asyncio.Event) -> None:
            settings = consumer_settings(queue, server.http.url, name)
            for start in range(kills):
                async with running_plane(
                    ["consumer"], tmp_path / f"{name}-{start}", settings
                ) as it:
                    await asyncio.sleep(chance.uniform(0, 0.5))
                    await it.kill()
            last = await stack.enter_async_context(
                running_plane(["consumer"], tmp_path / f"{name}-last", settings)
            )
            reached_last.set()
            await emptied(queue)
            assert await last.stop() == 0

        feeding = asyncio.ensure_future(feeder.run())
        consumers = [
            asyncio.ensure_future(consume(name, KILLS // 2, last))
            for name, last in zip(("a", "b"), lasts, strict=True)
        ]
        await asyncio.wait_for(asyncio.gather(*(last.wait() for last in lasts)), 300)
        feeding.cancel()
        await asyncio.gather(*consumers)
        repeated = queue.deliveries - len(feeder.sent)
    stored = rows(engine, "SELECT id, count() n FROM byoc_state FINAL GROUP BY id, source")
    assert sorted(row["id"] for row in stored) == sorted(feeder.sent)
    assert {row["n"] for row in stored} == {"1"}
    assert rows(engine, "SELECT count() n FROM byoc_rejected") == [{"n": "0"}]
    print(f"{len(feeder.sent)} messages, {KILLS} kills, {repeated} delivered again")
    assert len(feeder.sent) > 1000


async def test_an_embedded_store_that_is_killed_with_its_consumer_keeps_every_message(
    tmp_path: Path,
) -> None:
    """The engine dies in the middle of its inserts and is read by another process at the end."""
    chance = random.Random(KILLS)
    async with FakeFifo() as queue:
        feeder = Feeder(queue)
        settings = consumer_settings(queue, f"chdb:{tmp_path}/store", "a")
        feeding = asyncio.ensure_future(feeder.run())
        for start in range(max(3, KILLS // 4)):
            async with running_plane(["consumer"], tmp_path / f"log-{start}", settings) as it:
                await asyncio.sleep(chance.uniform(0.1, 0.6))
                await it.kill()
        feeding.cancel()
        async with running_plane(["consumer"], tmp_path / "log-last", settings) as it:
            await emptied(queue)
            assert await it.stop() == 0
    ids = await read_elsewhere(tmp_path / "store", "byoc_state", "id")
    assert sorted(ids) == sorted(feeder.sent)


async def read_elsewhere(store: Path, table: str, column: str) -> list[str]:
    """Return a column of a store, read by a process of its own."""
    code = (
        "import sys; from chdb.session import Session; "
        "print(Session(sys.argv[1]).query(sys.argv[2], 'TSV'))"
    )
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(store), f"SELECT {column} FROM {table} FINAL"),
        env=os.environ | plane_environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate()
    assert child.returncode == 0
    return out.decode().split()


def receiver_settings(store_url: str, name: str) -> dict[str, str]:
    return {
        "BYOC_PLANE_STORE_URL": store_url,
        "BYOC_PLANE_TOKEN": "tok",
        "BYOC_PLANE_SIGNING_SECRET": SECRET,
        "BYOC_PLANE_EVENTS_LISTEN": f"127.0.0.1:{free_port()}",
        "BYOC_PLANE_NAME": name,
    }


class Forwarders:
    """Senders that deliver batches in order, each until it is accepted, as forwarders do.

    With several receivers each attempt is for the next one, as behind a load balancer: a batch
    whose response was lost arrives at another receiver.
    """

    def __init__(self, session: aiohttp.ClientSession, places: list[str]) -> None:
        self.accepted: list[str] = []
        self.attempts = [0] * len(places)
        self.moved = 0  # attempts for a batch that another receiver may have stored already
        self.done = asyncio.Event()
        self._sinks = [
            HttpsSink(
                f"http://{place}/v1/events",
                session,
                token=lambda: "tok",
                signing_secret=lambda: SECRET,
                clock=SystemClock(),
            )
            for place in places
        ]

    async def run(self, lane: int) -> None:
        """Send until `done`."""
        number, turn = 0, lane
        while not self.done.is_set():
            now_ms = SystemClock().wall_ns() // 1_000_000
            events = [watch_alert(now_ms, lane * 10**6 + number + n) for n in range(5)]
            batch = [Message(one.id, one.type, encode(one), now_ms) for one in events]
            number += 5
            tries = 0
            while not await self._send(batch, turn):
                turn, tries = turn + 1, tries + 1
                await asyncio.sleep(0.05)
            turn += 1
            self.moved += tries if len(self._sinks) > 1 else 0
            self.accepted.extend(message.id for message in batch)

    async def _send(self, batch: list[Message], turn: int) -> bool:
        at = turn % len(self._sinks)
        self.attempts[at] += 1
        outcomes = await self._sinks[at].send(batch)
        return all(outcome.reason is Reason.OK for outcome in outcomes)


@pytest.mark.parametrize("receivers", [1, 2])
async def test_receivers_that_are_killed_have_every_event_they_accepted_and_no_other(
    engine: chdb.session.Session, server: ChdbServer, tmp_path: Path, receivers: int
) -> None:
    settings = [receiver_settings(server.http.url, f"r-{n}") for n in range(receivers)]
    kills = KILLS // receivers  # of each
    lasts = [asyncio.Event() for _ in settings]
    emptied = asyncio.Event()  # all that was sent is accepted

    async def receive(number: int) -> None:
        chance = random.Random(f"{KILLS}/{number}")
        for start in range(kills):
            log = tmp_path / f"log-{number}-{start}"
            async with running_plane(["receiver"], log, settings[number]) as it:
                await asyncio.sleep(chance.uniform(0, 0.5))
                await it.kill()
        log = tmp_path / f"log-{number}-last"
        async with running_plane(["receiver"], log, settings[number]) as it:
            lasts[number].set()
            await emptied.wait()
            assert await it.stop() == 0

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        senders = Forwarders(session, [one["BYOC_PLANE_EVENTS_LISTEN"] for one in settings])
        lanes = [group.create_task(senders.run(lane)) for lane in range(4)]
        for number in range(receivers):
            group.create_task(receive(number))
        async with asyncio.timeout(300):
            await asyncio.gather(*(last.wait() for last in lasts))
            await asyncio.sleep(0.5)
            senders.done.set()
            await asyncio.gather(*lanes)
        emptied.set()
    stored = rows(engine, "SELECT id, count() n FROM byoc_alerts FINAL GROUP BY id, source")
    assert sorted(row["id"] for row in stored) == sorted(senders.accepted)
    assert {row["n"] for row in stored} == {"1"}
    print(f"{len(senders.accepted)} events, {kills} kills each, deliveries {senders.attempts}")
    assert len(senders.accepted) > 100
    if receivers == 1:
        return
    assert min(senders.attempts) > 20, "every receiver has work"
    assert senders.moved > 0, "a batch that one receiver did not accept goes to the other"
