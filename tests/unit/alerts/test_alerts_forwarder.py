"""The alert forwarder end to end, in one process."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.daemon import forwarder, https_sink, listen
from byoc_agents.alerts.forwarder import Forwarder
from byoc_agents.alerts.identity import identities
from byoc_agents.alerts.payload import read
from byoc_agents.alerts.settings import Settings
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.daemon import Daemon
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.settings import CoreSettings
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.spool_file import OperationKind
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import ConfigError
from byoc_agents.message import Message, Outcome
from lab.receiver import Receiver, listening, rejected
from tests.unit.alerts.forwarder_settings import INWARD, OUTWARD, SECRET, settings
from tests.unit.alerts.webhook_harness import eventually

DATA = Path(__file__).parent / "data"
FIRING = (DATA / "alertmanager-webhook-firing-group3.json").read_bytes()
RESOLVED = (DATA / "alertmanager-webhook-resolved-group.json").read_bytes()


class QuickClock(SystemClock):
    """The system clock, with durations that are a hundred times shorter."""

    def boot_ns(self) -> int:
        return 100 * super().boot_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 100)


class NoLedger:
    """A fake ledger that writes nothing."""

    async def intent(self, _destination: str, _batch: Sequence[Message]) -> int:
        return 0

    async def receipt(
        self, _intent: int, _batch: Sequence[Message], _outcomes: Sequence[Outcome]
    ) -> None:
        return None


@dataclass
class Plane:
    """A control plane that answers `status`: unavailable at first."""

    status: int = 503
    rejected: bytes = b""  # a delivery that contains it gets a 422, whatever `status` is
    wire: list[bytes] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    receiver: Receiver = field(init=False)

    def __post_init__(self) -> None:
        self.receiver = Receiver(
            OUTWARD, SECRET, clock=SystemClock(), on_event=self.on_event, fault=self.fault
        )

    def fault(self, _number: int, request: web.Request) -> web.Response | None:
        marked = self.rejected and self.rejected in self.receiver.last_body
        if marked or self.status == 422:
            return rejected(request, 422)
        return web.Response(status=self.status) if self.status != 200 else None

    def on_event(self, event: dict[str, Any]) -> None:
        self.seen.append(event)
        self.changed.set()

    def alerts(self) -> list[dict[str, Any]]:
        return [event for event in self.seen if event["type"] == "byoc.alert.v1"]

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not reached():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Harness:
    """A running forwarder between a webhook client and a control plane."""

    directory: Path
    plane: Plane
    receiver: Receiver
    settings: Settings
    core: CoreSettings
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    session: aiohttp.ClientSession = field(init=False)
    daemon: Daemon = field(init=False)
    task: asyncio.Task[None] = field(init=False)

    async def start(self) -> None:
        clock, metrics = QuickClock(), Metrics()
        spool = Spool(self.directory, max_bytes=1 << 20, clock=clock)
        await self.stack.enter_async_context(spool)
        self.session = await self.stack.enter_async_context(aiohttp.ClientSession())
        source = forwarder(
            self.core, self.settings, spool, clock, Counts(metrics, "alert-forwarder")
        )
        shipper = Shipper(
            "alert-forwarder",
            spool=spool,
            sink=https_sink(self.settings, self.session, clock),
            ledger=NoLedger(),
            clock=clock,
            metrics=metrics,
        )
        self.daemon = Daemon("alert-forwarder", source, spool, shipper, clock, metrics)
        self.task = asyncio.create_task(self.daemon.run(self.stop, grace_seconds=2))
        await eventually(lambda: self.daemon.status()["webhook_address"])

    async def end(self) -> None:
        self.stop.set()
        await self.task
        await self.stack.aclose()
        self.stop, self.stack = asyncio.Event(), AsyncExitStack()

    async def notify(self, body: bytes, token: str = INWARD) -> int:
        url = f"http://{self.daemon.status()['webhook_address']}/v1/alerts"
        headers = {"Authorization": f"Bearer {token}"}
        async with self.session.post(url, data=body, headers=headers) as response:
            return response.status


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    plane = Plane()
    receiver = plane.receiver
    async with listening(receiver) as url:
        core, own = settings(BYOC_ALERTS_URL=url)
        harness = Harness(tmp_path, plane, receiver, own, core)
        await harness.start()
        yield harness
        await harness.end()


async def test_alerts_are_delivered_in_order_after_an_outage_of_the_control_plane(
    harness: Harness,
) -> None:
    assert [await harness.notify(body) for body in (FIRING, FIRING, RESOLVED)] == [200] * 3
    harness.plane.status = 200
    await harness.plane.until(lambda: len(harness.plane.alerts()) == 5)
    received = [(e["data"]["fingerprint"], e["data"]["status"]) for e in harness.plane.alerts()]
    first, second, third = (
        identities(["f" * 32], "byoc")[0].fingerprint_of(one) for one in read(FIRING).alerts
    )
    assert received == [
        (first, "firing"),
        (second, "firing"),
        (third, "firing"),
        (second, "resolved"),
        (third, "resolved"),
    ]
    ended = harness.plane.alerts()[3]["data"]
    assert ended["starts_at"] == "2026-11-23T19:05:54.988Z"
    assert ended["ends_at"] == "2026-11-23T19:10:14.988Z"


async def test_a_restart_between_accept_and_send_loses_and_repeats_nothing(
    harness: Harness,
) -> None:
    assert await harness.notify(FIRING) == 200
    await harness.end()
    await harness.start()
    assert await harness.notify(FIRING) == 200
    harness.plane.status = 200
    await harness.plane.until(lambda: len(harness.plane.alerts()) == 3)
    assert harness.receiver.duplicates == 0


async def test_a_control_plane_that_rejects_everything_is_held(harness: Harness) -> None:
    """The forwarder's heartbeat is rejected too, so nothing becomes a dead letter."""
    harness.plane.status = 422
    assert await harness.notify(FIRING) == 200
    await eventually(lambda: harness.daemon.shipper.last_error is not None)
    assert harness.daemon.spool.totals.dead_letters == 0
    harness.plane.status = 200
    await harness.plane.until(lambda: len(harness.plane.alerts()) == 3)
    assert harness.daemon.spool.totals.dead_letters == 0


async def test_an_event_rejected_for_good_is_kept_and_the_others_are_delivered(
    harness: Harness,
) -> None:
    harness.plane.status, harness.plane.rejected = 200, b"byoc.alert.v1"
    assert await harness.notify(FIRING) == 200
    await eventually(lambda: harness.daemon.spool.totals.dead_letters >= 3)
    harness.plane.rejected = b""
    assert await harness.notify(RESOLVED) == 200
    await harness.plane.until(lambda: len(harness.plane.alerts()) == 2)
    letters = [
        dead
        for dead in await harness.daemon.spool.dead_letters()
        if "alert.v1" in dead.message.type
    ]
    assert [letter.reason for letter in letters] == ["rejected"] * 3
    for letter in letters:
        assert await harness.daemon.spool.requeue(letter.message.id)
    await harness.plane.until(lambda: len(harness.plane.alerts()) == 5)


async def test_heartbeats_are_sent_until_the_planned_stop(harness: Harness) -> None:
    harness.plane.status = 200
    await harness.plane.until(lambda: len(harness.plane.seen) >= 2)
    assert await harness.notify(FIRING) == 200
    await harness.plane.until(lambda: harness.plane.seen[-1]["data"].get("last_notification_at"))
    harness.stop.set()
    await harness.task
    heartbeats = [e["data"] for e in harness.plane.seen if e["type"] == "byoc.alert.heartbeat.v1"]
    sequences = [one["sequence"] for one in heartbeats]
    assert sequences == sorted(set(sequences))
    assert [one["stopping"] for one in heartbeats] == [False] * (len(heartbeats) - 1) + [True]


async def test_nothing_but_allowed_fields_is_on_the_wire_or_in_the_logs(harness: Harness) -> None:
    hidden = "hidden-3141"
    body = json.loads(FIRING)
    body |= {name: f"{hidden} {name}" for name in ("externalURL", "groupKey", "new", "status")}
    body["commonLabels"] = {"x": hidden}
    for alert in body["alerts"]:
        alert["labels"]["instance"] = alert["annotations"]["description"] = hidden
        alert["generatorURL"] = f"http://{hidden}"
    with structlog.testing.capture_logs() as logs:
        assert await harness.notify(json.dumps(body).encode()) == 200
        assert await harness.notify(hidden.encode()) == 400
        assert await harness.notify(b"{}", token=hidden) == 401
        harness.plane.status = 200
        await harness.plane.until(lambda: len(harness.plane.alerts()) == 3)
        harness.stop.set()
        await harness.task
    wire = b"".join(harness.receiver.bodies)
    assert b"ClickHouseDown" in wire
    assert hidden.encode() not in wire
    assert {"webhook.accepted", "webhook.refused", "message.sent"} <= {
        line["event"] for line in logs
    }
    assert not any(secret in repr(logs) for secret in (hidden, INWARD, OUTWARD, SECRET))


async def test_a_full_spool_is_503_until_there_is_room(tmp_path: Path) -> None:
    def small(store: SpoolStore) -> None:
        store.max_bytes = 9000

    plane = Plane()
    receiver = plane.receiver
    async with listening(receiver) as url:
        core, own = settings(BYOC_ALERTS_URL=url, BYOC_ALERTS_MATCHERS="{}")
        harness = Harness(tmp_path, plane, receiver, own, core)
        await harness.start()
        bodies = [FIRING.replace(b"19:05:54.988Z", b"19:%02d:54.988Z" % n) for n in range(10)]
        await harness.daemon.spool.run(small, OperationKind.READ)
        statuses = [await harness.notify(body) for body in bodies]
        assert statuses == [200] * statuses.count(200) + [503] * statuses.count(503)
        assert 0 < statuses.count(200) < 10
        plane.status = 200
        await plane.until(lambda: len(plane.alerts()) == 3 * statuses.count(200))
        assert [await harness.notify(body) for body in bodies[:1]] == [200]
        await harness.end()
    assert len(plane.alerts()) == 3 * statuses.count(200)


async def test_the_webhook_stays_open_while_a_failed_task_is_started_again(
    harness: Harness,
) -> None:
    """Once the daemons run, the kernel refuses new listening sockets."""
    before = harness.daemon.status()["webhook_address"]
    source = harness.daemon.source
    assert isinstance(source, Forwarder)
    await source.listen()  # as the second `run` does
    assert harness.daemon.status()["webhook_address"] == before
    assert await harness.notify(FIRING) == 200


async def test_an_address_in_use_is_a_configuration_error(tmp_path: Path) -> None:
    clock, metrics = SystemClock(), Metrics()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
        core, own = settings(BYOC_ALERTS_LISTEN=f"{host}:{port}")
        async with Spool(tmp_path, max_bytes=1 << 20, clock=clock) as spool:
            source = forwarder(core, own, spool, clock, Counts(metrics, "alert-forwarder"))
            expected = f"BYOC_ALERTS_LISTEN: {host}:{port}: .*expected a free host:port"
            with pytest.raises(ConfigError, match=expected):
                await listen(source, own.listen)
            taken.close()
            await listen(source, own.listen)
            assert source.status()["webhook_address"] == f"{host}:{port}"
            await source.close()
