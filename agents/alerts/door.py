"""The webhook's listening socket: TLS where wanted, and bounds that aiohttp's own site lacks.

aiohttp waits for ever for the first request of a connection, and takes any number of them. Here a
connection that has not sent its headers in time is closed, and so is one that is too many.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

MAX_CONNECTIONS = 256
HEADER_SECONDS = 10.0
IDLE_SECONDS = 300.0  # between two requests: Alertmanager's own idle time-out
LINGER_SECONDS = 1.0  # for the rest of a body that nobody wants
STOP_SECONDS = 5.0  # for requests under way when we stop

Version = tuple[int, int]  # mtime in nanoseconds, inode


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen. Without files it is plain HTTP, inside the cluster."""

    host: str
    port: int  # 0 = any free one
    cert_file: str = ""
    key_file: str = ""


class _TooMany(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class Door:
    """Makes the protocol of each new connection."""

    def __init__(
        self,
        server: web.Server,
        listen: Listen,
        *,
        header_seconds: float,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Load the certificate. Raises OSError (ssl.SSLError is one) when it is no use."""
        self._server = server
        self._listen = listen
        self._header_seconds = header_seconds
        self._max_connections = max_connections
        self._silent: set[web.RequestHandler] = set()
        self._loaded: tuple[Version, Version] | None = None
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if listen.cert_file else None
        self._load()

    def connect(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        self._renew()
        if len(self._server.connections) >= self._max_connections:
            structlog.get_logger().warning("alerts.too_many_connections")
            return _TooMany()
        connection = self._server()
        self._silent.add(connection)
        asyncio.get_running_loop().call_later(self._header_seconds, self._lose_patience, connection)
        return connection

    def heard(self, connection: web.RequestHandler) -> None:
        """Note that a connection has sent a request."""
        self._silent.discard(connection)

    def _lose_patience(self, connection: web.RequestHandler) -> None:
        if connection in self._silent:
            self._silent.discard(connection)
            connection.force_close()

    def _renew(self) -> None:
        """Use changed files from now on; keep the old certificate when the new one is no use."""
        try:
            self._load()
        except OSError as error:
            structlog.get_logger().error("alerts.certificate_kept", error=type(error).__name__)

    def _load(self) -> None:
        if self.tls is None:
            return
        version = _version(self._listen.cert_file), _version(self._listen.key_file)
        if version != self._loaded:
            self.tls.load_cert_chain(self._listen.cert_file, self._listen.key_file)
            self._loaded = version


def _version(path: str) -> Version:
    stat = Path(path).stat()
    return stat.st_mtime_ns, stat.st_ino


@asynccontextmanager
async def serve(
    app: web.Application, listen: Listen, *, header_seconds: float = HEADER_SECONDS
) -> AsyncIterator[tuple[str, int]]:
    """Serve the application; give the address that was bound. Raises OSError."""
    doors: list[Door] = []
    app.middlewares.append(_listening(doors))
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGER_SECONDS,
        shutdown_timeout=STOP_SECONDS,
    )
    await runner.setup()
    try:
        async with _opened(runner, listen, doors, header_seconds) as address:
            yield address
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _opened(
    runner: web.AppRunner, listen: Listen, doors: list[Door], header_seconds: float
) -> AsyncIterator[tuple[str, int]]:
    assert runner.server is not None  # noqa: S101  set by setup()
    door = Door(runner.server, listen, header_seconds=header_seconds)
    doors.append(door)
    server = await asyncio.get_running_loop().create_server(
        door.connect,
        listen.host,
        listen.port,
        ssl=door.tls,
        ssl_handshake_timeout=header_seconds if door.tls else None,
    )
    try:
        host, port = server.sockets[0].getsockname()[:2]
        structlog.get_logger().info("alerts.listen", host=host, port=port, tls=bool(door.tls))
        yield host, port
    finally:
        server.close()


def _listening(doors: list[Door]) -> Middleware:
    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        for door in doors:
            door.heard(request.protocol)
        return await handler(request)

    return note
