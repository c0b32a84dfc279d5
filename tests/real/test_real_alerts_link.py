"""A control plane that is down, or so slow that the forwarder gives up waiting."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.real.alerts_lab import (
    AM_CONFIG,
    HOOK,
    RELAYED,
    Plane,
    control_plane,
    daemon,
    metric,
    raise_alert,
    reached,
)
from lab.real.parts.process import RealProcess, free_port

Started = Callable[[str], RealProcess]
TIMEOUT_SECONDS = 1.0  # of the forwarder; 30 is the default
DRIP_SECONDS = 0.1
CHUNK = 65536


@dataclass
class Link:
    """The network between forwarder and control plane: up, down, late or slow."""

    plane_port: int
    port: int = field(default_factory=free_port)
    carry: Callable[..., Awaitable[None]] | None = None  # None = nothing listens
    server: asyncio.Server | None = None
    open_writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def become(self, carry: Callable[..., Awaitable[None]] | None) -> None:
        """Cut open connections; treat every new connection this way."""
        self.carry = carry
        if self.server:
            self.server.close()
        for writer in self.open_writers:
            writer.close()
        self.server = carry and await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.carry is not None
        self.open_writers.add(writer)
        try:
            await self.carry(reader, writer, self.plane_port)
        except ConnectionError:
            pass  # the forwarder, or a change of the link, ended it
        finally:
            self.open_writers.discard(writer)
            writer.close()


async def whole(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, plane_port: int
) -> None:
    """Carry both ways."""
    answers, requests = await asyncio.open_connection("127.0.0.1", plane_port)
    await asyncio.gather(pipe(reader, requests), pipe(answers, writer))


async def late(reader: asyncio.StreamReader, _: asyncio.StreamWriter, plane_port: int) -> None:
    """Carry the request; the response comes when nobody waits for it any more."""
    _answers, requests = await asyncio.open_connection("127.0.0.1", plane_port)
    await pipe(reader, requests)


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
    """Answer 200, one character after the other, and never come to the end of the headers."""
    await reader.read(CHUNK)
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not (writer.is_closing() or reader.at_eof()):
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(DRIP_SECONDS)


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    async with control_plane() as plane:
        yield plane


@asynccontextmanager
async def linked(plane: Plane) -> AsyncIterator[Link]:
    link = Link(int(plane.url.split(":")[2].split("/")[0]))
    await link.become(whole)
    try:
        yield link
    finally:
        await link.become(None)


@pytest.mark.parametrize(
    ("trouble", "reason", "arrives"),
    [
        (None, "connection", False),
        (late, "timeout", True),
        (dripping, "timeout", False),
    ],
    ids=["down", "answers too late", "drips its response"],
)
async def test_each_alert_is_reported_once_and_in_order_when_the_control_plane_is_back(
    plane: Plane,
    alertmanager: Started,
    tmp_path: Path,
    *,
    trouble: Callable[..., Awaitable[None]] | None,
    reason: str,
    arrives: bool,
) -> None:
    timeout = {"BYOC_ALERTS_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS)}
    async with linked(plane) as link:
        url = f"http://127.0.0.1:{link.port}/v1/events"
        async with daemon(url, tmp_path, **timeout) as forwarder:
            await reached(
                forwarder, "byoc_messages_sent_total", 1
            )  # the heartbeat, and its response is back
            await link.become(trouble)
            first = alertmanager(AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK))
            for number, (name, ended) in enumerate([("A", False), ("B", False), ("A", True)]):
                await raise_alert(first, name, ended=ended)
                await reached(forwarder, RELAYED, number + 1)
            failed = f'byoc_send_attempts_total{{daemon="alert-forwarder",result="{reason}"}}'
            await reached(forwarder, failed, 2)
            assert bool(plane.delivered()) == arrives
            await link.become(whole)
            await plane.until(lambda: len(plane.delivered()) == 3)
            await reached(forwarder, "byoc_messages_sent_total", 4)  # the three, and a heartbeat
            assert metric(forwarder, "byoc_dead_letters_total") == 0
    assert plane.delivered() == [("A", "firing"), ("B", "firing"), ("A", "resolved")]
    assert bool(plane.receiver.duplicates) == arrives
