"""The alert hop at 4 KB: accepted, durable, delivered; ours beside Alertmanager's and syslog-ng's.

All three bring the same alerts to the same receiver, in turn in one run. Ours answers 200 after an
fsync; Alertmanager answers from memory; syslog-ng takes lines without an answer and keeps them in a
disk buffer without an fsync. Beside them what ours is made of, a layer at a time: a bare aiohttp
server that reads and answers, ours where no alert is selected, ours where none can be delivered.
"""

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import psutil

from tests.bench import peers, sender
from tests.bench.figures import Row, ratios, row
from tests.bench.lab import FORWARDER, Lab, cpu_ns, rss_mib, until
from tests.real.parts.process import free_port

ALERTS = 2000
OURS, THEIRS, LINES = "alert-forwarder", "Alertmanager", "syslog-ng"
BARE = "a bare POST"  # nothing is read of it, kept or delivered
MATCHED = "alert-forwarder, no alert selected"  # read and matched
KEPT = "alert-forwarder, nobody to deliver to"  # on disk as well


@dataclass
class Figures:
    """What was measured of one program, a value a round."""

    accepted: list[float] = field(default_factory=list)  # a second
    delivered: list[float] = field(default_factory=list)  # a second
    cpu: list[float] = field(default_factory=list)  # microseconds an alert
    p50: list[float] = field(default_factory=list)  # milliseconds until the 200
    p99: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)  # MiB


@dataclass
class Hop:
    """One program: how to send alerts number `first` and on; returns the waits for an answer."""

    pid: int
    send: Callable[[int], list[float]]
    delivers: bool = True
    figures: Figures = field(default_factory=Figures)


def measure(lab: Lab) -> list[Row]:
    """Run the three side by side, taking turns."""
    with ExitStack() as stack:
        hops = _started(lab, stack)
        first = 0
        for number in range(lab.runs(5, 2) + 1):
            for hop in hops.values():
                _round(lab, hop, first)
                first += ALERTS
                if not number:
                    hop.figures = Figures()  # the first round warms up
    return _rows({name: hop.figures for name, hop in hops.items()})


def _started(lab: Lab, stack: ExitStack) -> dict[str, Hop]:
    url = lab.receivers.plane.url
    ours = stack.enter_context(lab.daemons(FORWARDER))
    matched = stack.enter_context(lab.daemons(FORWARDER, BYOC_ALERTS_MATCHERS='alertname="none"'))
    nobody = f"http://127.0.0.1:{free_port()}/"
    kept = stack.enter_context(lab.daemons(FORWARDER, BYOC_ALERTS_URL=nobody))
    theirs = stack.enter_context(peers.alertmanager(lab.place("alertmanager"), url))
    pid, port = stack.enter_context(peers.syslog_ng(lab.place("syslog-ng"), url))
    bare, page = stack.enter_context(peers.bare_aiohttp(lab.place("bare"), lab.image.python))
    api = f"{theirs.url}/api/v2/alerts"
    return {
        OURS: _webhooks(ours.process.pid, ours.webhook),
        THEIRS: Hop(theirs.pid, lambda first: sender.send(api, sender.posts(ALERTS, first))),
        LINES: Hop(pid, lambda first: _lines(port, sender.webhooks(ALERTS, first))),
        BARE: _webhooks(bare, page, delivers=False),
        MATCHED: _webhooks(matched.process.pid, matched.webhook, delivers=False),
        KEPT: _webhooks(kept.process.pid, kept.webhook, delivers=False),
    }


def _webhooks(pid: int, url: str, *, delivers: bool = True) -> Hop:
    return Hop(pid, lambda first: sender.send(url, sender.webhooks(ALERTS, first)), delivers)


def _lines(port: int, bodies: list[bytes]) -> list[float]:
    """Send lines; nobody answers, so there is no wait to tell."""
    with socket.create_connection(("127.0.0.1", port)) as out:
        for body in bodies:
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


def _rows(found: dict[str, Figures]) -> list[Row]:
    ours, theirs = found[OURS], found[THEIRS]
    rows = [
        row("hop", f"alert hop, CPU: {OURS} / {THEIRS}", ratios(ours.cpu, theirs.cpu), "x",
            "<= 0.8"),
        row("hop", f"alert hop, delivered: {OURS} / {THEIRS}",
            ratios(ours.delivered, theirs.delivered), "x", ">= 1.2"),
    ]  # fmt: skip
    for name, figures in found.items():
        if figures.delivered:
            rows.append(row("hop", f"{name}: delivered", figures.delivered, "alerts/s"))
        rows += [
            row("hop", f"{name}: CPU an alert", figures.cpu, "us"),
            row("hop", f"{name}: memory", figures.rss, "MiB"),
        ]
        if figures.p50:
            rows += [
                row("hop", f"{name}: accepted", figures.accepted, "alerts/s"),
                row("hop", f"{name}: p50 until 200", figures.p50, "ms"),
                row("hop", f"{name}: p99 until 200", figures.p99, "ms"),
            ]
    return rows
