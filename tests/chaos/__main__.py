"""`python -m tests.chaos [--seed N] [--minutes M] [--hours H] [--runs R]`; see docs/RELIABILITY.md.

Ends with `chaos: ok`, or exit 1 with what differs and the command that replays the seed.
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

from tests.chaos.oracle import checked, judged
from tests.chaos.plan import planned
from tests.chaos.run import run

KEPT = "what it left lies in"


def main() -> int:
    """Run one seed after the other until the time is over."""
    options = _parser().parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    seconds = 60 * (options.minutes + 60 * options.hours)
    plan = planned(seed, seconds)
    print(plan, flush=True)
    if options.plan:
        return 0
    place = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    began = time.monotonic()
    found = run(plan, place)
    (place / "evidence.pickle").write_bytes(pickle.dumps(found))
    wrong = judged(found)
    kinds = Counter(f"{fault.lane}.{fault.kind}" for fault in plan.faults)
    print("faults injected:", ", ".join(f"{k} {n}" for k, n in sorted(kinds.items())))
    print("checked:", ", ".join(f"{n} {what}" for what, n in checked(found).items()))
    for said in wrong:
        print(f"DIFFERS {said}")
    minutes = f"--minutes {seconds / 60:g}"
    if wrong:
        print(f"chaos: {len(wrong)} differ; logs in {place}; replay:")
        print(f"  python -m tests.chaos --seed {seed} {minutes}")
        return 1
    shutil.rmtree(place)
    print(f"chaos: ok (seed {seed}, {time.monotonic() - began:.0f} s)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="default: any")
    parser.add_argument("--minutes", type=float, default=3.0, help="of faults; default 3")
    parser.add_argument("--hours", type=float, default=0.0, help="added to the minutes")
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    return parser


if __name__ == "__main__":
    sys.exit(main())
