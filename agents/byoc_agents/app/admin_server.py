"""/metrics, /healthz, /readyz and /status of the process, for Prometheus, the kubelet and people.

A process is ready if its settings are valid, the spool can be written and every task runs (for
example, the webhook listens). Readiness does not depend on any destination, since the readiness
of a sidecar is part of the readiness of the customer's pod.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from byoc_agents import __version__
from byoc_agents.app.daemon import Daemon
from byoc_agents.app.listening import ANY_IPV6, open_dual_stack
from byoc_agents.app.metrics import Metrics


class Pages:
    """The four pages."""

    def __init__(self, daemons: Sequence[Daemon], metrics: Metrics) -> None:
        self._daemons = daemons
        self._metrics = metrics

    async def metrics(self, _: web.Request) -> web.Response:
        """Return all metrics in Prometheus's text format."""
        for daemon in self._daemons:
            daemon.observe()
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(self, _: web.Request) -> web.Response:
        """Return 200 while the event loop and every writer thread run, else 503."""
        dead = [daemon.name for daemon in self._daemons if not daemon.spool.alive]
        return web.Response(status=503 if dead else 200, text=f"{'dead' if dead else 'ok'}\n")

    async def readyz(self, _: web.Request) -> web.Response:
        """Return 200 if every spool is writable and every task runs, else 503 with the reasons."""
        reasons = await asyncio.gather(*(daemon.not_ready_reason() for daemon in self._daemons))
        named = [f"{a.name}: {t}" for a, t in zip(self._daemons, reasons, strict=True) if t]
        return web.Response(status=503 if named else 200, text="\n".join(named or ["ok"]) + "\n")

    async def status(self, _: web.Request) -> web.Response:
        """Return the state of every daemon as JSON, for people."""
        daemons = {daemon.name: daemon.status() for daemon in self._daemons}
        body = msgspec.json.format(
            msgspec.json.encode({"version": __version__, "daemons": daemons})
        )
        return web.Response(body=body, content_type="application/json")


@asynccontextmanager
async def serve(
    daemons: Sequence[Daemon], metrics: Metrics, listen: tuple[str, int]
) -> AsyncIterator[tuple[str, int]]:
    """Serve the pages and yield the bound address. Raises OSError if the address is in use."""
    pages = Pages(daemons, metrics)
    app = web.Application()
    app.router.add_get("/metrics", pages.metrics)
    app.router.add_get("/healthz", pages.healthz)
    app.router.add_get("/readyz", pages.readyz)
    app.router.add_get("/status", pages.status)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        if listen[0] == ANY_IPV6:
            await web.SockSite(runner, open_dual_stack(listen[1])).start()
        else:
            await web.TCPSite(runner, *listen).start()
        host, port = runner.addresses[0][:2]
        structlog.get_logger().info("admin.listening", host=host, port=port)
        yield host, port
    finally:
        await runner.cleanup()
