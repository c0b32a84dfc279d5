"""The webhook as a fixture."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.webhook import Webhook
from byoc_agents.app.http_server import Listen, PortLimits, serve
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.reloadable_secret import ReloadableSecret
from tests.unit.alerts.webhook_harness import TOKEN, Harness, Make, Relay


@pytest.fixture
def make() -> Make:
    @asynccontextmanager
    async def make(
        token: ReloadableSecret | None = None, listen: Listen | None = None, **bounds: float
    ) -> AsyncIterator[Harness]:
        relay, metrics = Relay(), Metrics()
        webhook = Webhook(
            relay,  # type: ignore[arg-type]
            token or ReloadableSecret(TOKEN),
            Counts(metrics, "a"),
            body_seconds=bounds.get("body", 5),
        )
        where = listen or Listen("127.0.0.1", 0)
        serving = serve(
            webhook.handle,
            where,
            PortLimits(
                max_unauthenticated=int(bounds.get("unauthenticated", 100)),
                max_authenticated=int(bounds.get("authenticated", 200)),
                header_seconds=bounds.get("header", 5),
            ),
        )
        async with (
            serving as (host, port),
            aiohttp.ClientSession() as session,
        ):
            scheme = "https" if where.cert_file else "http"
            yield Harness(
                relay, f"{scheme}://{host}:{port}/v1/alerts", port, metrics.registry, session
            )

    return make
