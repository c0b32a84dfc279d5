"""The parts that the scenes share: the directory, the vendor's side, the processes, the screen."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lab.demo.alertmanager import Alertmanager
from lab.demo.control_plane import ControlPlane
from lab.demo.daemons import Daemons
from lab.demo.fifo import Queue
from lab.demo.process import DemoError, tail
from lab.demo.screen import Screen
from lab.demo.snapshot import Snapshot
from lab.demo.storage import Storage
from lab.demo.workload_process import WorkloadRun, running_workload
from lab.fakes.state import FakeClickHouse

LOOK_SECONDS = 0.4
LONGEST_SECONDS = 90.0  # for one step; it takes a few on a machine that has nothing else to do


@dataclass(kw_only=True)
class Stage:
    """The parts that every scene uses."""

    directory: Path
    screen: Screen
    storage: Storage
    queue: Queue
    plane: ControlPlane
    clickhouse: FakeClickHouse
    alertmanager: Alertmanager
    daemons: Daemons
    stack: AsyncExitStack  # ends what the scenes start
    target: str  # the workload's name
    runs: list[WorkloadRun] = field(default_factory=list)

    async def start_workload(self) -> WorkloadRun:
        """Start the workload."""
        number = len(self.runs) + 1
        run = await self.stack.enter_async_context(
            running_workload(self.target, self.directory, number)
        )
        self.runs.append(run)
        return run

    async def look(self) -> Snapshot:
        """Take a snapshot and show it."""
        await self.storage.refresh()
        await self.queue.refresh()
        now = Snapshot(
            status=await self.daemons.status(),
            objects=len(self.storage.bodies),
            records=list(self.storage.records),
            states=self.queue.states,
            alerts=self.plane.alerts,
        )
        self.screen.show(now.sentences(), now.records)
        return now

    async def until(self, what: str, happens: Callable[[Snapshot], bool]) -> Snapshot:
        """Take snapshots until the condition holds. Raises DemoError after a timeout."""
        end = time.monotonic() + LONGEST_SECONDS
        while not happens(now := await self.look()):
            if time.monotonic() > end:
                raise DemoError(f"{what}: not within {LONGEST_SECONDS:g} s\n{self._state_of(now)}")
            await asyncio.sleep(LOOK_SECONDS)
        return now

    async def pause(self, seconds: float) -> None:
        """Show snapshots for some seconds."""
        end = time.monotonic() + seconds
        await self.until(f"{seconds} s pass", lambda _now: time.monotonic() >= end)

    async def sampled(self, times: int) -> None:
        """Wait for that many more samples of the scraper."""
        wanted = await self.daemons.samples() + times
        end = time.monotonic() + LONGEST_SECONDS
        while await self.daemons.samples() < wanted:
            if time.monotonic() > end:
                raise DemoError(f"the scraper does not sample any more\n{tail(self.daemons.log)}")
            await asyncio.sleep(LOOK_SECONDS)

    def _state_of(self, now: Snapshot) -> str:
        return "\n".join([*now.sentences(), f"the end of {self.daemons.log.name}:"]) + (
            f"\n{tail(self.daemons.log)}"
        )
