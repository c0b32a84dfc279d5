"""Wiring of the access broker: requests -> broker -> ClickHouse, and spool -> shipper -> HTTPS.

An optional daemon: it needs the extra `access`, and no other daemon imports it.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp

from byoc_agents.access.authority import Authority
from byoc_agents.access.broker import Broker, BrokerLimits, BrokerParts
from byoc_agents.access.clickhouse_server import BOUNDS, LOG_BOUNDS, ClickHouseServer
from byoc_agents.access.clickhouse_sql import BROKER_USER, Storage
from byoc_agents.access.control_files import KillSwitch, PolicySource
from byoc_agents.access.errors import PolicyError
from byoc_agents.access.grants import GrantStore
from byoc_agents.access.orders import OrderFolder
from byoc_agents.access.requests import RequestPoller
from byoc_agents.access.settings import Settings, check_service
from byoc_agents.access.source import BrokerCollector, BrokerSource
from byoc_agents.access.tailnet import CHECK_SECONDS, KubernetesScaler, Tailnet, path_of_scale
from byoc_agents.app.daemon import Daemon
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.app.runtime import ClickHouseSettings, Runtime
from byoc_agents.app.settings import CoreSettings
from byoc_agents.clickhouse import Bounds, ClickHouse
from byoc_agents.delivery.sink import Sink
from byoc_agents.durable.files import Disk
from byoc_agents.egress.destinations import (
    Destination,
    DestinationKind,
    clickhouse_destination,
    https_destination,
)
from byoc_agents.errors import ConfigError
from byoc_agents.sinks.directory import DirectorySink
from byoc_agents.sinks.https import HttpsSink

__all__ = [
    "NAME",
    "Settings",
    "destinations",
    "find_mistakes",
    "load_libraries",
    "open_daemon",
]

NAME = "access-broker"
KILL_SWITCH = "kill-switch"  # the file in the broker's directory that the command line creates
SECRET_SECONDS = 1.0  # between two checks of a secret's file


def destinations(
    core: CoreSettings, _clickhouse: ClickHouseSettings, own: Settings, _environ: Mapping[str, str]
) -> list[Destination]:
    """Return all destinations of the broker: control plane, servers, and the Kubernetes API."""
    check_service(core)
    found = [
        clickhouse_destination(
            url, daemon=NAME, setting="BYOC_ACCESS_SERVERS", frequency="each 30 s, and per grant"
        )
        for url in own.servers.values()
    ]
    plane = partial(https_destination, kind=DestinationKind.CONTROL_PLANE, daemon=NAME)
    if not own.sends_to_directory:
        found.append(
            plane(
                own.events_url,
                purpose="states of grants to the control plane",
                setting="BYOC_ACCESS_EVENTS_URL",
                frequency="at each change of a grant",
            )
        )
    if own.requests_url:
        found.append(
            plane(
                own.requests_url,
                purpose="requests for access from the control plane",
                setting="BYOC_ACCESS_REQUESTS_URL",
                frequency=f"{own.poll_seconds:g} s",
            )
        )
    found += [
        https_destination(
            own.kubernetes_url.rstrip("/") + path_of_scale(deployment),
            private=True,
            kind=DestinationKind.KUBERNETES,
            daemon=NAME,
            purpose="scale of an endpoint of the tailnet",
            setting="BYOC_ACCESS_KUBERNETES_URL",
            frequency=f"each {CHECK_SECONDS:g} s, and per grant",
        )
        for deployment in own.tailnet.values()
    ]
    return found


@asynccontextmanager
async def open_daemon(
    runtime: Runtime, _clickhouse: ClickHouseSettings, own: Settings
) -> AsyncIterator[Daemon]:
    """Wire the broker. Everything that it opens is closed at the end. Raises ConfigError."""
    async with AsyncExitStack() as stack:
        spool = await stack.enter_async_context(runtime.spool(NAME))
        ledger = await stack.enter_async_context(runtime.ledger(NAME, spool, facts=True))
        session = await stack.enter_async_context(runtime.gate.session())
        core, clock, directory = runtime.core, runtime.clock, runtime.directory(NAME)
        token = ReloadableSecret(own.token, own.token_file, check_seconds=SECRET_SECONDS)
        poller = _poller(own, session, runtime, token) if own.requests_url else None
        parts = BrokerParts(
            organization_id=core.organization_id,
            service_id=core.service_id,
            directory=directory,
            store=GrantStore(spool),
            ledger=ledger,
            policy=PolicySource(own.policy_file),
            kill_switch=KillSwitch(directory / KILL_SWITCH, own.kill_switch_file),
            authority=Authority(Path(own.ca_dir), core.service_id),
            admins=[await _open_server(stack, runtime, own, name) for name in own.servers],
            orders=OrderFolder(directory),
            clock=clock,
            disk=Disk(),
            limits=BrokerLimits(
                max_skew_seconds=own.max_skew_seconds,
                collect_seconds=own.collect_seconds,
                close_on_stop=own.close_on_stop,
            ),
            contact=poller.read_contact if poller else None,
            tailnet=_tailnet(own, session, runtime) if own.tailnet else None,
        )
        broker = Broker(parts)
        stack.push_async_callback(broker.close)
        collector = BrokerCollector(NAME, broker, poller)
        runtime.metrics.registry.register(collector)
        stack.callback(runtime.metrics.registry.unregister, collector)
        sink = await stack.enter_async_context(_open_sink(own, session, runtime, token))
        source = BrokerSource(broker, poller, clock)
        yield runtime.daemon(NAME, source=source, spool=spool, sink=sink, ledger=ledger)


def find_mistakes(own: Settings) -> list[str]:
    """Return what is wrong with the policy. A running broker treats it as its kill switch."""
    try:
        PolicySource(own.policy_file).load()
    except PolicyError as error:
        return [f"BYOC_ACCESS_POLICY_FILE: {error}"]
    return []


def load_libraries() -> None:
    """Import cryptography, whose native code the gate would refuse later. Raises ConfigError."""
    names = ("cryptography.x509", "cryptography.hazmat.primitives.serialization", "yaml", "re2")
    try:
        for name in names:
            import_module(name)
    except ModuleNotFoundError as error:
        mistake = f"{NAME} needs {error.name}: pip install 'byoc-agents[access]'"
        raise ConfigError([mistake]) from error


async def _open_server(
    stack: AsyncExitStack, runtime: Runtime, own: Settings, name: str
) -> ClickHouseServer:
    async def connect(bounds: Bounds) -> ClickHouse:
        client = ClickHouse(
            own.servers[name],
            BROKER_USER,
            own.password,
            session=runtime.gate.session,
            bounds=bounds,
        )
        return await stack.enter_async_context(client)

    storage = Storage.MEMORY if own.storage == "memory" else Storage.DEFAULT
    return ClickHouseServer(name, await connect(BOUNDS), await connect(LOG_BOUNDS), storage)


def _tailnet(own: Settings, session: aiohttp.ClientSession, runtime: Runtime) -> Tailnet:
    scaler = KubernetesScaler(own.kubernetes_url, Path(own.kubernetes_dir), session)
    return Tailnet(own.tailnet, scaler, runtime.clock)


def _poller(
    own: Settings, session: aiohttp.ClientSession, runtime: Runtime, token: ReloadableSecret
) -> RequestPoller:
    return RequestPoller(
        own.requests_url,
        session,
        token=token,
        clock=runtime.clock,
        poll_seconds=own.poll_seconds,
        timeout_seconds=own.timeout_seconds,
    )


def _open_sink(
    own: Settings, session: aiohttp.ClientSession, runtime: Runtime, token: ReloadableSecret
) -> AbstractAsyncContextManager[Sink]:
    if own.sends_to_directory:
        return DirectorySink(Path(unquote(urlsplit(own.events_url).path)))
    secret = ReloadableSecret(
        own.signing_secret, own.signing_secret_file, check_seconds=SECRET_SECONDS
    )
    return nullcontext(
        HttpsSink(
            own.events_url,
            session,
            token=token,
            signing_secret=secret,
            clock=runtime.clock,
            timeout_seconds=own.timeout_seconds,
            setting="BYOC_ACCESS_EVENTS_URL",
        )
    )
