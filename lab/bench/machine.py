"""The day, the machine and its load: they belong to each measured figure."""

import os
from datetime import UTC, datetime
from pathlib import Path


def measured() -> str:
    """Return today's date and the machine with its load, for the end of a table."""
    return f"{datetime.now(tz=UTC):%d %B %Y}: {_machine()}"


def _machine() -> str:
    info = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line]
    name = models[0] if models else "an unnamed CPU"
    return f"{len(models)} cores of {name}; load {_load()}"


def _load() -> str:
    """Return the machine's load, the mean of 15 minutes."""
    return f"{os.getloadavg()[2]:.0f}"


def peak_rss_mib() -> float:
    """Return the peak memory of this process in MiB.

    Not ru_maxrss, which begins with the memory of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kib / 1024
