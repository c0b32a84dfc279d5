"""Split a run of hours into rounds of ten minutes, each with its own seed, check and cleanup.

So neither the evidence nor the temporary files grow with the length, and a difference is replayed
by its round alone.
"""

import math
import pickle
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from lab.chaos.controls import controls, unnoticed
from lab.chaos.evidence import Evidence
from lab.chaos.oracle import checked, judged
from lab.chaos.plan import Plan, planned
from lab.chaos.run import run

ROUND_SECONDS = 600.0
STEP_SECONDS = 6.0  # a tenth of a minute: `--minutes` says it exactly
MIB = 1024**2


def rounds(seed: int, seconds: float) -> list[Plan]:
    """Return the plans of a run: one per round, with seeds that count up from the first."""
    number = math.ceil(seconds / ROUND_SECONDS)
    each = seconds if number == 1 else STEP_SECONDS * math.ceil(seconds / number / STEP_SECONDS)
    return [planned(seed + place, each) for place in range(number)]


@dataclass
class Tally:
    """The work and comparisons of all rounds so far."""

    seeds: list[int] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)  # lane -> how many
    checked: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    starts: int = 0

    def add(self, plan: Plan, found: Evidence) -> None:
        self.seeds.append(plan.seed)
        self.faults.update(fault.lane for fault in plan.faults)
        self.checked.update(checked(found))
        self.damaged += len(found.damaged)
        self.starts += sum(map(len, found.ends.values()))

    def lines(self) -> list[str]:
        """Return the printed lines."""
        lanes = ", ".join(f"{lane} {n}" for lane, n in sorted(self.faults.items()))
        return [
            f"seeds: {', '.join(map(str, self.seeds))}",
            f"faults: {self.faults.total()} ({lanes})",
            f"spool files damaged: {self.damaged}; starts of a process: {self.starts}",
            f"records checked: {', '.join(f'{n} {what}' for what, n in self.checked.items())}",
        ]


def broken(plans: list[Plan]) -> int:
    """Run all rounds up to the first with a difference. Return the exit code."""
    tally, began = Tally(), time.monotonic()
    for number, plan in enumerate(plans, 1):
        print(f"round {number} of {len(plans)}\n{plan}", flush=True)
        if wrong := _round(plan, tally):
            print(f"chaos: {wrong} differ; see above")
            return 1
    print("\n".join(tally.lines()))
    print(f"chaos: ok ({len(plans)} rounds, {time.monotonic() - began:.0f} s)")
    return 0


def _round(plan: Plan, tally: Tally) -> int:
    """Run one round; return the number of differences from the guarantees."""
    place = Path(tempfile.mkdtemp(prefix=f"chaos-{plan.seed}-"))
    found = run(plan, place)
    (place / "evidence.pickle").write_bytes(pickle.dumps(found))
    tally.add(plan, found)
    _print_result(plan, found, place)
    wrong = judged(found)
    if not plan.damage:  # an oracle that excuses damaged messages would excuse some of these
        wrong += [f"the oracle does not notice that {name}" for name in unnoticed(found)]
        print(f"negative controls: {len(controls(found))}")
    for difference in wrong:
        print(f"DIFFERS {difference}")
    if wrong:
        replay = f"python -m lab.chaos --seed {plan.seed} --minutes {plan.seconds / 60:g}"
        print(f"logs in {place}; replay: {replay}")
    else:
        shutil.rmtree(place)
    return len(wrong)


def _print_result(plan: Plan, found: Evidence, place: Path) -> None:
    kinds = Counter(f"{fault.lane} {fault.kind}" for fault in plan.faults)
    print(f"injected: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}")
    print(f"damaged: {', '.join(found.damaged) or 'no file'}")
    print(f"starts: {', '.join(f'{name} {len(codes)}' for name, codes in found.ends.items())}")
    print(f"spools full: {found.turned_away} notifications turned away")
    print(f"checked: {', '.join(f'{n} {what}' for what, n in checked(found).items())}")
    files = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    print(f"temporary files: {files / MIB:.0f} MiB, gone after this round", flush=True)
