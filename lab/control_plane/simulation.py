"""A fleet's hour of state messages through consumers that are killed.

`python -m lab.control_plane.simulation` simulates 10,000 replicas for one hour: their heartbeats,
and the changes and restarts of a few of them. The messages pass the SQS fake, or with
`--localstack` the queue of LocalStack, and two consumers (`--consumers`) that are killed with
SIGKILL at random moments, into chdb. At the end the rows are compared with the messages by
(source, id).

The times in the messages are simulated; the queue is filled as fast as the consumers empty it, but
never faster than the kills are done, so the last kill is among the last messages. The CPU of the
consumers counts from the moment they listen until they are killed.
"""

import argparse
import asyncio
import heapq
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import aiohttp
import msgspec
import psutil
from aiobotocore.session import get_session

from byoc_control_plane.store import HttpStore, create_tables, fetch_rows
from lab.bench.machine import measured
from lab.control_plane.forked import start_forked
from lab.control_plane.messages import Replica
from lab.control_plane.processes import KEYS, plane_environment
from lab.demo.process import started, written
from lab.fakes.fifo import FakeFifo
from lab.real.parts.localstack import localstack

START_MS = 1_795_435_200_000  # 2026-11-23T12:00:00Z
HOUR_MS = 3_600_000
FAST_MS, SLOW_MS = 60_000, 300_000  # between two heartbeats; as the exporter's defaults
FAST_FOR_MS = 600_000  # after a change
CHANGED, RESTARTED = 0.05, 0.02  # of the replicas, within the hour
LAGGING_MS = 600_000
MAX_WAITING = 20_000  # messages in the fake
RUN_SECONDS = 0.6  # at most, from the moment a consumer listens


class Fed(msgspec.Struct, frozen=True):
    """One message on its way: of `replica` at `at_ms`."""

    at_ms: int
    group: str
    source: str
    id: str
    body: str


class _Change(NamedTuple):
    """What a replica does from a moment on."""

    at_ms: int  # since the begin of the hour
    state: str
    codes: tuple[str, ...] = ()


def _changes(chance: random.Random, hour_ms: int) -> list[_Change]:
    kind, at_ms = chance.random(), chance.randrange(hour_ms)
    if kind < CHANGED:
        lagging = _Change(at_ms, "running", ("REPLICATION_LAG",))
        return [lagging, _Change(at_ms + LAGGING_MS, "running")]
    if kind < CHANGED + RESTARTED:
        return [_Change(at_ms, "stopping"), _Change(at_ms + FAST_MS, "running")]
    return []


def replica_messages(replica: Replica, seed: str, hour_ms: int) -> Iterator[Fed]:
    """Yield the messages of one replica within the hour, in order of time and of its numbers."""
    now, changes = _plan(seed, hour_ms)
    fast_until_ms = 0
    while True:
        if changes and (changes[0].at_ms <= now.at_ms or now.state == "stopping"):
            now = changes.pop(0)
            fast_until_ms = now.at_ms + FAST_FOR_MS
        if now.at_ms >= hour_ms:
            return
        pace_ms = FAST_MS if now.at_ms < fast_until_ms else SLOW_MS
        replica.heartbeat = pace_ms / 1000
        at_ms = START_MS + now.at_ms
        if now.state == "stopping":
            body = replica.stop(at_ms)
            replica.epoch, replica.sequence, replica.last = at_ms, 0, ""  # of the next process
        else:
            body = replica.message(at_ms, now.state, *now.codes)
        event = msgspec.json.decode(body)
        yield Fed(at_ms, replica.group, event["source"], event["id"], body.decode())
        now = now._replace(at_ms=now.at_ms + pace_ms)


def _plan(seed: str, hour_ms: int) -> tuple[_Change, list[_Change]]:
    """Return the first heartbeat and the changes of a replica; without its 2.5 KiB of chance."""
    chance = random.Random(seed)
    return _Change(chance.randrange(SLOW_MS), "running"), _changes(chance, hour_ms)


def fleet_messages(replicas: int, seed: int, hours: float) -> Iterator[Fed]:
    """Yield the messages of the whole fleet in order of time, as a queue gets them."""
    streams = (
        replica_messages(
            Replica(organization=f"org-{n // 100}", service=f"s-{n // 3}", replica=f"r-{n}"),
            f"{seed}/{n}",
            int(hours * HOUR_MS),
        )
        for n in range(replicas)
    )
    return heapq.merge(*streams, key=lambda one: one.at_ms)


class Queue(Protocol):
    """A queue to fill and to wait for."""

    environment: dict[str, str]

    async def send(self, messages: list[Fed]) -> None:
        """Send messages, at most ten."""
        ...

    async def waiting(self) -> int:
        """Return how many messages are not deleted yet."""
        ...


class FakeQueue:
    """The SQS fake, in this process."""

    def __init__(self, queue: FakeFifo) -> None:
        self.environment = {"BYOC_PLANE_QUEUE_URL": queue.queue_url}
        self._queue = queue

    async def send(self, messages: list[Fed]) -> None:
        """Add the messages; wait while too many are in the queue."""
        for one in messages:
            self._queue.add(one.group, one.id, one.body)
        while self._queue.waiting > MAX_WAITING:  # noqa: ASYNC110  other processes empty it
            await asyncio.sleep(0.01)

    async def waiting(self) -> int:
        """Return how many messages are not deleted yet."""
        return self._queue.waiting


class LocalStackQueue:
    """A FIFO queue of LocalStack."""

    def __init__(self, client: Any, url: str, endpoint: str) -> None:
        self.environment = {"BYOC_PLANE_QUEUE_URL": url, "AWS_ENDPOINT_URL": endpoint}
        self._client = client
        self._url = url

    async def send(self, messages: list[Fed]) -> None:
        """Send one batch. Raises RuntimeError if the queue did not take all of it."""
        response = await self._client.send_message_batch(
            QueueUrl=self._url,
            Entries=[
                {
                    "Id": str(number),
                    "MessageBody": one.body,
                    "MessageGroupId": one.group,
                    "MessageDeduplicationId": one.id,
                }
                for number, one in enumerate(messages)
            ],
        )
        if response.get("Failed"):
            raise RuntimeError(f"LocalStack refused {response['Failed']}")

    async def waiting(self) -> int:
        """Return how many messages are visible or in flight."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        response = await self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=names)
        return sum(int(response["Attributes"][name]) for name in names)


@asynccontextmanager
async def opened_queue(directory: Path, *, real: bool) -> AsyncIterator[Queue]:
    """Yield an empty queue: LocalStack's if `real`, else the fake."""
    if not real:
        async with FakeFifo() as fake:
            yield FakeQueue(fake)
        return
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    with localstack(directory) as running:
        async with get_session().create_client(
            "sqs", endpoint_url=running.url, region_name="us-east-1", **keys
        ) as client:
            made = await client.create_queue(
                QueueName="fleet.fifo", Attributes={"FifoQueue": "true"}
            )
            yield LocalStackQueue(client, made["QueueUrl"], running.url)


class Run:
    """The messages sent in one simulation, and the CPU of the consumers."""

    def __init__(self, directory: Path, queue: Queue, store_url: str, kills: int) -> None:
        self.sent: Counter[tuple[str, str]] = Counter()
        self.killed = 0
        self.cpu_seconds = 0.0
        self._starts = 0  # that end by a kill
        self._directory = directory
        self._queue = queue
        self._kills = kills
        self._settings = {
            "BYOC_PLANE_STORE_URL": store_url,
            "BYOC_PLANE_LOOPS": "8",
            "BYOC_PLANE_VISIBILITY_SECONDS": "2",
            "BYOC_PLANE_TABLES": "existing",
        }
        self._fed = asyncio.Event()

    async def feed(self, messages: list[Fed]) -> None:
        """Send all messages, each part after its share of the kills."""
        for at in range(0, len(messages), 10):
            while self.killed < self._kills * at // len(messages):  # noqa: ASYNC110  two counts
                await asyncio.sleep(0.01)
            batch = messages[at : at + 10]
            await self._queue.send(batch)
            self.sent.update((one.source, one.id) for one in batch)
        self._fed.set()

    async def consume(self, name: str, chance: random.Random) -> None:
        """Run consumers one after another; the last one empties the queue."""
        settings = KEYS | self._settings | self._queue.environment | {"BYOC_PLANE_NAME": name}
        log = self._directory / f"{name}.log"
        while self._starts < self._kills:
            self._starts += 1
            child = await start_forked(log, settings)
            try:
                used = _cpu_seconds(child.pid)
                await asyncio.sleep(chance.uniform(0, RUN_SECONDS))
                self.cpu_seconds += _cpu_seconds(child.pid) - used
            finally:
                await child.kill()
            self.killed += 1
        child = await start_forked(log, settings)
        try:
            used = _cpu_seconds(child.pid)
            await self._fed.wait()
            while await self._queue.waiting():  # noqa: ASYNC110  other processes empty it
                await asyncio.sleep(0.05)
            self.cpu_seconds += _cpu_seconds(child.pid) - used
        finally:
            await child.kill()


def _cpu_seconds(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


async def simulate(
    directory: Path, messages: list[Fed], *, kills: int, seed: int, real: bool, consumers: int = 2
) -> dict[str, float]:
    """Send the messages through killed consumers; return the figures."""
    argv = [sys.executable, "-m", "lab.control_plane.chdb_http", str(directory / "chdb")]
    log = directory / "chdb.log"
    async with started(argv, log, plane_environment()) as child:
        url = (await written(log, "http://", child, 60)).strip()
        async with opened_queue(directory, real=real) as queue, aiohttp.ClientSession() as session:
            store = HttpStore(url, session)
            await create_tables(store)
            run = Run(directory, queue, url, kills)
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                group.create_task(run.feed(messages))
                for number in range(consumers):
                    chance = random.Random(f"{seed}/consumer-{number}")
                    group.create_task(run.consume(f"c-{number}", chance))
            wall = time.monotonic() - began
            found = await fetch_rows(store, "SELECT source, id FROM byoc_state FINAL")
            (rejected,) = await fetch_rows(store, "SELECT count() AS n FROM byoc_rejected")
    rows = Counter((row["source"], row["id"]) for row in found)
    return {
        "messages": run.sent.total(),
        "rows": rows.total(),
        "missing": (run.sent - rows).total(),
        "unexpected": (rows - run.sent).total(),  # of them: rows that are there twice
        "rejected": rejected["n"],
        "kills": run.killed,
        "wall_seconds": round(wall, 1),
        "messages_per_core_second": round(run.sent.total() / run.cpu_seconds),
    }


def count(messages: Iterator[Fed]) -> dict[str, float]:
    """Return the figures of the messages alone, without keeping them."""
    size = number = most = 0
    second, in_second = 0, 0
    for one in messages:
        number, size = number + 1, size + len(one.body.encode())
        if one.at_ms // 1000 != second:
            second, in_second = one.at_ms // 1000, 0
        in_second += 1
        most = max(most, in_second)
    return {"messages": number, "bytes": size, "most_in_one_second": most}


def main() -> int:
    """Print the figures as JSON; return 1 if a message is missing or is there twice."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.control_plane.simulation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--replicas", type=int, default=10_000)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--consumers", type=int, default=2, help="at a time")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--localstack", action="store_true", help="a real queue; use few replicas")
    parser.add_argument("--count", action="store_true", help="make the messages only")
    options = parser.parse_args()
    if options.count:
        figures = count(fleet_messages(options.replicas, options.seed, options.hours))
        sys.stdout.write(json.dumps(figures | {"measured": measured()}) + "\n")
        return 0
    messages = list(fleet_messages(options.replicas, options.seed, options.hours))
    with tempfile.TemporaryDirectory(prefix="byoc-fleet-") as directory:
        figures = asyncio.run(
            simulate(
                Path(directory),
                messages,
                kills=options.kills,
                seed=options.seed,
                real=options.localstack,
                consumers=options.consumers,
            )
        )
    sys.stdout.write(json.dumps(figures | {"measured": measured()}) + "\n")
    return int(any(figures[name] for name in ("missing", "unexpected", "rejected")))


if __name__ == "__main__":
    sys.exit(main())
