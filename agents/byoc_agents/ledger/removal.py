"""Judge whether the bound required the removal of the files before the first one.

The writer removes the oldest file only if the bytes in use and those of the next write exceed the
bound. So the files that are left, the removed file and the largest write together reach the bound.
Everything here is a statement of the ledger itself, except the files and the reader's bounds: so
each statement counts only up to what the writer can have written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from byoc_agents.app.files import open_regular
from byoc_agents.ledger.format import (
    IntentLine,
    LedgerLine,
    ReceiptLine,
    RecoveredLine,
    RemovedLine,
    SegmentLine,
    decode,
    sha256_hex,
)
from byoc_agents.ledger.reader import raw_lines
from byoc_agents.ledger.segments import Segments

SEGMENTS = 8  # how many share the bound: a removal takes an eighth of the history
LINK_BYTES = 128  # the numbers and hashes that a line gets when it is written, less than this
MAX_GROUP = 16  # lines that share one fsync
REFUSED_BURST = 20  # lines at once
GROUP_LINES = MAX_GROUP + REFUSED_BURST  # lines of one write
MAX_SHORT_BYTES = 4096  # a line without messages: two texts of 300 characters, escaped, and hashes
MAX_BATCH_BYTES = 512 * 1024  # lines about all messages of one batch: at most 500 messages


class _Removal(NamedTuple):
    """A stated removal of a file."""

    place: str
    line: RemovedLine
    left_bytes: int  # in use when it was stated
    stated_bound: int  # of the file that states it; 0 = none, as in 0.1.0


class Removals:
    """Reads all lines in order, and judges the removal that made the first file the first."""

    def __init__(self, segments: Segments, bounds: Sequence[int] = ()) -> None:
        """`bounds` are all that the reader has ever set. Without any, the ledger is believed."""
        self._bounds = frozenset(bounds)
        self._numbers = segments.numbers()
        self._asides = {path.name: (number, path) for number, path in segments.asides()}
        self._stated_bound = 0  # of the current file
        self._largest_bound = 0  # that a file has stated so far
        self._used = 0  # bytes of the files that are there, up to the current line
        self._longest_line = 0
        self._most_kept = 0  # bytes of the bodies that one intent keeps
        self._kept: set[str] = set()  # bodies of the current file
        self._previous_bytes: int | None = None  # of the removed file, as the first line states
        self._removed: dict[int, _Removal] = {}

    def add(self, size: int, line: LedgerLine | None, place: str) -> None:
        """Count a line of so many bytes, and what it is about."""
        if isinstance(line, SegmentLine):
            self._begin_file(line)
        elif isinstance(line, RemovedLine):
            removal = _Removal(place, line, self._used, self._stated_bound)
            self._removed.setdefault(line.segment, removal)
        elif isinstance(line, RecoveredLine):
            self._add_aside(line)
        elif isinstance(line, IntentLine):
            self._add_bodies({sent.sha256: sent.bytes for sent in line.messages if sent.kept})
        self._used += size
        most = MAX_BATCH_BYTES if isinstance(line, IntentLine | ReceiptLine) else MAX_SHORT_BYTES
        if not isinstance(line, SegmentLine):
            self._longest_line = max(self._longest_line, min(size, most))

    def _begin_file(self, line: SegmentLine) -> None:
        self._kept.clear()
        if self._previous_bytes is None:
            self._previous_bytes = line.previous_bytes
        self._stated_bound = line.max_bytes
        self._largest_bound = max(self._largest_bound, line.max_bytes)

    def _add_aside(self, line: RecoveredLine) -> None:
        """Count a torn end once, and only if it is there as stated and with a file that is there.

        A foreign file does not count toward the bound.
        """
        number, path = self._asides.get(line.aside, (0, Path()))
        if number != line.segment or number < self._numbers[0]:
            return
        try:
            with open_regular(path) as file:
                content = file.read(line.bytes + 1)
        except OSError:
            return
        if len(content) == line.bytes and sha256_hex(content) == line.sha256:
            del self._asides[line.aside]
            self._used += line.bytes

    def _add_bodies(self, sizes: Mapping[str, int]) -> None:
        """Count the kept bodies of an intent, each once per file."""
        self._most_kept = max(self._most_kept, sum(sizes.values()))
        self._used += sum(size for sha256, size in sizes.items() if sha256 not in self._kept)
        self._kept |= sizes.keys()

    def of(self, number: int) -> RemovedLine | None:
        """Return the first line that states the removal of this file."""
        return self._removed[number].line if number in self._removed else None

    def find_unneeded(self) -> tuple[str, str] | None:
        """Return (place, problem) if the removal before the first file was not needed.

        Earlier removals cannot be judged: the files that existed then are not known.
        """
        removal = self._removed.get(self._numbers[0] - 1) if self._numbers else None
        if removal is None:
            return None
        bound = self._bound(removal)
        most = self._most_removed(bound)
        stated = self._previous_bytes or most
        removed = min(removal.line.bytes, stated, most)
        if removal.left_bytes + removed + self._write(bound) >= bound:
            return None
        what = f"states that file {removal.line.segment} was removed"
        left = f"only {removal.left_bytes} bytes were left"
        return removal.place, f"{what}, and {left}: {self._explain(removal, bound)}"

    def _bound(self, removal: _Removal) -> int:
        """Return the bound in force: what the file states, if the reader has ever set that."""
        if not self._bounds:
            return self._largest_bound
        if removal.stated_bound in self._bounds:
            return removal.stated_bound
        return min(self._bounds)

    def _most_removed(self, bound: int) -> int:
        """Return the largest size of a removed file: it ends at its share, with one write more.

        The end of that write may be torn, and kept in another file.
        """
        largest = max(self._bounds or {self._largest_bound})
        return largest // SEGMENTS + 2 * self._write(bound)

    def _write(self, bound: int) -> int:
        """Return the bytes of the largest write: one batch, its bodies and many short lines."""
        lines = self._longest_line + GROUP_LINES * min(self._longest_line, MAX_SHORT_BYTES)
        share = bound // SEGMENTS
        kept = min(self._most_kept, share)
        return lines + GROUP_LINES * LINK_BYTES + min(GROUP_LINES * kept, share + kept)

    def _explain(self, removal: _Removal, bound: int) -> str:
        why = f"the bound of {bound} did not require it"
        stated = {removal.stated_bound, self._largest_bound} - {0}
        if self._bounds and (unknown := sorted(stated - self._bounds)):
            known = " ".join(f"--max-bytes {one}" for one in sorted(self._bounds | set(unknown)))
            they = " and ".join(map(str, unknown))
            return (
                f"{why}. The ledger states a bound of {they}: if BYOC_LEDGER_MAX_BYTES ever had "
                f"this value, run again with {known}; if not, somebody else removed lines"
            )
        return f"{why} (--max-bytes, once for each value that BYOC_LEDGER_MAX_BYTES ever had)"


def is_removal_needed(segments: Segments, max_bytes: int) -> bool:
    """Return whether a stated removal before the first file was needed. Raises OSError."""
    removals = Removals(segments, [max_bytes])
    numbers = segments.numbers()
    for number in numbers:
        if not segments.path(number).is_file():  # the writer sets it aside
            continue
        for raw in raw_lines(segments.path(number)):
            removals.add(len(raw.content) + raw.whole, decode(raw.content), "")
    return removals.of(numbers[0] - 1) is not None and removals.find_unneeded() is None
