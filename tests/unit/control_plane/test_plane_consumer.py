"""The consumer: insert before delete, poison set aside, nothing lost by a failing store."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from byoc_agents.app.settings import load
from byoc_agents.errors import ConfigError
from byoc_control_plane.consumer import Consumer
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import Progress
from byoc_control_plane.settings import ConsumerSettings, parse_senders
from byoc_control_plane.store import RowsRefusedError, StoreError
from lab.control_plane.memory_store import MemoryStore
from lab.control_plane.messages import Replica, message_id
from lab.fakes.core import START_MS, FakeClock
from lab.fakes.fifo import FakeFifo


class Harness:
    """A queue, a consumer and a store in memory, with one clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.seconds = 0.0
        self.queue = FakeFifo(wall_ms=self.now_ms, monotonic=self.monotonic)
        self.store = MemoryStore()
        self.metrics = PlaneMetrics()
        self.inserter = Inserter(self.store, self.metrics)
        self.progress = Progress(self.store, self.clock, "state", "a", redelivery_seconds=30)
        self.senders = {("org-1", "AROAONE")}
        self.consumer: Consumer

    def now_ms(self) -> int:
        return self.clock.wall_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return a time that advances with every call, so that a long poll ends."""
        self.seconds += 0.5
        return self.seconds

    def send(self, replica: Replica, number: int = 1) -> list[str]:
        ids = []
        for _ in range(number):
            body = replica.message(self.now_ms())
            ids.append(message_id(body))
            self.queue.add(replica.group, ids[-1], body.decode())
        return ids

    def count(self, outcome: str) -> float | None:
        labels = {"stream": "state", "outcome": outcome}
        return self.metrics.registry.get_sample_value("byoc_plane_messages_total", labels)


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    made = Harness()
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    async with made.queue:
        place: dict[str, Any] = {"endpoint_url": made.queue.http.url, "region_name": "us-east-1"}
        async with get_session().create_client("sqs", **place, **keys) as client:
            made.consumer = Consumer(
                client,
                made.queue.queue_url,
                made.inserter,
                made.progress,
                made.metrics,
                made.clock,
                senders=lambda: made.senders,
                loops=1,
            )
            task = asyncio.ensure_future(made.inserter.run())
            yield made
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_messages_are_stored_and_then_deleted(harness: Harness) -> None:
    ids = harness.send(Replica(replica="r-0"), 12) + harness.send(Replica(replica="r-1"), 3)
    while harness.queue.waiting:
        await harness.consumer.poll()
    assert sorted(harness.store.ids("byoc_state")) == sorted(ids)
    assert harness.count("stored") == 15
    assert harness.store.rows["byoc_state"][0]["arrived_at"] == "2026-11-23T12:00:00.000Z"


async def test_a_store_that_is_away_leaves_the_messages_in_the_queue(harness: Harness) -> None:
    ids = harness.send(Replica())
    harness.store.error = StoreError("away")
    with pytest.raises(StoreError):
        await harness.consumer.poll()
    assert harness.queue.waiting == 1
    harness.store.error = None
    harness.seconds += 30  # visible again
    assert await harness.consumer.poll() == 1
    assert harness.store.ids("byoc_state") == ids
    assert harness.queue.waiting == 0


@pytest.mark.parametrize(
    "body",
    ["no event at all", "[" * 100_000, '{"id":' * 100_000, "9" * 10_000, "null", "\ufeff{}"],
    ids=["text", "nested arrays", "nested objects", "a large number", "null", "a byte order mark"],
)
async def test_poison_is_set_aside_with_its_text_and_the_group_continues(
    harness: Harness, body: str
) -> None:
    replica = Replica()
    harness.queue.add(replica.group, "bad", body)
    ids = harness.send(replica)
    assert await harness.consumer.poll() == 2
    assert harness.store.ids("byoc_state") == ids
    (row,) = harness.store.rows["byoc_rejected"]
    assert (row["body"], row["stream"], row["id"]) == (body, "state", "m-0")
    assert (harness.count("rejected"), harness.queue.waiting) == (1, 0)


async def test_a_message_in_the_name_of_another_organization_is_set_aside(harness: Harness) -> None:
    harness.senders |= {("org-2", "AROATWO")}  # a customer that was added meanwhile
    own = harness.send(Replica(replica="r-0"))
    harness.send(Replica(replica="r-1", organization="org-2"))
    harness.queue.sender_id = "AROATWO:another"
    own += harness.send(Replica(replica="r-2", organization="org-2"))
    harness.send(Replica(replica="r-3"))
    nobody = {"specversion": "1.0", "id": "1", "source": "s", "type": "of.tomorrow"}
    nobody |= {"time": "2026-11-23T12:00:00Z"}  # without an organization
    harness.queue.add("service-1/r-4", "1", json.dumps(nobody))
    assert await harness.consumer.poll() == 5
    assert sorted(harness.store.ids("byoc_state")) == sorted(own)
    assert (harness.count("rejected"), harness.queue.waiting) == (3, 0)
    reasons = [row["reason"] for row in harness.store.rows["byoc_rejected"]]
    assert [reason.split(",")[0] for reason in reasons] == [
        *("sent by AROAONE", "sent by AROATWO", "sent by AROATWO")
    ]


def test_the_senders_are_read_from_the_settings() -> None:
    queue = {"BYOC_PLANE_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/1/q.fifo"}
    text = "org-1:AROAONE\norg-1:AROATWO"
    (settings,) = load([ConsumerSettings], queue | {"BYOC_PLANE_SENDERS": text}, {})
    assert parse_senders(settings.senders) == {("org-1", "AROAONE"), ("org-1", "AROATWO")}
    with pytest.raises(ConfigError, match="BYOC_PLANE_SENDERS: invalid value"):
        load([ConsumerSettings], queue | {"BYOC_PLANE_SENDERS": "AROAONE"}, {})


async def test_a_row_that_clickhouse_refuses_is_set_aside_alone(harness: Harness) -> None:
    def refuse(table: str, row: dict[str, Any]) -> StoreError | None:
        bad = table == "byoc_state" and row["replica"] == "r-1"
        return RowsRefusedError("ClickHouse error 41") if bad else None

    harness.store.refuse = refuse
    for number in range(3):
        harness.send(Replica(replica=f"r-{number}"))
    await harness.consumer.poll()
    assert [row["replica"] for row in harness.store.rows["byoc_state"]] == ["r-0", "r-2"]
    (row,) = harness.store.rows["byoc_rejected"]
    assert "ClickHouse error 41" in row["reason"]
    assert harness.queue.waiting == 0


async def test_a_message_that_comes_again_is_the_same_row(harness: Harness) -> None:
    harness.send(Replica())
    harness.store.error = StoreError("away")
    with pytest.raises(StoreError):
        await harness.consumer.poll()
    harness.store.error = None
    first = harness.now_ms()
    await harness.clock.advance(25)
    harness.seconds += 30
    await harness.consumer.poll()
    (row,) = harness.store.rows["byoc_state"]
    assert first == START_MS
    assert row["arrived_at"] == "2026-11-23T12:00:00.000Z"  # of the queue, not of the reception


@pytest.mark.parametrize(
    ("age", "organizations", "steady", "delayed"),
    [
        (5, ("org-1", "org-2"), "11:00:00", []),
        (11, ("org-1", "org-2"), "12:00:11", []),
        (11, ("org-1", "org-1"), "11:00:00", ["org-1"]),  # the others are judged on
        (11, ("org-1", "org-3"), "11:00:00", ["org-1"]),  # org-3 has another sender: set aside
    ],
)
async def test_old_messages_mean_a_backlog(
    harness: Harness, age: int, organizations: tuple[str, ...], steady: str, delayed: list[str]
) -> None:
    harness.senders |= {("org-2", "AROAONE")}
    harness.progress.observe(START_MS - 3_600_000)
    for seconds in range(-3595, 1, 5):
        harness.progress.observe(START_MS + seconds * 1000)
    for number, name in enumerate(organizations):
        harness.send(Replica(replica=f"r-{number}", organization=name))
    harness.progress.observe(START_MS + 4000)
    await harness.clock.advance(age)
    await harness.consumer.poll()
    await harness.progress.write()
    rows = harness.store.rows["byoc_progress"]
    assert rows[0]["steady_since"][11:19] == steady
    assert [row["organization_id"] for row in rows] == ["", *delayed]


async def test_inserts_longer_than_the_visibility_are_an_error_and_then_get_more_time(
    harness: Harness,
) -> None:
    def take_long(_table: str, _row: dict[str, Any]) -> None:
        harness.seconds += 40  # the visibility is 30 seconds at first

    harness.store.refuse = take_long
    harness.progress.observe(START_MS - 5000)
    ids = harness.send(Replica())
    assert await harness.consumer.poll() == 1
    assert harness.queue.waiting == 1  # FIFO queues refuse a handle that has expired
    errors = harness.metrics.registry.get_sample_value("byoc_plane_queue_errors_total")
    assert errors == 1
    await harness.progress.write()
    assert await harness.consumer.poll() == 1
    assert harness.queue.waiting == 0
    assert set(harness.store.ids("byoc_state")) == set(ids)
    await harness.clock.advance(1)
    harness.progress.observe(harness.now_ms())
    await harness.progress.write()
    first, second = harness.store.rows["byoc_progress"]
    # Not judged by times before the failure, nor before a message could have come again.
    assert [row["steady_since"][11:19] for row in (first, second)] == ["12:00:00", "12:00:00"]
    assert second["redelivery_seconds"] == 60


async def test_the_visibility_is_extended_to_two_minutes_at_most(harness: Harness) -> None:
    def take_long(_table: str, _row: dict[str, Any]) -> None:
        harness.seconds += 1000

    harness.store.refuse = take_long
    harness.send(Replica())
    for _ in range(4):
        assert await harness.consumer.poll() == 1
    await harness.progress.write()
    (row,) = harness.store.rows["byoc_progress"]
    assert (row["redelivery_seconds"], harness.queue.waiting) == (120, 1)


async def test_a_queue_that_fails_is_not_progress(harness: Harness) -> None:
    harness.queue.out_of_service = True
    running = asyncio.ensure_future(harness.consumer.run())
    await harness.clock.parked()  # the pause after the failure
    await harness.progress.write()
    assert "byoc_progress" not in harness.store.rows
    failures = harness.metrics.registry.get_sample_value("byoc_plane_queue_errors_total")
    assert failures == 1
    harness.queue.out_of_service = False
    ids = harness.send(Replica())
    await harness.clock.advance(0.5)
    while harness.queue.waiting:  # noqa: ASYNC110  the queue is on a socket
        await asyncio.sleep(0.01)
    running.cancel()
    with suppress(asyncio.CancelledError, ClientError):
        await running
    assert harness.store.ids("byoc_state") == ids
