"""Several servers, one scraper process on one state directory, and the bucket behind it."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from byoc_agents.app.metrics import Metrics
from byoc_agents.audit import Audit, Report
from byoc_agents.billing.metrics import BillingMetrics
from byoc_agents.billing.objects import unseal
from byoc_agents.billing.record import Usage, UsageRecord
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.scraper import Scraper
from byoc_agents.billing.sealer import Intervals
from byoc_agents.billing.service import ServiceScraper
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.sources.target import TargetObservation
from byoc_agents.billing.streams import ServiceStream, checkpoint_key
from byoc_agents.durable.spool import Spool
from lab.fakes.core import FakeClock
from lab.fakes.scrapers import DAEMON, make_sealer
from tests.unit.billing.scraper_harness import recent_sends

NS = 1_000_000_000
SAMPLE_SECONDS = 20
INTERVALS = Intervals(sample_ms=SAMPLE_SECONDS * 1000, window_ms=60_000, seal_ms=300_000)


@dataclass
class Server:
    """A ClickHouse server that keeps `cores` busy. `used_usec` is the sum of its incarnations."""

    clock: FakeClock
    cores: float
    born_ns: int
    incarnation: int = 1
    base_usec: int = 0  # of its counter, when `cores` was set last
    since_ns: int = 0
    up: bool = True
    blocked: asyncio.Event | None = None  # a reading waits for it
    reads: int = 0
    earlier_usec: int = 0  # of its earlier incarnations

    def used_usec(self) -> int:
        return self.earlier_usec + self.cpu_usec()

    def cpu_usec(self) -> int:
        return self.base_usec + int((self.clock.boot_ns() - self.since_ns) * self.cores) // 1000

    def restart(self) -> None:
        self.earlier_usec += self.cpu_usec()
        self.incarnation += 1
        self.born_ns = self.since_ns = self.clock.boot_ns()
        self.base_usec = 0

    async def read(self, *, secondary: bool = False) -> TargetObservation:  # noqa: ARG002
        self.reads += 1
        if self.blocked:
            await self.blocked.wait()
        if not self.up:
            return TargetObservation(None, error="does not respond")
        return TargetObservation(
            Reading(
                source="clickhouse",
                incarnation=f"boot-1-{self.incarnation}",
                container_id="",
                cpu_usec=self.cpu_usec(),
                memory_bytes=1 << 30,
                born_boot_ns=self.born_ns,
                machine_cpus=8,
            )
        )

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class Service:
    """The harness. `servers` has all that ever were; `names` are those in the list."""

    directory: Path
    clock: FakeClock = field(default_factory=FakeClock)
    metrics: Metrics = field(default_factory=Metrics)
    servers: dict[str, Server] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    sent: dict[str, bool] = field(default_factory=dict)  # what the ledger announces
    bucket: dict[str, bytes] = field(default_factory=dict)
    max_bytes: int = 1 << 22
    name: str = "scraper"

    def add(self, *names: str, cores: float = 1.0) -> None:
        now_ns = self.clock.boot_ns()
        for name in names:
            self.servers.setdefault(
                name, Server(self.clock, cores, born_ns=now_ns - 60 * NS, since_ns=now_ns - 60 * NS)
            )
        self.names = (*self.names, *names)

    @asynccontextmanager
    async def process(self) -> AsyncIterator["Process"]:
        """Be one process. Leaving it is a kill."""
        async with Spool(self.directory, max_bytes=self.max_bytes, clock=self.clock) as spool:
            yield Process(self, spool)

    def report(self) -> Report:
        audit = Audit()
        for key, body in sorted(self.bucket.items()):
            audit.add(key, body)
        return audit.report("bucket")

    def records(self) -> list[Usage]:
        """Return what the bucket has, in the order of the keys."""
        lines = [x for key, body in sorted(self.bucket.items()) for x in unseal(key, body)]
        return [msgspec.json.decode(line, type=UsageRecord).data for line in lines]


class Process:
    """One run of the scraper."""

    def __init__(self, service: Service, spool: Spool) -> None:
        self.service = service
        self.spool = spool
        clock = service.clock
        stream = ServiceStream(spool, clock, service.name, service.names)
        self.sealer = make_sealer(
            INTERVALS, spool, clock, lambda: recent_sends(service.sent), stream
        )
        self.scrapers = {name: self._scraper(name) for name in service.names}
        self.source = ServiceScraper(
            DAEMON,
            self.scrapers,
            spool=spool,
            sealer=self.sealer,
            clock=clock,
            metrics=service.metrics,
            recorder=recorder_of,
        )

    def _scraper(self, name: str) -> Scraper:
        target: Any = self.service.servers[name]
        return Scraper(
            target=target,
            recorder=recorder_of(name),
            sealer=self.sealer,
            key=checkpoint_key(name),
            clock=self.service.clock,
            metrics=BillingMetrics(DAEMON, self.service.metrics, name),
        )

    async def ticks(self, count: int) -> None:
        """Let all replicas take so many samples, each in a task of its own."""
        for _ in range(count):
            await self.service.clock.advance(SAMPLE_SECONDS)
            await asyncio.gather(*(scraper.tick() for scraper in self.scrapers.values()))

    async def announce(self) -> list[str]:
        """Announce all messages, as the shipper does before it sends them. Return their keys."""
        messages = await self.spool.peek(1000, 1 << 30)
        for message in messages:
            self.service.sent.setdefault(message.id, False)
        return [message.id for message in messages]

    async def ship(self) -> None:
        """Send all messages. The bucket keeps the first object of a key."""
        await self.announce()
        for message in await self.spool.peek(1000, 1 << 30):
            first = self.service.bucket.setdefault(message.id, message.body)
            assert first == message.body, "one key for two contents"
            self.service.sent[message.id] = True
            await self.spool.remove([message.id])


def recorder_of(name: str) -> Recorder:
    identity = UsageIdentity(
        organization_id="org",
        service_id="service",
        replica=name,
        region="us-east-1",
        pod_uid="",
        container_name="clickhouse",
    )
    return Recorder(identity=identity, sample_ms=INTERVALS.sample_ms)


def names_of(records: Iterable[Usage]) -> set[str]:
    return {record.replica for record in records}
