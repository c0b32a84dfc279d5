"""A set of whole numbers kept as merged half-open intervals: milliseconds or sequence numbers.

Its size is the number of holes, not of additions: a million neighboring records are one interval.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

Span = tuple[int, int]  # [start, end)


class Spans:
    """Sorted, disjoint intervals. Adding a covered interval changes nothing."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, *spans: Span) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in spans:
            self.add(start, end)

    def __iter__(self) -> Iterator[Span]:
        """Yield the intervals in order."""
        return zip(self._starts, self._ends, strict=True)

    def __repr__(self) -> str:
        """Return the intervals as they would be given."""
        return f"Spans({', '.join(map(str, self))})"

    def add(self, start: int, end: int) -> None:
        """Add [start, end)."""
        if start >= end:
            return
        if self._ends and start == self._ends[-1]:  # the usual case: the neighbor of the last one
            self._ends[-1] = end
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def overlap(self, start: int, end: int) -> list[Span]:
        """Return the parts of [start, end) that are in the set."""
        if start >= end or not self._ends or start >= self._ends[-1]:
            return []
        low = bisect_right(self._ends, start)
        high = bisect_left(self._starts, end)
        pairs = zip(self._starts[low:high], self._ends[low:high], strict=True)
        return [(max(a, start), min(b, end)) for a, b in pairs]

    def find_uncovered(self, start: int, end: int) -> list[Span]:
        """Return the parts of [start, end) that are not in the set."""
        found = []
        for low, high in self.overlap(start, end):
            if start < low:
                found.append((start, low))
            start = high
        return [*found, (start, end)] if start < end else found

    def minus(self, other: "Spans") -> "Spans":
        """Return the parts that are not in the other set."""
        return Spans(*(part for span in self for part in other.find_uncovered(*span)))

    def holes(self) -> "Spans":
        """Return the gaps between the first interval and the last one."""
        return Spans(*zip(self._ends, self._starts[1:], strict=False))

    def update(self, other: "Spans") -> None:
        """Add all of the other set."""
        for start, end in other:
            self.add(start, end)

    def total(self) -> int:
        """Return how many numbers are in the set."""
        return sum(self._ends) - sum(self._starts)
