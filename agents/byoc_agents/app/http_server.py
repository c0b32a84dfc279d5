"""The HTTP server of the admin pages and of the webhook, with bounds for unknown clients.

aiohttp's own server accepts any number of connections, waits without limit for the first request,
and reads 256 KiB from a connection at a time. In this server, a connection counts as
unauthenticated until one of its requests is authenticated. The number of unauthenticated
connections is small. A new connection is always accepted: if the limit is reached, the oldest
connection of the client with the most connections is closed. A client that sends its request at
once is therefore answered, however many silent connections there are. The numbers of connections,
headers, bytes per header and unread bytes are bounded, which bounds the memory.

`aiohttp.web` would also import routers, static files and WebSockets (1.1 MiB), so the modules that
are used are imported instead.
"""

import asyncio
import hmac
import math
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import msgspec
import structlog
from aiohttp import EMPTY_PAYLOAD, StreamReader
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse, json_response
from aiohttp.web_server import Server

from byoc_agents.app.certificate import Certificate
from byoc_agents.app.listening import open_sockets

READ_BYTES = 16 * 1024  # per read, and of a body that is not consumed; asyncio reads 256 KiB
RECEIVE_BYTES = 64 * 1024  # per connection in the kernel, which would let it grow to megabytes
MAX_HEADERS = 32  # Alertmanager sends 7, and a service mesh adds a dozen
MAX_FIELD_BYTES = 1024  # of a header or the request line; aiohttp's bounds are 128 x 8 KiB
BACKLOG = 4096  # pending connections in the kernel; the usual net.core.somaxconn
ACCEPTS_PER_TURN = 4  # of the event loop; a request is read about 5 turns after its connection
ACCEPT_RETRY_SECONDS = 1.0  # after an error of accept, e.g. no file descriptors; as in asyncio
MIN_IDLE_SECONDS = 1.0  # after which a connection may be closed to make room for another
LINGER_SECONDS = 1.0  # for the rest of a body after its request was answered
LINGER_BYTES = 256 * 1024  # of that rest from an unauthenticated client, which is then cut off
REPORT_SECONDS = 1.0  # between two log lines about closed connections
STOP_SECONDS = 5.0  # for the requests in progress at a stop
CHALLENGE = {"WWW-Authenticate": "Bearer"}  # which RFC 9110 requires of a 401
SERVER_HEADER = {"Server": "byoc-agents"}  # without the versions of libraries

Handler = Callable[[BaseRequest], Awaitable[StreamResponse]]


def has_bearer_token(header: str, tokens: Sequence[str]) -> bool:
    """Return whether an Authorization header has one of the tokens; compared in constant time.

    Several tokens are valid during a rotation. Without tokens, no header has one.
    """
    scheme, _, given = header.partition(" ")
    presented = given.strip().encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(presented, token.encode()) for token in tokens]
    return scheme.lower() == "bearer" and any(matches)


class Listen(msgspec.Struct, frozen=True):
    """The address to listen on. Without certificate files, the server uses plain HTTP."""

    host: str
    port: int  # 0 = any free port
    cert_file: str = ""
    key_file: str = ""
    certificate_seconds: float = 0.0  # between two checks of the files


class PortLimits(msgspec.Struct, frozen=True):
    """The limits of one port."""

    max_unauthenticated: int  # connections without an authenticated request
    max_authenticated: int = 0
    header_seconds: float = 10.0  # from the connection or first byte to the end of the headers
    idle_seconds: float = 300.0  # between two requests; Alertmanager's own bound


class ClientConnection(RequestHandler):
    """One connection, from `accept` until it is closed."""

    def __init__(self, server: "HttpServer", peer: str) -> None:
        super().__init__(
            server.requests,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # as `web.Server` passes it on
            keepalive_timeout=server.limits.idle_seconds,
            lingering_time=LINGER_SECONDS,
            read_bufsize=READ_BYTES,
            max_line_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            max_field_size=MAX_FIELD_BYTES,
            auto_decompress=False,  # aiohttp would also decompress discarded bodies
        )
        self.peer = peer
        self.opening: asyncio.Task[None] | None = None  # until the end of the TLS handshake
        self.idle_since = math.inf  # monotonic; inf before the first request and during one
        self._owner = server
        self._malformed = False  # the last bytes were not HTTP
        self._unread_bytes = 0  # since the last response
        self._body: StreamReader = EMPTY_PAYLOAD  # of the last request
        self._late: asyncio.TimerHandle | None = None
        self._await_head(server.limits.header_seconds)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound the bytes per read; a TLS transport has its own bound (docs/adr/0009)."""
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection and its unanswered requests."""
        self._owner.forget(self)
        self._await_head(None)
        super().connection_lost(exc)
        self._messages.clear()  # this object exists until the next run of the garbage collector
        if self.idle_since < math.inf:  # aiohttp's task would wait LINGER_SECONDS for the rest
            self._body.feed_eof()

    def data_received(self, data: bytes) -> None:
        """Start the timeout for the headers of the next request, unless they are complete."""
        if self._malformed:
            return
        if self.idle_since < math.inf:
            self._unread_bytes += len(data)
            if self._unread_bytes > LINGER_BYTES and not self._owner.is_authenticated(self):
                self.abort()
                return
        super().data_received(data)
        for message, _ in self._messages:
            error = getattr(message, "exc", None)
            if error is not None:  # ignore the rest: each part of it would be another error
                error.__traceback__ = None  # breaks a reference cycle with the received bytes
                self._malformed = True
        if not self._messages and self.idle_since < math.inf and self._late is None:
            self._await_head(self._owner.limits.header_seconds)

    def _await_head(self, seconds: float | None) -> None:
        """Close the connection if the headers do not end in time; None stops the timer."""
        if self._late is not None:
            self._late.cancel()  # also frees its reference to this object
        self._late = None if seconds is None else self._loop.call_later(seconds, self.abort)

    def authenticate(self) -> bool:
        """Count the connection as authenticated. Return False if the limit is reached."""
        return self._owner.authenticate(self)

    def begin_request(self, body: StreamReader) -> None:
        """Record that the headers were received."""
        self._await_head(None)
        self.idle_since, self._unread_bytes, self._body = math.inf, 0, body

    def end_request(self) -> None:
        """Record that the request was answered."""
        self.idle_since = time.monotonic()

    def abort(self) -> None:
        """Close the connection at once, without sending buffered data, and forget it."""
        self._owner.forget(self)
        self._await_head(None)
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> StreamResponse:
        """Answer malformed HTTP with a fixed text that names no library version."""
        if status >= 500:  # noqa: PLR2004  an internal error, which is logged with its traceback
            response = super().handle_error(request, status, exc, message)
        else:
            why = "malformed request"
            structlog.get_logger().warning(
                "server.refused", status=status, why=why, peer=request.remote
            )
            response = json_response({"status": why}, status=status)
        response.force_close()
        response.headers.update(SERVER_HEADER)
        return response


class HttpServer:
    """Accepts connections and enforces the limits of the port."""

    def __init__(self, handler: Handler, listen: Listen, limits: PortLimits) -> None:
        """Load the certificate. Raises OSError (also ssl.SSLError) if it cannot be used."""
        self.limits = limits
        self.requests = Server(self._handle_request, request_factory=_request)
        self._handler = handler
        self._listen = listen
        self._unauthenticated: dict[ClientConnection, None] = {}  # oldest first
        self._authenticated: dict[ClientConnection, None] = {}
        self._closed = 0  # connections that were closed for a limit since the last report
        self._certificate: Certificate | None = None
        if listen.cert_file:
            seconds = listen.certificate_seconds
            self._certificate = Certificate(
                listen.cert_file, listen.key_file, check_seconds=seconds
            )
        self._tls = self._certificate.context if self._certificate else None

    async def accept(self, listening: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop, number = asyncio.get_running_loop(), 0
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:  # no file descriptors or memory, or the client disconnected
                structlog.get_logger().error("server.accept_failed", error=str(error))
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            self._open(accepted, str(address[0]))
            number += 1
            if number % ACCEPTS_PER_TURN == 0:
                await asyncio.sleep(0)  # lets the accepted connections be read

    def authenticate(self, connection: ClientConnection) -> bool:
        """Count the connection as authenticated. Return False if the limit is reached."""
        if connection in self._authenticated:
            return True
        if len(self._authenticated) >= self.limits.max_authenticated and not self._make_room():
            return False
        if connection in self._unauthenticated:  # it has not been closed meanwhile
            del self._unauthenticated[connection]
            self._authenticated[connection] = None
        return True

    def forget(self, connection: ClientConnection) -> None:
        """Stop counting the connection."""
        self._unauthenticated.pop(connection, None)
        self._authenticated.pop(connection, None)

    def is_authenticated(self, connection: ClientConnection) -> bool:
        """Return whether one of the connection's requests was authenticated."""
        return connection in self._authenticated

    async def stop(self) -> None:
        """Close all connections after the requests in progress."""
        for connection in [*self._unauthenticated]:
            if connection.opening is not None:
                connection.opening.cancel()
        for connection in [one for one in self._unauthenticated if one.opening is not None]:
            connection.abort()
        self.requests.pre_shutdown()  # closes idle ones; `shutdown` alone would wait for them
        await self.requests.shutdown(STOP_SECONDS)

    def _open(self, accepted: socket.socket, peer: str) -> None:
        """Count a new connection and start its TLS handshake."""
        if self._certificate:
            self._certificate.renew()
        if len(self._unauthenticated) >= self.limits.max_unauthenticated:
            self._close_oldest()
        connection = ClientConnection(self, peer)
        self._unauthenticated[connection] = None
        connection.opening = asyncio.get_running_loop().create_task(
            self._connect(connection, accepted)
        )

    async def _connect(self, connection: ClientConnection, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=self.limits.header_seconds if self._tls else None,
            )
        except OSError:  # not TLS, or the client disconnected
            self.forget(connection)
        except asyncio.CancelledError:
            accepted.close()
            raise
        finally:
            connection.opening = None

    def _close_oldest(self) -> None:
        """Close the oldest connection of the client with the most unauthenticated ones."""
        counts = Counter(connection.peer for connection in self._unauthenticated)
        most = max(counts.values())
        next(one for one in self._unauthenticated if counts[one.peer] == most).abort()
        self._report_closed()

    def _make_room(self) -> bool:
        """Close the authenticated connection that has been idle longest. Return whether one was.

        After an alert storm, Alertmanager keeps hundreds of connections open for minutes. They must
        not exclude its peer.
        """
        limit = time.monotonic() - MIN_IDLE_SECONDS
        oldest = min(self._authenticated, key=lambda one: one.idle_since, default=None)
        self._report_closed()
        if oldest is None or oldest.idle_since >= limit:
            return False
        oldest.force_close()
        self.forget(oldest)
        return True

    def _report_closed(self) -> None:
        if not self._closed:
            asyncio.get_running_loop().call_later(REPORT_SECONDS, self._log_closed)
        self._closed += 1

    def _log_closed(self) -> None:
        structlog.get_logger().warning(
            "server.connections_refused", number=self._closed, port=self._listen.port
        )
        self._closed = 0

    async def _handle_request(self, request: BaseRequest) -> StreamResponse:
        connection = cast("ClientConnection", request.protocol)
        connection.begin_request(request.content)
        try:
            return await self._handler(request)
        finally:
            connection.end_request()


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> BaseRequest:
    """Return a request as aiohttp's factory does, without asking the kernel for the process id."""
    return BaseRequest(message, payload, protocol, writer, task, task.get_loop())


@asynccontextmanager
async def serve(
    handler: Handler, listen: Listen, limits: PortLimits
) -> AsyncIterator[tuple[str, int]]:
    """Serve and yield the bound address.

    Raises OSError if the address cannot be bound or the certificate cannot be used.
    """
    server = HttpServer(handler, listen, limits)
    sockets = await open_sockets(listen.host, listen.port)
    accepting: list[asyncio.Task[None]] = []
    try:
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)  # inherited
            one.listen(BACKLOG)
        accepting = [asyncio.create_task(server.accept(one)) for one in sockets]
        host, port = sockets[0].getsockname()[:2]
        yield host, port
    finally:
        for task in accepting:
            task.cancel()
        try:
            if accepting:  # `await` could not distinguish our own cancellation from theirs
                await asyncio.wait(accepting)
        finally:
            for one in sockets:
                one.close()
            await server.stop()
