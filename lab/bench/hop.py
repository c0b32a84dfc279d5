"""The alert hop at 4 KB (accepted, durable, delivered): forwarder, Alertmanager and syslog-ng.

All three send the same alerts to the same receiver over HTTPS, in turn in one run. Each has one
core, like a pod with a CPU limit; sender and receiver have the others. The forwarder answers 200
after an fsync. Alertmanager answers from memory. syslog-ng accepts lines without a response and
keeps them in a disk buffer without an fsync. Then the layers of the forwarder are measured one at a
time: a bare aiohttp server that reads and answers, the forwarder with no alert selected, and the
forwarder with no alert that can be delivered.

A second series compares the forwarder with programs that are built from Go modules: Alertmanager
0.35, and the OpenTelemetry Collector with a sending queue on disk, with and without fsync.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial

import psutil

from lab.bench import collector, go_peers, peers, sender
from lab.bench.figures import Row, ratios, row
from lab.bench.lab import FORWARDER, Lab, cpu_ns, elsewhere, one_core, rss_mib, until
from lab.real.parts.process import free_port

ALERTS = 2000
MANY, FEW = 64, 8  # senders; a real Alertmanager holds hundreds of connections (`storm`)
OURS, THEIRS, LINES = "alert-forwarder", "Alertmanager", "syslog-ng"
BARE = "a bare POST"  # nothing is read of it, kept or delivered
MATCHED = "alert-forwarder, no alert selected"  # read and matched
KEPT = "alert-forwarder, nobody to deliver to"  # on disk as well
WITH_FEW, ON_ALL = f", {FEW} senders", ", all cores"  # in addition to the row that has the targets
CURRENT = "Alertmanager 0.35"
SYNCED, UNSYNCED = "Collector, fsync", "Collector, no fsync"
AGAIN = "alert-forwarder, second series"  # the same program as in the first, in turn with these
TARGETS = {  # CPU per alert in microseconds, delivered per second; of a machine without other load
    OURS: ("<= 250", ">= 3300"),
    OURS + WITH_FEW: ("<= 380", None),
}


@dataclass
class Figures:
    """The measurements of one program, one value per round."""

    accepted: list[float] = field(default_factory=list)  # a second
    delivered: list[float] = field(default_factory=list)  # a second
    cpu: list[float] = field(default_factory=list)  # microseconds an alert
    p50: list[float] = field(default_factory=list)  # milliseconds until the 200
    p99: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)  # MiB


@dataclass
class Hop:
    """One program. `send` sends alerts from number `first` on and returns the response times."""

    pid: int
    send: Callable[[int], list[float]]
    delivers: bool = True
    alone: bool = True  # on its core
    figures: Figures = field(default_factory=Figures)


def measure(lab: Lab) -> list[Row]:
    """Start the programs of each series and measure them in turn."""
    with ExitStack() as stack:
        rows = list(_rows(_measured(lab, _started(lab, stack), lab.runs(9, 2))))
    if not (lab.go_peers and go_peers.available("hop")):
        return rows
    with ExitStack() as stack:
        hops = _measured(lab, _started_current(lab, stack), lab.runs(5, 2))
    return [*rows, *_current_rows(hops)]


def _measured(lab: Lab, hops: dict[str, Hop], rounds: int) -> dict[str, Hop]:
    first = 0
    for number in range(rounds + 1):
        for hop in hops.values():
            with elsewhere() if hop.alone else nullcontext():
                _round(lab, hop, first)
            first += ALERTS
            if not number:
                hop.figures = Figures()  # the first round warms up
    return hops


def _started(lab: Lab, stack: ExitStack) -> dict[str, Hop]:
    with one_core():
        hops = _pair(lab, stack, {"": MANY, WITH_FEW: FEW})
        hops |= _others(lab, stack)
    return hops | _pair(lab, stack, {ON_ALL: MANY}, alone=False)


def _pair(
    lab: Lab, stack: ExitStack, ways: Mapping[str, int], *, alone: bool = True
) -> dict[str, Hop]:
    """Start the forwarder and Alertmanager; return both for each number of senders."""
    plane = lab.receivers.plane
    ours = stack.enter_context(lab.daemons(FORWARDER, **_to(plane.https_url, lab)))
    place = lab.place("alertmanager")
    theirs = stack.enter_context(peers.alertmanager(place, plane.https_url, plane.ca_file))
    hops: dict[str, Hop] = {}
    for way, senders in ways.items():
        hops[OURS + way] = _webhooks(ours.process.pid, ours.webhook, senders, alone=alone)
        send = partial(_posts, f"{theirs.url}/api/v2/alerts", senders)
        hops[THEIRS + way] = Hop(theirs.pid, send, alone=alone)
    return hops


def _others(lab: Lab, stack: ExitStack) -> dict[str, Hop]:
    """Start syslog-ng, and the forwarder's layers."""
    plane = lab.receivers.plane
    none, nobody = 'alertname="none"', f"https://127.0.0.1:{free_port()}/"
    matched = lab.daemons(FORWARDER, BYOC_ALERTS_MATCHERS=none, **_to(plane.https_url, lab))
    kept = lab.daemons(FORWARDER, **_to(nobody, lab))
    pid, port = stack.enter_context(
        peers.syslog_ng(lab.place("syslog-ng"), plane.https_url, plane.ca_file)
    )
    bare, page = stack.enter_context(peers.bare_aiohttp(lab.place("bare"), lab.image.python))
    hops = {LINES: Hop(pid, partial(_lines, port)), BARE: _webhooks(bare, page, delivers=False)}
    for name, daemons in {MATCHED: matched, KEPT: kept}.items():
        started = stack.enter_context(daemons)
        hops[name] = _webhooks(started.process.pid, started.webhook, delivers=False)
    return hops


def _started_current(lab: Lab, stack: ExitStack) -> dict[str, Hop]:
    """Start the second series: each program on one core, for each number of senders."""
    plane = lab.receivers.plane
    exporter = collector.Exporter(plane.https_url, plane.ca_file)
    with one_core():
        ours = stack.enter_context(lab.daemons(FORWARDER, **_to(plane.https_url, lab)))
        theirs = stack.enter_context(
            peers.current_alertmanager(lab.place("current"), plane.https_url, plane.ca_file)
        )
        collectors = {
            name: stack.enter_context(
                collector.logs(lab.place("otelcol"), exporter, collector.Queue(fsync=fsync))
            )
            for name, fsync in ((SYNCED, True), (UNSYNCED, False))
        }
    hops: dict[str, Hop] = {}
    for way, senders in {"": MANY, WITH_FEW: FEW}.items():
        hops[AGAIN + way] = _webhooks(ours.process.pid, ours.webhook, senders)
        send = partial(_posts, f"{theirs.url}/api/v2/alerts", senders)
        hops[CURRENT + way] = Hop(theirs.pid, send)
        for name, running in collectors.items():
            send = partial(_records, f"{running.url}/v1/logs", senders)
            hops[name + way] = Hop(running.pid, send)
    return hops


def _to(url: str, lab: Lab) -> dict[str, str]:
    return {"BYOC_ALERTS_URL": url, "BYOC_CA_FILE": lab.receivers.plane.ca_file}


def _webhooks(
    pid: int, url: str, senders: int = MANY, *, delivers: bool = True, alone: bool = True
) -> Hop:
    def send(first: int) -> list[float]:
        return sender.send(url, sender.webhooks(ALERTS, first), senders)

    return Hop(pid, send, delivers, alone)


def _posts(url: str, senders: int, first: int) -> list[float]:
    return sender.send(url, sender.posts(ALERTS, first), senders)


def _records(url: str, senders: int, first: int) -> list[float]:
    return sender.send(url, sender.records(ALERTS, first), senders)


def _lines(port: int, first: int) -> list[float]:
    """Send lines. There are no responses, so no response times."""
    with socket.create_connection(("127.0.0.1", port)) as out:
        for body in sender.webhooks(ALERTS, first):
            out.sendall(body + b"\n")
    return []


def _round(lab: Lab, hop: Hop, first: int) -> None:
    plane, figures = lab.receivers.plane, hop.figures
    plane.names.clear()
    wanted = sender.names(ALERTS, first)
    before, began = cpu_ns(hop.pid), time.monotonic()
    waits = sorted(hop.send(first))
    accepted = time.monotonic() - began
    if hop.delivers:
        until(lambda: plane.names >= wanted)
        figures.delivered.append(ALERTS / (time.monotonic() - began))
    figures.cpu.append((cpu_ns(hop.pid) - before) / 1e3 / ALERTS)
    figures.rss.append(rss_mib(psutil.Process(hop.pid)))
    if waits:
        figures.accepted.append(ALERTS / accepted)
        figures.p50.append(waits[len(waits) // 2] * 1e3)
        figures.p99.append(waits[len(waits) * 99 // 100] * 1e3)


def _rows(hops: Mapping[str, Hop]) -> Iterator[Row]:
    for way in ("", WITH_FEW, ON_ALL):
        ours, theirs = hops[OURS + way].figures, hops[THEIRS + way].figures
        cpu, delivered = ratios(ours.cpu, theirs.cpu), ratios(ours.delivered, theirs.delivered)
        most, least = (None, None) if way else ("<= 0.8", ">= 1.2")
        title = f"{OURS} / {THEIRS}"
        yield row("hop", f"alert hop{way}, CPU: {title}", cpu, "x", most, better="lower")
        yield row(
            "hop", f"alert hop{way}, delivered: {title}", delivered, "x", least, better="higher"
        )
    for name, hop in hops.items():
        if hop.alone:
            yield from _details(name, hop.figures, *TARGETS.get(name, (None, None)))


def _current_rows(hops: Mapping[str, Hop]) -> Iterator[Row]:
    for theirs in (CURRENT, SYNCED, UNSYNCED):
        for way in ("", WITH_FEW):
            a, b = hops[AGAIN + way].figures, hops[theirs + way].figures
            title = f"{OURS} / {theirs}"
            cpu, delivered = ratios(a.cpu, b.cpu), ratios(a.delivered, b.delivered)
            yield row("hop", f"alert hop{way}, CPU: {title}", cpu, "x", better="lower")
            yield row("hop", f"alert hop{way}, delivered: {title}", delivered, "x", better="higher")
    for name, hop in hops.items():
        yield from _details(name, hop.figures)


def _details(
    name: str, figures: Figures, most_cpu: str | None = None, least_delivered: str | None = None
) -> Iterator[Row]:
    if figures.delivered:
        delivered = figures.delivered
        yield row("hop", f"{name}: delivered", delivered, "alerts/s", least_delivered)
    yield row("hop", f"{name}: CPU per alert", figures.cpu, "us", most_cpu)
    yield row("hop", f"{name}: memory", figures.rss, "MiB")
    if figures.p50:
        yield row("hop", f"{name}: accepted", figures.accepted, "alerts/s")
        yield row("hop", f"{name}: p50 until 200", figures.p50, "ms")
        yield row("hop", f"{name}: p99 until 200", figures.p99, "ms")
