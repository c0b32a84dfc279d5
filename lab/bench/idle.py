"""Measure CPU and wake-ups when idle at a 1 s sample, in the same minute as the peers.

collectd and the Collector sample as the scraper does; Alertmanager and the forwarder have no alert.
"""

import time
from contextlib import ExitStack

from lab.bench import collector, go_peers, peers
from lab.bench.figures import Row, ratios, row
from lab.bench.lab import DAEMONS, FORWARDER, SCRAPER, Lab, cpu_ns, wakeups
from lab.bench.memory import collecting

MINUTE = 60.0
SETTLE_SECONDS = 5.0  # the start is measured elsewhere
ALL, COLLECTD = "all three in one process", "collectd"
COLLECTOR, CURRENT = "Collector, CPU and memory of the host", "Alertmanager 0.35"
PAIRS = (
    (SCRAPER, COLLECTD, "<= 0.7"),
    (ALL, COLLECTD, "<= 1.2"),
    (SCRAPER, COLLECTOR, None),
    (ALL, COLLECTOR, None),
)  # Alertmanager often uses no CPU at all in a run, which has no ratio


def measure(lab: Lab) -> list[Row]:
    """Let all of them idle for the same minute, in each run."""
    seconds = 15.0 if lab.quick else MINUTE
    current = lab.go_peers and go_peers.available("idle")
    cpu: dict[str, list[float]] = {}
    woken: dict[str, list[float]] = {}
    for _ in range(lab.runs(3)):
        for name, (milliseconds, times) in _idled(lab, seconds, current=current).items():
            cpu.setdefault(name, []).append(milliseconds * MINUTE / seconds)
            woken.setdefault(name, []).append(times * MINUTE / seconds)
    title = "idle CPU at 1 s samples"
    return [
        *[
            row(
                "idle",
                f"{title}: {ours} / {theirs}",
                ratios(cpu[ours], cpu[theirs]),
                "x",
                target,
                better="lower",
            )
            for ours, theirs, target in PAIRS
            if theirs in cpu
        ],
        *[row("idle", f"{title}: {name}", cpu[name], "ms per minute") for name in cpu],
        *[row("idle", f"wake-ups: {name}", woken[name], "per minute") for name in cpu],
    ]


def _idled(lab: Lab, seconds: float, *, current: bool) -> dict[str, tuple[float, float]]:
    """Return each program's CPU (ms) and voluntary context switches over these seconds."""
    with ExitStack() as stack:
        settings = {"BYOC_BILLING_SAMPLE_SECONDS": "1"}
        pids = {
            SCRAPER: stack.enter_context(lab.daemons(SCRAPER, **settings)).process.pid,
            ALL: stack.enter_context(lab.daemons(*DAEMONS, **settings)).process.pid,
            FORWARDER: stack.enter_context(lab.daemons(FORWARDER)).process.pid,
            COLLECTD: stack.enter_context(collecting(lab)),
            **(_current(lab, stack) if current else {}),
        }
        time.sleep(SETTLE_SECONDS)
        before = {name: (cpu_ns(pid), wakeups(pid)) for name, pid in pids.items()}
        time.sleep(seconds)
        return {
            name: ((cpu_ns(pid) - before[name][0]) / 1e6, wakeups(pid) - before[name][1])
            for name, pid in pids.items()
        }


def _current(lab: Lab, stack: ExitStack) -> dict[str, int]:
    """Start the peers that are built from Go modules; return their pids."""
    url = lab.receivers.plane.url
    collecting_host = collector.metrics(
        lab.place("otelcol"),
        {"cpu": {}, "memory": {}},
        "1s",
        collector.Exporter(url),
        collector.Queue(batch=0, consumers=1),  # each consumer of a batch wakes up at each flush
    )
    theirs = peers.current_alertmanager(lab.place("alertmanager"), url)
    return {
        COLLECTOR: stack.enter_context(collecting_host).pid,
        CURRENT: stack.enter_context(theirs).pid,
    }
