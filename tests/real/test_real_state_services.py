"""The state exporter with a real old ClickHouse on one side and a real FIFO queue on the other."""

import asyncio
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from aiobotocore.session import AioSession

from byoc_agents.app.clock import SystemClock
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.run import configure, daemon_spec
from byoc_agents.app.runtime import Runtime
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.aws import aws_config, aws_session
from byoc_agents.egress.destinations import sqs_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason
from byoc_agents.message import Message
from byoc_agents.sinks.sqs import SqsSink
from byoc_agents.state.message import SCHEMAS
from lab.fakes.core import NullLedger
from lab.real.parts import clickhouse
from lab.real.parts.localstack import REGION
from lab.real.parts.process import RealProcess

KEYS = ("test", "test")
FIFO = {"FifoQueue": "true"}
PATIENCE_SECONDS = 60.0


@dataclass
class Queue:
    """One FIFO queue of LocalStack and what it has given so far."""

    url: str
    client: Any
    session: AioSession
    gate: Gate

    def __post_init__(self) -> None:
        self.got: list[dict[str, Any]] = []  # bodies, in the order of their arrival

    async def receive(self, seconds: int = 1) -> None:
        """Take every available item, and wait for the first if there is none."""
        response = await self.client.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=seconds
        )
        for item in response.get("Messages", []):
            self.got.append(json.loads(item["Body"]))
            await self.client.delete_message(QueueUrl=self.url, ReceiptHandle=item["ReceiptHandle"])

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not met():
                await self.receive()

    async def create(self, **attributes: str) -> None:
        name = self.url.rsplit("/", 1)[1]
        made = await self.client.create_queue(QueueName=name, Attributes=FIFO | attributes)
        self.url = made["QueueUrl"]

    def sink(self) -> SqsSink:
        return SqsSink(self.session, self.gate, self.url, region=REGION)


@pytest.fixture
async def queue(localstack: RealProcess) -> AsyncIterator[Queue]:
    gate = Gate([sqs_destination(localstack.url)])
    session = aws_session(gate, REGION)
    session.set_credentials(*KEYS)
    made = session.create_client("sqs", endpoint_url=localstack.url, config=aws_config(gate))
    async with made as client:
        queue = Queue(f"x/{uuid.uuid4().hex}.fifo", client, session, gate)
        await queue.create()
        yield queue


@asynccontextmanager
async def shipping(queue: Queue, place: Path) -> AsyncIterator[tuple[Spool, Shipper]]:
    clock = SystemClock()
    async with Spool(place, max_bytes=1 << 20, clock=clock) as spool, queue.sink() as sink:
        yield (
            spool,
            Shipper(
                "state-exporter",
                spool=spool,
                sink=sink,
                ledger=NullLedger(),
                clock=clock,
                metrics=Metrics(),
            ),
        )


def messages(count: int, groups: int = 1) -> list[Message]:
    return [
        Message(f"m-{n}", "t", json.dumps({"n": n}).encode(), 0, group=f"g-{n % groups}")
        for n in range(count)
    ]


async def test_order_is_kept_and_a_repeat_is_no_second_message(queue: Queue) -> None:
    batch = messages(10, groups=2)
    async with queue.sink() as sink:
        for _ in range(2):
            outcomes = await sink.send(batch)
            assert {outcome.reason for outcome in outcomes} == {Reason.OK}
    await queue.until(lambda: len(queue.got) >= 10)
    await queue.receive(seconds=2)
    numbers = [body["n"] for body in queue.got]
    assert sorted(numbers) == list(range(10)), "none missing, none twice"
    for group in range(2):
        mine = [n for n in numbers if n % 2 == group]
        assert mine == sorted(mine)


async def test_an_entry_that_is_refused_alone_does_not_touch_its_neighbors(
    queue: Queue, tmp_path: Path
) -> None:
    await queue.client.set_queue_attributes(
        QueueUrl=queue.url, Attributes={"MaximumMessageSize": "1024"}
    )
    big = Message("big", "t", json.dumps({"n": "x" * 2000}).encode(), 0, group="big")
    small, later = messages(2, groups=2)
    async with shipping(queue, tmp_path) as (spool, shipper):
        await spool.put(small, big, later)
        while spool.totals.events:
            await shipper.attempt()
        (dead,) = await spool.dead_letters()
    assert (dead.message.id, dead.reason) == ("big", Reason.TOO_LARGE)
    await queue.until(lambda: len(queue.got) >= 2)
    await queue.receive(seconds=1)
    assert sorted(body["n"] for body in queue.got) == [0, 1]


async def test_a_queue_that_is_lost_and_comes_back_gets_everything_in_order(
    queue: Queue, tmp_path: Path
) -> None:
    async with shipping(queue, tmp_path) as (spool, shipper):
        await spool.put(*messages(3))
        await shipper.attempt()
        await queue.until(lambda: len(queue.got) == 3)
        await queue.client.delete_queue(QueueUrl=queue.url)
        await spool.put(*messages(6)[3:])
        trouble = await shipper.attempt()
        assert trouble is not None
        assert trouble.reason is Reason.NOT_FOUND
        assert spool.totals.events == 3
        await queue.create()
        while spool.totals.events:  # after trouble the first batches hold one message
            assert await shipper.attempt() is None
    await queue.until(lambda: len(queue.got) == 6)
    assert [body["n"] for body in queue.got] == list(range(6))


@asynccontextmanager
async def exporting(settings: dict[str, str]) -> AsyncIterator[None]:
    name = "state-exporter"
    made = configure([name], settings)
    runtime = Runtime(
        core=made.core,
        environ=settings,
        gate=Gate(made.destinations),
        clock=SystemClock(),
        metrics=Metrics(),
    )
    async with AsyncExitStack() as stack:
        opened = daemon_spec(name).open_daemon(runtime, made.clickhouse, made.daemons[name])
        daemon = await stack.enter_async_context(opened)
        stop = asyncio.Event()
        task = asyncio.create_task(daemon.run(stop, 10.0))
        yield
        stop.set()
        await task


def environ(place: Path, server: RealProcess, queue: Queue) -> dict[str, str]:
    return {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REPLICA": "r-0",
        "BYOC_REGION": REGION,
        "BYOC_STATE_DIR": str(place / "state"),
        "BYOC_STATE_QUEUE_URL": queue.url,
        "BYOC_STATE_POLL_SECONDS": "0.5",
        "BYOC_STATE_HEARTBEAT_SECONDS": "5",
        "BYOC_STATE_STARTING_SECONDS": "3",
        "BYOC_CLICKHOUSE_URL": server.url,
        "BYOC_CLICKHOUSE_USER": clickhouse.USER,
        "BYOC_CLICKHOUSE_PASSWORD": clickhouse.PASSWORD,
        # in its first minute an old server cannot prove that it has no tables to hide
        "BYOC_STATE_LIMITS": "OBSERVABILITY_PARTIAL=1000/0",
    }


async def test_a_server_that_is_killed_started_frozen_and_stopped_is_followed(
    old_clickhouse: RealProcess, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), KEYS, strict=True):
        monkeypatch.setenv(variable, value)

    def changes() -> list[dict[str, Any]]:
        messages = [body["data"] for body in queue.got]
        return [data for data in messages if data["kind"] == "transition"]

    async def says(state: str) -> None:
        await queue.until(lambda: [data["state"] for data in changes()][-1:] == [state])

    async with exporting(environ(tmp_path, old_clickhouse, queue)):
        await says("running")
        old_clickhouse.kill()
        await says("failed")
        await asyncio.to_thread(old_clickhouse.start)
        await says("running")
        os.kill(old_clickhouse.pid, signal.SIGSTOP)
        await says("failed")
        os.kill(old_clickhouse.pid, signal.SIGCONT)
        await says("running")
        await asyncio.to_thread(old_clickhouse.stop)
        await says("failed")
    await says("stopping")
    states = [data["state"] for data in changes() if data["state"] != "starting"]
    assert states == ["running", "failed", "running", "failed", "running", "failed", "stopping"]
    assert "starting" in [data["state"] for data in changes()]
    details = [r["detail"] for d in changes() for r in d["reasons"] if r["code"] == "PING_FAILED"]
    assert details[:3] == ["refused", "timeout", "refused"]
    assert [d["transition"] for d in changes()] == list(range(1, len(changes()) + 1))
    schema = json.loads((SCHEMAS / "byoc.service.state.v1.json").read_text())
    for body in queue.got:
        jsonschema.Draft202012Validator(schema).validate(body)
