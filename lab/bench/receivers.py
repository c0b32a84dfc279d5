"""Serve S3, SQS, ClickHouse and a control plane in a thread of the bench.

They use as little CPU as possible, and are the same for the daemons and for the peers.
"""

import asyncio
import json
import re
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from byoc_agents.billing.sources.clickhouse import CPU
from byoc_agents.state.probes import NO_LAG
from lab.fakes.certificate import certificate
from lab.fakes.http import Reply, Request
from lab.fakes.s3 import FakeS3
from lab.fakes.sqs import FakeSqs
from lab.fakes.state import HEALTHY, FakeClickHouse
from lab.real.parts.process import PartError

NAMES = re.compile(rb'"alertname": ?"(A\d+)"')
RECORD_NAMES = re.compile(rb"(A\d+)\n\talertname")  # the Collector writes the value first
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n%s\r\n"  # with the proof of the contract
PROOF = re.compile(rb"\r\n([Ww]ebhook-[Ii]d: [^\r\n]+\r\n)")
LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (\d+)")


@dataclass
class Plane:
    """A control plane that accepts every request, or none, and counts what it accepts."""

    url: str = ""
    https_url: str = ""
    ca_file: str = ""  # of the certificate at `https_url`
    down: bool = False  # answer 503
    refused: int = 0  # requests
    posts: int = 0
    copies: int = 0  # alert names in all posts; a name counts once per post
    names: set[bytes] = field(default_factory=set)  # distinct
    on_body: Callable[[bytes], None] = lambda _body: None

    def take(self, body: bytes) -> None:
        """Count one delivery."""
        self.posts += 1
        found = find_names(body)
        self.copies += len(found)
        self.names |= found
        self.on_body(body)


def find_names(body: bytes) -> set[bytes]:
    """Return the names of the alerts in a request: JSON of any kind, or OTLP as protobuf."""
    return set((NAMES if body[:1] in b"{[" else RECORD_NAMES).findall(body))


class Connection(asyncio.Protocol):
    """A connection of HTTP/1.1 with Content-Length, the only form that the senders here use."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the responses."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each complete request."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._data, 0, end)
            size = end + 4 + (int(found[1]) if found else 0)
            if len(self._data) < size:
                return
            given = PROOF.search(self._data, 0, end + 2)
            proof = bytes(given[1]) if given else b""  # before the data changes
            body = bytes(self._data[end + 4 : size])
            del self._data[:size]
            if self._plane.down:
                self._plane.refused += 1
                self._transport.write(REFUSED)
                continue
            self._plane.take(body)
            self._transport.write(OK % proof)


class MeteredClickHouse(FakeClickHouse):
    """A `FakeClickHouse` with the counters that a scraper reads: half a core is busy."""

    def apply(self, request: Request) -> Reply:
        """Answer the query for the counters, and all others as before."""
        if CPU.encode() not in request.body:
            return super().apply(request)
        seconds = time.monotonic()
        rows = [
            (CPU, f"{seconds * 5e5:.0f}"),
            ("MemoryResident", "1500000000"),
            ("CGroupMemoryTotal", "8589934592"),
            ("CGroupMaxCPU", "1.5"),
            ("uptime", f"{seconds:.0f}"),
            ("server_uuid", "7b3a1f5e-0000-4000-8000-000000000000"),
            ("host_name", "clickhouse-0"),
        ]
        meta = [{"name": name, "type": "String"} for name in ("name", "value")]
        return Reply(200, {}, json.dumps({"meta": meta, "data": rows}).encode())


@dataclass
class Receivers:
    """All of them, listening."""

    s3: FakeS3
    sqs: FakeSqs
    clickhouse: FakeClickHouse
    plane: Plane


@contextmanager
def receivers() -> Iterator[Receivers]:
    """Serve them in a thread with a loop of its own."""
    started, stop = threading.Event(), asyncio.Event()
    made: list[Receivers] = []

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            made.append(await _opened(stack))
            started.set()
            await stop.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    if not started.wait(30):
        raise PartError("the receivers do not listen")
    try:
        yield made[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


async def _opened(stack: AsyncExitStack) -> Receivers:
    plane = Plane()
    s3 = await stack.enter_async_context(FakeS3())
    sqs = await stack.enter_async_context(FakeSqs())
    clickhouse = await stack.enter_async_context(MeteredClickHouse())
    clickhouse.server.rows = HEALTHY | {NO_LAG[0]: "0"}  # no table is behind
    place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    cert, key = certificate(place, "plane")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    plane.ca_file = str(cert)
    plane.url = f"http://127.0.0.1:{await _served(stack, plane)}/"
    plane.https_url = f"https://127.0.0.1:{await _served(stack, plane, tls)}/"
    return Receivers(s3, sqs, clickhouse, plane)


async def _served(stack: AsyncExitStack, plane: Plane, tls: ssl.SSLContext | None = None) -> int:
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(plane), "127.0.0.1", 0, ssl=tls
    )
    await stack.enter_async_context(server)
    port: int = server.sockets[0].getsockname()[1]
    return port
