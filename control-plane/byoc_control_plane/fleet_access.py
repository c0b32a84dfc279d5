"""`GET /fleet`: the page of the fleet, with a read token or for this machine only."""

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from byoc_agents.app.admin_server import is_loopback
from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.http_server import SERVER_HEADER
from byoc_agents.app.settings import name
from byoc_control_plane.fleet import DAYS, read_fleet
from byoc_control_plane.fleet_page import page_policy, render_fleet
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.store import Store, StoreError

PATH = "/fleet"
FRESH_SECONDS = 5.0  # a page is read again after this, or REST times as long as reading it took
REST = 4.0
MAX_PAGES = 16  # in memory: one per organization that was asked for lately
DAY_MS = 86_400_000
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP")  # a proxy's client is not local
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class _KeptPage(NamedTuple):
    text: str
    until_ns: int  # by the clock since boot


class FleetAccess:
    """Decides who may read the page, and reads it from the store.

    All requests together run one query at a time, and a page is kept for some seconds, so readers
    cannot load ClickHouse by reloading.
    """

    def __init__(
        self, store: Store, clock: Clock, metrics: PlaneMetrics, token: Callable[[], str]
    ) -> None:
        """`token` returns the read tokens, one per line; without any, only this machine reads."""
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._token = token
        self._lock = asyncio.Lock()
        self._pages: OrderedDict[str, _KeptPage] = OrderedDict()

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Handle a request for PATH."""
        response = await self._decide(request)
        response.headers.update(SERVER_HEADER | HEADERS)
        if response.status != 200:  # noqa: PLR2004  the only success
            response.force_close()
        return response

    async def _decide(self, request: web.BaseRequest) -> web.Response:
        if request.method not in {"GET", "HEAD"}:
            return _refuse(405, "expected GET", Allow="GET")
        if refused := self._refuse_reader(request):
            return refused
        organization = request.query.get("organization", "")
        try:
            if organization:
                name(organization)
        except ValueError as error:
            return _refuse(400, f"organization: invalid value: {error}")
        try:
            text = await self._page(organization)
        except StoreError as error:
            self._metrics.store_errors.inc()
            structlog.get_logger().warning("fleet.not_read", error=str(error)[:300])
            return _refuse(503, "ClickHouse does not respond: see the log", **{"Retry-After": "5"})
        headers = {"Content-Security-Policy": page_policy()}
        return web.Response(text=text, content_type="text/html", charset="utf-8", headers=headers)

    def _refuse_reader(self, request: web.BaseRequest) -> web.Response | None:
        """Return the refusal of a client that may not read, or None."""
        tokens = self._token().split()
        if tokens:
            if _has_token(request.headers.get("Authorization", ""), tokens):
                return None
            wanted = 'Basic realm="byoc-control-plane", charset="UTF-8"'
            return _refuse(401, "expected the read token", **{"WWW-Authenticate": wanted})
        if not is_loopback(request.remote) or any(one in request.headers for one in PROXY_HEADERS):
            return _refuse(403, "expected a client on this machine, or BYOC_PLANE_READ_TOKEN")
        if not _is_local_name(request.headers.get("Host", "")):  # a page of another site asks
            return _refuse(403, "expected localhost or an address of this machine in the URL")
        return None

    async def _page(self, organization: str) -> str:
        """Return the page, from memory if it is fresh. Raises StoreError."""
        async with self._lock:
            known = self._pages.get(organization)
            began_ns = self._clock.boot_ns()
            if known and began_ns < known.until_ns:
                return known.text
            now_ms = self._clock.wall_ns() // 1_000_000
            since = rfc3339(now_ms - DAYS * DAY_MS)[:10]
            text = render_fleet(await read_fleet(self._store, now_ms, since, organization))
            ended_ns = self._clock.boot_ns()
            rest_ns = max(int(FRESH_SECONDS * 1e9), int(REST * (ended_ns - began_ns)))
            self._pages[organization] = _KeptPage(text, ended_ns + rest_ns)
            self._pages.move_to_end(organization)
            if len(self._pages) > MAX_PAGES:
                self._pages.popitem(last=False)
            return text


def _refuse(status: int, text: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=f"{status}: {text}\n", headers=headers)


def _has_token(authorization: str, tokens: list[str]) -> bool:
    """Return whether a bearer token, or the password that a browser sends, is one of them."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "basic":
        try:
            _, _, value = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    given = _digest(value)
    # The sum compares with each, so that the time does not depend on which one is equal.
    return bool(sum(hmac.compare_digest(given, _digest(token)) for token in tokens))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _is_local_name(host: str) -> bool:
    try:
        named = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return named == "localhost" or is_loopback(named)
