"""Recovery at a start: find the end of the chain and torn writes, and the lines to add."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from byoc_agents.errors import LedgerNewerError
from byoc_agents.ledger.format import (
    FORMAT,
    Line,
    Recovered,
    Segment,
    decode,
    digest,
    format_of,
)
from byoc_agents.ledger.reader import START, Head, Scan, extend, raw_lines, scan
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.tree import TreeHead, encode_hash


class OpenedLedger(msgspec.Struct):
    """Where to go on. `length` 0 = create this file, else cut it to this many bytes."""

    number: int
    length: int = 0
    head: Head = START
    tree: TreeHead | None = None  # None: a file of 0.1.0, or no file
    max_bytes: int = 0  # the bound that the file states
    open: Sequence[int] = ()  # intents without an outcome
    removed: set[int] = msgspec.field(default_factory=set)  # files that were about to be deleted
    states: list[Line] = msgspec.field(default_factory=list)


def check_format(segments: Segments) -> None:
    """Raise LedgerNewerError if a later version wrote the files. Raises OSError."""
    for number in segments.numbers():
        path = segments.path(number)
        if not path.is_file():  # `find` sets it aside
            continue
        first = next((raw.content for raw in raw_lines(path)), b"")
        if (found := format_of(first)) > FORMAT:
            raise LedgerNewerError(
                f"{path} was written by a newer version (format {found}, this one reads up to "
                f"{FORMAT}): run the newer version, or move its directory away"
            )


def find(segments: Segments) -> OpenedLedger:
    """Look at the newest file with a chain in it. Torn ends are copied, nothing is cut.

    Something in a file's place that is not a regular file is renamed, and so is a file whose end is
    more than one write of ours can leave: its chain goes on in a copy without that end.
    """
    numbers = segments.numbers()
    for number in reversed(numbers):
        path = segments.path(number)
        if not path.is_file():
            segments.set_foreign_aside(number, None)
            continue
        seen = scan(path)
        if seen.oversized:
            segments.set_foreign_aside(number, seen.good_bytes)
            seen.rest_bytes, seen.damaged = 0, False
            if not seen.good_bytes:
                continue
        if seen.good_bytes or seen.damaged:
            return _go_on(segments, number, seen)
        _set_aside(segments, number, seen)  # not even a first line
        segments.path(number).unlink()
    number = numbers[0] if numbers else 1
    return OpenedLedger(number, states=_unstated(segments, number, set()))


def find_mismatch(segments: Segments, expected: str) -> Literal["lost", "older"] | None:
    """Return how the ledger differs from `SIZE ROOT`, a head that it had once.

    None if it continues that head, or if the lines of that size were removed by rotation. Reads one
    file. Raises OSError.
    """
    size_text, _, root = expected.partition(" ")
    if not size_text.isdecimal():
        return None
    size = int(size_text)
    starts = [(number, tree) for number in segments.numbers() if (tree := _start(segments, number))]
    before = [(number, tree) for number, tree in starts if tree.size <= size]
    if not before:
        return None if starts else "lost"
    number, tree = before[-1]
    grown: TreeHead | None = tree
    for raw in raw_lines(segments.path(number)):
        if tree.size == size or not raw.whole:
            break
        grown = extend(grown, raw.content, decode(raw.content))
        tree = grown or tree
    if tree.size < size:
        return "older" if number == starts[-1][0] else "lost"
    return None if encode_hash(tree.root) == root else "lost"


def _start(segments: Segments, number: int) -> TreeHead | None:
    """Return the tree before a file's first line, or None if it states none."""
    path = segments.path(number)
    first = next((raw.content for raw in raw_lines(path)), b"") if path.is_file() else b""
    line = decode(first)
    return line.tree if isinstance(line, Segment) and line.tree and line.tree.valid else None


def _go_on(segments: Segments, number: int, seen: Scan) -> OpenedLedger:
    found = OpenedLedger(
        number,
        length=seen.good_bytes,
        head=seen.head,
        tree=seen.tree,
        max_bytes=seen.max_bytes,
        open=sorted(seen.open),
        removed=seen.removed,
    )
    if seen.damaged:
        found.number, found.length, found.head = number + 1, 0, seen.last
        found.open, found.tree = sorted(seen.flying), seen.last_tree
        found.states.append(
            Recovered(segment=number, why="damaged", bytes=seen.rest_bytes, sha256="", aside="")
        )
    elif seen.rest_bytes:
        _set_aside(segments, number, seen)
    found.states += _unstated(segments, number, seen.asides)
    return found


def _set_aside(segments: Segments, number: int, seen: Scan) -> None:
    content = segments.path(number).read_bytes()[seen.good_bytes :]
    segments.set_aside(number, seen.good_bytes, content)


def _unstated(segments: Segments, first: int, stated: set[str]) -> list[Line]:
    """Return a line for each torn end that no line names: of now, or of a start that was cut."""
    asides = [(n, path) for n, path in segments.asides() if n >= first and path.name not in stated]
    foreign = [(n, path) for n, path in segments.foreign() if path.name not in stated]
    return [
        *(_of_aside(number, path) for number, path in sorted(asides)),
        *(_of_foreign(number, path) for number, path in sorted(foreign) if number >= first),
    ]


def _of_foreign(number: int, path: Path) -> Recovered:
    size = path.lstat().st_size
    return Recovered(segment=number, why="damaged", bytes=size, sha256="", aside=path.name)


def _of_aside(number: int, path: Path) -> Recovered:
    content = path.read_bytes()
    return Recovered(
        segment=number, why="torn", bytes=len(content), sha256=digest(content), aside=path.name
    )


def ends(path: Path) -> tuple[int, Head]:
    """Return the number of a file's first line, and its last whole line. Raises OSError."""
    first, last = b"", b""
    for raw in raw_lines(path):
        if raw.whole:
            first, last = first or raw.content, raw.content
    return _sequence(first), Head(_sequence(last), digest(last))


def _sequence(content: bytes) -> int:
    line = decode(content)
    return -1 if line is None else line.sequence
