"""A scripted HTTP server that can fail in every way.

One request, one behavior; a fault is a script. It listens on a loopback port in the test's loop.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import unquote, urlsplit

WEBHOOK_TOKEN = "token-of-alertmanager"  # of every forwarder that a lab starts
WEBHOOK_HEADERS = {"Authorization": f"Bearer {WEBHOOK_TOKEN}"}

LIMIT = 64 * 1024  # bytes of a request's head


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived. Header names are in lower case."""

    number: int  # 0, 1, 2 ... in the order of arrival
    method: str
    target: str  # as sent, with the query
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """Return the decoded path without the query."""
        return unquote(urlsplit(self.target).path)


@dataclass(frozen=True, slots=True)
class Reply:
    """A response. Content-Length is added."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes on the wire."""
        headers = {"content-length": str(len(self.body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} -", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its connection. `apply` passes it to the receiver."""

    request: Request
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    apply: Callable[[Request], Reply]

    async def write(self, data: bytes) -> None:
        """Write and flush."""
        self.writer.write(data)
        await self.writer.drain()


Behavior = Callable[[Exchange], Awaitable[None]]
Script = Callable[[Request], Behavior]


# Behaviors.


async def serve(exchange: Exchange) -> None:
    """Execute the request and respond."""
    await exchange.write(exchange.apply(exchange.request).encode())


def reply(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Behavior:
    """Answer without executing the request."""
    return raw(Reply(status, headers or {}, body).encode())


def redirect(url: str, status: int = 307) -> Behavior:
    """Answer with a redirect."""
    return reply(status, {"location": url})


def raw(data: bytes) -> Behavior:
    """Answer with raw bytes."""

    async def behave(exchange: Exchange) -> None:
        await exchange.write(data)

    return behave


def garbage(data: bytes = b"\x00\xff\x16\x03 no HTTP at all\r\n\r\n") -> Behavior:
    """Answer with bytes that are not HTTP, and close."""

    async def behave(exchange: Exchange) -> None:
        await exchange.write(data)
        exchange.writer.close()

    return behave


async def hang(exchange: Exchange) -> None:
    """Do not answer until the client disconnects."""
    await exchange.reader.read()
    exchange.writer.close()


def drip(seconds: float = 0.02, after: bytes = b"HTTP/1.1 200 -\r\nx-slow: ") -> Behavior:
    """Answer one byte every few seconds, without end."""

    async def behave(exchange: Exchange) -> None:
        await exchange.write(after)
        while not exchange.writer.is_closing():
            await asyncio.sleep(seconds)
            await exchange.write(b".")

    return behave


async def close(exchange: Exchange) -> None:
    """Close the connection without executing the request."""
    exchange.writer.close()


async def reset(exchange: Exchange) -> None:
    """Reset the connection (RST) without executing the request."""
    sock = exchange.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.writer.transport.abort()


def cut(after: int = 20) -> Behavior:
    """Execute the request, send only the first bytes of the response, close."""

    async def behave(exchange: Exchange) -> None:
        await exchange.write(exchange.apply(exchange.request).encode()[:after])
        exchange.writer.close()

    return behave


def lose(then: Behavior = close) -> Behavior:
    """Execute the request, but lose the response."""

    async def behave(exchange: Exchange) -> None:
        exchange.apply(exchange.request)
        await then(exchange)

    return behave


# Scripts.


def in_order(*behaviors: Behavior, then: Behavior = serve) -> Script:
    """Give each request the next behavior, and `then` to all after them."""
    left = list(behaviors)

    def script(_: Request) -> Behavior:
        return left.pop(0) if left else then

    return script


def serving(_: Request) -> Behavior:
    """Serve every request."""
    return serve


def always(behavior: Behavior) -> Script:
    """Give every request the same behavior."""
    return in_order(then=behavior)


class FakeHttp:
    """A server on a loopback port. `async with` starts and stops it; `script` may be replaced.

    Tests read `requests`, `connections` and `bytes_received`.
    """

    def __init__(
        self,
        script: Script = serving,
        *,
        apply: Callable[[Request], Reply] = lambda _: Reply(),
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = script
        self.port = port
        self.requests: list[Request] = []
        self.connections = 0
        self.bytes_received = 0
        self._apply = apply
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Return `http://127.0.0.1:port`, with tls `https://localhost:port`."""
        return f"https://localhost:{self.port}" if self._tls else f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        """Listen; port 0 selects a free port."""
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, limit=LIMIT, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the port and every connection."""
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                request = await self._read(reader)
                self.requests.append(request)
                behave = self.script(request)
                await behave(Exchange(request, reader, writer, self._apply))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Request:
        head = await self._counted(reader.readuntil(b"\r\n\r\n"))
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip() for name, value in pairs}
        body = await self._read_body(reader, headers)
        return Request(len(self.requests), method, target, headers, body)

    async def _read_body(self, reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            size = int(headers.get("content-length", "0"))
            return await self._counted(reader.readexactly(size))
        body = b""
        while size := int((await self._counted(reader.readuntil(b"\r\n"))).split(b";")[0], 16):
            body += (await self._counted(reader.readexactly(size + 2)))[:-2]
        await self._counted(reader.readuntil(b"\r\n"))
        return body

    async def _counted(self, reading: Awaitable[bytes]) -> bytes:
        try:
            data = await reading
        except asyncio.IncompleteReadError as error:
            self.bytes_received += len(error.partial)
            raise
        self.bytes_received += len(data)
        return data
