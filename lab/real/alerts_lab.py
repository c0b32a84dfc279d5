"""Run the forwarder with Alertmanager's configuration, a control plane and its process."""

import asyncio
import base64
import datetime as dt
import json
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from byoc_agents.app.clock import SystemClock
from lab.real.parts import prometheus
from lab.real.parts.process import DIRECT, RealProcess, free_port
from lab.receiver import Receiver, listening

TOKEN, HOOK = "token-of-the-plane", "token-of-alertmanager"
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
PATIENCE_SECONDS = 60
AM_CONFIG = """
route:
  receiver: byoc
  group_by: [alertname]
  group_wait: 0s
  group_interval: 1s
  repeat_interval: 1h
receivers:
  - name: byoc
    webhook_configs:
      - url: http://127.0.0.1:{port}/v1/alerts
        send_resolved: true
        http_config: {{authorization: {{type: Bearer, credentials: {hook}}}}}
"""
RELAYED = 'byoc_alerts_received_total{daemon="alert-forwarder",outcome="relayed"}'
DUPLICATES = 'byoc_alerts_received_total{daemon="alert-forwarder",outcome="duplicate"}'


@dataclass
class Plane:
    """The control plane in the test's loop."""

    url: str = ""
    fault: Callable[[int, web.Request], web.Response | None] = lambda _n, _r: None
    seen: list[dict[str, Any]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    receiver: Receiver = field(init=False)

    def __post_init__(self) -> None:
        self.receiver = Receiver(
            TOKEN,
            SECRET,
            clock=SystemClock(),
            on_event=self.on_event,
            fault=self.answered,
        )

    def answered(self, number: int, request: web.Request) -> web.Response | None:
        return self.fault(number, request)

    def on_event(self, event: dict[str, Any]) -> None:
        self.seen.append(event)
        self.changed.set()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.seen if event["type"] == kind]

    def delivered(self) -> list[tuple[str, str]]:
        alerts = self.of("byoc.alert.v1")
        return [(data["labels"]["alertname"], data["status"]) for data in alerts]

    async def until(self, reached: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
        async with asyncio.timeout(seconds):
            while not reached():
                self.changed.clear()
                await self.changed.wait()


@contextmanager
def pair(directory: Path, config: str, *other: str, gossip: bool) -> Iterator[list[RealProcess]]:
    """Run two Alertmanagers, with or without gossip between them.

    The second has the configuration `other` if it is set.
    """
    configs = [config, *(other or (config,))]
    peers = [prometheus.alertmanager(directory / f"am-{n}", configs[n]) for n in range(2)]
    gates = [free_port(), free_port()]
    for number, peer in enumerate(peers if gossip else []):
        peer.command.remove("--cluster.listen-address=")
        peer.command += [
            f"--cluster.listen-address=127.0.0.1:{gates[number]}",
            f"--cluster.peer=127.0.0.1:{gates[1 - number]}",
            "--cluster.peer-timeout=2s",
            "--cluster.settle-timeout=2s",
        ]
    with peers[0], peers[1]:
        yield peers


@asynccontextmanager
async def control_plane() -> AsyncIterator[Plane]:
    """Serve the control plane in this loop."""
    plane = Plane()
    async with listening(plane.receiver) as url:
        plane.url = url
        yield plane


@dataclass
class Forwarder:
    """The real daemon in its own process."""

    process: RealProcess
    webhook_port: int


@asynccontextmanager
async def daemon(url: str, directory: Path, **settings: str) -> AsyncIterator[Forwarder]:
    """Run the forwarder, sending to `url`."""
    port, webhook_port = free_port(), free_port()
    (directory / "token").write_text(TOKEN)
    process = RealProcess(
        name="alert-forwarder",
        command=[sys.executable, "-m", "byoc_agents.app.cli", "run", "alert-forwarder"],
        port=port,
        ready_path="/readyz",
        log=directory / "forwarder.log",
        environment={
            "BYOC_ORGANIZATION_ID": "org",
            "BYOC_SERVICE_ID": "svc",
            "BYOC_REGION": "eu-west-1",
            "BYOC_STATE_DIR": str(directory / "state"),
            "BYOC_LISTEN": f"127.0.0.1:{port}",
            "BYOC_ALERTS_LISTEN": f"127.0.0.1:{webhook_port}",
            "BYOC_ALERTS_URL": url,
            "BYOC_ALERTS_TOKEN_FILE": str(directory / "token"),
            "BYOC_ALERTS_SIGNING_SECRET": SECRET,
            "BYOC_ALERTS_WEBHOOK_TOKEN": HOOK,
            "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
            "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
            "BYOC_ALERTS_ANNOTATIONS": "summary",
        }
        | settings,
    )
    await asyncio.to_thread(process.start)
    try:
        yield Forwarder(process, webhook_port)
    finally:
        await asyncio.to_thread(process.stop)  # its last events reach the plane in this loop


def post(url: str, value: object) -> None:
    body = json.dumps(value).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=10) as response:
        assert response.status == 200


async def raise_alert(alertmanager: RealProcess, name: str, *, ended: bool = False) -> None:
    """Post an alert as Prometheus does: with a start, and an end in the future or in the past."""
    now = dt.datetime.now(tz=dt.UTC)
    alert = {
        "labels": {"alertname": name, "severity": "critical", "instance": "secret-instance"},
        "annotations": {"summary": f"{name} happened", "description": "secret-description"},
        "startsAt": f"{now:%Y-%m-%d}T00:00:00Z",
        "endsAt": (now + dt.timedelta(minutes=-1 if ended else 5)).isoformat(),
        "generatorURL": "http://secret-prometheus/graph",
    }
    await asyncio.to_thread(post, f"{alertmanager.url}/api/v2/alerts", [alert])


def metric(forwarder: Forwarder, name: str) -> float:
    with DIRECT.open(f"{forwarder.process.url}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


async def reached(forwarder: Forwarder, name: str, value: float) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await asyncio.to_thread(metric, forwarder, name) < value:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # another process: nothing tells when
