"""The billing scraper's settings and wiring: target -> scraper -> spool -> shipper -> S3.

If BYOC_CLICKHOUSE_URL names several servers, each is a target with a scraper of its own.
"""

import ipaddress
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from byoc_agents.app.clock import asleep_ns
from byoc_agents.app.daemon import Daemon
from byoc_agents.app.keyed_ids import keyed_id
from byoc_agents.app.runtime import ClickHouseSettings, Runtime
from byoc_agents.app.settings import CoreSettings, Setting, account_id, number
from byoc_agents.billing.metrics import BillingMetrics
from byoc_agents.billing.objects import DEFAULT_PREFIX
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.rollback import read_key
from byoc_agents.billing.scraper import Scraper, TargetMachine
from byoc_agents.billing.sealer import Intervals, Sealer, seal_phase_ms
from byoc_agents.billing.service import ServiceScraper
from byoc_agents.billing.sources.target import MeterKind, TargetName, open_target, parse_target
from byoc_agents.billing.streams import CHECKPOINT, ReplicaStream, ServiceStream, checkpoint_key
from byoc_agents.delivery.sink import Sink
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.destinations import (
    Destination,
    clickhouse_destination,
    credential_destinations,
    endpoint_url,
    name_endpoint,
    s3_destination,
)
from byoc_agents.errors import ConfigError
from byoc_agents.ledger.recent import recently_sent
from byoc_agents.servers import is_service, parse_servers
from byoc_agents.sinks.directory import DirectorySink
from byoc_agents.sinks.s3 import S3Sink

NAME = "billing-scraper"
MINUTE_SECONDS = 60
DEFAULT_CONTAINER = "clickhouse"


def _window(text: str) -> int:
    seconds = int(text)
    if seconds < 1 or MINUTE_SECONDS % seconds:
        raise ValueError("must be 60 or divide it")
    return seconds


def _limit(text: str) -> int | None:
    """Return a limit, or None for 0, since a container of size 0 cannot run."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError("must be a whole number, 0 or more")
    return int(text) or None


def _absolute_path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The scraper's settings."""

    bucket: Annotated[
        str,
        Setting(
            "BYOC_BILLING_BUCKET", "the name of an S3 bucket, or file:///directory for a trial"
        ),
    ]
    prefix: Annotated[str, Setting("BYOC_BILLING_PREFIX", "the prefix of every object key")] = (
        DEFAULT_PREFIX
    )
    bucket_owner: Annotated[
        str,
        Setting(
            "BYOC_BILLING_BUCKET_OWNER",
            "the 12-digit AWS account id of the bucket's owner",
            parse=account_id,
        ),
    ] = ""
    target: Annotated[
        str,
        Setting(
            "BYOC_BILLING_TARGET",
            "auto, cgroup:PATH, pid:N, process:NAME or clickhouse:URL",
            parse=lambda text: str(parse_target(text)),
        ),
    ] = "auto"
    meter: Annotated[
        MeterKind | None,
        Setting("BYOC_BILLING_METER", "process, clickhouse or cgroup"),
    ] = None
    sample_seconds: Annotated[
        float,
        Setting(
            "BYOC_BILLING_SAMPLE_SECONDS",
            "0.1 to 60 seconds between samples",
            parse=number(0.1, 60),
        ),
    ] = 5.0
    window_seconds: Annotated[
        int,
        Setting(
            "BYOC_BILLING_WINDOW_SECONDS",
            "60 or a divisor of 60, the seconds of a usage record",
            parse=_window,
        ),
    ] = MINUTE_SECONDS
    seal_seconds: Annotated[
        float,
        Setting(
            "BYOC_BILLING_SEAL_SECONDS",
            "1 to 3600 seconds between objects",
            parse=number(1, 3600),
        ),
    ] = 900.0
    compression: Annotated[
        Literal["zstd", "gzip"], Setting("BYOC_BILLING_COMPRESSION", "zstd or gzip")
    ] = "zstd"
    end_hint: Annotated[
        Path | None,
        Setting(
            "BYOC_BILLING_END_HINT",
            "the absolute path of a file that appears before the metered container ends",
            parse=_absolute_path,
        ),
    ] = None
    container_name: Annotated[
        str, Setting("BYOC_CONTAINER_NAME", "the name of the metered container in the pod")
    ] = DEFAULT_CONTAINER
    cpu_limit_millicores: Annotated[
        int | None,
        Setting(
            "BYOC_LIMITS_CPU_MILLICORES", "limits.cpu in millicores (divisor 1m)", parse=_limit
        ),
    ] = None
    memory_limit_bytes: Annotated[
        int | None, Setting("BYOC_LIMITS_MEMORY_BYTES", "limits.memory in bytes", parse=_limit)
    ] = None

    def __post_init__(self) -> None:
        """Raise ValueError if the meter cannot read the target."""
        try:
            parse_target(self.target).meter(self.meter)
        except ValueError as error:
            raise ValueError(
                f"BYOC_BILLING_METER: invalid value {self.meter!r}: {error}"
            ) from error


def destinations(
    core: CoreSettings, clickhouse: ClickHouseSettings, own: Settings, environ: Mapping[str, str]
) -> list[Destination]:
    """Return all destinations of the scraper."""
    found = []
    target = parse_target(own.target)
    if _has_several(clickhouse, own):
        found += [
            clickhouse_destination(
                server,
                daemon=NAME,
                setting="BYOC_CLICKHOUSE_URL",
                frequency=f"{own.sample_seconds:g} s",
            )
            for server in _parse_list(clickhouse, core, own).values()
        ]
    elif server := target.clickhouse_url(clickhouse.url):
        named = "BYOC_BILLING_TARGET" if target.clickhouse_url("") else "BYOC_CLICKHOUSE_URL"
        # As the only meter it is asked for each sample, otherwise once per window.
        only = "clickhouse" in {target.kind, own.meter}
        found.append(
            clickhouse_destination(
                server,
                daemon=NAME,
                setting=named,
                frequency=f"{own.sample_seconds if only else own.window_seconds:g} s",
            )
        )
    if own.bucket.startswith("file:"):
        return found
    bucket = s3_destination(
        own.bucket,
        core.region,
        endpoint_url("s3", environ),
        daemon=NAME,
        setting="BYOC_BILLING_BUCKET",
        frequency=f"{own.seal_seconds:g} s",
    )
    bucket = name_endpoint(bucket, "s3", environ)
    return [*found, bucket, *credential_destinations(environ, core.region, NAME, ("s3",))]


@asynccontextmanager
async def open_daemon(
    runtime: Runtime, clickhouse: ClickHouseSettings, own: Settings
) -> AsyncIterator[Daemon]:
    """Build the scraper. Everything that it opens is closed at the end."""
    async with AsyncExitStack() as stack:
        spool = await stack.enter_async_context(runtime.spool(NAME))
        ledger = await stack.enter_async_context(runtime.ledger(NAME, spool))
        sink: Sink = await stack.enter_async_context(_open_sink(runtime, own))
        if isinstance(sink, S3Sink):
            _refuse_another_region(await sink.stated_region(), runtime.core.region)
        several = _has_several(clickhouse, own)
        names = _parse_list(clickhouse, runtime.core, own) if several else {}
        stream = (
            ServiceStream(spool, runtime.clock, runtime.core.replica, tuple(names))
            if several
            else ReplicaStream(spool)
        )
        intervals = _intervals(own, runtime.core.pod_uid or runtime.core.replica)
        sealer = Sealer(
            NAME,
            intervals=intervals,
            spool=spool,
            stream=stream,
            clock=runtime.clock,
            prefix=own.prefix,
            compression=own.compression,
            sent=partial(recently_sent, ledger.directory, read_key),
        )
        parts = _Parts(runtime, clickhouse, own, spool, sealer, intervals)
        source = (
            await parts.open_service(stack, names) if several else await parts.open_scraper(stack)
        )
        yield runtime.daemon(
            NAME,
            source=source,
            spool=spool,
            sink=sink,
            ledger=ledger,
            seal=sealer.seal_all,
            check=partial(_refuse_another_kind, spool, several=several),
        )


def _has_several(clickhouse: ClickHouseSettings, own: Settings) -> bool:
    """Return whether the servers of a list are metered, each as a replica."""
    return parse_target(own.target).kind == "auto" and is_service(clickhouse.url)


def _parse_list(
    clickhouse: ClickHouseSettings, core: CoreSettings, own: Settings
) -> dict[str, str]:
    """Return replica -> URL. Raises ConfigError."""
    if own.meter != "clickhouse":
        wrong = f"BYOC_BILLING_METER: invalid value {own.meter or 'process'!r}"
        expected = "expected clickhouse, since BYOC_CLICKHOUSE_URL names several servers"
        raise ConfigError([f"{wrong}: {expected}"])
    try:
        return parse_servers(clickhouse.url, core.replica)
    except ValueError as error:
        raise ConfigError([f"BYOC_CLICKHOUSE_URL: {error}"]) from error


async def _refuse_another_kind(spool: Spool, *, several: bool) -> None:
    """Raise ConfigError if the state directory is of a scraper of the other kind.

    Both kinds on one directory would bill the time of the other one again.
    """
    stored = await spool.state(CHECKPOINT)
    if several and CHECKPOINT in stored:
        expected = "it has the checkpoint of a single target: expected another directory"
    elif not several and stored.keys() - {CHECKPOINT}:
        expected = "it has the checkpoints of several servers: expected another directory"
    else:
        return
    raise ConfigError([f"BYOC_STATE_DIR: {spool.directory}: {expected}"])


class _Parts(NamedTuple):
    """The parts that the scrapers of one process share. `own` has the daemon's own settings."""

    runtime: Runtime
    clickhouse: ClickHouseSettings
    own: Settings
    spool: Spool
    sealer: Sealer
    intervals: Intervals

    async def open_scraper(self, stack: AsyncExitStack) -> Scraper:
        """Return the scraper of the only target."""
        target = parse_target(self.own.target)
        metered_url = target.clickhouse_url(self.clickhouse.url)
        return await self._open(stack, target, metered_url, _identity(self.runtime.core, self.own))

    async def open_service(
        self, stack: AsyncExitStack, servers: Mapping[str, str]
    ) -> ServiceScraper:
        """Return the scrapers of several servers, given by replica."""
        scrapers = {}
        for name, url in servers.items():
            target = TargetName("clickhouse", url)
            scrapers[name] = await self._open(stack, target, url, self._identity_of(name), name)
        return ServiceScraper(
            NAME,
            scrapers,
            spool=self.spool,
            sealer=self.sealer,
            clock=self.runtime.clock,
            metrics=self.runtime.metrics,
            recorder=lambda name: self._recorder(self._identity_of(name)),
        )

    async def _open(
        self,
        stack: AsyncExitStack,
        target: TargetName,
        metered_url: str | None,
        identity: UsageIdentity,
        replica: str = "",
    ) -> Scraper:
        runtime, own = self.runtime, self.own
        url = metered_url or self.clickhouse.url
        server = await stack.enter_async_context(runtime.clickhouse(url, self.clickhouse))
        local = metered_url is None or _is_loopback(metered_url)
        return Scraper(
            target=open_target(
                target,
                server,
                runtime.clock,
                container=metered_container(own, runtime.environ),
                meter=own.meter,
            ),
            recorder=self._recorder(identity),
            sealer=self.sealer,
            key=checkpoint_key(replica) if replica else CHECKPOINT,
            clock=runtime.clock,
            metrics=BillingMetrics(NAME, runtime.metrics, replica),
            machine=TargetMachine(_online_cpus, asleep_ns) if local else TargetMachine(),
            end_hint=own.end_hint,
        )

    def _recorder(self, identity: UsageIdentity) -> Recorder:
        return Recorder(identity=identity, sample_ms=self.intervals.sample_ms)

    def _identity_of(self, name: str) -> UsageIdentity:
        """Return the identity of one of several replicas. The pod is ours, not the server's."""
        identity = _identity(self.runtime.core, self.own)
        return msgspec.structs.replace(identity, replica=name, pod_uid="")


def metered_container(own: Settings, environ: Mapping[str, str]) -> str:
    """Return the container to meter, or "" if none is set. The default is for records only."""
    named = environ.get("BYOC_CONTAINER_NAME") or own.container_name != DEFAULT_CONTAINER
    return own.container_name if named else ""


def _open_sink(runtime: Runtime, own: Settings) -> S3Sink | DirectorySink:
    if own.bucket.startswith("file:"):
        return DirectorySink(Path(own.bucket.removeprefix("file://").removeprefix("file:")))
    return S3Sink(
        runtime.aws,
        runtime.gate,
        own.bucket,
        region=runtime.core.region,
        endpoint_url=endpoint_url("s3", runtime.environ),
        expected_bucket_owner=own.bucket_owner or None,
    )


def _refuse_another_region(stated: str, ours: str) -> None:
    """Raise ConfigError if the bucket is in another region: the NAT would carry its traffic."""
    if stated not in {"", ours}:
        raise ConfigError(
            [f"BYOC_BILLING_BUCKET: the bucket is in {stated}: expected BYOC_REGION, {ours}"]
        )


def _intervals(own: Settings, pod: str) -> Intervals:
    seal_ms = round(own.seal_seconds * 1000)
    return Intervals(
        sample_ms=round(own.sample_seconds * 1000),
        window_ms=own.window_seconds * 1000,
        seal_ms=seal_ms,
        seal_phase_ms=seal_phase_ms(pod, seal_ms),
    )


def _is_loopback(url: str) -> bool:
    """Return whether the server runs on this machine and so shares its CPUs and sleep."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _online_cpus() -> int:
    """Return the number of online CPUs. os.cpu_count() depends on an environment variable."""
    return os.sysconf("SC_NPROCESSORS_ONLN")


def _identity(core: CoreSettings, own: Settings) -> UsageIdentity:
    return UsageIdentity(
        organization_id=core.organization_id,
        service_id=core.service_id,
        replica=core.replica,
        region=core.region,
        pod_uid=keyed_id(core.pod_uid, "pod", core.organization_id, core.service_id),
        container_name=own.container_name,
        cpu_limit_millicores=own.cpu_limit_millicores,
        memory_limit_bytes=own.memory_limit_bytes,
    )
