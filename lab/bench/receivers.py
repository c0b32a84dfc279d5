"""Serve S3, SQS, ClickHouse and a control plane in a thread of the bench.

They use as little CPU as possible, and are the same for the daemons and for the peers.
"""

import asyncio
import re
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab.fakes.certificate import certificate
from lab.fakes.s3 import FakeS3
from lab.fakes.sqs import FakeSqs
from lab.fakes.state import HEALTHY, FakeClickHouse
from lab.real.parts.process import PartError

NAMES = re.compile(rb'"alertname": ?"(A\d+)"')
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n%s\r\n"  # with the proof of the contract
PROOF = re.compile(rb"\r\n([Ww]ebhook-[Ii]d: [^\r\n]+\r\n)")
LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (\d+)")


@dataclass
class Plane:
    """A control plane that accepts every request, and counts posts and distinct alert names."""

    url: str = ""
    https_url: str = ""
    ca_file: str = ""  # of the certificate at `https_url`
    posts: int = 0
    names: set[bytes] = field(default_factory=set)
    on_body: Callable[[bytes], None] = lambda _body: None

    def take(self, body: bytes) -> None:
        """Count one delivery."""
        self.posts += 1
        self.names.update(NAMES.findall(body))
        self.on_body(body)


class Connection(asyncio.Protocol):
    """A connection of HTTP/1.1 with Content-Length, the only form that the senders here use."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the answers."""
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
            self._plane.take(bytes(self._data[end + 4 : size]))
            del self._data[:size]
            self._transport.write(OK % proof)


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
    clickhouse = await stack.enter_async_context(FakeClickHouse())
    clickhouse.server.rows = dict(HEALTHY)
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
