"""`python -m lab.chaos [--seed N] [--minutes M] [--hours H] [--plan]`, or `--soak --hours H`.

Injects faults into everything around the three daemons, then compares the received data with the
real events. Prints `chaos: ok`, or exits with 1 after the differences and the command that replays
the seed. Needs root: it makes control groups and mounts small disks. The details are in
docs/internals/reliability.md.
"""

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from lab.chaos.daemon import ROOT
from lab.chaos.rounds import broken, rounds
from lab.chaos.soak import soak


def main() -> int:
    """Do one run."""
    options = _parser().parse_args()
    seconds = 60 * (options.minutes + 60 * options.hours) or 180.0
    if options.soak:
        with tempfile.TemporaryDirectory(prefix="soak-") as place:
            return soak(Path(place), ROOT / "build", seconds)
    plans = rounds(secrets.randbelow(10**6) if options.seed is None else options.seed, seconds)
    if options.plan:
        print("\n".join(map(str, plans)))
        return 0
    return broken(plans)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="of the plan; default: any")
    parser.add_argument("--minutes", type=float, default=0.0, help="of faults; default 3")
    parser.add_argument(
        "--hours", type=float, default=0.0, help="added to the minutes; in rounds of ten"
    )
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    parser.add_argument("--soak", action="store_true", help="a steady load instead of faults")
    return parser


if __name__ == "__main__":
    sys.exit(main())
