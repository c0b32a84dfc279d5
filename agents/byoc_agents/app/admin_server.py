"""/metrics, /healthz, /readyz and /status of the process, for Prometheus, the kubelet and people.

A process is ready if its settings are valid, the spool can be written and every task runs (for
example, the webhook listens). Readiness does not depend on any destination, since the readiness
of a sidecar is part of the readiness of the customer's pod. /status names the destinations, so it
is shown on this machine only: `kubectl port-forward` and `kubectl exec` reach it. /metrics needs a
bearer token if one is configured, also on this machine; the pages of the kubelet never do.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import structlog
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from byoc_agents import __version__
from byoc_agents.app import http_server
from byoc_agents.app.daemon import Daemon
from byoc_agents.app.http_server import (
    CHALLENGE,
    SERVER_HEADER,
    Listen,
    PortLimits,
    has_bearer_token,
)
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.errors import ConfigError

LIMITS = PortLimits(max_unauthenticated=32)  # Prometheus, the kubelet and people need a few


class Pages:
    """The four pages."""

    def __init__(
        self, daemons: Sequence[Daemon], metrics: Metrics, token: ReloadableSecret | None = None
    ) -> None:
        """`token` is required for /metrics; None or an empty one = /metrics is open."""
        self._daemons = daemons
        self._token = token
        self._metrics = metrics
        self._pages = {
            "/metrics": self.metrics,
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/status": self.status,
        }

    async def handle(self, request: BaseRequest) -> Response:
        """Handle one request: without a body, four paths, one method."""
        page = self._pages.get(request.path)
        if page is None:
            response = Response(status=404, text="404: Not Found")
        elif request.method not in {"GET", "HEAD"}:
            response = Response(status=405, text="405: expected GET", headers={"Allow": "GET"})
        else:
            response = await page(request)
        if page is None or request.can_read_body or response.status in {401, 403, 405}:
            response.force_close()
        response.headers.update(SERVER_HEADER)
        return response

    async def metrics(self, request: BaseRequest) -> Response:
        """Return all metrics in Prometheus's text format."""
        tokens = self._token.values() if self._token else ()
        if tokens and not has_bearer_token(request.headers.get("Authorization", ""), tokens):
            return Response(status=401, text="401: expected the token\n", headers=CHALLENGE)
        for daemon in self._daemons:
            daemon.observe()
        body = generate_latest(self._metrics.registry)
        return Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(self, _: BaseRequest) -> Response:
        """Return 200 while the writer thread of every spool runs, else 503."""
        dead = [daemon.name for daemon in self._daemons if not daemon.spool.alive]
        return Response(status=503 if dead else 200, text=f"{'dead' if dead else 'ok'}\n")

    async def readyz(self, _: BaseRequest) -> Response:
        """Return 200 if every spool is writable and every task runs, else 503 with the reasons."""
        reasons = await asyncio.gather(*(daemon.not_ready_reason() for daemon in self._daemons))
        named = [f"{a.name}: {t}" for a, t in zip(self._daemons, reasons, strict=True) if t]
        return Response(status=503 if named else 200, text="\n".join(named or ["ok"]) + "\n")

    async def status(self, request: BaseRequest) -> Response:
        """Return the state of every daemon as JSON, for people on this machine."""
        if not is_loopback(request.remote):
            return Response(status=403, text="403: expected a client on this machine\n")
        daemons = {daemon.name: daemon.status() for daemon in self._daemons}
        body = msgspec.json.format(
            msgspec.json.encode({"version": __version__, "daemons": daemons})
        )
        return Response(body=body, content_type="application/json")


@asynccontextmanager
async def serve(
    daemons: Sequence[Daemon],
    metrics: Metrics,
    listen: tuple[str, int],
    token: ReloadableSecret | None = None,
) -> AsyncIterator[tuple[str, int]]:
    """Serve the pages and yield the bound address. Raises ConfigError if it cannot be bound."""
    pages = Pages(daemons, metrics, token)
    async with AsyncExitStack() as stack:
        try:
            serving = http_server.serve(pages.handle, Listen(*listen), LIMITS)
            host, port = await stack.enter_async_context(serving)
        except OSError as error:
            mistake = f"BYOC_LISTEN: {error.strerror or error}: expected a free host:port"
            raise ConfigError([mistake]) from error
        structlog.get_logger().info("admin.listening", host=host, port=port)
        yield host, port


def is_loopback(peer: str | None) -> bool:
    """Return whether the address of a client is one of this machine."""
    try:
        address = ipaddress.ip_address(peer or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)  # on a socket for IPv6 and IPv4
    return (mapped or address).is_loopback
