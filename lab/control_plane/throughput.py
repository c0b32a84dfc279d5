"""Measure one core of the control plane: `python -m lab.control_plane.throughput`.

Two figures: the consumer behind the SQS fake, ten messages per request as SQS allows, and the
receiver with batches of 100 events. The store is chdb in a process of its own, and its CPU does not
count; the CPU of the measured process does, from its start to the last acknowledged message.
"""

import argparse
import asyncio
import base64
import json
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import psutil

from byoc_agents.app.clock import SystemClock
from byoc_agents.app.cloudevents import encode
from byoc_agents.errors import Reason
from byoc_agents.message import Message
from byoc_agents.sinks.https import HttpsSink
from byoc_control_plane.store import HttpStore, fetch_rows
from lab.bench.machine import measured
from lab.control_plane.messages import Replica, message_id, watch_alert
from lab.control_plane.processes import KEYS, PlaneProcess, plane_environment, running_plane
from lab.demo.process import started, written
from lab.fakes.fifo import FakeFifo

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
LANES = 8  # forwarders that send at the same time
BATCH = 100


def _cpu_seconds(process: PlaneProcess) -> float:
    used = psutil.Process(process.child.pid).cpu_times()
    return float(used.user + used.system)


def _figures(name: str, messages: int, cpu: float, wall: float) -> dict[str, float | str]:
    return {
        "part": name,
        "messages": messages,
        "wall_seconds": round(wall, 2),
        "messages_per_wall_second": round(messages / wall),
        "cpu_us_per_message": round(cpu / messages * 1e6),
        "messages_per_core_second": round(messages / cpu),
    }


async def measure_consumer(
    directory: Path, store_url: str, messages: int
) -> dict[str, float | str]:
    """Fill a queue of 1,000 replicas, start a consumer, and wait until the queue is empty."""
    async with FakeFifo() as queue:
        replicas = [Replica(replica=f"r-{n}") for n in range(1000)]
        for number in range(messages):
            replica = replicas[number % len(replicas)]
            body = replica.message(time.time_ns() // 1_000_000)
            queue.add(replica.group, message_id(body), body.decode())
        settings = KEYS | {
            "BYOC_PLANE_QUEUE_URL": queue.queue_url,
            "BYOC_PLANE_STORE_URL": store_url,
            "BYOC_PLANE_LOOPS": "8",
            "BYOC_PLANE_VISIBILITY_SECONDS": "600",
        }
        began = time.monotonic()
        async with running_plane(["consumer"], directory / "consumer.log", settings) as process:
            at_start, left = _cpu_seconds(process), queue.waiting
            began = time.monotonic()
            while queue.waiting:  # noqa: ASYNC110  another process empties it
                await asyncio.sleep(0.02)
            cpu, wall = _cpu_seconds(process) - at_start, time.monotonic() - began
            await process.stop()
    return _figures("consumer", left, cpu, wall)


async def measure_receiver(
    directory: Path, store_url: str, messages: int
) -> dict[str, float | str]:
    """Send batches of alerts from several forwarders, each after the response to the one before."""
    settings = {
        "BYOC_PLANE_STORE_URL": store_url,
        "BYOC_PLANE_TOKEN": "tok",
        "BYOC_PLANE_SIGNING_SECRET": SECRET,
        "BYOC_PLANE_EVENTS_LISTEN": "127.0.0.1:0",
    }
    now_ms = time.time_ns() // 1_000_000
    events = [watch_alert(now_ms, number) for number in range(messages)]
    ready = [Message(one.id, one.type, encode(one), now_ms) for one in events]
    batches = iter([ready[at : at + BATCH] for at in range(0, messages, BATCH)])
    async with (
        running_plane(["receiver"], directory / "receiver.log", settings) as process,
        aiohttp.ClientSession() as session,
    ):
        sink = HttpsSink(
            process.events_url,
            session,
            token=lambda: "tok",
            signing_secret=lambda: SECRET,
            clock=SystemClock(),
        )

        async def send_all() -> None:
            for batch in batches:
                outcomes = await sink.send(batch)
                assert all(outcome.reason is Reason.OK for outcome in outcomes), outcomes

        at_start, began = _cpu_seconds(process), time.monotonic()
        await asyncio.gather(*(send_all() for _ in range(LANES)))
        cpu, wall = _cpu_seconds(process) - at_start, time.monotonic() - began
        await process.stop()
    return _figures("receiver", messages, cpu, wall)


async def measure(directory: Path, messages: int) -> list[dict[str, float | str]]:
    """Measure both parts, and check that every message is one row."""
    argv = [sys.executable, "-m", "lab.control_plane.chdb_http", str(directory / "chdb")]
    async with started(argv, directory / "chdb.log", plane_environment()) as child:
        url = (await written(directory / "chdb.log", "http://", child, 60)).strip()
        found = [
            await measure_consumer(directory, url, messages),
            await measure_receiver(directory, url, messages),
        ]
        async with aiohttp.ClientSession() as session:
            for table in ("byoc_state", "byoc_alerts"):
                query = f"SELECT count() AS n FROM {table} FINAL"
                (row,) = await fetch_rows(HttpStore(url, session), query)
                assert row["n"] == messages, (table, row)
    return found


def main() -> None:
    """Print one line of JSON per part."""
    parser = argparse.ArgumentParser(prog="python -m lab.control_plane.throughput")
    parser.add_argument("--messages", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="byoc-plane-") as directory:
        for line in asyncio.run(measure(Path(directory), options.messages)):
            sys.stdout.write(json.dumps(line | {"measured": measured()}) + "\n")


if __name__ == "__main__":
    main()
