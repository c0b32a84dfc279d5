"""Run the workload as a process that reports its own CPU at the end."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from byoc_agents.app.clock import SystemClock
from byoc_agents.billing.sources.procfs import ProcFs
from byoc_agents.billing.sources.reading import name_run
from lab.demo.process import Child, DemoError, end, started, written

ORGANIZATION, SERVICE, REPLICA = "demo-org", "demo-service", "demo-replica-0"


class Rusage(msgspec.Struct, frozen=True):
    """The kernel's figures for one process, in seconds on a core."""

    self_core_seconds: float
    children_core_seconds: float

    @property
    def core_seconds(self) -> float:
        """Return the CPU of the process and its children."""
        return self.self_core_seconds + self.children_core_seconds


class WorkloadRun:
    """One process of the workload. `state` is starting, working, resting or ended."""

    def __init__(self, child: Child, log: Path, report: Path) -> None:
        self.pid = child.pid
        start_ticks = ProcFs().process(child.pid).start_ticks
        boot_id = SystemClock(ORGANIZATION, SERVICE, REPLICA).boot_id
        self.incarnation = f"process:{name_run(boot_id, child.pid, start_ticks)}"  # in its records
        self.state = "working"
        self.rusage = Rusage(0, 0)  # known when it has ended
        self._child = child
        self._log = log
        self._report = report

    async def rest(self) -> None:
        """Make it idle. It has waited for its children when this returns."""
        self._child.send_signal(signal.SIGUSR1)
        await written(self._log, "resting", self._child)
        self.state = "resting"

    async def end(self) -> None:
        """Let it write its report and exit."""
        if code := await end(self._child, signal.SIGTERM):
            raise DemoError(f"the workload ended with exit code {code}, see {self._log}")
        self.state = "ended"
        self.rusage = msgspec.json.decode(self._report.read_bytes(), type=Rusage)


@asynccontextmanager
async def running_workload(name: str, directory: Path, number: int) -> AsyncIterator[WorkloadRun]:
    """Start the workload once."""
    log, report = directory / f"workload-{number}.log", directory / f"rusage-{number}.json"
    own = str(os.getpid())
    argv = [sys.executable, "-m", "lab.demo.workload", name, str(report), own]
    async with started(argv, log) as child:
        await written(log, "working", child)
        yield WorkloadRun(child, log, report)
