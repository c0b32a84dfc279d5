"""The three daemons on simulated time and a real disk: whoever wrote it, any version goes on."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from byoc_agents.alerts import matchers
from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.events import Allowed, Origin
from byoc_agents.alerts.relay import Relay, Rules
from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.app.metrics import Metrics
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.scraper import Scraper
from byoc_agents.billing.sealer import Intervals
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.delivery.sink import Sink
from byoc_agents.durable.spool import Spool
from byoc_agents.ledger import FileLedger
from byoc_agents.state.exporter import Exporter, PolledReplica
from byoc_agents.state.message import StateIdentity as Speaker
from byoc_agents.state.message_stream import MessageStream
from byoc_agents.state.probes import Prober
from byoc_agents.state.thresholds import DEFAULTS, ReasonCode, Threshold, Thresholds
from lab.fakes.core import FakeClock
from lab.fakes.scrapers import OneCore, make_scraper
from lab.fakes.state import HEALTHY, ScriptedServer

BILLING, STATE, ALERTS = "billing-scraper", "state-exporter", "alert-forwarder"
DAEMONS = (BILLING, STATE, ALERTS)
BOUND = 1 << 20
SAMPLE_SECONDS = 5
RULES = Rules(
    origin=Origin("org", "svc", "eu-west-1", "replica-0"),
    selector=matchers.parse('severity="critical"'),
    watchdog=matchers.parse('alertname="Watchdog"'),
    allowed=Allowed(("alertname", "severity"), ("summary",)),
    reminder_seconds=900,
    reopen_seconds=360,
)


@dataclass
class DaemonRun:
    """One run of one daemon: what it has on disk, and its clock."""

    daemon: str
    spool: Spool
    ledger: FileLedger
    clock: FakeClock
    metrics: Metrics = field(default_factory=Metrics)

    async def ship(self, sink: Sink) -> None:
        """Send everything that waits."""
        shipper = Shipper(
            self.daemon,
            spool=self.spool,
            sink=sink,
            ledger=self.ledger,
            clock=self.clock,
            metrics=self.metrics,
        )
        while self.spool.totals.oldest_created_at_ms is not None:
            assert await shipper.attempt() is None


@asynccontextmanager
async def open_run(state_dir: Path, daemon: str, clock: FakeClock) -> AsyncIterator[DaemonRun]:
    """Open what a daemon has on disk, in the order in which `byoc_agents.app.runtime` does."""
    async with AsyncExitStack() as stack:
        directory = state_dir / daemon
        spool = Spool(directory, max_bytes=BOUND, clock=clock)
        await stack.enter_async_context(spool)
        ledger = FileLedger(directory / "ledger", clock=clock, max_bytes=BOUND)
        await stack.enter_async_context(ledger)
        yield DaemonRun(daemon, spool, ledger, clock)


def scraper(run: DaemonRun, run_name: str = "") -> Scraper:
    """Return the scraper of a run, as `byoc_agents.billing.daemon` puts it together."""
    who = UsageIdentity(
        organization_id="org",
        service_id="svc",
        replica="replica-0",
        region="eu-west-1",
        pod_uid="uid",
        container_name="clickhouse",
    )
    return make_scraper(
        OneCore(run.clock, run_name),
        Recorder(identity=who, sample_ms=SAMPLE_SECONDS * 1000),
        Intervals(sample_ms=SAMPLE_SECONDS * 1000, window_ms=60_000, seal_ms=300_000),
        run.spool,
        run.clock,
        run.metrics,
    )


async def ticks(run: DaemonRun, source: Scraper | Exporter, count: int) -> None:
    """Let that many sample intervals go by."""
    for _ in range(count):
        await run.clock.advance(SAMPLE_SECONDS)
        await source.tick()


def exporter(run: DaemonRun, *, readonly: bool) -> Exporter:
    """Return the exporter of a run, with a server that is well or has a read-only replica."""
    rows = HEALTHY | {"system.metrics.ReadonlyReplica": str(int(readonly))}
    prober = Prober(ScriptedServer(rows=rows), clock=run.clock)
    stream = MessageStream(
        STATE,
        "state/replica/replica-0",
        intervals=HeartbeatIntervals(30, 30),
        spool=run.spool,
        clock=run.clock,
        metrics=run.metrics,
    )
    return Exporter(
        who=Speaker(organization_id="org", service_id="svc", region="eu-west-1"),
        replicas=[PolledReplica("replica-0", prober, stream)],
        thresholds=Thresholds(by_code={**DEFAULTS, ReasonCode.READONLY_REPLICA: Threshold(1, 0)}),
        poll_seconds=SAMPLE_SECONDS,
        clock=run.clock,
    )


def relay(run: DaemonRun) -> Relay:
    """Return the relay of a run."""
    return Relay(RULES, run.spool, run.clock, Counts(run.metrics, ALERTS))


def notification(*alerts: tuple[str, str]) -> bytes:
    """Return what Alertmanager would send for these names and statuses."""
    described = [_alert(name, status) for name, status in alerts]
    return json.dumps({"version": "4", "receiver": "byoc", "alerts": described}).encode()


def _alert(name: str, status: str) -> dict[str, Any]:
    ended = status == "resolved"
    return {
        "status": status,
        "labels": {"alertname": name, "severity": "critical"},
        "annotations": {"summary": f"{name} is down"},
        "startsAt": "2026-11-23T12:01:00.000Z",
        "endsAt": "2026-11-23T12:09:00.000Z" if ended else "0001-01-01T00:00:00Z",
        "fingerprint": hashlib.sha256(name.encode()).hexdigest()[:16],
    }
