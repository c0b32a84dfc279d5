"""The figures of the bench.

A row is the median of repeated measurements with their spread and a target; a line is the cost of
several amounts of work.
"""

import operator
import re
from collections.abc import Callable, Sequence
from math import log
from statistics import linear_regression, median
from typing import Literal

import msgspec

COMPARE: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}
Better = Literal["lower", "higher"]
TARGET = re.compile(r"(<=|>=) ([0-9.]+)")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. `value` is the median of `runs` values between `low` and `high`."""

    group: str  # the measurement that made it: what `--only` takes
    name: str
    value: float
    unit: str
    target: str | None = None  # such as "<= 0.8"; None = nothing was asked for
    low: float
    high: float
    runs: int
    better: Better | None = None  # of a ratio of ours to a peer's: which side of 1 is ours
    measured: str = ""  # the day and the machine

    @property
    def peer_is_better(self) -> bool:
        """Return whether this is a ratio to a peer, and on the peer's side of 1."""
        if self.better is None:
            return False
        return self.value > 1 if self.better == "lower" else self.value < 1

    @property
    def holds(self) -> bool | None:
        """Return whether the value is within the target, or None without a target."""
        return None if self.target is None else within(self.value, self.target)

    def public(self) -> dict[str, object]:
        """Return the row's object in `build/bench.json`."""
        return {
            "name": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "target": self.target,
            "holds": self.holds,
        }


class Line(msgspec.Struct, frozen=True):
    """The cost of several amounts of work, in microseconds of CPU."""

    name: str
    work: str  # the unit of the amounts
    points: list[tuple[float, float]]  # amount, cost

    def exponent(self) -> float:
        """Return the slope of log(cost) over log(amount) in the last decade of the amounts.

        Raises ValueError if fewer than two points are in it.
        """
        last = max(amount for amount, _ in self.points)
        late = [(log(amount), log(cost)) for amount, cost in self.points if amount >= last / 10]
        if len(late) < 2:
            raise ValueError(f"{len(late)} points in the last decade: expected at least 2")
        return linear_regression(*zip(*late, strict=True)).slope


def within(value: float, target: str) -> bool:
    """Return whether `value` meets a target such as "<= 0.8". Raises ValueError."""
    found = TARGET.fullmatch(target)
    if not found:
        raise ValueError(f"{target!r} is not a target")
    return COMPARE[found[1]](value, float(found[2]))


def row(
    group: str,
    name: str,
    values: Sequence[float],
    unit: str,
    target: str | None = None,
    *,
    better: Better | None = None,
) -> Row:
    """Return the row of these repeated measurements."""
    return Row(
        group=group,
        name=name,
        value=median(values),
        unit=unit,
        target=target,
        low=min(values),
        high=max(values),
        runs=len(values),
        better=better,
    )


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each run to its paired run: load that slowed both cancels out."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]
