"""Print the counts next to the baseline; `--write` makes them the new one."""

import sys

from lab.real.counts import gate
from lab.real.counts.counting import counted


def main() -> int:
    """Return 1 if a part costs more than its limit."""
    counts, wrong = counted(), []
    if "--write" in sys.argv:
        gate.write(counts)
    for piece, before in gate.baseline().items():
        wrong += gate.excess(piece, counts[piece], before)
        for name, value in counts[piece].items():
            print(f"{piece:10} {name:14} {value:14,.1f}  baseline {before[name]:14,.1f}")
    print("\n".join(wrong) or "counts: as the baseline, or better")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
