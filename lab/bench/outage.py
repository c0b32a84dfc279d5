"""Memory, disk and the drain of an outage: 20,000 alerts arrive while the receiver answers 503.

Each program has an empty state and all cores. Eight senders wait for each response. Then the
receiver answers 200, until every alert has arrived. Alertmanager groups 100 alerts by a
label, as the others send up to 100 in a request; alone, each alert would be a group with retries
of its own.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from lab.bench import collector, go_peers, peers, sender
from lab.bench.figures import Row, ratios, row
from lab.bench.lab import FORWARDER, MIB, Daemons, Lab, cpu_ns, rss_mib, until
from lab.real.parts.process import RealProcess

ALERTS, OF_A_GROUP = 20_000, 100
SETTLE_SECONDS = 3.0  # after the last alert, so that tries and retries are in the memory
DRAIN_SECONDS = 300.0  # Alertmanager looks at a group once per minute
CURRENT, SYNCED, UNSYNCED = "Alertmanager 0.35", "Collector, fsync", "Collector, no fsync"


@dataclass
class Outage:
    """The measurements of one program, one value per run."""

    rest: list[float] = field(default_factory=list)  # MiB, before the first alert
    full: list[float] = field(default_factory=list)  # MiB, with all alerts waiting
    after: list[float] = field(default_factory=list)  # MiB, when all have been delivered
    disk: list[float] = field(default_factory=list)  # MiB of files, with all alerts waiting
    accepted: list[float] = field(default_factory=list)  # a second, during the outage
    refused: list[float] = field(default_factory=list)  # requests that were answered 503
    drained: list[float] = field(default_factory=list)  # seconds
    cpu: list[float] = field(default_factory=list)  # microseconds an alert, of the drain
    twice: list[float] = field(default_factory=list)  # copies of alerts beyond the first


@dataclass(frozen=True)
class Program:
    """One program: how it is started in a directory, and the bodies that are posted to it.

    `start` yields its pid and the URL for the posts.
    """

    start: Callable[[Path], AbstractContextManager[tuple[int, str]]]
    bodies: Callable[[int], Sequence[bytes]]


def measure(lab: Lab) -> list[Row]:
    """Run each program in turn, once per run."""
    count = ALERTS // 10 if lab.quick else ALERTS
    programs = _programs(lab)
    found = {name: Outage() for name in programs}
    for _ in range(lab.runs(2)):
        for name, program in programs.items():
            _run(lab, program, count, found[name])
    rows = []
    for name in (SYNCED, UNSYNCED, CURRENT):
        if name in found:
            rows += _against(name, found[FORWARDER], found[name])
    return rows + [one for name, figures in found.items() for one in _details(name, figures, count)]


def _programs(lab: Lab) -> dict[str, Program]:
    plane = lab.receivers.plane
    programs = {FORWARDER: Program(partial(_forwarder, lab), sender.webhooks)}
    if not (lab.go_peers and go_peers.available("outage")):
        return programs
    exporter = collector.Exporter(plane.url)
    for name, fsync in ((SYNCED, True), (UNSYNCED, False)):
        make = partial(collector.logs, exporter=exporter, queue=collector.Queue(fsync=fsync))
        programs[name] = Program(partial(_started, make, "/v1/logs"), sender.records)
    route = peers.Route(group_by="service")
    make = partial(peers.current_alertmanager, url=plane.url, route=route)
    programs[CURRENT] = Program(partial(_started, make, "/api/v2/alerts"), grouped_posts)
    return programs


@contextmanager
def _forwarder(lab: Lab, place: Path) -> Iterator[tuple[int, str]]:
    with Daemons(lab.image.command, (FORWARDER,), place, lab.environ(place)) as running:
        yield running.process.pid, running.webhook


@contextmanager
def _started(
    make: Callable[[Path], RealProcess], path: str, place: Path
) -> Iterator[tuple[int, str]]:
    with make(place) as running:
        yield running.pid, running.url + path


def grouped_posts(count: int) -> list[bytes]:
    """Return Prometheus's posts, with a label that 100 alerts share."""
    bodies = []
    for number, body in enumerate(sender.posts(count)):
        (alert,) = json.loads(body)
        alert["labels"]["service"] = f"s{number // OF_A_GROUP}"
        bodies.append(json.dumps([alert]).encode())
    return bodies


def _run(lab: Lab, program: Program, count: int, figures: Outage) -> None:
    plane, place = lab.receivers.plane, lab.place("outage")
    wanted, bodies = sender.names(count), program.bodies(count)
    plane.names.clear()
    plane.copies = plane.refused = 0
    with program.start(place) as (pid, url):
        probe = psutil.Process(pid)
        figures.rest.append(rss_mib(probe))
        plane.down = True
        try:
            began = time.monotonic()
            sender.send(url, bodies)
            figures.accepted.append(count / (time.monotonic() - began))
            time.sleep(SETTLE_SECONDS)
            figures.full.append(rss_mib(probe))
            figures.disk.append(_size(place) / MIB)
            figures.refused.append(plane.refused)
        finally:
            plane.down = False
        used, began = cpu_ns(pid), time.monotonic()
        until(lambda: plane.names >= wanted, DRAIN_SECONDS)
        figures.drained.append(time.monotonic() - began)
        figures.cpu.append((cpu_ns(pid) - used) / 1e3 / count)
        figures.after.append(rss_mib(probe))
        figures.twice.append(plane.copies - count)


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _against(name: str, ours: Outage, theirs: Outage) -> list[Row]:
    title = f"{FORWARDER} / {name}"
    return [
        row("outage", f"{what}: {title}", ratios(a, b), "x", better="lower")
        for what, a, b in (
            ("memory with all alerts waiting", ours.full, theirs.full),
            ("time of the drain", ours.drained, theirs.drained),
            ("CPU of the drain", ours.cpu, theirs.cpu),
        )
    ]


def _details(name: str, figures: Outage, count: int) -> list[Row]:
    return [
        row("outage", f"{name}: memory before", figures.rest, "MiB"),
        row("outage", f"{name}: memory with {count:,} alerts waiting", figures.full, "MiB"),
        row("outage", f"{name}: memory after the drain", figures.after, "MiB"),
        row("outage", f"{name}: files with {count:,} alerts waiting", figures.disk, "MiB"),
        row("outage", f"{name}: accepted during the outage", figures.accepted, "alerts/s"),
        row("outage", f"{name}: requests during the outage", figures.refused, ""),
        row("outage", f"{name}: until all are delivered", figures.drained, "s"),
        row("outage", f"{name}: CPU per alert of the drain", figures.cpu, "us"),
        row("outage", f"{name}: alerts that came twice", figures.twice, ""),
    ]
