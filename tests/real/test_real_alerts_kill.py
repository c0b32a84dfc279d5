"""The oracle: a forwarder killed with SIGKILL at any moment, hundreds of times.

Every notification that was answered 200 is delivered, nothing is invented, the bytes of an event
never differ, and of each alert the beginning comes before the end. The daemon is forked from a
process that has imported everything, so that a start costs milliseconds instead of a second.
The default number takes less than 90 s on a quiet machine of two cores (0.15 to 0.3 s per run, as
busy as the machine is); `ALERT_KILLS=3000` is for thousands, the command is in
docs/contracts/alerts.md.
"""

import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from byoc_agents.app.clock import SystemClock
from lab.fakes.http import WEBHOOK_HEADERS, WEBHOOK_TOKEN
from lab.real.parts.process import free_port
from lab.receiver import Receiver, listening

KILLS = int(os.environ.get("ALERT_KILLS", "300"))
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
START_SECONDS = 0.2  # from the fork to listening, about; a fifth of the runs end within it
RUN_SECONDS = 0.03  # at most, after the first accepted notification; one takes some 5 ms
PATIENCE_SECONDS = 60
FORKER = """
import os, sys
from byoc_agents.app import run
from byoc_agents.alerts import daemon as daemon
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.exit(run.main(["alert-forwarder"], None))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


@dataclass
class Runs:
    """Starts one forwarder after the other."""

    forker: asyncio.subprocess.Process
    pid: int | None = None  # of the forwarder that runs

    async def begin(self) -> None:
        assert self.forker.stdin is not None
        self.forker.stdin.write(b"go\n")
        self.pid = int(await self._line())

    async def end(self, number: signal.Signals) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)
        assert await self._line() == b"gone\n"
        self.pid = None

    async def close(self) -> None:
        """End the forker, and the forwarder that a failed test left running."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        assert self.forker.stdin is not None
        self.forker.stdin.close()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.forker.wait()

    async def _line(self) -> bytes:
        assert self.forker.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.forker.stdout.readline()


@dataclass
class Alertmanager:
    """Sends notifications as Alertmanager does: again after 5xx and broken connections."""

    url: str
    session: aiohttp.ClientSession
    rng: random.Random
    sent: set[str] = field(default_factory=set)  # fingerprint and status, whatever the response was
    stored: set[str] = field(default_factory=set)  # answered with 200
    number: int = 0
    last_response: str = "none yet"
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        while True:
            self.number += 1
            group = [self.number * 10 + one for one in range(self.rng.randint(1, 3))]
            for status in ("firing", "resolved"):
                await self.notify([alert(one, status) for one in group])

    async def notify(self, alerts: list[dict[str, Any]]) -> None:
        keys = {f"{one['fingerprint']} {one['status']}" for one in alerts}
        body = json.dumps({"version": "4", "receiver": "byoc", "alerts": alerts}).encode()
        self.sent |= keys
        while not await self.post(body):  # noqa: ASYNC110  the other side is a process
            await asyncio.sleep(0.002)
        self.stored |= keys
        self.answered.set()

    async def post(self, body: bytes) -> bool:
        try:
            async with self.session.post(self.url, data=body, headers=WEBHOOK_HEADERS) as response:
                self.last_response = f"{response.status} {await response.text()}"
                return response.status == 200
        except aiohttp.ClientError as error:
            self.last_response = repr(error)
            return False


def alert(number: int, status: str) -> dict[str, Any]:
    return {
        "status": status,
        "labels": {"alertname": f"A{number}", "severity": "critical"},
        "annotations": {"summary": "x" * 200},
        "startsAt": "2026-11-23T19:05:54.988Z",
        "endsAt": "2026-11-23T19:10:14.988Z",
        "fingerprint": f"{number:016x}",
    }


@dataclass
class Oracle:
    """The control plane's observations, and the rules they must meet."""

    order: list[str] = field(default_factory=list)
    bytes_of: dict[str, bytes] = field(default_factory=dict)
    differing: set[str] = field(default_factory=set)

    def on_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "byoc.alert.v1":
            number = int(event["data"]["labels"]["alertname"].removeprefix("A"))
            self.order.append(f"{number:016x} {event['data']['status']}")

    def compare(self, bodies: list[bytes]) -> set[str]:
        """Return the ids of events that came with other bytes a second time."""
        for body in bodies:
            whole = body if body.startswith(b"[") else b"[" + body + b"]"
            for event in msgspec.json.decode(whole, type=list[msgspec.Raw]):
                event_id = msgspec.json.decode(event)["id"]
                if self.bytes_of.setdefault(event_id, bytes(event)) != bytes(event):
                    self.differing.add(event_id)
        return self.differing


@pytest.fixture
def webhook() -> str:
    return f"http://127.0.0.1:{free_port()}/v1/alerts"


@pytest.fixture
async def runs(tmp_path: Path, plane: tuple[Receiver, str], webhook: str) -> AsyncIterator[Runs]:
    environment = {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REGION": "eu-west-1",
        "BYOC_STATE_DIR": str(tmp_path / "state"),
        "BYOC_LISTEN": "127.0.0.1:0",
        "BYOC_LOG_LEVEL": "error",
        "BYOC_ALERTS_LISTEN": webhook.split("/")[2],
        "BYOC_ALERTS_URL": plane[1],
        "BYOC_ALERTS_TOKEN": "tok",
        "BYOC_ALERTS_SIGNING_SECRET": SECRET,
        "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
        "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
        "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
        "BYOC_ALERTS_ANNOTATIONS": "summary",
        "BYOC_ALERTS_LABELS": "alertname",
    }
    forker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        FORKER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | environment,
    )
    runs = Runs(forker)
    try:
        yield runs
    finally:
        await runs.close()


@pytest.fixture
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture
async def plane(oracle: Oracle) -> AsyncIterator[tuple[Receiver, str]]:
    """Fail a fifth of the deliveries, so that there is nearly always something to be sent."""
    rng = random.Random(7)

    def fault(_number: int, _request: web.Request) -> web.Response | None:
        return web.Response(status=503) if rng.random() < 0.2 else None

    receiver = Receiver("tok", SECRET, clock=SystemClock(), on_event=oracle.on_event, fault=fault)
    async with listening(receiver) as url:
        yield receiver, url


async def test_whatever_was_accepted_is_delivered_however_often_it_is_killed(
    runs: Runs, plane: tuple[Receiver, str], oracle: Oracle, webhook: str
) -> None:
    rng = random.Random(11)
    receiver, _ = plane
    fruitful = 0
    async with aiohttp.ClientSession() as session:
        sender = Alertmanager(webhook, session, rng)
        sending = asyncio.create_task(sender.run())
        try:
            for _ in range(KILLS):
                fruitful += await run_once(runs, sender, rng)
        finally:
            sending.cancel()
            await asyncio.wait([sending])
    await runs.begin()
    print(f"undelivered after the last kill: {len(sender.stored - set(oracle.order))}")
    delivered = -1
    while not sender.stored <= set(oracle.order):
        assert len(oracle.order) > delivered, f"undelivered: {sender.stored - set(oracle.order)}"
        delivered = len(oracle.order)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(oracle.order) == delivered:  # noqa: ASYNC110  the wait for a process
                await asyncio.sleep(0.05)
    await runs.end(signal.SIGTERM)
    print(
        f"kills={KILLS} with_accepts={fruitful} accepted={len(sender.stored)}"
        f" delivered={len(oracle.order)} redelivered={receiver.duplicates}"
    )
    assert fruitful > KILLS / 4, "the runs were too short to prove anything"
    assert len(oracle.order) == len(set(oracle.order))
    assert set(oracle.order) <= sender.sent | began(sender.sent), "something was invented"
    assert not oracle.compare(receiver.bodies), "the bytes of an event have changed"
    place = {key: number for number, key in enumerate(oracle.order)}
    ends = [key for key in place if key.endswith("resolved")]
    assert all(place[key.replace("resolved", "firing")] < place[key] for key in ends)


async def run_once(runs: Runs, sender: Alertmanager, rng: random.Random) -> bool:
    """Start, let it work, kill. Return whether it accepted anything."""
    stored = len(sender.stored)
    sender.answered.clear()
    await runs.begin()
    try:
        await moment(rng, sender.answered)
    except TimeoutError:
        pytest.fail(f"nothing was accepted for {PATIENCE_SECONDS} s: {sender.last_response}")
    await runs.end(signal.SIGKILL)
    return len(sender.stored) > stored


async def moment(rng: random.Random, answered: asyncio.Event) -> None:
    """Wait for the moment to kill: mostly between accepting and sending, also while starting."""
    if rng.random() < 0.2:
        return await asyncio.sleep(rng.uniform(0, START_SECONDS))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await answered.wait()
    return await asyncio.sleep(rng.uniform(0, RUN_SECONDS))


def began(keys: set[str]) -> set[str]:
    """Return the beginnings that are reported together with an end."""
    return {key.replace("resolved", "firing") for key in keys}
