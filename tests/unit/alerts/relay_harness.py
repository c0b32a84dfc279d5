"""A relay with a real or fake spool, and the alerts to send to it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from byoc_agents.alerts import matchers
from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.events import Allowed, Origin
from byoc_agents.alerts.relay import Relay, Rules
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.metrics import Metrics
from byoc_agents.durable.model import Totals, WriteBatch
from byoc_agents.message import Message

START_MS = 1795460754988
RULES = Rules(
    origin=Origin("org", "svc", "us-east-1", "pod-0"),
    selector=matchers.parse('severity=~"critical|warning"'),
    watchdog=matchers.parse('alertname="Watchdog"'),
    allowed=Allowed(("alertname", "severity", "cluster", "team"), ("summary",)),
    reminder_seconds=900,
    reopen_seconds=360,
)


class Clock(SystemClock):
    """A clock that only advances when a test sets `ms`."""

    def __init__(self) -> None:
        self.ms = START_MS + 30_000

    def wall_ns(self) -> int:
        return self.ms * 1_000_000

    def boot_ns(self) -> int:
        return self.ms * 1_000_000


class Memory:
    """A fake spool: keeps commits in memory, or raises `refusal`."""

    def __init__(self) -> None:
        self.corruptions = 0
        self.messages: list[Message] = []
        self.kept: dict[str, bytes] = {}
        self.refusal: Exception | None = None

    async def state(self, prefix: str = "") -> dict[str, bytes]:
        return {key: value for key, value in self.kept.items() if key.startswith(prefix)}

    async def put(self, *messages: Message) -> None:
        await self.commit(WriteBatch(messages=messages))

    @property
    def totals(self) -> Totals:
        return Totals(events=len(self.messages))

    async def commit(self, change: WriteBatch) -> None:
        if self.refusal:
            raise self.refusal
        self.messages += change.messages
        for key, value in change.state.items():
            if value is None:
                self.kept.pop(key, None)
            else:
                self.kept[key] = value


class Harness:
    """A relay with a spool, and the messages that it stored."""

    def __init__(self, spool: Any) -> None:
        self.clock = Clock()
        self.spool = spool
        metrics = Metrics()
        self.registry = metrics.registry
        self.counts = Counts(metrics, "alert-forwarder")
        self.rules = RULES
        self.relay = self.restart()

    def restart(self) -> Relay:
        self.relay = Relay(self.rules, self.spool, self.clock, self.counts)
        return self.relay

    async def accept(self, *alerts: Mapping[str, Any], receiver: str = "byoc", **top: Any) -> int:
        return await self.relay.accept(body(*alerts, receiver=receiver, **top))

    async def events(self) -> list[dict[str, Any]]:
        if isinstance(self.spool, Memory):
            return [json.loads(message.body) for message in self.spool.messages]
        return [json.loads(message.body) for message in await self.spool.peek(1000)]

    async def reported(self) -> list[str]:
        events = await self.events()
        return [f"{e['data']['status']} {e['data']['labels']['alertname']}" for e in events]

    def outcomes(self) -> dict[str, float]:
        samples = [s for family in self.registry.collect() for s in family.samples]
        totals = [s for s in samples if s.name == "byoc_alerts_received_total"]
        return {s.labels["outcome"]: s.value for s in totals if s.value}


def body(*alerts: Mapping[str, Any], receiver: str = "byoc", **top: Any) -> bytes:
    whole = {"version": "4", "receiver": receiver, "alerts": list(alerts)} | top
    return json.dumps(whole).encode()


def alert(name: str = "Down", status: str = "firing", **changes: Any) -> dict[str, Any]:
    ended = "2026-11-23T19:10:14.988Z" if status == "resolved" else "0001-01-01T00:00:00Z"
    return {
        "status": status,
        "labels": {"alertname": name, "severity": "critical", "instance": "10.0.0.7:8123"},
        "annotations": {"summary": f"{name} is down", "description": "of db.secret"},
        "startsAt": "2026-11-23T19:05:54.988Z",
        "endsAt": ended,
        "generatorURL": "http://vm:9090/graph",
        "fingerprint": hashlib.sha256(name.encode()).hexdigest()[:16],
    } | changes
