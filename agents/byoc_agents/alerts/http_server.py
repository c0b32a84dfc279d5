"""The webhook's listening socket: TLS where wanted, and bounds that aiohttp's own site lacks.

aiohttp waits for ever for the first request of a connection, and takes any number of them. Here a
connection that has not sent its headers in time is closed. Where there are too many, one that rests
is closed for the new one, and where none rests the new one is.
"""

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import structlog
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from byoc_agents.alerts.certificate import Certificate
from byoc_agents.app.listening import ANY_IPV6, open_dual_stack

MAX_CONNECTIONS = 512  # Alertmanager keeps hundreds where it has many groups to tell of
READ_BYTES = 16 * 1024  # of a body that nobody takes yet; a connection holds a few times this
RECEIVE_BYTES = 64 * 1024  # of a connection in the kernel; it would let that grow to megabytes
MAX_HEADERS, MAX_FIELD_BYTES = 64, 4096  # aiohttp's bounds are 128 of 8 KiB: 1 MiB a connection
HEADER_SECONDS = 10.0
IDLE_SECONDS = 300.0  # between two requests: Alertmanager's own idle time-out
REST_SECONDS = 1.0  # without a request, after which a connection makes room for another
LINGER_SECONDS = 1.0  # for the rest of a body that nobody wants
TOLD_SECONDS = 1.0  # between two lines of the log about too many connections
STOP_SECONDS = 5.0  # for requests under way when we stop
NAMELESS = {"Server": "byoc-agents"}  # not which versions run here

WebhookAnswer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Listen(msgspec.Struct, frozen=True):
    """Where to listen. Without files it is plain HTTP, inside the cluster."""

    host: str
    port: int  # 0 = any free one
    cert_file: str = ""
    key_file: str = ""
    certificate_seconds: float = 0.0  # between two looks at the files


class _TooMany(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _Connection(web.RequestHandler):
    """Answers what is no HTTP in a fixed word too, and says nowhere which versions run here."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:  # noqa: PLR2004  a defect of ours: the log has all of it
            answer = super().handle_error(request, status, exc, message)
        else:
            why = "no HTTP"
            structlog.get_logger().warning(
                "webhook.refused", status=status, why=why, peer=request.remote
            )
            answer = web.json_response({"status": why}, status=status)
            answer.force_close()
        answer.headers.update(NAMELESS)
        return answer


class Door:
    """Makes the protocol of each new connection, and notes which have spoken and which rest."""

    def __init__(
        self,
        answer: WebhookAnswer,
        listen: Listen,
        *,
        header_seconds: float,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Load the certificate. Raises OSError (ssl.SSLError is one) when it is no use."""
        self._answer = answer
        self._listen = listen
        self._header_seconds = header_seconds
        self._max_connections = max_connections
        self._too_many = 0  # connections turned away since that was told
        self._silent: set[web.RequestHandler] = set()  # have not sent their first headers
        self._rests_since: dict[web.RequestHandler, float] = {}  # monotonic, the last answer
        self.server = web.Server(self._heard, request_factory=_request)
        self._certificate: Certificate | None = None
        if listen.cert_file:
            seconds = listen.certificate_seconds
            self._certificate = Certificate(
                listen.cert_file, listen.key_file, check_seconds=seconds
            )
        self.tls = self._certificate.context if self._certificate else None

    def connect(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        if self._certificate:
            self._certificate.renew()
        if len(self.server.connections) >= self._max_connections and not self._made_room():
            return self._turned_away()
        loop = asyncio.get_running_loop()
        connection = _Connection(
            self.server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # as `web.Server` passes it on
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS,
            read_bufsize=READ_BYTES,
            max_headers=MAX_HEADERS,
            max_field_size=MAX_FIELD_BYTES,
        )
        self._silent.add(connection)
        loop.call_later(self._header_seconds, self._lose_patience, connection)
        return connection

    def _made_room(self) -> bool:
        """Close the oldest connection that has been at rest for a while, if there is one.

        After a storm Alertmanager keeps hundreds for minutes: they must not keep its peer out.
        """
        late = time.monotonic() - REST_SECONDS
        for connection, since in self._rests_since.items():
            if since < late and connection.connected:
                connection.force_close()
                return True
        return False

    def _turned_away(self) -> asyncio.Protocol:
        if not self._too_many:
            asyncio.get_running_loop().call_later(TOLD_SECONDS, self._tell)
        self._too_many += 1
        return _TooMany()

    def _tell(self) -> None:
        structlog.get_logger().warning("webhook.connections_refused", number=self._too_many)
        self._too_many = 0

    async def _heard(self, request: web.BaseRequest) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        self._rests_since[request.protocol] = math.inf
        try:
            return await self._answer(request)
        finally:
            self._rests_since[request.protocol] = time.monotonic()

    def _lose_patience(self, connection: web.RequestHandler) -> None:
        if connection in self._silent:
            self._silent.discard(connection)
            connection.force_close()
        for gone in [one for one in self._rests_since if not one.connected]:
            del self._rests_since[gone]


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
    answer: WebhookAnswer,
    listen: Listen,
    *,
    header_seconds: float = HEADER_SECONDS,
    max_connections: int = MAX_CONNECTIONS,
) -> AsyncIterator[tuple[str, int]]:
    """Serve with the function that answers; give the address that was bound. Raises OSError."""
    door = Door(answer, listen, header_seconds=header_seconds, max_connections=max_connections)
    runner = web.ServerRunner(door.server, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    try:
        async with _opened(door, listen, header_seconds) as address:
            yield address
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _opened(
    door: Door, listen: Listen, header_seconds: float
) -> AsyncIterator[tuple[str, int]]:
    loop = asyncio.get_running_loop()
    handshake = header_seconds if door.tls else None
    if listen.host == ANY_IPV6:
        server = await loop.create_server(
            door.connect,
            sock=open_dual_stack(listen.port),
            ssl=door.tls,
            ssl_handshake_timeout=handshake,
            start_serving=False,
        )
    else:
        server = await loop.create_server(
            door.connect,
            listen.host,
            listen.port,
            ssl=door.tls,
            ssl_handshake_timeout=handshake,
            start_serving=False,
        )
    for one in server.sockets:  # each connection inherits it
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    await server.start_serving()
    try:
        host, port = server.sockets[0].getsockname()[:2]
        structlog.get_logger().info("webhook.listening", host=host, port=port, tls=bool(door.tls))
        yield host, port
    finally:
        server.close()
