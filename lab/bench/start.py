"""Measure the start: CPU of the process and wall time until /readyz returns 200."""

import time

from lab.bench.figures import Row, row
from lab.bench.lab import DAEMONS, EXPORTER, FORWARDER, SCRAPER, Lab, cpu_ns

TARGETS = {SCRAPER: "<= 0.9", FORWARDER: "<= 0.5"}


def measure(lab: Lab) -> list[Row]:
    """Start each alone, and all three in one process."""
    rows = []
    for names in ((SCRAPER,), (EXPORTER,), (FORWARDER,), DAEMONS):
        cpu, wall = [], []
        for _ in range(lab.runs(5, 2)):
            began = time.monotonic()
            with lab.daemons(*names) as running:
                cpu.append(cpu_ns(running.process.pid) / 1e9)
                wall.append(time.monotonic() - began)
        title = "all three in one process" if len(names) > 1 else names[0]
        target = TARGETS.get(names[0]) if len(names) == 1 else None
        rows.append(row("start", f"start to ready, CPU: {title}", cpu, "s", target))
        rows.append(row("start", f"start to ready, wall: {title}", wall, "s"))
    return rows
