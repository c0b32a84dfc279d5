"""Measure the spool alone: durable puts per second, their CPU, and opening a large file."""

import asyncio
import time
from pathlib import Path

from byoc_agents.app.clock import SystemClock
from byoc_agents.durable.spool import Spool
from byoc_agents.message import Message
from lab.bench.figures import Row, row
from lab.bench.lab import Lab

BODY = b"x" * 1024
PUTS = {1: 500, 64: 6400}  # by producers
LARGE_BODY = b"y" * 65536
GIB = 1024**3


def measure(lab: Lab) -> list[Row]:
    """Put with 1 and 64 producers; fill a file and open it."""
    rows = []
    for producers, puts in PUTS.items():
        seconds, cpu = [], []
        for _ in range(lab.runs(5, 2)):
            wall, used = asyncio.run(_put(lab.place("spool"), producers, puts))
            seconds.append(puts / wall)
            cpu.append(used * 1e6 / puts)
        title = f"spool, {producers} producer{'s' * (producers > 1)}, 1 KiB"
        rows.append(row("spool", f"{title}: durable messages per second", seconds, "messages/s"))
        rows.append(row("spool", f"{title}: CPU per message", cpu, "us"))
    size = GIB // 8 if lab.quick else GIB
    opened = asyncio.run(_opened(filled(lab.place("large"), size), lab.runs(3)))
    return [*rows, row("spool", f"opening a spool of {size / GIB:g} GiB", opened, "s")]


def message(number: int, body: bytes = BODY) -> Message:
    """Return a message with a unique id."""
    return Message(id=f"m-{number}", type="bench", body=body, created_at_ms=1 + number)


async def _put(directory: Path, producers: int, puts: int) -> tuple[float, float]:
    """Return wall seconds and the CPU seconds of all threads."""
    numbers = iter(range(puts))
    async with Spool(directory, max_bytes=GIB, clock=SystemClock()) as spool:

        async def produce() -> None:
            for number in numbers:
                await spool.put(message(number))

        began, before = time.perf_counter(), time.process_time()
        await asyncio.gather(*(produce() for _ in range(producers)))
        return time.perf_counter() - began, time.process_time() - before


def filled(directory: Path, size: int) -> Path:
    """Return a directory with a spool of that many bytes."""

    async def fill() -> None:
        count = size // len(LARGE_BODY)
        async with Spool(directory, max_bytes=4 * GIB, clock=SystemClock()) as spool:
            for first in range(0, count, 64):
                await spool.put(*(message(first + n, LARGE_BODY) for n in range(64)))

    asyncio.run(fill())
    return directory


async def _opened(directory: Path, times: int) -> list[float]:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        async with Spool(directory, max_bytes=4 * GIB, clock=SystemClock()):
            found.append(time.perf_counter() - began)
    return found
