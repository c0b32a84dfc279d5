"""HTTP with a fifth of the usual work per request, for the requests that are made most often.

"Quick" in the names of modules and types means: sent in this way instead of by botocore.

botocore and aiohttp make many objects per request, for every case of HTTP. Here a request is one
write, and only a plain response is read: one with status 200 and a Content-Length, as S3 and SQS
give it for each request that succeeds. Everything else is None, and the caller leaves the request
to botocore, with its retries and errors.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self, cast

from yarl import URL

from byoc_agents.egress.aws import CONNECT_SECONDS, READ_SECONDS
from byoc_agents.egress.gate import MAX_HEADER_BYTES, Gate

OK = "HTTP/1.1 200"
ENCODED = frozenset({"transfer-encoding", "content-encoding"})  # the body is not the bytes
DIGITS = 16  # a length has fewer


class PlainResponse(NamedTuple):
    """A whole response with status 200."""

    headers: dict[str, str]  # by lower-case name
    body: bytes


class QuickHttp:
    """Sends requests to one origin, over connections that are kept. Use `async with`.

    There are as many connections as requests at a time: the caller bounds them. The gate checks
    each request, each name and each socket. No proxy is used.
    """

    def __init__(
        self,
        gate: Gate,
        url: str,
        *,
        user_agent: str,
        max_body_bytes: int,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        """`url` is a URL of the origin. A response with more than `max_body_bytes` is None."""
        self._gate = gate
        self._origin = URL(url).origin()
        self._fixed = (
            f" HTTP/1.1\r\nHost: {self.host}\r\nUser-Agent: {user_agent}\r\n"
            "Accept-Encoding: identity\r\n"
        )
        self._max_body_bytes = max_body_bytes
        self._read_seconds = read_seconds
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def __aenter__(self) -> Self:
        """Return itself. The first request opens a connection."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections."""
        for connection in list(self._open):
            connection.close()

    @property
    def host(self) -> str:
        """Return the header Host of each request."""
        return self._origin.host_port_subcomponent or ""

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> PlainResponse | None:
        """Send a request once. Return the response, or None if it is not plain.

        `path` is percent-encoded and may have a query. Raises the gate's EgressRefusedError.
        """
        self._gate.check_url(self._origin.with_path(path.partition("?")[0], encoded=True))
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        size = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path}{self._fixed}{''.join(lines)}{size}\r\n"
        if head.count("\r") + head.count("\n") != 2 * (5 + len(lines) + bool(size)):
            return None  # a line end in a name or value
        try:
            data = head.encode("ascii") + body
            connection = self._idle.pop() if self._idle else await self._connect()
        except (OSError, UnicodeEncodeError):  # OSError: TimeoutError too
            return None
        response = await connection.exchange(data)
        if connection.reusable:
            self._idle.append(connection)
        return response

    async def _connect(self) -> "_Connection":
        """Open a connection. Raises OSError and EgressRefusedError."""
        host, port = self._origin.raw_host or "", self._origin.port or 0
        context = self._gate.ssl_context() if self._origin.scheme == "https" else None
        async with asyncio.timeout(CONNECT_SECONDS):
            error: OSError | None = None
            for found in await self._gate.resolver.resolve(host, port):
                address = (found["host"], found["port"])
                try:
                    return await self._connect_to(found["family"], address, host, context)
                except OSError as failed:
                    error = failed
        raise error or OSError(f"{host} has no address")

    async def _connect_to(
        self, family: int, address: tuple[str, int], host: str, context: ssl.SSLContext | None
    ) -> "_Connection":
        loop = asyncio.get_running_loop()
        kind = (family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock = self._gate.socket_factory((*kind, "", address))
        try:
            sock.settimeout(0)
            await loop.sock_connect(sock, address)
            _, connection = await loop.create_connection(
                lambda: _Connection(self._forget, self._max_body_bytes, self._read_seconds),
                sock=sock,
                ssl=context,
                server_hostname=host if context else None,
            )
        except BaseException:
            sock.close()
            raise
        self._open.add(connection)
        return connection

    def _forget(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    """One connection: one request at a time. A response that is not plain closes it."""

    def __init__(
        self,
        on_lost: "Callable[[_Connection], None]",
        max_body_bytes: int,
        read_seconds: float,
    ) -> None:
        self._on_lost = on_lost
        self._max_body_bytes = max_body_bytes
        self._read_seconds = read_seconds
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None  # None: closed
        self._waiting: asyncio.Future[PlainResponse | None] | None = None
        self._buffer = bytearray()
        self._headers: dict[str, str] = {}
        self._body_at = 0  # in the buffer; 0: the head is not complete
        self._end = 0  # of the response, in the buffer
        self._read_at = 0.0  # seconds of the loop

    @property
    def reusable(self) -> bool:
        """Return whether another request may be sent."""
        return self._transport is not None

    async def exchange(self, data: bytes) -> PlainResponse | None:
        """Send a request; return its response, or None. If cancelled, the connection is closed."""
        if self._transport is None:
            return None
        self._waiting = self._loop.create_future()
        self._read_at = self._loop.time()
        timer = self._loop.call_later(self._read_seconds, self._check_time, self._waiting)
        self._transport.write(data)
        try:
            return await self._waiting
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiting = None

    def close(self) -> None:
        """Close the connection; a request that waits has no response. May be called twice."""
        if self._transport is not None:
            self._transport.abort()  # TLS would wait for the other side
            self._transport = None
            self._on_lost(self)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        """End the request that waits, without a response."""
        self.close()

    def data_received(self, data: bytes) -> None:
        """Take a part of a response."""
        self._buffer += data
        if self._waiting is None or not self._is_plain():
            self.close()  # bytes that nobody asked for, or a response for botocore
            return
        self._read_at = self._loop.time()
        if not self._body_at or len(self._buffer) < self._end:
            return
        response = PlainResponse(self._headers, bytes(self._buffer[self._body_at :]))
        waiting, self._waiting = self._waiting, None
        self._buffer.clear()
        self._body_at = 0
        if self._headers.get("connection", "keep-alive").lower() != "keep-alive":
            self.close()
        if not waiting.done():
            waiting.set_result(response)

    def _is_plain(self) -> bool:
        """Return whether this may become a plain response; read its head once it is complete."""
        if not self._body_at:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return len(self._buffer) <= MAX_HEADER_BYTES
            headers = _read_head(bytes(self._buffer[:end]))
            if headers is None or int(headers["content-length"]) > self._max_body_bytes:
                return False
            self._headers, self._body_at = headers, end + 4
            self._end = self._body_at + int(headers["content-length"])
        return len(self._buffer) <= self._end

    def _check_time(self, waiting: "asyncio.Future[PlainResponse | None]") -> None:
        """Close the connection if the other side has sent nothing for so long."""
        if waiting is not self._waiting:
            return
        left_seconds = self._read_at + self._read_seconds - self._loop.time()
        if left_seconds <= 0:
            self.close()
        else:
            self._loop.call_later(left_seconds, self._check_time, waiting)


def _read_head(head: bytes) -> dict[str, str] | None:
    """Return the headers of a response with status 200 and a length; None for any other one."""
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first.startswith(OK):
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        headers[name.lower()] = value.strip(" \t")
        if not colon or "\n" in value:
            return None
    size = headers.get("content-length", "")
    plain = len(headers) == len(lines) and size.isascii() and size.isdigit() and len(size) < DIGITS
    return headers if plain and not headers.keys() & ENCODED else None
