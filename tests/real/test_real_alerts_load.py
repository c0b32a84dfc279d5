"""Load, side by side in one run: the forwarder (fsync before 200) and Alertmanager (in memory).

Both receive the same alerts and send them to a plain HTTP server. The figures are printed. The test
asserts that all alerts arrive, within bounds that also hold on a busy machine.
"""

import asyncio
import base64
import datetime as dt
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from lab.fakes.http import WEBHOOK_HEADERS, WEBHOOK_TOKEN
from lab.real.parts.process import RealProcess, free_port

pytestmark = pytest.mark.quiet
Started = Callable[[str], RealProcess]
ROUNDS = 3
ALERTS = 2000
SENDERS = 8
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
CONFIG = """
route: {{receiver: r, group_by: ["..."], group_wait: 0s, group_interval: 1m, repeat_interval: 1h}}
receivers: [{{name: r, webhook_configs: [{{url: "{url}"}}]}}]
"""


@dataclass
class Plain:
    """A receiver with little overhead: counts the distinct alert names that it receives."""

    url: str = ""
    names: set[str] = field(default_factory=set)
    posts: int = 0

    async def post(self, request: web.Request) -> web.Response:
        self.posts += 1
        value = json.loads(await request.read())
        for one in value if isinstance(value, list) else value.get("alerts", [value]):
            labels = one.get("labels") or one["data"].get("labels", {})
            self.names.add(labels.get("alertname", ""))
        proof = request.headers.get("webhook-id")  # Alertmanager sends none
        return web.Response(headers={"webhook-id": proof} if proof else {})


@pytest.fixture
async def plain() -> AsyncIterator[Plain]:
    plain = Plain()
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/", plain.post)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    plain.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield plain
    await runner.cleanup()


def alert(number: int) -> dict[str, Any]:
    now = dt.datetime.now(tz=dt.UTC)
    return {
        "status": "firing",
        "labels": {"alertname": f"A{number}", "severity": "critical", "pod": "p" * 60},
        "annotations": {"summary": "x" * 1000, "description": "y" * 2500},
        "startsAt": now.isoformat(),
        "endsAt": (now + dt.timedelta(minutes=5)).isoformat(),
        "fingerprint": f"{number:016x}",
    }


@dataclass
class Figures:
    seconds: float
    cpu_microseconds: float  # of one alert
    rss_mib: float


async def measured(
    process: RealProcess, plain: Plain, send: Callable[[int], Awaitable[None]], first: int
) -> Figures:
    """Send ALERTS from SENDERS at once; wait until all have arrived."""
    probe = psutil.Process(process.pid)
    before, start = probe.cpu_times(), time.monotonic()
    wanted = {f"A{number}" for number in range(first, first + ALERTS)}
    numbers = iter(range(first, first + ALERTS))

    async def work() -> None:
        for number in numbers:
            await send(number)

    async with asyncio.timeout(120):
        await asyncio.gather(*(work() for _ in range(SENDERS)))
        while not wanted <= plain.names:  # noqa: ASYNC110  the wait for a process
            await asyncio.sleep(0.005)
    after = probe.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    rss = probe.memory_info().rss / 1024**2
    return Figures(time.monotonic() - start, cpu * 1e6 / ALERTS, rss)


@pytest.fixture
async def forwarder(plain: Plain, tmp_path: Path) -> AsyncIterator[tuple[RealProcess, str]]:
    port, webhook = free_port(), f"127.0.0.1:{free_port()}"
    process = RealProcess(
        name="alert-forwarder",
        command=[sys.executable, "-m", "byoc_agents.app.cli", "run", "alert-forwarder"],
        port=port,
        ready_path="/readyz",
        log=tmp_path / "forwarder.log",
        environment={
            "BYOC_ORGANIZATION_ID": "org",
            "BYOC_SERVICE_ID": "svc",
            "BYOC_REGION": "eu-west-1",
            "BYOC_LOG_LEVEL": "warning",
            "BYOC_STATE_DIR": str(tmp_path / "state"),
            "BYOC_LISTEN": f"127.0.0.1:{port}",
            "BYOC_ALERTS_LISTEN": webhook,
            "BYOC_ALERTS_URL": plain.url,
            "BYOC_ALERTS_TOKEN": "tok",
            "BYOC_ALERTS_SIGNING_SECRET": SECRET,
            "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
            "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
            "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
            "BYOC_ALERTS_ANNOTATIONS": "summary",
        },
    )
    await asyncio.to_thread(process.start)
    yield process, f"http://{webhook}/v1/alerts"
    await asyncio.to_thread(process.stop)


async def test_our_hop_beside_alertmanagers(
    plain: Plain, forwarder: tuple[RealProcess, str], alertmanager: Started
) -> None:
    process, url = forwarder
    theirs = alertmanager(CONFIG.format(url=plain.url))
    async with aiohttp.ClientSession() as session:

        async def to_us(number: int) -> None:
            whole = {"version": "4", "receiver": "byoc", "alerts": [alert(number)]}
            async with session.post(url, json=whole, headers=WEBHOOK_HEADERS) as response:
                assert response.status == 200

        async def to_alertmanager(number: int) -> None:
            one = {k: v for k, v in alert(number).items() if k not in {"status", "fingerprint"}}
            async with session.post(f"{theirs.url}/api/v2/alerts", json=[one]) as response:
                assert response.status == 200

        ratios = []
        for first in range(0, ROUNDS * 2 * ALERTS, 2 * ALERTS):  # in turn: noise affects both
            ours = await measured(process, plain, to_us, first=first)
            beside = await measured(theirs, plain, to_alertmanager, first=first + ALERTS)
            ratios.append(ours.cpu_microseconds / beside.cpu_microseconds)
            for name, figures in (("forwarder", ours), ("alertmanager", beside)):
                print(
                    f"{name}: {ALERTS / figures.seconds:.0f} alerts/s delivered,"
                    f" {figures.cpu_microseconds:.0f} us CPU each, {figures.rss_mib:.0f} MiB"
                )
            print(f"ratio: delivered/s {beside.seconds / ours.seconds:.2f}, CPU {ratios[-1]:.2f}")
    # `test_real_counts.py` holds the instructions of each part to within a few percent.
    assert median(ratios) < 2.5
    assert ours.rss_mib < 80
