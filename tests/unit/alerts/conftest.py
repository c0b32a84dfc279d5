"""The webhook as a fixture."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.http_server import Listen, serve
from byoc_agents.alerts.reloadable_secret import ReloadableSecret
from byoc_agents.alerts.webhook import Webhook
from byoc_agents.app.metrics import Metrics
from tests.unit.alerts.webhook_world import Make, Relay, World


@pytest.fixture
def make() -> Make:
    @asynccontextmanager
    async def make(
        token: ReloadableSecret | None = None, listen: Listen | None = None, **bounds: float
    ) -> AsyncIterator[World]:
        relay, metrics = Relay(), Metrics()
        webhook = Webhook(
            relay,  # type: ignore[arg-type]
            token or ReloadableSecret(""),
            Counts(metrics, "a"),
            body_seconds=bounds.get("body", 5),
        )
        where = listen or Listen("127.0.0.1", 0)
        serving = serve(
            webhook.answer,
            where,
            header_seconds=bounds.get("header", 5),
            max_connections=int(bounds.get("connections", 100)),
        )
        async with (
            serving as (host, port),
            aiohttp.ClientSession() as session,
        ):
            scheme = "https" if where.cert_file else "http"
            yield World(
                relay, f"{scheme}://{host}:{port}/v1/alerts", port, metrics.registry, session
            )

    return make
