"""The metered program: a process that uses CPU in a control group. Faults replace both."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from lab.real.burner import Burner, burning
from lab.real.counters import settled
from lab.real.parts.kernel import ControlGroup, _remove

TURN_SECONDS = 0.4
BURN_SECONDS = 0.06  # of CPU in each turn: about a seventh of a core


@dataclass(frozen=True)
class Incarnation:
    """One incarnation of the group: its directory's inode and what the kernel counted in it."""

    inode: int
    cpu_usec: int
    seconds: float = 0.0  # how long it was there; 0 = not known


@dataclass
class Target:
    """The group and its workload."""

    group: ControlGroup
    rng: random.Random
    incarnations: list[Incarnation] = field(default_factory=list)  # those that are over
    burners: int = 0
    made_at: float = field(default_factory=time.monotonic)
    _resources: ExitStack = field(default_factory=ExitStack)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start a burner and keep it busy."""
        self._over.clear()
        burner = self._resources.enter_context(burning("chaos", self.group.command([])))
        self.burners += 1
        self._thread = threading.Thread(target=self._work, args=(burner,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Kill the burner."""
        self._over.set()
        if self._thread:
            self._thread.join(60)
        self._resources.close()

    @contextmanager
    def without_burner(self) -> Iterator[None]:
        self.end()
        try:
            yield
        finally:
            self.begin()

    def remove(self) -> None:
        """Remove the group's directories, which ends this incarnation."""
        self.incarnations.append(self.incarnation())
        for directory in self.group.directories.values():
            _remove(directory)

    def make(self) -> None:
        for directory in self.group.directories.values():
            directory.mkdir()
        self.made_at = time.monotonic()

    def incarnation(self) -> Incarnation:
        """Return the current incarnation, after its last process has ended."""
        seconds = time.monotonic() - self.made_at
        return Incarnation(self.group["cpuacct"].stat().st_ino, settled(self.group), seconds)

    def _work(self, burner: Burner) -> None:
        while not self._over.wait(TURN_SECONDS):
            burner.burn(BURN_SECONDS, children=int(self.rng.random() < 0.05))
