"""The regression gate: what a piece of work costs, in counts that no other load can change.

Instructions (callgrind), system calls and fsyncs (strace), memory (tracemalloc) and bytes against
`counts/baseline.json`. Where a change is worth its cost: `python -m lab.real.counts --write`.
"""

import pytest

from lab.real.counts import gate
from lab.real.counts.counting import Counts, counted

PIECES = ("sample", "puts", "webhook", "object", "delivery")


@pytest.fixture(scope="module")
def counts() -> Counts:
    found = counted()
    for piece, values in found.items():
        print(piece, {name: round(value, 1) for name, value in values.items()})
    return found


@pytest.mark.parametrize("piece", PIECES)
def test_it_costs_no_more_than_it_did(counts: Counts, piece: str) -> None:
    assert gate.excess(piece, counts[piece], gate.baseline()[piece]) == []


def test_everything_is_counted(counts: Counts) -> None:
    """A counter that found nothing would let everything pass."""
    for piece in PIECES:
        assert counts[piece].keys() == gate.baseline()[piece].keys()
        assert counts[piece]["instructions"] > 1000


def test_the_gate_sees_a_worse_webhook(counts: Counts) -> None:
    """The negative control: the same work done wastefully exceeds every one of its limits."""
    limits = gate.limits(gate.baseline()["webhook"])
    worse = counts["worse_webhook"]
    within = [name for name, limit in limits.items() if worse[name] <= limit]
    assert within == []
