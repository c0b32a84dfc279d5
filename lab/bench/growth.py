"""Measure how cost grows with work: one line per kind of work, and its exponent.

Each line has about two points per decade. A cost of `work ** 1` is linear. The exponent is the
slope of a straight line through the logarithms of the last decade, where a fixed cost weighs least.
`build/growth.json` has all points, from which `--write-docs` draws docs/internals/growth.svg.
"""

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import msgspec
import structlog

from byoc_agents.app.clock import SystemClock
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import Reason
from byoc_agents.ledger.verify import verify
from byoc_agents.ledger.writer import FileLedger
from byoc_agents.message import Message, Receipt
from lab.bench import sample, sender, verifier
from lab.bench.figures import Line, Row, row
from lab.bench.lab import EXPORTER, FORWARDER, MIB, SCRAPER, Lab, cpu_ns, until
from lab.bench.spool import GIB, filled
from lab.real.parts.install import ROOT

JSON = ROOT / "build" / "growth.json"
LINEAR = "<= 1.15"  # noise of a busy machine included
CONTAINERS = (1, 3, 10, 30, 100)
SERVERS = (1, 3, 10, 30, 100)
ALERTS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)
RECORDS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
FILES = (1, 3, 10, 30, 100, 300, 1_000)
BACKLOG_MIB = (1, 3, 10, 30, 100, 300, 1_024)
SERVERS_SECONDS = 8.0  # of one point
LINES_OF_A_FILE = 5  # intents, each with its receipt
PUTS = 64
OF_A_BATCH, BATCH_BYTES = 100, 4 * MIB  # of a drain


def measure(lab: Lab) -> list[Row]:
    """Measure all lines, and store their points."""
    lines = measured_lines(lab)
    JSON.parent.mkdir(exist_ok=True)
    JSON.write_bytes(msgspec.json.format(msgspec.json.encode(lines)))
    return [one for line in lines for one in _rows(line)]


def measured_lines(lab: Lab) -> list[Line]:
    """Measure all lines."""
    with ProcessPoolExecutor(
        max_workers=1, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as fresh:  # a process that has held other things has a slower allocator
        return [
            _containers(lab),
            *_servers(lab),
            _alerts(lab),
            *_ledgers(lab, fresh),
            *_backlogs(lab, fresh),
            _records(lab, fresh),
        ]


def read() -> list[Line]:
    """Return the lines of the last run; an empty list if there is no file."""
    return msgspec.json.decode(JSON.read_bytes(), type=list[Line]) if JSON.exists() else []


def _rows(line: Line) -> Iterator[Row]:
    yield row("growth", f"{line.name}: exponent", [line.exponent()], "", LINEAR)
    for amount, cost in (line.points[0], line.points[-1]):
        yield row("growth", f"{line.name}: {amount:,.0f} {line.work}", [cost / 1e3], "ms")


def _up_to(lab: Lab, amounts: Sequence[int]) -> list[int]:
    """Return the amounts of a run: of a quick one only the first decade."""
    return [amount for amount in amounts if not lab.quick or amount <= 10 * amounts[0]]


# Each kind of work.


def _containers(lab: Lab) -> Line:
    points = []
    for count in _up_to(lab, CONTAINERS):
        each = min(sample.sampled_node(count, lab.runs(5, 3)))
        points.append((float(count), each * count))
    return Line("containers of a node, one sample of each", "containers", points)


def _servers(lab: Lab) -> list[Line]:
    """Run the scraper and the exporter on several servers, and measure a second of each."""
    scraper, exporter = [], []
    for count in _up_to(lab, SERVERS):
        a, b = _polled(lab, count)
        scraper.append((float(count), a))
        exporter.append((float(count), b))
    return [
        Line("billing-scraper, two samples of each server", "servers", scraper),
        Line("state-exporter, one poll of each replica", "replicas", exporter),
    ]


def _polled(lab: Lab, count: int) -> tuple[float, float]:
    url = lab.receivers.clickhouse.url
    servers = ",".join(f"r-{number}={url}" for number in range(count))
    paces: dict[str, dict[str, str]] = {
        SCRAPER: {
            "BYOC_BILLING_TARGET": "auto",
            "BYOC_BILLING_METER": "clickhouse",
            "BYOC_BILLING_SAMPLE_SECONDS": "0.5",
        },
        EXPORTER: {"BYOC_STATE_POLL_SECONDS": "1"},
    }
    seconds = SERVERS_SECONDS / (4 if lab.quick else 1)
    with ExitStack() as stack:
        pids = []
        for name, pace in paces.items():
            started = lab.daemons(name, **pace, BYOC_CLICKHOUSE_URL=servers)
            pids.append(stack.enter_context(started).process.pid)
        time.sleep(3)
        before = [cpu_ns(pid) for pid in pids]
        time.sleep(seconds)
        scraper, exporter = (
            (cpu_ns(pid) - used) / 1e3 / seconds for pid, used in zip(pids, before, strict=True)
        )
        return scraper, exporter


def _alerts(lab: Lab) -> Line:
    plane, first, points = lab.receivers.plane, 0, []
    with lab.daemons(FORWARDER) as running:
        for count in (1_000, *_up_to(lab, ALERTS)):  # the first warms up
            times = max(1, 100 // count)
            plane.names.clear()
            wanted = sender.names(count * times, first)
            bodies = [_group(count, first + count * n) for n in range(times)]
            before = cpu_ns(running.process.pid)
            sender.send(running.webhook, bodies, senders=1)
            until(partial(plane.names.issuperset, wanted))
            points.append((float(count), (cpu_ns(running.process.pid) - before) / 1e3 / times))
            first += count * times
    return Line("alerts of one notification, until delivered", "alerts", points[1:])


def _group(count: int, first: int) -> bytes:
    """Return a notification with alerts of some 400 bytes."""
    alerts = []
    for number in range(first, first + count):
        alert = sender.alert(number)
        alert["annotations"] = {"summary": "x" * 100}
        alerts.append(alert)
    return json.dumps({"version": "4", "receiver": "byoc", "alerts": alerts}).encode()


def _records(lab: Lab, fresh: ProcessPoolExecutor) -> Line:
    most = max(lab.millions) * 1_000_000
    amounts = [amount for amount in _up_to(lab, RECORDS) if amount <= most]
    seconds = fresh.map(verifier.audited_seconds, amounts)
    points = [(float(n), cpu * 1e6) for n, cpu in zip(amounts, seconds, strict=True)]
    return Line("records that verify reads", "records", points)


def _ledgers(lab: Lab, fresh: ProcessPoolExecutor) -> list[Line]:
    amounts = _up_to(lab, FILES)
    costs = fresh.map(_ledger_costs, [lab.place("ledger") for _ in amounts], amounts)
    return _lines("ledger", "files", amounts, costs)


def _lines(
    name: str, work: str, amounts: Sequence[int], costs: Iterable[Mapping[str, float]]
) -> list[Line]:
    points: dict[str, list[tuple[float, float]]] = {}
    for amount, found in zip(amounts, costs, strict=True):
        for use, cost in found.items():
            points.setdefault(use, []).append((float(amount), cost))
    return [Line(f"{name}, {use}", work, of_it) for use, of_it in points.items()]


def _ledger_costs(directory: Path, count: int) -> dict[str, float]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    return asyncio.run(_ledger(directory, count))


async def _ledger(directory: Path, count: int) -> dict[str, float]:
    """Return the cost of each use of a ledger of so many files.

    A file begins at each start with another bound.
    """
    open_ledger = partial(FileLedger, directory, clock=SystemClock())
    for number in range(count):
        async with open_ledger(max_bytes=GIB + number % 2) as ledger:
            for line in range(LINES_OF_A_FILE):
                message = Message(id=f"m-{number}-{line}", type="bench", body=b"x", created_at_ms=1)
                intent = await ledger.intent("bench", [message])
                await ledger.receipt(intent, [message], [Receipt(Reason.OK, 200)])
    same = GIB + (count - 1) % 2
    costs = {}
    began = time.process_time()
    async with open_ledger(max_bytes=same):
        costs["opened"] = _since(began)
    began = time.process_time()
    verdict = verify(directory)
    costs["verified"] = _since(began)
    if not verdict.ok or verdict.intents != count * LINES_OF_A_FILE:
        raise RuntimeError(f"the ledger has {verdict.intents} intents, {verdict.problems[:3]}")
    began = time.process_time()
    async with open_ledger(max_bytes=1 << 16):  # all but the newest are removed
        costs["removed"] = _since(began)
    return costs


def _backlogs(lab: Lab, fresh: ProcessPoolExecutor) -> list[Line]:
    amounts = _up_to(lab, BACKLOG_MIB)
    costs = fresh.map(_backlog_costs, [lab.place("backlog") for _ in amounts], amounts)
    return _lines("backlog", "MiB", amounts, costs)


def _backlog_costs(directory: Path, mebibytes: int) -> dict[str, float]:
    filled(directory, mebibytes * MIB)
    try:
        return asyncio.run(_backlog(directory))
    finally:
        shutil.rmtree(directory)  # a gibibyte


async def _backlog(directory: Path) -> dict[str, float]:
    costs = {}
    began = time.process_time()
    async with Spool(directory, max_bytes=4 * GIB, clock=SystemClock()) as spool:
        costs["opened"] = _since(began)
        began = time.process_time()
        for number in range(PUTS):
            await spool.put(Message(id=f"p-{number}", type="bench", body=b"x", created_at_ms=1))
        costs[f"{PUTS} messages added"] = _since(began)
        began = time.process_time()
        while batch := await spool.peek(OF_A_BATCH, BATCH_BYTES):
            await spool.remove([message.id for message in batch])
        costs["drained"] = _since(began)
    return costs


def _since(began: float) -> float:
    return (time.process_time() - began) * 1e6
