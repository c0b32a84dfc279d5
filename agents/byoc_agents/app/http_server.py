"""The HTTP server of the admin pages and of the webhook, with bounds for unknown clients.

aiohttp's own server accepts any number of connections, waits without limit for the first request,
and reads 256 KiB from a connection at a time. Here a connection counts as unauthenticated until one
of its requests was authenticated. There are few places for those. A new connection always gets a
place: the oldest connection of the client with the most places is closed for it. So a client that
sends its request at once is answered, however many others are silent. The number of connections,
headers, bytes per header and unread bytes are bounded, so their product bounds the memory.
"""

import asyncio
import math
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import msgspec
import structlog
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from byoc_agents.app.certificate import Certificate
from byoc_agents.app.listening import open_sockets

READ_BYTES = 16 * 1024  # per read, and of a body that is not consumed; asyncio reads 256 KiB
RECEIVE_BYTES = 64 * 1024  # per connection in the kernel, which would let it grow to megabytes
MAX_HEADERS = 32  # Alertmanager sends 7, and a service mesh adds a dozen
MAX_FIELD_BYTES = 1024  # of a header or the request line; aiohttp's bounds are 128 x 8 KiB
BACKLOG = 4096  # connections that wait in the kernel; the usual net.core.somaxconn
ACCEPTS_PER_TURN = 4  # of the event loop; a request is read some 5 turns after its connection
ACCEPT_RETRY_SECONDS = 1.0  # after an error of accept, e.g. no file descriptors; as asyncio waits
REST_SECONDS = 1.0  # without a request, after which a connection may be closed for another one
LINGER_SECONDS = 1.0  # for the rest of a body after its request was answered
LINGER_BYTES = 256 * 1024  # of that rest from an unauthenticated client; then it loses the answer
REPORT_SECONDS = 1.0  # between two log lines about closed connections
STOP_SECONDS = 5.0  # for the requests in progress at the end
SERVER_HEADER = {"Server": "byoc-agents"}  # without the versions of the libraries

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Listen(msgspec.Struct, frozen=True):
    """The address to listen on. Without files it is plain HTTP."""

    host: str
    port: int  # 0 = any free port
    cert_file: str = ""
    key_file: str = ""
    certificate_seconds: float = 0.0  # between two looks at the files


class PortLimits(msgspec.Struct, frozen=True):
    """The bounds of one port."""

    max_unauthenticated: int  # connections without an authenticated request
    max_authenticated: int = 0
    header_seconds: float = 10.0  # from the connection, or the first byte, to the end of a head
    idle_seconds: float = 300.0  # between two requests; Alertmanager's own bound


class ClientConnection(web.RequestHandler):
    """One connection, from `accept` to its end."""

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
            auto_decompress=False,  # it would also decompress what it discards
        )
        self.peer = peer
        self.opening: asyncio.Task[None] | None = None  # until the end of the TLS handshake
        self.rests_since = math.inf  # monotonic; inf before the first request and during one
        self._owner = server
        self._malformed = False  # the last bytes are not HTTP
        self._unread_bytes = 0  # since the last answer
        self._late: asyncio.TimerHandle | None = None
        self._await_head(server.limits.header_seconds)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what one read takes; a TLS transport has its own bound (docs/adr/0009)."""
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Free the place and the requests that are not answered."""
        self._owner.forget(self)
        self._await_head(None)
        super().connection_lost(exc)
        self._messages.clear()  # this object lives until the next run of the garbage collector

    def data_received(self, data: bytes) -> None:
        """Start the time for the head of a further request at its first byte."""
        if self._malformed:
            return
        if self.rests_since < math.inf:
            if self._late is None:
                self._await_head(self._owner.limits.header_seconds)
            self._unread_bytes += len(data)
            if self._unread_bytes > LINGER_BYTES and not self._owner.is_authenticated(self):
                self.abort()
                return
        super().data_received(data)
        for message, _ in self._messages:
            error = getattr(message, "exc", None)
            if error is not None:  # the rest is not parsed: each part would be a new error
                error.__traceback__ = None  # it refers to the received bytes, and they to it
                self._malformed = True

    def _await_head(self, seconds: float | None) -> None:
        """Close the connection if the head does not end in time; None = it did."""
        if self._late is not None:
            self._late.cancel()  # also frees its reference to this object
        self._late = None if seconds is None else self._loop.call_later(seconds, self.abort)

    def authenticate(self) -> bool:
        """Count the connection as authenticated. Return False if there is no room for it."""
        return self._owner.authenticate(self)

    def begin_request(self) -> None:
        """Note that a complete head was received."""
        self._await_head(None)
        self.rests_since, self._unread_bytes = math.inf, 0

    def end_request(self) -> None:
        """Note that the request was answered."""
        self.rests_since = time.monotonic()

    def abort(self) -> None:
        """Close the connection now, whatever is not sent yet, and free its place."""
        self._owner.forget(self)
        self._await_head(None)
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer malformed HTTP with a fixed text, without the version of a library."""
        if status >= 500:  # noqa: PLR2004  a defect of ours: the log has all of it
            answer = super().handle_error(request, status, exc, message)
        else:
            why = "no HTTP"
            structlog.get_logger().warning(
                "server.refused", status=status, why=why, peer=request.remote
            )
            answer = web.json_response({"status": why}, status=status)
        answer.force_close()
        answer.headers.update(SERVER_HEADER)
        return answer


class HttpServer:
    """Accepts connections, and holds them to the limits of the port."""

    def __init__(self, answer: Answer, listen: Listen, limits: PortLimits) -> None:
        """Load the certificate. Raises OSError (also ssl.SSLError) if it cannot be used."""
        self.limits = limits
        self.requests = web.Server(self._answer_request, request_factory=_request)
        self._answer = answer
        self._listen = listen
        self._unauthenticated: dict[ClientConnection, None] = {}  # oldest first
        self._authenticated: dict[ClientConnection, None] = {}
        self._closed = 0  # connections that were closed for others since the last report
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
            except OSError as error:  # no file descriptors or memory now, or the client has gone
                structlog.get_logger().error("server.accept_failed", error=str(error))
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            self._open(accepted, str(address[0]))
            number += 1
            if number % ACCEPTS_PER_TURN == 0:
                await asyncio.sleep(0)  # those accepted before are read

    def authenticate(self, connection: ClientConnection) -> bool:
        """Count the connection as authenticated. Return False if there is no room for it."""
        if connection in self._authenticated:
            return True
        if len(self._authenticated) >= self.limits.max_authenticated and not self._make_room():
            return False
        if connection in self._unauthenticated:  # not closed meanwhile
            del self._unauthenticated[connection]
            self._authenticated[connection] = None
        return True

    def forget(self, connection: ClientConnection) -> None:
        """Free the connection's place."""
        self._unauthenticated.pop(connection, None)
        self._authenticated.pop(connection, None)

    def is_authenticated(self, connection: ClientConnection) -> bool:
        """Return whether one of the connection's requests was authenticated."""
        return connection in self._authenticated

    async def stop(self) -> None:
        """Close all connections, after the requests in progress."""
        for connection in [*self._unauthenticated]:
            if connection.opening is not None:
                connection.opening.cancel()
        for connection in [one for one in self._unauthenticated if one.opening is not None]:
            connection.abort()
        self.requests.pre_shutdown()  # those that rest; `shutdown` alone would wait for them
        await self.requests.shutdown(STOP_SECONDS)

    def _open(self, accepted: socket.socket, peer: str) -> None:
        """Give a new connection a place, and start its TLS handshake."""
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
        except OSError:  # no TLS, or the client has gone
            self.forget(connection)
        except asyncio.CancelledError:
            accepted.close()
            raise
        finally:
            connection.opening = None

    def _close_oldest(self) -> None:
        """Close the oldest connection of the client with the most unauthenticated ones."""
        places = Counter(connection.peer for connection in self._unauthenticated)
        most = max(places.values())
        next(one for one in self._unauthenticated if places[one.peer] == most).abort()
        self._report_closed()

    def _make_room(self) -> bool:
        """Close the authenticated connection that rests longest, if one does for a while.

        After a storm Alertmanager keeps hundreds for minutes. They must not keep its peer out.
        """
        late = time.monotonic() - REST_SECONDS
        resting = min(self._authenticated, key=lambda one: one.rests_since, default=None)
        self._report_closed()
        if resting is None or resting.rests_since >= late:
            return False
        resting.force_close()
        self.forget(resting)
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

    async def _answer_request(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("ClientConnection", request.protocol)
        connection.begin_request()
        try:
            return await self._answer(request)
        finally:
            connection.end_request()


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """Return a request as aiohttp's own factory does, which asks the kernel for our pid."""
    return web.BaseRequest(message, payload, protocol, writer, task, task.get_loop())


@asynccontextmanager
async def serve(
    answer: Answer, listen: Listen, limits: PortLimits
) -> AsyncIterator[tuple[str, int]]:
    """Serve and yield the bound address.

    Raises OSError if the address cannot be bound or the certificate cannot be used.
    """
    server = HttpServer(answer, listen, limits)
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
            if accepting:  # `wait` and not `await`: that would take our own cancellation for theirs
                await asyncio.wait(accepting)
        finally:
            for one in sockets:
                one.close()
            await server.stop()
