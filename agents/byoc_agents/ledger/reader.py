"""Read one ledger file: find the end of its chain, and the bytes after it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from byoc_agents.app.files import open_regular
from byoc_agents.ledger.format import (
    DURABLE,
    GENESIS,
    Intent,
    LedgerLine,
    ReceiptLine,
    Recovered,
    Removed,
    Segment,
    Unknown,
    decode,
    digest,
)
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.tree import Leaves, TreeHead, hash_leaf

MAX_LINE_BYTES = 4 << 20  # an intent of 1,000 messages has some 400 KiB


class Head(NamedTuple):
    """A place in the chain: a line's number and the hash of its bytes."""

    sequence: int
    sha256: str

    def __str__(self) -> str:
        """Return `41:9f86...`, as /status shows it and `ledger verify --anchor` takes it."""
        return f"{self.sequence}:{self.sha256}"


START = Head(-1, GENESIS)


class Raw(NamedTuple):
    """One line as stored."""

    offset: int
    content: bytes  # without the line end
    whole: bool  # it has a line end


class Scan(msgspec.Struct):
    """What a file holds. `good_bytes` from its start are a chain; the rest is not."""

    good_bytes: int = 0
    head: Head = START  # the last line of the chain
    open: set[int] = msgspec.field(default_factory=set)  # intents of the chain without an outcome
    flying: set[int] = msgspec.field(default_factory=set)  # the same over all that can be read
    removed: set[int] = msgspec.field(default_factory=set)  # files that it says are removed
    asides: set[str] = msgspec.field(default_factory=set)  # names of cut-off ends that it states
    rest_bytes: int = 0
    oversized: bool = False  # the rest is more than one write of ours can leave
    damaged: bool = False  # the rest is more than the torn end of a write
    last: Head = START  # the last whole line, in the chain or not
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
            found.damaged |= raw.whole and (not holed or _kind(line) in DURABLE)
        else:
            _take(found, raw, line)
        if line:
            _follow(found.flying, line)
        if raw.whole:
            sequence = found.last.sequence + 1 if line is None else line.sequence
            found.last = Head(sequence, digest(raw.content))
            found.last_tree = extend(found.last_tree, raw.content, line)
            found.tree = found.tree if found.rest_bytes else found.last_tree
        if found.rest_bytes > MAX_LINE_BYTES:  # however much follows: it was not written by us
            found.oversized = True
            found.rest_bytes = path.stat().st_size - found.good_bytes
            break
    return found


def extend(tree: TreeHead | None, content: bytes, line: LedgerLine | None) -> TreeHead | None:
    """Return the tree with one more line. The first line of a file states where it begins."""
    if isinstance(line, Segment) and line.tree and line.tree.valid:
        tree = line.tree
    return tree.add(hash_leaf(content)) if tree else None


def _kind(line: LedgerLine | None) -> str:
    return "" if line is None else str(line.__struct_config__.tag)


def _continues(found: Scan, line: LedgerLine) -> bool:
    if found.head is START:
        return isinstance(line, Segment)
    return (line.sequence - 1, line.previous) == found.head


def _take(found: Scan, raw: Raw, line: LedgerLine) -> None:
    found.good_bytes = raw.offset + len(raw.content) + 1
    found.head = Head(line.sequence, digest(raw.content))
    _follow(found.open, line)
    if isinstance(line, Segment):
        found.max_bytes = line.max_bytes
    if isinstance(line, Removed):
        found.removed.add(line.segment)
    elif isinstance(line, Recovered):
        found.asides.add(line.aside)


def _follow(flying: set[int], line: LedgerLine) -> None:
    if isinstance(line, Segment):
        flying.update(line.open)
    elif isinstance(line, Intent):
        flying.add(line.sequence)
    elif isinstance(line, ReceiptLine | Unknown):
        flying.discard(line.intent)


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
            if isinstance(line, Segment) and line.tree and line.tree.valid and tree is None:
                tree, start, first_sequence = line.tree, line.tree, line.sequence
            elif isinstance(line, Segment) and line.tree != tree:
                place = segments.path(number).name
                raise ValueError(f"{place} does not continue the tree: see `ledger verify`")
            if raw.whole and tree is not None:
                hashes.append(hash_leaf(raw.content))
                tree = tree.add(hashes[-1])
    if tree is None:
        raise ValueError(f"{directory} has no line with a tree yet: a daemon of 0.2 must run once")
    return History(Leaves(start, hashes), first_sequence)
