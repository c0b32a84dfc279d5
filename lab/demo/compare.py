"""Compare the billed CPU of each run of the workload with the kernel's figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from byoc_agents.audit import Report
from byoc_agents.billing.record import Usage
from lab.demo.workload_process import WorkloadRun

TOLERANCE_RATIO = 0.02  # of a run's CPU seconds


@dataclass(frozen=True, slots=True)
class Compared:
    """The billed and the used CPU of one run of the workload."""

    name: str
    billed_core_seconds: float
    used_core_seconds: float

    @property
    def difference_ratio(self) -> float:
        """Return the excess of the billed CPU as a fraction of the used CPU."""
        if not self.used_core_seconds:
            return 0.0 if not self.billed_core_seconds else float("inf")
        return self.billed_core_seconds / self.used_core_seconds - 1

    @property
    def agrees(self) -> bool:
        """Return whether the difference is within the tolerance."""
        return abs(self.difference_ratio) <= TOLERANCE_RATIO


def compare(records: Iterable[Usage], runs: Sequence[WorkloadRun]) -> list[Compared]:
    """Return one comparison per run, and per run that only the records have."""
    billed: dict[str, Decimal] = {}
    for usage in records:
        if usage.quality != "gap":
            before = billed.get(usage.incarnation, Decimal(0))
            billed[usage.incarnation] = before + usage.used.cpu_core_seconds
    found = []
    for number, run in enumerate(runs, 1):
        seconds = billed.pop(run.incarnation, Decimal(0))
        name = f"run {number}, pid {run.pid}"
        found.append(Compared(name, float(seconds), run.rusage.core_seconds))
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
