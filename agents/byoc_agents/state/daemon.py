"""Wiring of the state exporter: ClickHouse -> exporter -> spool -> shipper -> SQS."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import msgspec

from byoc_agents.app.daemon import Daemon
from byoc_agents.app.heartbeat import MAX_IDLE_SECONDS, HeartbeatIntervals
from byoc_agents.app.runtime import ClickHouseSettings, Runtime
from byoc_agents.app.settings import CoreSettings, Setting, number
from byoc_agents.delivery.sink import Sink
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.destinations import (
    Destination,
    clickhouse_destination,
    credential_destinations,
    endpoint_url,
    name_endpoint,
    sqs_destination,
)
from byoc_agents.errors import ConfigError
from byoc_agents.ledger.recent import recently_sent
from byoc_agents.servers import is_service, parse_servers
from byoc_agents.sinks.directory import DirectorySink
from byoc_agents.sinks.sqs import SqsSink
from byoc_agents.state.exporter import Exporter, PolledReplica
from byoc_agents.state.message import StateIdentity
from byoc_agents.state.message_stream import MessageStream
from byoc_agents.state.probes import Prober
from byoc_agents.state.thresholds import (
    DEFAULTS,
    ReasonCode,
    Threshold,
    Thresholds,
    parse_thresholds,
)

NAME = "state-exporter"


def _parse_queue_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^/\s?#]+/\S+\.fifo|file:///\S+", text):
        raise ValueError("the queue must be FIFO: its URL ends in .fifo")
    return text


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the exporter."""

    queue_url: Annotated[
        str,
        Setting(
            "BYOC_STATE_QUEUE_URL",
            "https://sqs.REGION.amazonaws.com/ACCOUNT/NAME.fifo, or file:///directory for a trial",
            parse=_parse_queue_url,
        ),
    ]
    poll_seconds: Annotated[
        float,
        Setting(
            "BYOC_STATE_POLL_SECONDS", "0.1 to 60 seconds between polls", parse=number(0.1, 60)
        ),
    ] = 10.0
    heartbeat_seconds: Annotated[
        float,
        Setting(
            "BYOC_STATE_HEARTBEAT_SECONDS",
            "1 to 3600 seconds between two messages, for ten minutes after a change",
            parse=number(1, 3600),
        ),
    ] = 60.0
    idle_heartbeat_seconds: Annotated[
        float | None,
        Setting(
            "BYOC_STATE_IDLE_HEARTBEAT_SECONDS",
            "1 to 1800 seconds between two messages after that; default: five times as long,"
            " at most 1800",
            parse=number(1, MAX_IDLE_SECONDS),
        ),
    ] = None
    starting_seconds: Annotated[
        float,
        Setting(
            "BYOC_STATE_STARTING_SECONDS",
            "0 to 3600 seconds of uptime, below which a server is `starting`",
            parse=number(0, 3600),
        ),
    ] = Thresholds().starting_seconds
    start_grace_seconds: Annotated[
        float,
        Setting(
            "BYOC_STATE_START_GRACE_SECONDS",
            "0 to 3600 seconds, for which a server that was never up is `starting`, not `failed`",
            parse=number(0, 3600),
        ),
    ] = Thresholds().start_grace_seconds
    thresholds: Annotated[
        dict[ReasonCode, Threshold],
        Setting(
            "BYOC_STATE_LIMITS",
            "CODE=enter/leave/hold_seconds/clear_seconds, separated by commas",
            parse=parse_thresholds,
        ),
    ] = msgspec.field(default_factory=lambda: dict(DEFAULTS))

    @property
    def intervals(self) -> HeartbeatIntervals:
        """Return the intervals of the heartbeats. Raises ValueError if they do not fit."""
        return HeartbeatIntervals.choose(
            "BYOC_STATE", self.heartbeat_seconds, self.idle_heartbeat_seconds
        )

    def __post_init__(self) -> None:
        """Check settings that depend on each other. Raises ValueError."""
        _ = self.intervals


def destinations(
    core: CoreSettings, clickhouse: ClickHouseSettings, own: Settings, environ: Mapping[str, str]
) -> list[Destination]:
    """Return all destinations of the exporter."""
    details = {
        "daemon": NAME,
        "setting": "BYOC_CLICKHOUSE_URL",
        "frequency": f"{own.poll_seconds:g} s",
    }
    try:
        servers = parse_servers(clickhouse.url, core.replica).values()
    except ValueError as error:
        raise ConfigError([f"BYOC_CLICKHOUSE_URL: {error}"]) from error
    found = [clickhouse_destination(server, **details) for server in servers]
    if own.queue_url.startswith("file:"):
        return found
    queue = sqs_destination(
        own.queue_url,
        endpoint_url("sqs", environ),
        daemon=NAME,
        setting="BYOC_STATE_QUEUE_URL",
        frequency=f"{own.intervals}, and at every change",
    )
    queue = name_endpoint(queue, "sqs", environ)
    return [*found, queue, *credential_destinations(environ, core.region, NAME, ("sqs",))]


@asynccontextmanager
async def open_daemon(
    runtime: Runtime, clickhouse: ClickHouseSettings, own: Settings
) -> AsyncIterator[Daemon]:
    """Wire the exporter; everything opened here is closed at the end."""
    async with AsyncExitStack() as stack:
        spool = await stack.enter_async_context(runtime.spool(NAME))
        ledger = await stack.enter_async_context(runtime.ledger(NAME, spool))
        sink = await stack.enter_async_context(_open_sink(runtime, own))
        replicas = []
        for name, url in parse_servers(clickhouse.url, runtime.core.replica).items():
            server = await stack.enter_async_context(runtime.clickhouse(url, clickhouse))
            prober = Prober(server, clock=runtime.clock)
            replicas.append(
                PolledReplica(name, prober, _create_stream(runtime, own, spool, f"replica/{name}"))
            )
        exporter = Exporter(
            who=_read_identity(runtime.core),
            replicas=replicas,
            thresholds=_read_thresholds(own),
            poll_seconds=own.poll_seconds,
            clock=runtime.clock,
            agent=lambda: runtime.agent(ledger),
            summary=_create_stream(runtime, own, spool, "service")
            if is_service(clickhouse.url)
            else None,
        )
        yield runtime.daemon(NAME, source=exporter, spool=spool, sink=sink, ledger=ledger)


def _open_sink(runtime: Runtime, own: Settings) -> AbstractAsyncContextManager[Sink]:
    if own.queue_url.startswith("file:"):
        return DirectorySink(Path(unquote(urlsplit(own.queue_url).path)))
    return SqsSink(
        runtime.aws,
        runtime.gate,
        own.queue_url,
        region=runtime.core.region,
        endpoint_url=endpoint_url("sqs", runtime.environ),
    )


def _create_stream(runtime: Runtime, own: Settings, spool: Spool, name: str) -> MessageStream:
    return MessageStream(
        NAME,
        f"state/{name}",
        intervals=own.intervals,
        spool=spool,
        clock=runtime.clock,
        metrics=runtime.metrics,
        sent=partial(recently_sent, runtime.directory(NAME) / "ledger"),
    )


def _read_identity(core: CoreSettings) -> StateIdentity:
    return StateIdentity(
        organization_id=core.organization_id, service_id=core.service_id, region=core.region
    )


def _read_thresholds(own: Settings) -> Thresholds:
    return Thresholds(
        by_code=own.thresholds,
        starting_seconds=own.starting_seconds,
        start_grace_seconds=own.start_grace_seconds,
    )
