"""Read the lines of a ledger: of one file, with the end of its chain, or of all files."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from byoc_agents.app.files import open_regular
from byoc_agents.errors import LedgerNewerError
from byoc_agents.ledger.format import (
    DURABLE,
    START,
    IntentLine,
    LedgerLine,
    LinePosition,
    ReceiptLine,
    RecoveredLine,
    RemovedLine,
    SegmentLine,
    UnknownLine,
    decode,
    format_of,
    kind_of,
    sha256_hex,
)
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.tree import Leaves, TreeHead, encode_hash, hash_leaf

MAX_LINE_BYTES = 4 << 20  # an intent of 1,000 messages has some 400 KiB


class Raw(NamedTuple):
    """One line as stored."""

    offset: int
    content: bytes  # without the line end
    whole: bool  # it has a line end


class Scan(msgspec.Struct):
    """The contents of a file. `good_bytes` from its start are a chain; the rest is not."""

    good_bytes: int = 0
    end: LinePosition = START  # the last line of the chain
    open: set[int] = msgspec.field(default_factory=set)  # intents of the chain without an outcome
    in_flight: set[int] = msgspec.field(default_factory=set)  # after all lines that can be read
    removed: set[int] = msgspec.field(default_factory=set)  # files whose removal it states
    asides: set[str] = msgspec.field(default_factory=set)  # names of cut-off ends that it states
    rest_bytes: int = 0
    oversized: bool = False  # the rest is more than one write of ours can leave
    damaged: bool = False  # the rest is more than the torn end of a write
    last: LinePosition = START  # the last whole line, in the chain or not
    max_bytes: int = 0  # the bound that the file states; 0 = none, as in 0.1.0
    tree: TreeHead | None = None  # over the chain; None = the file states none to start from
    last_tree: TreeHead | None = None  # the same over all whole lines


def raw_lines(path: Path) -> Iterator[Raw]:
    """Yield every line, a torn end as the last.

    A line longer than MAX_LINE_BYTES is not a ledger line. It is yielded last, cut at the limit
    and without its end, and nothing after it is read. Raises OSError, also for a FIFO or device.
    """
    offset = 0
    with open_regular(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            whole = line.endswith(b"\n")
            yield Raw(offset, line.removesuffix(b"\n"), whole)
            if not whole:  # bytes that a writer appends meanwhile belong to this line
                return
            offset += len(line)


def scan(path: Path) -> Scan:
    """Read a file. Raises OSError."""
    found, holed = Scan(), False
    for raw in raw_lines(path):
        line = decode(raw.content) if raw.whole else None
        if found.rest_bytes or line is None or not _continues(found, line):
            found.rest_bytes += len(raw.content) + raw.whole
            holed = holed or b"\0" in raw.content
            found.damaged |= raw.whole and (not holed or kind_of(line) in DURABLE)
        else:
            _extend_chain(found, raw, line)
        if line:
            _follow(found.in_flight, line)
        if raw.whole:
            sequence = found.last.sequence + 1 if line is None else line.sequence
            found.last = LinePosition(sequence, sha256_hex(raw.content))
            found.last_tree = extend(found.last_tree, raw.content, line)
            found.tree = found.tree if found.rest_bytes else found.last_tree
        if found.rest_bytes > MAX_LINE_BYTES:  # however much follows: it was not written by us
            found.oversized = True
            found.rest_bytes = path.stat().st_size - found.good_bytes
            break
    return found


def extend(tree: TreeHead | None, content: bytes, line: LedgerLine | None) -> TreeHead | None:
    """Return the tree with one more line. The first line of a file states where it begins."""
    if isinstance(line, SegmentLine) and line.tree and line.tree.valid:
        tree = line.tree
    return tree.add(hash_leaf(content)) if tree else None


def _continues(found: Scan, line: LedgerLine) -> bool:
    if found.end is START:
        return isinstance(line, SegmentLine)
    return (line.sequence - 1, line.previous) == found.end


def _extend_chain(found: Scan, raw: Raw, line: LedgerLine) -> None:
    found.good_bytes = raw.offset + len(raw.content) + 1
    found.end = LinePosition(line.sequence, sha256_hex(raw.content))
    _follow(found.open, line)
    if isinstance(line, SegmentLine):
        found.max_bytes = line.max_bytes
    if isinstance(line, RemovedLine):
        found.removed.add(line.segment)
    elif isinstance(line, RecoveredLine):
        found.asides.add(line.aside)


def _follow(in_flight: set[int], line: LedgerLine) -> None:
    if isinstance(line, SegmentLine):
        in_flight.update(line.open)
    elif isinstance(line, IntentLine):
        in_flight.add(line.sequence)
    elif isinstance(line, ReceiptLine | UnknownLine):
        in_flight.discard(line.intent)


def find_ends(path: Path) -> tuple[int, LinePosition]:
    """Return the number of a file's first line, and its last whole line. Raises OSError."""
    first, last = b"", b""
    for raw in raw_lines(path):
        if raw.whole:
            first, last = first or raw.content, raw.content
    return _sequence(first), LinePosition(_sequence(last), sha256_hex(last))


def _sequence(content: bytes) -> int:
    line = decode(content)
    return -1 if line is None else line.sequence


def check_format(segments: Segments, newest: int) -> None:
    """Raise LedgerNewerError if a file has a format later than `newest`. Raises OSError."""
    for number in segments.numbers():
        path = segments.path(number)
        if not path.is_file():  # the writer sets it aside
            continue
        first = next((raw.content for raw in raw_lines(path)), b"")
        if (found := format_of(first)) > newest:
            raise LedgerNewerError(
                f"{path} was written by a newer version (format {found}, this one reads up to "
                f"{newest}): run the newer version, or move its directory away"
            )


def find_mismatch(
    segments: Segments, expected: str, is_removal_needed: Callable[[], bool] = lambda: True
) -> Literal["lost", "older"] | None:
    """Return how the ledger differs from `SIZE ROOT`, a head that it had once.

    None if it continues that head, or if the lines of that size were removed by rotation, which
    `is_removal_needed` judges. Reads one file, and all files for that. Raises OSError.
    """
    size_text, _, root = expected.partition(" ")
    if not size_text.isdecimal():
        return None
    size = int(size_text)
    starts = [(number, tree) for number in segments.numbers() if (tree := _start(segments, number))]
    before = [(number, tree) for number, tree in starts if tree.size <= size]
    if not before:
        return None if starts and is_removal_needed() else "lost"
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
    return line.tree if isinstance(line, SegmentLine) and line.tree and line.tree.valid else None


class History(NamedTuple):
    """The part of a ledger that its tree covers and that is kept."""

    leaves: Leaves
    first_sequence: int  # of the first kept leaf


def read_history(directory: Path) -> History:
    """Read the whole lines of all files, also while a daemon writes them. Blocks.

    Raises OSError, and ValueError if there is no tree (as in 0.1.0) or not one single tree.
    """
    segments = Segments(directory)
    start, first_sequence, hashes = TreeHead(), -1, list[bytes]()
    tree: TreeHead | None = None
    for number in segments.numbers():
        for raw in raw_lines(segments.path(number)):
            line = decode(raw.content) if raw.whole else None
            if isinstance(line, SegmentLine) and line.tree and line.tree.valid and tree is None:
                tree, start, first_sequence = line.tree, line.tree, line.sequence
            elif isinstance(line, SegmentLine) and line.tree != tree:
                place = segments.path(number).name
                raise ValueError(f"{place} does not continue the tree: see `ledger verify`")
            if raw.whole and tree is not None:
                hashes.append(hash_leaf(raw.content))
                tree = tree.add(hashes[-1])
    if tree is None:
        raise ValueError(f"{directory} has no line with a tree yet: a daemon of 0.2 must run once")
    return History(Leaves(start, hashes), first_sequence)


class Grown(NamedTuple):
    """The roots of a ledger at some sizes."""

    first_size: int  # of the tree before its first line
    roots: dict[int, str]  # size -> root in base64


def grow(directory: Path, sizes: Collection[int]) -> Grown:
    """Return the roots at those of the sizes that the ledger has. Blocks. Raises OSError."""
    segments = Segments(directory)
    tree: TreeHead | None = None
    found = Grown(next((one.size for one in _starts(segments)), 0), {})
    for number in segments.numbers():
        if not segments.path(number).is_file():
            continue
        for raw in raw_lines(segments.path(number)):
            line = decode(raw.content) if raw.whole else None
            if isinstance(line, SegmentLine) and line.tree and line.tree.valid:
                _keep_root(found, line.tree, sizes)
            tree = extend(tree, raw.content, line) if raw.whole else tree
            if tree:
                _keep_root(found, tree, sizes)
    return found


def _starts(segments: Segments) -> Iterator[TreeHead]:
    for number in segments.numbers():
        if tree := _start(segments, number):
            yield tree


def _keep_root(found: Grown, tree: TreeHead, sizes: Collection[int]) -> None:
    if tree.size in sizes:
        found.roots.setdefault(tree.size, encode_hash(tree.root))
