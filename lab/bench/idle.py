"""Measure CPU and wake-ups when idle at a 1 s sample, in the same minute as collectd."""

import time
from contextlib import ExitStack

from lab.bench.figures import Row, ratios, row
from lab.bench.lab import DAEMONS, SCRAPER, Lab, cpu_ns, wakeups
from lab.bench.memory import collecting

MINUTE = 60.0
SETTLE_SECONDS = 5.0  # the start is measured elsewhere
OURS, ALL, THEIRS = "billing-scraper", "all three in one process", "collectd"
TARGETS = {OURS: "<= 0.7", ALL: "<= 1.2"}


def measure(lab: Lab) -> list[Row]:
    """Let all of them idle for the same minute, in each run."""
    seconds = 15.0 if lab.quick else MINUTE
    cpu: dict[str, list[float]] = {name: [] for name in (OURS, ALL, THEIRS)}
    woken: dict[str, list[float]] = {name: [] for name in cpu}
    for _ in range(lab.runs(3)):
        for name, (milliseconds, times) in _idled(lab, seconds).items():
            cpu[name].append(milliseconds * MINUTE / seconds)
            woken[name].append(times * MINUTE / seconds)
    return [
        *[
            row(
                "idle",
                f"idle CPU at 1 s samples: {name} / {THEIRS}",
                ratios(cpu[name], cpu[THEIRS]),
                "x",
                target,
            )
            for name, target in TARGETS.items()
        ],
        *[
            row("idle", f"idle CPU at 1 s samples: {name}", cpu[name], "ms a minute")
            for name in cpu
        ],
        *[row("idle", f"wake-ups: {name}", woken[name], "a minute") for name in cpu],
    ]


def _idled(lab: Lab, seconds: float) -> dict[str, tuple[float, float]]:
    """Return each program's CPU (ms) and voluntary context switches over these seconds."""
    with ExitStack() as stack:
        settings = {"BYOC_BILLING_SAMPLE_SECONDS": "1"}
        pids = {
            OURS: stack.enter_context(lab.daemons(SCRAPER, **settings)).process.pid,
            ALL: stack.enter_context(lab.daemons(*DAEMONS, **settings)).process.pid,
            THEIRS: stack.enter_context(collecting(lab)),
        }
        time.sleep(SETTLE_SECONDS)
        before = {name: (cpu_ns(pid), wakeups(pid)) for name, pid in pids.items()}
        time.sleep(seconds)
        return {
            name: ((cpu_ns(pid) - before[name][0]) / 1e6, wakeups(pid) - before[name][1])
            for name, pid in pids.items()
        }
