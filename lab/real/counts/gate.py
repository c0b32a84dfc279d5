"""The baseline, and the limits of a change's cost."""

import json
import sys
from pathlib import Path

from lab.real.counts.counting import Counts

BASELINE = Path(__file__).with_name("baseline.json")  # Python's version -> counts
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
MARGINS = {"instructions": 0.06, "calls": 0.03, "fsyncs": 0.0, "peak_bytes": 0.1, "bytes": 0.01}
KEPT_BLOCKS = 60  # more than before, of one time: caches fill; a leak goes on


def baseline(version: str = VERSION) -> Counts:
    """Return the baseline of a Python, e.g. 3.11. Raises LookupError if there is none."""
    found = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if version not in found:
        raise LookupError(f"no baseline for Python {version}: `python -m lab.real.counts --write`")
    counts: Counts = found[version]
    return counts


def write(counts: Counts) -> None:
    """Make these counts the baseline of this Python."""
    found = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    found[VERSION] = {
        piece: {name: round(value, 2) for name, value in values.items()}
        for piece, values in counts.items()
        if not piece.startswith("worse_")
    }
    BASELINE.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


def excess(piece: str, values: dict[str, float], before: dict[str, float]) -> list[str]:
    """Return the counts above their limit; empty if there are none."""
    return [
        f"{piece}: {name} {values[name]:,.1f}, was {before[name]:,.1f}, may be {limit:,.1f}"
        for name, limit in limits(before).items()
        if values[name] > limit
    ]


def limits(before: dict[str, float]) -> dict[str, float]:
    """Return the upper limit of each count."""
    return {
        name: value + KEPT_BLOCKS if name == "kept_blocks" else value * (1 + MARGINS[name])
        for name, value in before.items()
    }
