"""Measure one parsed sample: the scraper's, open() and read of the same files, and psutil."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from byoc_agents.billing.sources.cgroup import CgroupSource, at_path
from byoc_agents.billing.sources.cgroup_paths import Locator
from byoc_agents.billing.sources.procfs import ProcFs
from lab.bench.figures import Row, ratios, row
from lab.bench.lab import Lab
from lab.real.parts import kernel

READS = 500  # of a block; the blocks of the programs compared take turns
CONTAINERS = (1, 10, 100)


def measure(lab: Lab) -> list[Row]:
    """Read a real cgroup in each way, then many cgroups."""
    ours, files, library = _ways(lab.runs(15, 5))
    rows = [
        row(
            "sample",
            "one sample / open() and read of its files",
            ratios(ours, files),
            "x",
            "<= 0.25",
        ),
        row("sample", "one sample / psutil", ratios(ours, library), "x", "<= 0.2"),
        row("sample", "one sample with parsing", ours, "us"),
        row("sample", "open(), read and int() of the same files", files, "us"),
        row("sample", "psutil: cpu_times and memory_info of a process", library, "us"),
    ]
    for count in CONTAINERS:
        each = sampled_node(count, lab.runs(9, 3))
        rows.append(row("sample", f"a node with {count} containers, each container", each, "us"))
    return rows


def _ways(rounds: int) -> tuple[list[float], list[float], list[float]]:
    found: tuple[list[float], ...] = ([], [], [])
    with kernel.cgroup_v1("cpuacct", "memory") as group:
        source, files = _source(group["cpuacct"]), _files(group.directories)
        for _ in range(rounds):
            found[0].append(_sampled([source], READS))
            found[1].append(_timed(lambda: _open_and_read(files)))
            found[2].append(_timed(lambda: _by_psutil(os.getpid())))
        source.close()
    return found[0], found[1], found[2]


def _source(path: Path) -> CgroupSource:
    proc = ProcFs()
    return CgroupSource(at_path(Locator(proc), path), proc, "00000000-boot")


def _sampled(sources: Sequence[CgroupSource], times: int) -> float:
    """Return microseconds of CPU per sample."""

    async def read() -> float:
        began = time.process_time()
        for _ in range(times):
            for source in sources:
                await source.read()
        return (time.process_time() - began) * 1e6 / times / len(sources)

    return asyncio.run(read())


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(READS):
        work()
    return (time.process_time() - began) * 1e6 / READS


def _files(directories: dict[str, Path]) -> list[Path]:
    names = {
        "cpuacct": ("cpuacct.usage", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
        "memory": ("memory.usage_in_bytes", "memory.limit_in_bytes"),
    }
    found = [directories[key] / name for key, these in names.items() for name in these]
    return [path for path in found if path.exists()]


def _open_and_read(paths: Sequence[Path]) -> list[int]:
    return [int(path.read_text()) for path in paths]


def _by_psutil(pid: int) -> tuple[float, int]:
    process = psutil.Process(pid)
    return process.cpu_times().user, process.memory_info().rss


def sampled_node(count: int, rounds: int) -> list[float]:
    """Return microseconds of CPU per sample on a node with so many containers, one per round."""
    with ExitStack() as stack:
        groups = [stack.enter_context(kernel.cgroup_v1("cpuacct", "memory")) for _ in range(count)]
        sources = [_source(group["cpuacct"]) for group in groups]
        _sampled(sources, 1)
        found = [_sampled(sources, max(1, READS // count)) for _ in range(rounds)]
        for source in sources:
            source.close()
    return found
