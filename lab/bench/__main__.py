"""Run the bench: `python -m lab.bench [--only NAME ...] [--quick] [--write-docs]`."""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from lab.bench import report
from lab.bench.figures import Row
from lab.bench.image import image
from lab.bench.lab import Lab
from lab.bench.receivers import receivers
from lab.real.parts import kernel
from lab.real.parts.process import PartError

NAMES = (
    "start", "imports", "memory", "hour", "backlog", "idle", "sample", "records", "billing_path",
    "verifier", "spool", "drain", "hop", "outage", "storm", "growth", "image_size",
)  # fmt: skip


def main() -> int:
    """Measure, print and write `build/bench.json`. Return 1 if a target or a part is missed."""
    parser = argparse.ArgumentParser(prog="python -m lab.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--million", type=int, nargs="+", default=[1], help="for the verifier")
    parser.add_argument("--minutes", type=float, default=2, help="of the steady load of `hour`")
    parser.add_argument("--write-docs", action="store_true", help="figures into docs/")
    parser.add_argument("--docs-only", action="store_true", help="the last run's, nothing measured")
    options = parser.parse_args()
    if options.docs_only:
        report.write_docs()
        return 0
    try:
        rows = _measured(options)
    except PartError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if options.write_docs:
        report.write_docs()
    missed = [row for row in rows if row.holds is False]
    print(f"bench: {len(rows)} figures, {len(missed)} targets missed")
    return 1 if missed else 0


def _measured(options: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    made = image()
    print(f"bench: {made.description}", flush=True)
    with tempfile.TemporaryDirectory(prefix="byoc-bench-") as directory:
        for name in options.only:
            started = time.monotonic()
            place = Path(directory) / name
            with receivers() as listening, kernel.cgroup_v1("cpuacct", "memory") as group:
                target = f"cgroup:{group['cpuacct']}"
                lab = Lab(place, listening, made, target, options.quick)
                lab.millions, lab.minutes = options.million, options.minutes
                found = importlib.import_module(f"lab.bench.{name}").measure(lab)
            report.show(found, f"{name} ({time.monotonic() - started:.0f} s)")
            report.write(found)
            rows += found
    return rows


if __name__ == "__main__":
    sys.exit(main())
