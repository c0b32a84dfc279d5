"""Count the alerts that reach a faulty receiver twice: `python -m lab.real.wire_doubles`.

One sender posts numbered alerts, each until it is answered 200. The receiver answers 200, 503 or
nothing, resets the connection, or stores a request and then loses the answer. The forwarder is
killed with SIGKILL and started again. When all was sent, the faults end and the backlog drains.
One line of JSON per seed; exit 1 if an alert is lost, late, or has two ids or a changed body, or if
more than `--most` numbers came twice. A seed takes about 80 s. Loopback only; no root.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from lab.fakes.http import WEBHOOK_HEADERS, WEBHOOK_TOKEN
from lab.real.parts.process import free_port

MIX = {"ok": 50, "503": 20, "reset": 12, "stored_then_reset": 12, "hang": 3, "stored_then_hang": 3}
PACE_SECONDS = 1 / 250  # between two alerts
QUIET_SECONDS = 5.0  # without a request after all has arrived
LONGEST_SECONDS = 240.0
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


class Receiver:
    """The control plane with its faults, and what it has stored."""

    def __init__(self, seed: int) -> None:
        self.faulty = True
        self.order: list[int] = []  # numbers as they were stored, repeats included
        self.ids: dict[int, set[str]] = defaultdict(set)  # event ids
        self.deliveries: dict[int, set[str]] = defaultdict(set)  # webhook-ids
        self.bodies: dict[str, set[bytes]] = defaultdict(set)  # by webhook-id
        self.answers: Counter[str] = Counter()
        self._rng = random.Random(seed)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        how = self._rng.choices(list(MIX), list(MIX.values()))[0] if self.faulty else "ok"
        self.answers[how] += 1
        if how == "ok" or how.startswith("stored"):
            self._store(request.headers["webhook-id"], body)
        if how.endswith("hang"):
            await asyncio.sleep(6)
        if how.endswith(("hang", "reset")) and request.transport:  # None: the sender has gone
            request.transport.abort()
        proof = {"webhook-id": request.headers["webhook-id"]}
        return web.Response(status=503 if how == "503" else 200, headers=proof)

    def _store(self, delivery: str, body: bytes) -> None:
        self.bodies[delivery].add(body)
        found = msgspec.json.decode(body)
        for event in found if isinstance(found, list) else [found]:
            if match := re.search(r"A(\d+)Z", json.dumps(event)):
                number = int(match[1])
                self.order.append(number)
                self.ids[number].add(event["id"])
                self.deliveries[number].add(delivery)

    def verdict(self, count: int) -> dict[str, Any]:
        first = list(dict.fromkeys(self.order))
        highest = late = 0
        for number in first:
            late += number < highest
            highest = max(highest, number)
        counts = Counter(self.order)
        return {
            "sent": count,
            "lost": count - len(first),
            "late": late,
            "doubled": sum(times > 1 for times in counts.values()),
            "extra_copies": len(self.order) - len(first),
            "under_two_event_ids": sum(len(ids) > 1 for ids in self.ids.values()),
            "under_two_webhook_ids": sum(len(ids) > 1 for ids in self.deliveries.values()),
            "webhook_ids_with_two_bodies": sum(len(one) > 1 for one in self.bodies.values()),
            "answers": dict(sorted(self.answers.items())),
        }


class Forwarder:
    """The daemon as a process that is killed and started again."""

    def __init__(self, directory: Path, url: str) -> None:
        self.port = free_port()
        self._environ = {
            "PATH": os.environ["PATH"],
            "BYOC_ORGANIZATION_ID": "org",
            "BYOC_SERVICE_ID": "svc",
            "BYOC_REGION": "eu-west-1",
            "BYOC_STATE_DIR": str(directory),
            "BYOC_LISTEN": f"127.0.0.1:{free_port()}",
            "BYOC_LOG_LEVEL": "error",
            "BYOC_ALERTS_LISTEN": f"127.0.0.1:{self.port}",
            "BYOC_ALERTS_URL": url,
            "BYOC_ALERTS_TOKEN": "token",
            "BYOC_ALERTS_SIGNING_SECRET": SECRET,
            "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
            "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
            "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
            "BYOC_ALERTS_ANNOTATIONS": "summary",
            "BYOC_ALERTS_TIMEOUT_SECONDS": "2",
        }
        self._child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        command = (sys.executable, "-m", "byoc_agents.app.cli", "run", "alert-forwarder")
        self._child = await asyncio.create_subprocess_exec(*command, env=self._environ)

    async def kill(self) -> None:
        assert self._child
        self._child.kill()
        await self._child.wait()


def notification(number: int) -> bytes:
    alert = {
        "status": "firing",
        "labels": {"alertname": f"A{number}Z", "severity": "critical"},
        "annotations": {"summary": "x" * 1000},
        "startsAt": "2026-11-23T19:05:54.988Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": f"{number:016x}",
    }
    return json.dumps({"version": "4", "receiver": "byoc", "alerts": [alert]}).encode()


async def post_all(port: int, count: int) -> None:
    """Post each number until it is answered 200, one after another."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
        for number in range(1, count + 1):
            while not await _post(session, port, notification(number)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            await asyncio.sleep(PACE_SECONDS)


async def _post(session: aiohttp.ClientSession, port: int, body: bytes) -> bool:
    try:
        async with session.post(
            f"http://127.0.0.1:{port}/v1/alerts", data=body, headers=WEBHOOK_HEADERS
        ) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def kill_often(forwarder: Forwarder, kills: int, seconds: float, seed: int) -> None:
    rng = random.Random(seed + 1)
    for _ in range(kills):
        await asyncio.sleep(rng.uniform(0.3, 2 * seconds / kills - 0.3))
        await forwarder.kill()
        await asyncio.sleep(0.2)
        await forwarder.start()


async def run(seed: int, count: int, kills: int) -> dict[str, Any]:
    """Run one seed; return its figures."""
    receiver = Receiver(seed)
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    with tempfile.TemporaryDirectory(prefix="wire-doubles-") as directory:
        forwarder = Forwarder(Path(directory), f"http://127.0.0.1:{port}/")
        await forwarder.start()
        try:
            seconds = max(count * PACE_SECONDS, kills * 1.0)
            killing = asyncio.create_task(kill_often(forwarder, kills, seconds, seed))
            await post_all(forwarder.port, count)
            await killing
            await asyncio.sleep(3)
            receiver.faulty = False
            await settled(receiver, count)
        finally:
            await forwarder.kill()
            await runner.cleanup()
    return {"seed": seed, **receiver.verdict(count)}


async def settled(receiver: Receiver, count: int) -> None:
    """Wait until everything has arrived."""
    loop = asyncio.get_running_loop()
    end, seen, since = loop.time() + LONGEST_SECONDS, -1, loop.time()
    while loop.time() < end:
        if seen != len(receiver.order):
            seen, since = len(receiver.order), loop.time()
        if len(set(receiver.order)) == count and loop.time() - since > QUIET_SECONDS:
            return
        await asyncio.sleep(0.25)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.real.wire_doubles")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 21, 33])
    parser.add_argument("--count", type=int, default=5000, help="alerts")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--most", type=int, default=50, help="numbers that may come twice")
    options = parser.parse_args(argv)
    code = 0
    for seed in options.seeds:
        found = asyncio.run(run(seed, options.count, options.kills))
        print(json.dumps(found), flush=True)
        never = ("lost", "late", "under_two_event_ids", "webhook_ids_with_two_bodies")
        code |= any(found[name] for name in never) or found["doubled"] > options.most
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
