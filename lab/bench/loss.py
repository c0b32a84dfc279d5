"""Count lost, late and repeated alerts: `python -m lab.bench.loss [--seeds 7 21] [--write-docs]`.

One sender posts 5,000 numbered alerts to a program, each until it is answered 2xx, the next one
only then. The receiver answers 200, 503 or nothing, resets the connection, or stores a request and
then loses the response. The program is killed with SIGKILL ten times, at random, and started again.
When all was sent, the faults end and the backlog drains. Each program has the settings that lose
least, which are printed. Prints a table, and exits 1 if an alert of the forwarder is lost, late, or
has two ids or a changed body, or if more than `--most` of its numbers came twice. Three programs
run at the same time; a seed takes about five minutes with all of them. Loopback only; no root.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from lab.bench import collector, go_peers, peers, report
from lab.bench.lab import SECRET
from lab.bench.machine import measured
from lab.fakes.http import WEBHOOK_HEADERS, WEBHOOK_TOKEN
from lab.real.parts.install import ROOT
from lab.real.parts.process import PartError, RealProcess, free_port

MIX = {"ok": 50, "503": 20, "reset": 12, "stored_then_reset": 12, "hang": 3, "stored_then_hang": 3}
PACE_SECONDS = 1 / 250  # between two alerts
DOWN_SECONDS = 0.2  # after a SIGKILL
FAULTY_SECONDS = 3.0  # after the last kill and the last alert
TIMEOUT = "2s"  # of a delivery, in every program
QUIET_SECONDS = 5.0  # without a request after all has arrived
GIVE_UP_SECONDS = 40.0  # without a request, though something is missing
LONGEST_SECONDS = 240.0
RESEND_SECONDS = 10.0
RESEND_ALERTS = 100  # of one post
AT_ONCE = 3  # programs
LATER = (datetime.now(tz=UTC) + timedelta(hours=12)).isoformat()  # such an alert still fires
NUMBER = re.compile(rb"A(\d+)Z")
OURS = "alert-forwarder"
DOCS = ROOT / "docs" / "internals" / "reliability.md"
BEGIN = "<!-- loss: written by `python -m lab.bench.loss --write-docs` -->"


class Found(msgspec.Struct, kw_only=True):
    """What arrived of one program in one run."""

    program: str
    seed: int
    sent: int
    lost: int  # answered 2xx, never arrived
    late: int  # first arrived after a later number
    doubled: int  # numbers that came more than once
    extra_copies: int
    kills: int
    under_two_event_ids: int | None  # None = the program gives alerts no id
    under_two_webhook_ids: int | None
    webhook_ids_with_two_bodies: int | None
    answers: dict[str, int]

    def broken(self, most: int) -> bool:
        """Return whether a promise of the forwarder is broken; `most` numbers may come twice."""
        ids = (self.under_two_event_ids, self.webhook_ids_with_two_bodies)
        return bool(self.lost or self.late or any(ids)) or self.doubled > most


class Receiver:
    """A control plane with faults, and what it has stored."""

    def __init__(self, seed: int) -> None:
        self.faulty = True
        self.requests = 0
        self.order: list[int] = []  # numbers as they were stored, repeats included
        self._ids: dict[int, set[str]] = defaultdict(set)  # of events
        self._deliveries: dict[int, set[str]] = defaultdict(set)  # webhook-ids
        self._bodies: dict[str, set[bytes]] = defaultdict(set)  # by webhook-id
        self._answers: Counter[str] = Counter()
        self._rng = random.Random(seed)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request in a random way."""
        body = await request.read()
        how = self._rng.choices(list(MIX), list(MIX.values()))[0] if self.faulty else "ok"
        self.requests += 1
        self._answers[how] += 1
        delivery = request.headers.get("webhook-id", "")
        if how == "ok" or how.startswith("stored"):
            self.store(delivery, body)
        if how.endswith("hang"):
            await asyncio.sleep(6)
        if how.endswith(("hang", "reset")) and request.transport:  # None: the sender has gone
            request.transport.abort()
        proof = {"webhook-id": delivery} if delivery else {}
        return web.Response(status=503 if how == "503" else 200, headers=proof)

    def store(self, delivery: str, body: bytes) -> None:
        """Store the alerts of one request; `delivery` is its webhook-id or empty."""
        if not delivery:  # a number may be in several places of the request
            self.order += dict.fromkeys(int(found) for found in NUMBER.findall(body))
            return
        self._bodies[delivery].add(body)
        events = msgspec.json.decode(body)
        for event in events if isinstance(events, list) else [events]:
            if match := NUMBER.search(msgspec.json.encode(event)):
                number = int(match[1])
                self.order.append(number)
                self._ids[number].add(event["id"])
                self._deliveries[number].add(delivery)

    def verdict(self, program: str, seed: int, count: int, kills: int) -> Found:
        """Return the figures of a run in which the numbers 1 to `count` were accepted."""
        first = list(dict.fromkeys(self.order))
        highest = late = 0
        for number in first:
            late += number < highest
            highest = max(highest, number)
        counts = Counter(self.order)
        return Found(
            program=program,
            seed=seed,
            sent=count,
            lost=count - len(first),
            late=late,
            doubled=sum(times > 1 for times in counts.values()),
            extra_copies=len(self.order) - len(first),
            kills=kills,
            under_two_event_ids=_several(self._ids),
            under_two_webhook_ids=_several(self._deliveries),
            webhook_ids_with_two_bodies=_several(self._bodies),
            answers=dict(sorted(self._answers.items())),
        )


def _several(sets: Mapping[Any, set[Any]]) -> int | None:
    return sum(len(one) > 1 for one in sets.values()) if sets else None


@dataclass(frozen=True)
class Contestant:
    """A program with its settings. `make` returns it for a directory and the receiver's URL."""

    make: Callable[[Path, str], RealProcess]
    path: str
    body: Callable[[int], bytes]
    settings: str  # for the page
    resend: bool = False  # every alert again, as Prometheus does while it fires


def _forwarder(place: Path, url: str) -> RealProcess:
    port = free_port()
    environment = {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REGION": "eu-west-1",
        "BYOC_STATE_DIR": str(place / "state"),
        "BYOC_LISTEN": f"127.0.0.1:{free_port()}",
        "BYOC_LOG_LEVEL": "error",
        "BYOC_ALERTS_LISTEN": f"127.0.0.1:{port}",
        "BYOC_ALERTS_URL": url,
        "BYOC_ALERTS_TOKEN": "token",
        "BYOC_ALERTS_SIGNING_SECRET": SECRET,
        "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
        "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
        "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
        "BYOC_ALERTS_ANNOTATIONS": "summary",
        "BYOC_ALERTS_TIMEOUT_SECONDS": TIMEOUT.removesuffix("s"),
    }
    command = [sys.executable, "-m", "byoc_agents.app.cli", "run", OURS]
    return RealProcess(
        name=OURS,
        command=command,
        log=place / "log",
        environment=environment,
        port=port,
        ready_path="",
    )


def _collector(queue: collector.Queue) -> Callable[[Path, str], RealProcess]:
    retry = {"initial_interval": "500ms", "max_interval": "5s"}

    def make(place: Path, url: str) -> RealProcess:
        return collector.logs(place, collector.Exporter(url, timeout=TIMEOUT, retry=retry), queue)

    return make


def _alertmanager(place: Path, url: str) -> RealProcess:
    route = peers.Route(group_interval="5s", timeout=TIMEOUT)
    return peers.current_alertmanager(place, url, "", route, "--data.maintenance-interval=1s")


def _notification(number: int) -> bytes:
    alert = _alert(number) | {
        "status": "firing",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": f"{number:016x}",
    }
    return json.dumps({"version": "4", "receiver": "byoc", "alerts": [alert]}).encode()


def _post(number: int) -> bytes:
    return json.dumps([_alert(number) | {"endsAt": LATER}]).encode()


def _record(number: int) -> bytes:
    alert = _alert(number)
    attributes = [
        {"key": key, "value": {"stringValue": text}}
        for key, text in (alert["labels"] | alert["annotations"]).items()
    ]
    record = {"body": {"stringValue": "firing"}, "attributes": attributes}
    return json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}).encode()


def _alert(number: int) -> dict[str, Any]:
    return {
        "labels": {"alertname": f"A{number}Z", "severity": "critical"},
        "annotations": {"summary": "x" * 1000},
        "startsAt": "2026-11-23T19:05:54.988Z",
    }


_ALERTMANAGER = (
    "each alert a group, `group_interval` 5 s, notification log written each second "
    "(`--data.maintenance-interval=1s`)"
)
_QUEUES = {
    "Collector, in order": collector.Queue(batch=0, consumers=1),
    "Collector, one by one": collector.Queue(batch=0),
    "Collector, batches": collector.Queue(),
}
CONTESTANTS = {
    OURS: Contestant(
        _forwarder, "/v1/alerts", _notification, "the defaults: fsync before the 200, up to 100"
        " alerts per request",
    ),
    **{
        name: Contestant(
            _collector(queue), "/v1/logs", _record,
            f"{queue}, `max_elapsed_time: 0s`, `block_on_overflow`",
        )
        for name, queue in _QUEUES.items()
    },
    "Alertmanager 0.35, posted again": Contestant(
        _alertmanager, "/api/v2/alerts", _post,
        f"{_ALERTMANAGER}; every accepted alert is posted again each"
        f" {RESEND_SECONDS:g} s, as Prometheus does", resend=True,
    ),
    "Alertmanager 0.35, posted once": Contestant(
        _alertmanager, "/api/v2/alerts", _post, _ALERTMANAGER
    ),
}  # fmt: skip


class Feed:
    """The sender of one run."""

    def __init__(self, session: aiohttp.ClientSession, url: str, contestant: Contestant) -> None:
        self._session = session
        self._url = url
        self._contestant = contestant
        self._accepted = 0  # all numbers up to this one

    async def post_all(self, count: int) -> None:
        """Post the numbers 1 to `count` one after another, each until it is answered 2xx."""
        for number in range(1, count + 1):
            while not await self._post(self._contestant.body(number)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            self._accepted = number
            await asyncio.sleep(PACE_SECONDS)

    async def resend(self) -> None:
        """Post all accepted alerts again and again, until cancelled."""
        while True:
            await asyncio.sleep(RESEND_SECONDS)
            for first in range(1, self._accepted + 1, RESEND_ALERTS):
                numbers = range(first, min(first + RESEND_ALERTS, self._accepted + 1))
                alerts = [one for n in numbers for one in json.loads(self._contestant.body(n))]
                await self._post(json.dumps(alerts).encode())

    async def _post(self, body: bytes) -> bool:
        headers = {**WEBHOOK_HEADERS, "Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                return 200 <= response.status < 300
        except (aiohttp.ClientError, TimeoutError):
            return False


async def kill_often(process: RealProcess, kills: int, seconds: float, seed: int) -> None:
    """Kill and start the program at random times, on average `seconds` in all."""
    rng = random.Random(seed + 1)
    for _ in range(kills):
        await asyncio.sleep(rng.uniform(0.3, 2 * seconds / kills - 0.3))
        await asyncio.to_thread(process.kill)
        await asyncio.sleep(DOWN_SECONDS)
        await asyncio.to_thread(process.start)


async def run(name: str, seed: int, count: int, kills: int) -> Found:
    """Run one program with one seed."""
    receiver, contestant = Receiver(seed), CONTESTANTS[name]
    async with (
        _listening(receiver.handle) as url,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session,
    ):
        with tempfile.TemporaryDirectory(prefix="byoc-loss-") as directory:
            process = contestant.make(Path(directory), url)
            await asyncio.to_thread(process.start)
            feed = Feed(session, process.url + contestant.path, contestant)
            again = asyncio.create_task(feed.resend() if contestant.resend else asyncio.sleep(0))
            try:
                seconds = max(count * PACE_SECONDS, kills * 1.0)
                killing = asyncio.create_task(kill_often(process, kills, seconds, seed))
                await feed.post_all(count)
                await killing
                await asyncio.sleep(FAULTY_SECONDS)
                receiver.faulty = False
                await settled(receiver, count)
            finally:
                again.cancel()
                with suppress(asyncio.CancelledError):
                    await again
                await asyncio.to_thread(process.kill)
    return receiver.verdict(name, seed, count, kills)


@asynccontextmanager
async def _listening(
    handle: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    app = web.Application(client_max_size=1 << 24)
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port := free_port())
        await site.start()
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


async def settled(receiver: Receiver, count: int) -> None:
    """Wait until everything has arrived and nothing comes again, or nothing comes at all."""
    loop = asyncio.get_running_loop()
    end, seen, since = loop.time() + LONGEST_SECONDS, -1, loop.time()
    while loop.time() < end:
        if seen != receiver.requests:
            seen, since = receiver.requests, loop.time()
        patience = QUIET_SECONDS if len(set(receiver.order)) == count else GIVE_UP_SECONDS
        if loop.time() - since > patience:
            return
        await asyncio.sleep(0.25)


async def measure(
    names: Sequence[str], seeds: Sequence[int], count: int, kills: int
) -> list[Found]:
    """Run the programs, some at the same time, with each seed."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, seed: int) -> Found:
        async with gate:
            found = await run(name, seed, count, kills)
        print(msgspec.json.encode(found).decode(), flush=True)
        return found

    return list(await asyncio.gather(*(one(name, seed) for seed in seeds for name in names)))


def table(results: Sequence[Found]) -> str:
    """Return the figures and the settings as two tables in Markdown."""
    lines = [
        "| program | seeds | lost | late | numbers that came twice | copies too many | own id |",
        "|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(one.program for one in results))
    for name in names:
        runs = sorted((one for one in results if one.program == name), key=lambda one: one.seed)
        columns = [_listed([getattr(one, key) for one in runs]) for key in ("seed", "lost", "late",
                   "doubled", "extra_copies")]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(columns)} | {_own_id(runs)} |")
    lines += ["", "| program | settings |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {CONTESTANTS[name].settings} |" for name in names)])


def _listed(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)


def _own_id(runs: Sequence[Found]) -> str:
    changed = [one.under_two_event_ids for one in runs if one.under_two_event_ids is not None]
    return f"yes; {sum(changed)} alerts under two" if changed else "none"


def write_docs(results: Sequence[Found]) -> None:
    """Write the tables between the marks of the page."""
    first = results[0]
    faults = ", ".join(f"{share} % {how.replace('_', ' ')}" for how, share in MIX.items())
    intro = (
        f"{first.sent:,} alerts and {first.kills} SIGKILLs per run, one run per seed; the values"
        f" are in the order of the seeds.\nWhat the receiver does with a request:\n{faults}.\n"
        f"Every program gives up on a response after {TIMEOUT.removesuffix('s')} s."
    )
    content = f"{intro}\n\n{table(results)}\n\nMeasured on {measured()}."
    DOCS.write_text(report.replace_between(DOCS.read_text(), BEGIN, content))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Return 1 if the forwarder breaks a promise, or if a part is missing."""
    parser = argparse.ArgumentParser(prog="python -m lab.bench.loss", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 21, 33])
    parser.add_argument("--only", nargs="+", choices=[*CONTESTANTS], default=[*CONTESTANTS])
    parser.add_argument("--count", type=int, default=5000, help="alerts")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--most", type=int, default=50, help="our numbers that may come twice")
    parser.add_argument("--write-docs", action="store_true", help="figures into docs/")
    options = parser.parse_args(argv)
    only_ours = options.only == [OURS]
    names = options.only if only_ours or go_peers.available("loss") else [OURS]
    try:
        results = asyncio.run(measure(names, options.seeds, options.count, options.kills))
    except PartError as error:
        print(f"loss: {error}", file=sys.stderr)
        return 1
    print(table(results))
    if options.write_docs:
        write_docs(results)
    return int(any(one.broken(options.most) for one in results if one.program == OURS))


if __name__ == "__main__":
    sys.exit(main())
