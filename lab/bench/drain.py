"""Drain a backlog: a million usage records to S3, and alerts in batches or one at a time."""

import asyncio
import time
from pathlib import Path

from byoc_agents.app.clock import SystemClock
from byoc_agents.app.cloudevents import encode
from byoc_agents.billing.objects import seal
from byoc_agents.durable.spool import Spool
from byoc_agents.message import Message
from lab.bench.figures import Row, ratios, row
from lab.bench.lab import FORWARDER, SCRAPER, Lab, cpu_ns, until
from lab.bench.spool import GIB
from lab.fakes.billing import ReplicaHistory

RECORDS, OF_AN_OBJECT = 1_000_000, 1000
EVENTS = 4000


def measure(lab: Lab) -> list[Row]:
    """Fill spools while no daemon runs, then start it and wait until they are empty."""
    records = RECORDS // 10 if lab.quick else RECORDS
    rate, cpu = _records(lab, records)
    rounds = lab.runs(3)
    batched = [_events(lab, 100) for _ in range(rounds)]
    alone = [_events(lab, 1) for _ in range(rounds)]
    return [
        row("drain", f"drain of {records:,} usage records to S3", [rate], "records/s"),
        row("drain", f"drain of {records:,} usage records: CPU per record", [cpu], "us"),
        row("drain", "alerts drained, 100 a delivery / 1 a delivery", ratios(batched, alone), "x",
            ">= 10"),
        row("drain", "alerts drained, 100 a delivery", batched, "events/s"),
        row("drain", "alerts drained, 1 a delivery", alone, "events/s"),
    ]  # fmt: skip


def _records(lab: Lab, records: int) -> tuple[float, float]:
    """Return records per second and microseconds of CPU per record, with the start."""
    state, s3 = lab.place("state"), lab.receivers.s3
    objects = records // OF_AN_OBJECT
    asyncio.run(_put(state / SCRAPER, _sealed(objects)))
    before, began = len(s3.puts), time.monotonic()
    with lab.daemons(SCRAPER, BYOC_STATE_DIR=str(state)) as running:
        until(lambda: len(s3.puts) >= before + objects, 600)
        seconds, used = time.monotonic() - began, cpu_ns(running.process.pid)
    s3.http.requests.clear()
    return records / seconds, used / 1e3 / records


def _sealed(objects: int) -> list[Message]:
    """Return sealed objects with the records of one replica, each with its own key."""
    history = ReplicaHistory()
    return [
        seal([encode(history.measured()) for _ in range(OF_AN_OBJECT)], created_at_ms=1)
        for _ in range(objects)
    ]


def _events(lab: Lab, batch: int) -> float:
    """Return events per second that leave a forwarder's spool, without its start."""
    state, plane = lab.place("state"), lab.receivers.plane
    events = EVENTS // (1 if batch > 1 else 4)
    body = b'{"alertname": "A%d", "x": "' + b"y" * 900 + b'"}'
    messages = [
        Message(id=f"e-{n}", type="byoc.alert.v1", body=body % n, created_at_ms=1 + n)
        for n in range(events)
    ]
    asyncio.run(_put(state / FORWARDER, messages))
    plane.names.clear()
    with lab.daemons(FORWARDER, BYOC_STATE_DIR=str(state), BYOC_ALERTS_MAX_BATCH=str(batch)):
        until(lambda: plane.names)
        first, began = len(plane.names), time.monotonic()
        until(lambda: len(plane.names) >= events)
        return (events - first) / (time.monotonic() - began)


async def _put(directory: Path, messages: list[Message]) -> None:
    async with Spool(directory, max_bytes=GIB, clock=SystemClock()) as spool:
        for first in range(0, len(messages), 100):
            await spool.put(*messages[first : first + 100])
