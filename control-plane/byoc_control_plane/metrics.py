"""The metrics of the control plane, and the pages of a process."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)

from byoc_agents.app.http_server import SERVER_HEADER, Listen, PortLimits, serve
from byoc_control_plane import __version__

LIMITS = PortLimits(max_unauthenticated=32)  # Prometheus, a load balancer and people need a few


class PlaneMetrics:
    """All metrics of one process. Label values are closed words, except the names of replicas."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        build = Gauge(
            "byoc_plane_build_info", "1, with the version", ["version"], registry=self.registry
        )
        build.labels(__version__).set(1)
        self.messages = Counter(
            "byoc_plane_messages_total",
            "Messages by outcome: stored, or rejected and kept in byoc_rejected",
            ["stream", "outcome"],
            registry=self.registry,
        )
        self.requests = Counter(
            "byoc_plane_requests_total",
            "Requests to the receiver by the status of the response",
            ["code"],
            registry=self.registry,
        )
        self.old_credentials = Counter(
            "byoc_plane_old_credentials_total",
            "Deliveries with a token or signing secret that is not the newest of its organization",
            ["organization_id"],
            registry=self.registry,
        )
        self.store_errors = Counter(
            "byoc_plane_store_errors_total",
            "Statements that ClickHouse did not execute",
            registry=self.registry,
        )
        self.queue_errors = Counter(
            "byoc_plane_queue_errors_total", "Failed requests to the queue", registry=self.registry
        )
        self.objects = Counter(
            "byoc_plane_objects_total",
            "Billing objects of the compactor by outcome: archived, deleted",
            ["outcome"],
            registry=self.registry,
        )
        self.held_objects = Gauge(
            "byoc_plane_held_objects",
            "Objects and archives that the last run of the compactor left: damaged or in conflict",
            registry=self.registry,
        )
        self.compacted = Gauge(
            "byoc_plane_compacted_timestamp_seconds",
            "When the compactor last completed a run, or began; 0 in other processes",
            registry=self.registry,
        )
        self.bucket_errors = Counter(
            "byoc_plane_bucket_errors_total",
            "Runs of the compactor that ended because a request to S3 failed",
            registry=self.registry,
        )
        self.progress = Gauge(
            "byoc_plane_progress_timestamp_seconds",
            "Up to when a stream is received, by the newest progress of all processes",
            ["stream"],
            registry=self.registry,
        )
        self.steady = Gauge(
            "byoc_plane_steady_timestamp_seconds",
            "Since when a stream is received without interruption and without backlog",
            ["stream"],
            registry=self.registry,
        )
        self.ahead = Gauge(
            "byoc_plane_progress_ahead_seconds",
            "How far the progress that a process wrote is after ClickHouse's clock, at least 0",
            ["stream"],
            registry=self.registry,
        )
        self.delayed = Gauge(
            "byoc_plane_delayed_timestamp_seconds",
            "When messages of one organization alone had last waited or were refused for their"
            " number; its silence counts from then. Organizations of the last day, 1,000 at most",
            ["stream", "organization_id"],
            registry=self.registry,
        )
        self.daemons = Gauge(
            "byoc_plane_daemons", "Supervised daemons", ["daemon"], registry=self.registry
        )
        self.silent_daemons = Gauge(
            "byoc_plane_silent_daemons", "Silent daemons", ["daemon"], registry=self.registry
        )
        self.silent_seconds = Gauge(
            "byoc_plane_silent_seconds",
            "For how long a daemon is silent; only silent ones have a series, 1,000 at most",
            ["organization_id", "service_id", "replica", "daemon"],
            registry=self.registry,
        )


PageHandler = Callable[[web.BaseRequest], Awaitable[web.Response]]


@asynccontextmanager
async def serve_metrics(
    metrics: PlaneMetrics, listen: tuple[str, int], pages: Mapping[str, PageHandler] | None = None
) -> AsyncIterator[tuple[str, int]]:
    """Serve /metrics, /healthz and other pages; yield the bound address. Raises OSError."""

    async def handle(request: web.BaseRequest) -> web.Response:
        if page := (pages or {}).get(request.path):
            response = await page(request)
        elif request.path == "/metrics" and request.method in {"GET", "HEAD"}:
            body = generate_latest(metrics.registry)
            headers = {"Content-Type": CONTENT_TYPE_LATEST}
            response = web.Response(body=body, headers=SERVER_HEADER | headers)
        elif request.path == "/healthz" and request.method in {"GET", "HEAD"}:
            response = web.Response(text="ok\n", headers=SERVER_HEADER)
        else:
            response = web.Response(status=404, headers=SERVER_HEADER)
            response.force_close()
        return response

    async with serve(handle, Listen(*listen), LIMITS) as address:
        yield address
