"""`POST /v1/alerts`: where Alertmanager hands over. 2xx only after the commit to disk.

Alertmanager tries 5xx and broken connections again; anything else it forgets. So a full or failing
spool is 503, as is a body that comes too slowly, and there is never a 429. It copies the answer
into its log: answers are fixed words.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)

import structlog
from aiohttp import StreamReader, web

from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.payload import SMALL_BODY_BYTES, NotAWebhookError
from byoc_agents.alerts.relay import Relay
from byoc_agents.alerts.reloadable_secret import ReloadableSecret
from byoc_agents.app.http_server import SERVER_HEADER, ClientConnection, PortLimits
from byoc_agents.errors import SpoolError

PATH = "/v1/alerts"
MAX_BODY_BYTES = 16 * 1024**2  # some 10,000 alerts of 1 KiB in one notification
HUGE_BODY_BYTES = 4 * 1024**2  # of larger bodies one is in memory at a time
LIMITS = PortLimits(max_unauthenticated=64, max_authenticated=512)  # Alertmanager: one per group
LARGE_BODIES = 2  # in memory at once; the others wait
LARGE_WAITING = 64  # at most; each holds up to half a MiB of buffers meanwhile
BODY_SECONDS = 10.0  # from the headers to the end of the body


class BusyError(Exception):
    """Enough large bodies wait already."""


REFUSALS: tuple[tuple[type[Exception], int, str], ...] = (
    (NotAWebhookError, 400, "no Alertmanager webhook"),
    (web.RequestPayloadError, 400, "broken body"),
    (ConnectionError, 400, "broken body"),  # the sender has gone: nobody hears it
    (web.HTTPRequestEntityTooLarge, 413, "too large"),
    (TimeoutError, 503, "too slow"),
    (BusyError, 503, "busy"),
    (SpoolError, 503, "not stored"),
)


class Webhook:
    """The handler and its bounds."""

    def __init__(
        self,
        relay: Relay,
        token: ReloadableSecret,
        counts: Counts,
        *,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        """Take the token of Alertmanager; with an empty one nobody is authenticated."""
        self._relay = relay
        self._token = token
        self._counts = counts
        self._body_seconds = body_seconds
        self._places = asyncio.Semaphore(LARGE_BODIES)
        self._huge = asyncio.Lock()
        self._large = 0  # requests that have such a place or wait for one
        self._log = structlog.get_logger()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer one request: one path and one method, so neither router nor middleware."""
        if request.path != PATH:
            return _response(404, "not found")
        if request.method != "POST":
            return _response(405, "expected POST", Allow="POST")
        return await self.post(request)

    async def post(self, request: web.BaseRequest) -> web.Response:
        """Answer one notification."""
        status, word = await self._stored(request)
        self._counts.request(status)
        if status == 200:  # noqa: PLR2004  every other answer can mean a lost alert
            return _response(status, word)
        self._log.warning("webhook.refused", status=status, why=word, peer=request.remote)
        if status == 401:  # noqa: PLR2004  RFC 9110 wants to be told how
            return _response(status, word, **{"WWW-Authenticate": "Bearer"})
        return _response(status, word)

    async def _stored(self, request: web.BaseRequest) -> tuple[int, str]:
        if not self.allowed(request.headers.get("Authorization", "")):
            return 401, "unauthorized"
        if "Content-Encoding" in request.headers:  # Alertmanager never compresses
            return 415, "compressed"
        if isinstance(request.protocol, ClientConnection) and not request.protocol.authenticate():
            return 503, "busy"
        try:
            async with self._place(request), AsyncExitStack() as held:
                body = await self._body(request, held)
                await self._relay.accept(body)  # not under the time-out: a commit is not undone
        except tuple(kind for kind, _, _ in REFUSALS) as error:
            if isinstance(error, SpoolError):
                self._log.error("webhook.write_failed", error=str(error))
            return next((code, word) for kind, code, word in REFUSALS if isinstance(error, kind))
        return 200, "stored"

    def _place(self, request: web.BaseRequest) -> AbstractAsyncContextManager[None]:
        """Return what to hold as long as the body is in memory: small ones share their commits."""
        length = request.content_length
        small = length is not None and length <= SMALL_BODY_BYTES
        return nullcontext() if small else self._large_place()

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

    async def _body(self, request: web.BaseRequest, held: AsyncExitStack) -> bytearray:
        if request.content.is_eof():  # all of it is here
            return await self._read(request.content, held)
        if request.headers.get("Expect", "").lower() == "100-continue":  # who asks waits for it
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        async with asyncio.timeout(self._body_seconds):
            return await self._read(request.content, held)

    async def _read(self, content: StreamReader, held: AsyncExitStack) -> bytearray:
        """Return the body. Past HUGE_BODY_BYTES it waits until no other such body is in memory.

        `held` keeps that place until the notification is stored. The body is not read by the
        request itself, which would keep it as long as the connection is open. Raises
        HTTPRequestEntityTooLarge past MAX_BODY_BYTES.
        """
        body = bytearray()
        alone = False
        while chunk := await content.readany():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(body))
            if len(body) > HUGE_BODY_BYTES and not alone:
                await held.enter_async_context(self._huge)
                alone = True
        return body

    def allowed(self, header: str) -> bool:
        """Compare in constant time. Each line of the token's file is valid, for rotations."""
        tokens = self._token.words()
        scheme, _, given = header.partition(" ")
        presented = given.strip().encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(presented, token.encode()) for token in tokens]
        return scheme.lower() == "bearer" and any(matches)


def _response(status: int, word: str, **headers: str) -> web.Response:
    response = web.Response(
        body=b'{"status": "%s"}' % word.encode(),
        status=status,
        headers={**SERVER_HEADER, **headers},
        content_type="application/json",
    )
    if status != 200:  # noqa: PLR2004  an unknown client keeps no place
        response.force_close()
    return response
