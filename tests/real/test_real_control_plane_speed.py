"""The figures per core that docs/scale.md computes with, on a machine that does nothing else.

The commands are small runs of those that the page names. Peak memory is that of a process of its
own, since a test process has held other things.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from lab.control_plane.processes import ROOT, plane_environment

pytestmark = [pytest.mark.real, pytest.mark.quiet]

MIN_MESSAGES, MIN_OBJECTS = 5_000, 3_000  # per second of CPU
MAX_RSS_MIB = 256
LIBRARY_GET_US = 743  # of CPU, on the machine of docs/control-plane.md


def figures(*command: str) -> list[dict[str, Any]]:
    """Return the lines of JSON that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=plane_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    print(done.stdout)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_core_takes_five_thousand_messages_per_second() -> None:
    """Each message is one row: the command counts them."""
    found = figures("lab.control_plane.throughput", "--messages", "10000")
    speeds = {one["part"]: one["messages_per_core_second"] for one in found}
    assert speeds.keys() == {"consumer", "receiver"}
    assert min(speeds.values()) >= MIN_MESSAGES, speeds


def test_a_core_archives_three_thousand_objects_per_second() -> None:
    """Objects of 15 records, with one GET per object, at the speed of the machine of the page.

    On a slower or busy machine aiobotocore's GET of the same objects takes longer as well.
    """
    (found,) = figures("lab.bench.compact", "--objects", "10000")
    slower = found["aiobotocore_get_us"] / LIBRARY_GET_US
    assert found["objects_per_core_second"] * slower >= MIN_OBJECTS, found
    assert found["peak_rss_mib"] <= MAX_RSS_MIB
