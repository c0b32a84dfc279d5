"""Thirty days without the receiver, then catch-up: each daemon's pipeline on simulated time.

Everything but time, the watched target and the receiver is real. Here because it takes a while, not
because it needs a real part.
"""

import io
import logging
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import RawTestServer, TestClient

from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.events import Allowed, Origin
from byoc_agents.alerts.forwarder import HeartbeatSender
from byoc_agents.alerts.matchers import parse
from byoc_agents.alerts.relay import Relay, Rules
from byoc_agents.alerts.webhook import PATH, Webhook
from byoc_agents.app import logging as log
from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.audit import Audit
from byoc_agents.billing.recorder import Recorder
from byoc_agents.billing.scraper import Scraper
from byoc_agents.billing.sealer import Intervals
from byoc_agents.billing.window import HOUR_MS
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.delivery.sink import Transmit, transmit_unrecorded
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Outcome
from byoc_agents.state.message import StateEvent
from lab.demo.alertmanager import notification
from lab.fakes.core import NullLedger, ScriptedSink
from lab.fakes.http import WEBHOOK_HEADERS, WEBHOOK_TOKEN
from lab.fakes.killable import SimClock
from lab.fakes.scrapers import make_scraper
from lab.fakes.state import HEALTHY, ScriptedServer
from lab.real.stored import usages
from tests.faults.killable_scraper import IDENTITY, SimTarget, cpu_usec, make_clock
from tests.unit.state import killable_exporter

DAY_SECONDS = 86_400
DAYS = 30
HOUR_SECONDS = 3600
SAMPLE_SECONDS = 180  # longer than a window: each record covers one pause
POLL_SECONDS = 600
NS = 1_000_000_000


class Down(ScriptedSink):
    """A receiver that cannot be reached until it is `up`."""

    up = False

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        if not self.up:
            return [SendError(Reason.CONNECTION, "no route")] * len(batch)
        return await super().send(batch, transmit)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Write no log: it would be most of the work."""
    shown = structlog.get_config()
    log.configure("critical", io.StringIO())
    yield
    structlog.configure(**shown)
    logging.captureWarnings(capture=False)


@pytest.fixture
def memory() -> Iterator[Path]:
    """Give a directory in memory: thirty days are tens of thousands of syncs."""
    room = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=room if room.is_dir() else None) as place:
        yield Path(place)


def shipper(daemon: str, spool: Spool, sink: Down, clock: Clock) -> Shipper:
    ledger, metrics = NullLedger(), Metrics()
    return Shipper(daemon, spool=spool, sink=sink, ledger=ledger, clock=clock, metrics=metrics)


async def caught_up(ship: Shipper, spool: Spool, sink: Down) -> None:
    """Let the receiver be there again, and send until nothing is left."""
    sink.up = True
    while spool.totals.oldest_created_at_ms is not None:
        assert await ship.attempt() is None


async def test_billing_accounts_for_every_second_of_thirty_days(memory: Path) -> None:
    """The bound is reached after some days; from there a record covers an hour; none is lost."""
    clock, sink = make_clock(0), Down()
    async with Spool(memory, max_bytes=1 << 20, clock=clock) as spool:
        scraper, ship = metering(spool, clock), shipper("billing-scraper", spool, sink, clock)
        for number in range(DAYS * DAY_SECONDS // SAMPLE_SECONDS):
            await scraper.tick()
            clock.second += SAMPLE_SECONDS
            if number % 20 == 0:  # every hour
                await ship.attempt()
        assert sink.stored == {}
        assert spool.totals.bytes > 0.9 * (1 << 20), "the bound was not reached"
        sink.up = True
        for _ in range(20):  # an hour with the receiver back
            await caught_up(ship, spool, sink)
            await scraper.tick()
            clock.second += SAMPLE_SECONDS
        await scraper.finish()
        await caught_up(ship, spool, sink)
        assert spool.totals.events == 0
    assert_accounted(sink.stored, clock.second)


def metering(spool: Spool, clock: SimClock) -> Scraper:
    return make_scraper(
        SimTarget(clock),
        Recorder(identity=IDENTITY, sample_ms=SAMPLE_SECONDS * 1000),
        Intervals(sample_ms=SAMPLE_SECONDS * 1000, window_ms=60_000, seal_ms=300_000),
        spool,
        clock,
    )


def assert_accounted(stored: dict[str, bytes], seconds: int) -> None:
    audit = Audit()
    for key, body in sorted(stored.items()):
        audit.add(key, body)
    report = audit.report("bucket")
    assert report.findings == []
    records = [one for one in usages(stored) if one.quality != "gap"]
    longest = max(one.elapsed_milliseconds for one in records) // 1000
    recorded = sum(one.elapsed_milliseconds for one in records) // 1000
    billed = sum((total.cpu_core_seconds for total in report.replicas), Decimal(0))
    print(f"{len(stored)} objects, {len(records)} records, the longest of {longest} s")
    assert 3 * SAMPLE_SECONDS < longest <= HOUR_SECONDS
    starts = [parse_rfc3339(one.charge_period_start) // HOUR_MS for one in records]
    assert starts == [(parse_rfc3339(one.charge_period_end) - 1) // HOUR_MS for one in records]
    assert seconds - SAMPLE_SECONDS <= recorded <= seconds
    assert billed == Decimal(cpu_usec(recorded) - cpu_usec(0)) / 1_000_000


async def test_state_keeps_its_transitions_in_order_and_the_latest_heartbeat(memory: Path) -> None:
    clock, sink, turns = SimClock(0), Down(max_messages=10), 0
    server = ScriptedServer(rows=dict(HEALTHY))
    async with Spool(memory, max_bytes=1 << 20, clock=clock) as spool:
        exporter = killable_exporter.make_exporter(server, spool, clock, Metrics())
        ship = shipper("state-exporter", spool, sink, clock)
        for step in range(DAYS * DAY_SECONDS // POLL_SECONDS):
            turn = (step // 42) % 2  # every seven hours
            turns += server.rows["system.metrics.ReadonlyReplica"] != str(turn)
            server.rows["system.metrics.ReadonlyReplica"] = str(turn)
            await exporter.tick()
            clock.second += POLL_SECONDS
            if step % 6 == 0:
                await ship.attempt()
        await caught_up(ship, spool, sink)
    recorded = [msgspec.json.decode(body, type=StateEvent).data for body in sink.stored.values()]
    kinds = Counter(one.kind for one in recorded)
    print(f"{kinds}, sequences up to {recorded[-1].sequence}")
    transitions = [one for one in recorded if one.kind == "transition"]
    assert [one.transition for one in transitions] == list(range(1, turns + 2))
    assert [bool(one.reasons) for one in transitions] == [n % 2 == 1 for n in range(turns + 1)]
    assert kinds["heartbeat"] == 1
    assert max(recorded, key=lambda one: one.sequence).kind == "heartbeat"
    assert {one.lost_transitions for one in recorded} == {0}


Client = TestClient[web.BaseRequest, None]


@pytest.fixture
async def forwarding(
    memory: Path,
) -> AsyncIterator[tuple[SimClock, Spool, HeartbeatSender, Client]]:
    clock = make_clock(0)
    origin = Origin("org", "svc", "eu-west-1", "replica-0")
    rules = Rules(
        origin=origin,
        selector=parse('severity="critical"'),
        watchdog=parse('alertname="Watchdog"'),
        allowed=Allowed(labels=["alertname"], annotations=["summary"]),
        reminder_seconds=HOUR_SECONDS,
        reopen_seconds=360,
    )
    async with Spool(memory, max_bytes=256 << 10, clock=clock) as spool:
        counts = Counts(Metrics(), "alert-forwarder")
        relay = Relay(rules, spool, clock, counts)
        heartbeat = HeartbeatSender(
            origin, relay, spool, clock, intervals=HeartbeatIntervals(60, 300)
        )
        webhook = Webhook(relay, ReloadableSecret(WEBHOOK_TOKEN), counts)
        client: Client = TestClient(RawTestServer(webhook.handle))
        async with client:
            yield clock, spool, heartbeat, client


async def test_alerts_are_refused_when_full_and_no_watchdog_is_replayed(
    forwarding: tuple[SimClock, Spool, HeartbeatSender, Client],
) -> None:
    clock, spool, heartbeat, client = forwarding
    sink, stored, refused = Down(), [], 0
    ship = shipper("alert-forwarder", spool, sink, clock)
    for hour in range(DAYS * 24):
        now_ms = clock.wall_ns() // 1_000_000
        for name in (f"alert-{hour}", "Watchdog"):
            body = notification(name, now_ms if name != "Watchdog" else 1, None)
            async with client.post(PATH, json=body, headers=WEBHOOK_HEADERS) as response:
                assert response.status in {200, 503}
                refused += response.status == 503
                stored += [name] if response.status == 200 and name != "Watchdog" else []
        await ship.attempt()
        clock.second += HOUR_SECONDS
    await caught_up(ship, spool, sink)
    await heartbeat.send()
    await caught_up(ship, spool, sink)
    events = [msgspec.json.decode(body) for body in sink.stored.values()]
    kinds = Counter(event["type"] for event in events)
    names = [e["data"]["labels"]["alertname"] for e in events if e["type"] == "byoc.alert.v1"]
    print(f"{len(stored)} stored, {refused} refused; {dict(kinds)}")
    assert names == stored
    assert refused > 0
    assert kinds["byoc.alert.watchdog.v1"] <= 1
