"""A scraper on a spool that can be opened again, with a target that keeps one core busy."""

from pathlib import Path
from typing import Any

import msgspec

from byoc_agents.app.metrics import Metrics
from byoc_agents.billing.objects import unseal
from byoc_agents.billing.record import UsageRecord
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.rollback import read_key
from byoc_agents.billing.scraper import MAX_DEFERRED, Scraper
from byoc_agents.billing.sealer import Intervals
from byoc_agents.durable.spool import Spool
from byoc_agents.ledger.recent import RecentSend
from lab.fakes.core import FakeClock
from lab.fakes.scrapers import OneCore, make_scraper, make_sealer

SECOND = 1_000_000_000


class SpoolHandle:
    """A handle for a scraper's spool, in which a test can replace the spool."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    def __getattr__(self, name: str) -> Any:
        return getattr(self.spool, name)


class Harness:
    """A scraper on a spool that can be opened again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.target = OneCore(self.clock)
        self.metrics = Metrics()
        self.sample_seconds = 5
        self.sent: dict[str, bool] = {}  # what the ledger announces
        self.handle = SpoolHandle(Spool(directory, max_bytes=1 << 20, clock=self.clock))
        self.scraper = self.made()

    @property
    def spool(self) -> Spool:
        return self.handle.spool

    @spool.setter
    def spool(self, spool: Spool) -> None:
        self.handle.spool = spool

    def made(
        self,
        intervals: Intervals | None = None,
        end_hint: Path | None = None,
        max_deferred: int = MAX_DEFERRED,
    ) -> Scraper:
        sample_ms = self.sample_seconds * 1000
        intervals = intervals or Intervals(sample_ms=sample_ms, window_ms=60_000, seal_ms=300_000)
        handle: Any = self.handle
        self.sealer = make_sealer(intervals, handle, self.clock, lambda: recent_sends(self.sent))
        return make_scraper(
            self.target,
            Recorder(identity=IDENTITY, sample_ms=sample_ms),
            intervals,
            handle,
            self.clock,
            self.metrics,
            self.sealer,
            end_hint=end_hint,
            max_deferred=max_deferred,
        )

    async def reopen(self, max_bytes: int) -> None:
        """Open the spool with another bound, for the scrapers made so far and for a new one."""
        await self.spool.__aexit__()
        self.spool = Spool(self.directory, max_bytes=max_bytes, clock=self.clock)
        await self.spool.__aenter__()
        self.scraper = self.made()

    async def ticks(self, count: int) -> None:
        for _ in range(count):
            await self.clock.advance(self.sample_seconds)
            await self.scraper.tick()

    async def records(self) -> list[UsageRecord]:
        """Return the sealed and staged records, in order."""
        sealed = [
            line for m in await self.spool.peek(1000, 1 << 30) for line in unseal(m.id, m.body)
        ]
        lines = [*sealed, *await self.spool.staged()]
        return [msgspec.json.decode(line, type=UsageRecord) for line in lines]


def recent_sends(sent: dict[str, bool]) -> list[RecentSend]:
    """Return what the ledger says of these keys: whether each is stored."""
    found = [(read_key(key), stored) for key, stored in sent.items()]
    return [msgspec.structs.replace(one, stored=stored) for one, stored in found if one]


IDENTITY = UsageIdentity(
    organization_id="org",
    service_id="service",
    replica="replica-0",
    region="us-east-1",
    pod_uid="uid",
    container_name="clickhouse",
)
