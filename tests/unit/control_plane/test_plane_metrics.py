"""The page of the metrics."""

import aiohttp
import pytest

from byoc_control_plane.metrics import PlaneMetrics, serve_metrics


@pytest.mark.parametrize(
    ("method", "path", "status", "part"),
    [
        ("GET", "/metrics", 200, 'byoc_plane_requests_total{code="503"} 1.0'),
        ("HEAD", "/metrics", 200, ""),
        ("GET", "/healthz", 200, "ok\n"),
        ("POST", "/metrics", 404, ""),
        ("GET", "/", 404, ""),
    ],
)
async def test_it_shows_metrics_and_health_and_nothing_else(
    method: str, path: str, status: int, part: str
) -> None:
    metrics = PlaneMetrics()
    metrics.requests.labels("503").inc()
    async with (
        serve_metrics(metrics, ("127.0.0.1", 0)) as (host, port),
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{host}:{port}{path}") as response,
    ):
        assert response.status == status
        assert part in await response.text()
        assert response.headers["Server"] == "byoc-agents"
