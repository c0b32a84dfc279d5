"""Was everything billed, and nothing twice? The records against the kernel's own account."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from byoc_agents.audit import Report
from byoc_agents.billing.record import Usage
from lab.demo.workload_process import Life

TOLERANCE_RATIO = 0.02  # of a life's CPU seconds


@dataclass(frozen=True, slots=True)
class Compared:
    """One life of the workload: what the records bill, and what it used."""

    name: str
    billed_core_seconds: float
    used_core_seconds: float

    @property
    def difference_ratio(self) -> float:
        """Return how much more was billed than used, as a fraction of the use."""
        if not self.used_core_seconds:
            return 0.0 if not self.billed_core_seconds else float("inf")
        return self.billed_core_seconds / self.used_core_seconds - 1

    @property
    def agrees(self) -> bool:
        """Return whether that is next to nothing."""
        return abs(self.difference_ratio) <= TOLERANCE_RATIO


def compare(records: Iterable[Usage], lives: Sequence[Life]) -> list[Compared]:
    """Return one comparison for each life, and for each life that only the records know."""
    billed: dict[str, Decimal] = {}
    for usage in records:
        if usage.quality != "gap":
            before = billed.get(usage.incarnation, Decimal(0))
            billed[usage.incarnation] = before + usage.used.cpu_core_seconds
    found = []
    for number, life in enumerate(lives, 1):
        own = [name for name in billed if f"-{life.pid}-" in name]
        seconds = sum(billed.pop(name) for name in own)
        name = f"life {number}, pid {life.pid}"
        found.append(Compared(name, float(seconds), life.rusage.core_seconds))
    return found + [Compared(name, float(seconds), 0.0) for name, seconds in billed.items()]


def usage_faults(compared: Sequence[Compared], report: Report) -> list[str]:
    """Return the problems, empty if there are none."""
    wrong = [
        f"{one.name}: billed {one.billed_core_seconds:.3f} core s, used {one.used_core_seconds:.3f}"
        for one in compared
        if not one.agrees
    ]
    if not report.ok:
        wrong.append(f"the verifier found {sum(report.counts.values())} things wrong")
    return wrong
