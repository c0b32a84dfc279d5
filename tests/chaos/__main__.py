"""`python -m tests.chaos [--seed N] [--minutes M] [--hours H] [--plan]`, or `--soak --hours H`.

Breaks everything that can break around the three daemons, then compares what arrived with what
happened. Ends with `chaos: ok`, or exit 1 with what differs and the command that replays the seed.
As root: it makes control groups and mounts small disks. docs/RELIABILITY.md tells the rest.
"""

import argparse
import pickle
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.controls import controls, unnoticed
from tests.chaos.daemon import ROOT
from tests.chaos.evidence import Evidence
from tests.chaos.oracle import checked, judged
from tests.chaos.plan import Plan, planned
from tests.chaos.run import run
from tests.chaos.soak import soak


def main() -> int:
    """Do one run."""
    options = _parser().parse_args()
    seconds = 60 * (options.minutes + 60 * options.hours) or 180.0
    if options.soak:
        with tempfile.TemporaryDirectory(prefix="soak-") as place:
            return soak(Path(place), ROOT / "build", seconds)
    plan = planned(secrets.randbelow(10**6) if options.seed is None else options.seed, seconds)
    print(plan, flush=True)
    return 0 if options.plan else _broken(plan)


def _broken(plan: Plan) -> int:
    place, began = Path(tempfile.mkdtemp(prefix=f"chaos-{plan.seed}-")), time.monotonic()
    found = run(plan, place)
    (place / "evidence.pickle").write_bytes(pickle.dumps(found))
    _tell(plan, found)
    wrong = judged(found)
    if not plan.damage:  # an oracle that excuses what was damaged would excuse some of these
        wrong += [f"the oracle does not notice that {name}" for name in unnoticed(found)]
        print(f"negative controls: {len(controls(found))}")
    for said in wrong:
        print(f"DIFFERS {said}")
    if wrong:
        replay = f"python -m tests.chaos --seed {plan.seed} --minutes {plan.seconds / 60:g}"
        print(f"chaos: {len(wrong)} differ; logs in {place}; replay: {replay}")
        return 1
    shutil.rmtree(place)
    print(f"chaos: ok (seed {plan.seed}, {time.monotonic() - began:.0f} s)")
    return 0


def _tell(plan: Plan, found: Evidence) -> None:
    kinds = Counter(f"{fault.lane} {fault.kind}" for fault in plan.faults)
    print(f"injected: {', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))}")
    print(f"damaged: {', '.join(found.damaged) or 'no file'}")
    print(f"starts: {', '.join(f'{name} {len(codes)}' for name, codes in found.ends.items())}")
    print(f"spools full: {found.turned_away} notifications turned away")
    print(f"checked: {', '.join(f'{n} {what}' for what, n in checked(found).items())}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="of the plan; default: any")
    parser.add_argument("--minutes", type=float, default=0.0, help="of faults; default 3")
    parser.add_argument("--hours", type=float, default=0.0, help="added to the minutes")
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    parser.add_argument("--soak", action="store_true", help="a steady load instead of faults")
    return parser


if __name__ == "__main__":
    sys.exit(main())
