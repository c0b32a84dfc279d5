"""The webhook for Alertmanager, `POST /v1/alerts`. It answers 2xx only after the commit to disk.

Alertmanager retries after a 5xx or a broken connection, and drops the notification after any other
error. Therefore a full or failing spool, a slow body and a spent budget are answered with 503, and
429 is never used. Alertmanager logs the response, so the responses are fixed texts.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)

import structlog
from aiohttp import StreamReader
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response

from byoc_agents.alerts.budget import BudgetSpentError
from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.payload import SMALL_BODY_BYTES, NotAWebhookError
from byoc_agents.alerts.relay import Relay
from byoc_agents.app.http_server import (
    CHALLENGE,
    SERVER_HEADER,
    ClientConnection,
    PortLimits,
    has_bearer_token,
)
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.errors import SpoolError

PATH = "/v1/alerts"
MAX_BODY_BYTES = 16 * 1024**2  # some 10,000 alerts of 1 KiB in one notification
HUGE_BODY_BYTES = 4 * 1024**2  # only one larger body is in memory at a time
LIMITS = PortLimits(max_unauthenticated=64, max_authenticated=512)  # Alertmanager: one per group
LARGE_BODIES = 2  # in memory at once; further large bodies wait
LARGE_WAITING = 64  # at most; each uses up to 512 KiB of buffers while it waits
BODY_SECONDS = 10.0  # from the headers to the end of the body


class BusyError(Exception):
    """Too many large bodies are waiting."""


REFUSALS: tuple[tuple[type[Exception], int, str], ...] = (
    (NotAWebhookError, 400, "not an Alertmanager webhook"),
    (RequestPayloadError, 400, "broken body"),
    (ConnectionError, 400, "broken body"),  # the client has disconnected: only the log shows it
    (HTTPRequestEntityTooLarge, 413, "too large"),
    (TimeoutError, 503, "too slow"),
    (BusyError, 503, "busy"),
    (SpoolError, 503, "not stored"),
    (BudgetSpentError, 503, "daily budget spent"),
)


class Webhook:
    """Handles the requests of Alertmanager, with bounded memory and time."""

    def __init__(
        self,
        relay: Relay,
        token: ReloadableSecret,
        counts: Counts,
        *,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        """Create the handler. With an empty token, no request is authenticated."""
        self._relay = relay
        self._token = token
        self._counts = counts
        self._body_seconds = body_seconds
        self._places = asyncio.Semaphore(LARGE_BODIES)
        self._huge = asyncio.Lock()
        self._large = 0  # requests with a large body that is read or waits
        self._log = structlog.get_logger()

    async def handle(self, request: BaseRequest) -> Response:
        """Handle a request. With one path and one method, no router is needed."""
        if request.path != PATH:
            return _response(404, "not found")
        if request.method != "POST":
            return _response(405, "expected POST", Allow="POST")
        return await self.post(request)

    async def post(self, request: BaseRequest) -> Response:
        """Handle one notification."""
        status, text = await self._store(request)
        self._counts.request(status)
        if status == 200:  # noqa: PLR2004  every other response can mean a lost alert
            return _response(status, text)
        self._log.warning("webhook.refused", status=status, why=text, peer=request.remote)
        if status == 401:  # noqa: PLR2004  the one status that needs a header
            return _response(status, text, **CHALLENGE)
        return _response(status, text)

    async def _store(self, request: BaseRequest) -> tuple[int, str]:
        """Store the notification of a request. Return the status code and text of the response."""
        if not has_bearer_token(request.headers.get("Authorization", ""), self._token.values()):
            return 401, "unauthorized"
        if "Content-Encoding" in request.headers:  # Alertmanager never compresses
            return 415, "compressed"
        if isinstance(request.protocol, ClientConnection) and not request.protocol.authenticate():
            return 503, "busy"
        try:
            # The relay has no timeout: a commit cannot be undone.
            if _is_small(request) and request.content.is_eof():  # most are, and need no limit
                await self._relay.accept(request.content.read_nowait())
            else:
                async with self._place(request), AsyncExitStack() as held:
                    await self._relay.accept(await self._body(request, held))
        except tuple(kind for kind, _, _ in REFUSALS) as error:
            if isinstance(error, SpoolError):
                self._log.error("webhook.write_failed", error=str(error))
            return next((code, text) for kind, code, text in REFUSALS if isinstance(error, kind))
        return 200, "stored"

    def _place(self, request: BaseRequest) -> AbstractAsyncContextManager[None]:
        """Return a context to hold while the body is in memory. Small bodies are not limited."""
        return nullcontext() if _is_small(request) else self._large_place()

    @asynccontextmanager
    async def _large_place(self) -> AsyncIterator[None]:
        if self._large >= LARGE_BODIES + LARGE_WAITING:
            raise BusyError
        self._large += 1
        try:
            async with self._places:
                yield
        finally:
            self._large -= 1

    async def _body(self, request: BaseRequest, held: AsyncExitStack) -> bytearray:
        if request.content.is_eof():  # the body is already complete
            return await self._read(request.content, held)
        if request.headers.get("Expect", "").lower() == "100-continue":  # the client waits for it
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        async with asyncio.timeout(self._body_seconds):
            return await self._read(request.content, held)

    async def _read(self, content: StreamReader, held: AsyncExitStack) -> bytearray:
        """Return the body. Above HUGE_BODY_BYTES, wait until no other huge body is in memory.

        `held` keeps the lock until the notification is stored. The body is not read with
        `request.read`, which would keep it in memory while the connection is open. Raises
        HTTPRequestEntityTooLarge above MAX_BODY_BYTES.
        """
        body = bytearray()
        alone = False
        while chunk := await content.readany():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(body))
            if len(body) > HUGE_BODY_BYTES and not alone:
                await held.enter_async_context(self._huge)
                alone = True
        return body


def _is_small(request: BaseRequest) -> bool:
    length = request.content_length
    return length is not None and length <= SMALL_BODY_BYTES


def _response(status: int, text: str, **headers: str) -> Response:
    response = Response(
        body=b'{"status": "%s"}' % text.encode(),
        status=status,
        headers={**SERVER_HEADER, **headers},
        content_type="application/json",
    )
    if status != 200:  # noqa: PLR2004  an unknown client must not keep its connection
        response.force_close()
    return response
