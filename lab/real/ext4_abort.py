"""Test fdatasync while ext4 aborts: `python -m lab.real.ext4_abort [--runs N]`.

A small program repeatedly appends to a file on a small ext4 and syncs it, until an error in the
kernel (`trigger_fs_error`) makes the file system read-only. Then it is checked, mounted again and
read. All lines for which fdatasync returned success should exist. Prints each run with missing
lines, and the number of such runs. Needs root.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from lab.real.disks import make_read_only, repair
from lab.real.parts import kernel
from lab.real.scraper import passed

LINE_BYTES = 4120  # a frame of SQLite's journal: over the bound of a page
DISK_BYTES = 32 * 1024**2


def line(number: int) -> bytes:
    return b"%08d" % number + b"x" * (LINE_BYTES - 8)


def missing(disk: Path, rng: random.Random) -> int:
    """Break the file system under a writer; return the number of lost durable lines."""
    durable = 0
    file = os.open(disk / "lines", os.O_CREAT | os.O_RDWR)

    def write() -> None:
        nonlocal durable
        while True:
            some = range(durable, durable + rng.randint(1, 6))
            try:
                os.pwrite(file, b"".join(map(line, some)), durable * LINE_BYTES)
                os.fdatasync(file)
            except OSError:  # it is read-only now
                return
            durable = some.stop

    writer = threading.Thread(target=write)
    writer.start()
    passed(rng.uniform(0.05, 0.25))
    make_read_only(disk)
    writer.join()
    os.close(file)
    repair(disk)
    content = (disk / "lines").read_bytes()
    there = 0
    while content[there * LINE_BYTES :].startswith(line(there)):
        there += 1
    return max(0, durable - there)


def main() -> int:
    """Do the runs, each on its own file system."""
    parser = argparse.ArgumentParser(prog="python -m lab.real.ext4_abort", description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    runs, bad = parser.parse_args().runs, 0
    for number in range(runs):
        place = Path(tempfile.mkdtemp())
        with kernel.ext4(place / "disk", DISK_BYTES) as disk:
            gone = missing(disk, random.Random(number))
        shutil.rmtree(place)
        if gone:
            bad += 1
            print(f"run {number}: {gone} lines are gone that fdatasync had called durable")
    print(f"{bad} of {runs} runs, Linux {os.uname().release}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
