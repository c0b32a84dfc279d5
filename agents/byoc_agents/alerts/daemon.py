"""Build the alert forwarder: webhook -> relay -> spool -> shipper -> HTTPS."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from byoc_agents.alerts import matchers
from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.events import Allowed, Origin
from byoc_agents.alerts.forwarder import Forwarder, HeartbeatSender
from byoc_agents.alerts.relay import Relay, Rules
from byoc_agents.alerts.settings import Settings
from byoc_agents.alerts.webhook import Webhook
from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import Agent
from byoc_agents.app.daemon import Daemon
from byoc_agents.app.http_server import Listen
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.app.runtime import ClickHouseSettings, Runtime
from byoc_agents.app.settings import CoreSettings
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.destinations import Destination, DestinationKind, https_destination
from byoc_agents.errors import ConfigError
from byoc_agents.sinks.https import HttpsSink

__all__ = ["NAME", "Settings", "destinations", "forwarder", "https_sink", "open_daemon"]

NAME = "alert-forwarder"
SECRET_SECONDS = 1.0  # between two checks of a secret's file


def destinations(
    _core: CoreSettings, _clickhouse: ClickHouseSettings, own: Settings, _environ: Mapping[str, str]
) -> list[Destination]:
    """Return the only destination of the forwarder: the control plane."""
    return [
        https_destination(
            own.url,
            kind=DestinationKind.CONTROL_PLANE,
            purpose="alerts to the control plane",
            daemon=NAME,
            setting="BYOC_ALERTS_URL",
            frequency=f"at once, and every {own.intervals}",
        )
    ]


@asynccontextmanager
async def open_daemon(
    runtime: Runtime, _clickhouse: ClickHouseSettings, own: Settings
) -> AsyncIterator[Daemon]:
    """Build the forwarder. Everything that it opens is closed at the end."""
    async with AsyncExitStack() as stack:
        spool = await stack.enter_async_context(runtime.spool(NAME))
        ledger = await stack.enter_async_context(runtime.ledger(NAME, spool))
        session = await stack.enter_async_context(runtime.gate.session())
        counts = Counts(runtime.metrics, NAME)
        source = forwarder(
            runtime.core, own, spool, runtime.clock, counts, agent=lambda: runtime.agent(ledger)
        )
        stack.push_async_callback(source.close)
        sink = https_sink(own, session, runtime.clock)
        yield runtime.daemon(
            NAME,
            source=source,
            spool=spool,
            sink=sink,
            ledger=ledger,
            check=lambda: listen(source, own.listen),
        )


async def listen(source: Forwarder, address: tuple[str, int]) -> None:
    """Open the webhook at the start. Raises ConfigError if it cannot be opened."""
    try:
        await source.listen()
    except OSError as error:
        host, port = address
        mistake = f"BYOC_ALERTS_LISTEN: {host}:{port}: {error.strerror or error}: expected a free"
        mistake += " host:port and, with TLS, a readable certificate and key"
        raise ConfigError([mistake]) from error


def forwarder(  # noqa: PLR0913  the settings, and what the source works with
    core: CoreSettings,
    own: Settings,
    spool: Spool,
    clock: Clock,
    counts: Counts,
    *,
    agent: Callable[[], Agent | None] = lambda: None,
) -> Forwarder:
    """Return the source: the webhook with its relay, and the heartbeat."""
    rules = _rules(core, own)
    relay = Relay(rules, spool, clock, counts)
    token = ReloadableSecret(
        own.webhook_token, own.webhook_token_file, check_seconds=SECRET_SECONDS
    )
    webhook = Webhook(relay, token, counts)
    heartbeat = HeartbeatSender(
        rules.origin, relay, spool, clock, intervals=own.intervals, agent=agent
    )
    listen = Listen(
        *own.listen,
        cert_file=own.tls_cert_file,
        key_file=own.tls_key_file,
        certificate_seconds=SECRET_SECONDS,
    )
    return Forwarder(webhook, relay, heartbeat, listen)


def https_sink(own: Settings, session: aiohttp.ClientSession, clock: Clock) -> HttpsSink:
    """Return the sink that sends to the control plane."""
    return HttpsSink(
        own.url,
        session,
        token=ReloadableSecret(own.token, own.token_file, check_seconds=SECRET_SECONDS),
        signing_secret=ReloadableSecret(
            own.signing_secret, own.signing_secret_file, check_seconds=SECRET_SECONDS
        ),
        clock=clock,
        max_messages=own.max_batch,
        timeout_seconds=own.timeout_seconds,
        proof=own.contract != "0.1",
    )


def _rules(core: CoreSettings, own: Settings) -> Rules:
    return Rules(
        origin=Origin(core.organization_id, core.service_id, core.region, core.replica),
        selector=matchers.parse(own.selected),
        watchdog=matchers.parse(own.watchdog),
        allowed=Allowed(own.labels, own.annotations),
        reminder_seconds=own.reminder_seconds,
        fingerprint_secrets=own.fingerprint_secret.split(),
        reopen_seconds=own.reopen_seconds,
        daily_bytes=own.daily_bytes,
    )
