"""The blocking writer, for one thread: append, rotation, and recovery at a start.

State in memory changes after a successful write.

A group of lines is accepted as a whole or not at all. Lines that must come first (intents that a
crash left open, receipts that could not be written) wait in `_pending` for the next group.
"""

import contextlib
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from byoc_agents import __version__
from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.durable.files import Disk, lock_refusal, rewrite_and_sync
from byoc_agents.ledger.format import (
    DURABLE,
    FORMAT,
    START,
    IntentLine,
    Line,
    LinePosition,
    ReceiptLine,
    RecoveredLine,
    RecoveredWhy,
    RemovedLine,
    SegmentLine,
    UnknownLine,
    encode,
    kind_of,
    sha256_hex,
)
from byoc_agents.ledger.reader import Scan, check_format, find_ends, find_mismatch, scan
from byoc_agents.ledger.removal import LINK_BYTES, SEGMENTS, is_removal_needed
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.tree import TreeHead, hash_leaf
from byoc_agents.message import Message

MIN_BYTES = 64 * 1024
MAX_OPEN = 1000  # intents without an outcome; more only if a daemon were cancelled that often
MAX_UNSYNCED_BYTES = 256 * 1024  # kept in memory until the next sync
SYNC_NS = 1_000_000_000  # longest wait of other lines for a sync, if lines follow


class Entry(msgspec.Struct, frozen=True):
    """A line to be written, and the messages whose bodies are kept with it."""

    line: Line
    messages: Sequence[Message] = ()


class Tail:
    """The file that is written: its accepted bytes, and how many of them are durable.

    Methods block and raise OSError: then call `drop`. `ready` opens the file again, cuts it to its
    durable bytes and writes the other accepted bytes again: after a failed fsync the state of
    their pages is unknown.
    """

    def __init__(self, disk: Disk, clock: Clock) -> None:
        self.unsynced = b""  # the end of the file, accepted and not yet durable
        self._disk = disk
        self._clock = clock
        self._path = Path()
        self._file = -1
        self._inode = 0
        self._length = 0  # bytes that are accepted
        self._synced_boot_ns = 0

    def begin_file(self, path: Path, length: int) -> None:
        """Write this file from now on, after its first `length` bytes, which are durable."""
        self.drop()
        self._path, self._length, self.unsynced = path, length, b""

    def ready(self) -> RecoveredWhy | None:
        """Open the file if it is closed. Return how another process changed it, or None."""
        try:
            if self._file < 0:
                return self._open()
            seen = self._path.stat()
        except FileNotFoundError:
            return "gone"
        if seen.st_ino != self._inode:
            return "gone"
        return None if seen.st_size == self._length else "damaged"

    def _open(self) -> RecoveredWhy | None:
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND)
        seen = os.fstat(self._file)
        self._inode = seen.st_ino
        durable_bytes = self._length - len(self.unsynced)
        if seen.st_size < durable_bytes:
            return "damaged"
        self._disk.truncate(self._file, durable_bytes)
        self._disk.write(self._file, self.unsynced)
        return None

    def write(self, content: bytes, *, durable: bool) -> None:
        """Append. Sync if it must be durable, or if enough bytes or time have accumulated."""
        self._disk.write(self._file, content)
        late = self._clock.boot_ns() - self._synced_boot_ns >= SYNC_NS
        if durable or late or len(self.unsynced) + len(content) > MAX_UNSYNCED_BYTES:
            self.sync()
        else:
            self.unsynced += content
        self._length += len(content)

    def sync(self) -> None:
        """Make all accepted bytes durable."""
        self._disk.sync(self._file)
        self._synced_boot_ns = self._clock.boot_ns()
        self.unsynced = b""

    def drop(self) -> None:
        """Close the file."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1


class Chain:
    """The open end of the ledger. Methods block and raise OSError: then nothing was accepted.

    `durable` and `durable_tree` may be read from any thread: the last line that survives a power
    cut, and the tree up to it. They never go back, so they can be pinned.
    """

    def __init__(  # noqa: PLR0913  the directory, its limits, and the seams for tests
        self,
        directory: Path,
        *,
        clock: Clock,
        max_bytes: int,
        disk: Disk,
        expected: str = "",
        line_format: int = FORMAT,
    ) -> None:
        """Open nothing yet. `expected` is a size and root that the ledger must have, or "".

        New files are written in `line_format`.
        """
        self._format = line_format
        self.mismatch: Literal["lost", "older"] | None = None
        self._expected = expected
        self.segments = Segments(directory, disk)
        self.segment_bytes = max_bytes // SEGMENTS
        self.durable = START
        self.durable_tree = TreeHead()
        self._end = START
        self._tree = TreeHead()
        self._max_bytes = max_bytes
        self._clock = clock
        self._tail = Tail(disk, clock)
        self._lock = -1
        self._number = 0  # of the file that is written; 0 = not opened yet
        self._open: dict[int, None] = {}  # intents without an outcome, oldest first
        self._pending: list[Line] = []

    def append(self, entries: Sequence[Entry]) -> list[int]:
        """Write the lines and return their numbers. Durable if one of them must be."""
        try:
            self._ensure_ready()
            if self.segments.sizes[self._number] >= self.segment_bytes:
                self._rotate()
            return self._append(entries)
        except BaseException:
            self._tail.drop()
            self._record_lost_receipts(entries)
            raise

    def check_format(self) -> None:
        """Raise LedgerNewerError if a later version wrote the files. Raises OSError."""
        check_format(self.segments, self._format)

    def open(self) -> None:
        """Open the files and write a line per recovery, unless already done."""
        self.append([])

    def close(self) -> None:
        """Write a line for each open intent, and close the files."""
        self._pending += [UnknownLine(intent=intent, why="stopped") for intent in self._open]
        self._open.clear()
        try:
            if self._number:
                self.append([])
                self._sync()
        finally:
            self._tail.drop()
            with contextlib.suppress(OSError):
                os.close(self._lock)

    # One group of lines.

    def _append(self, entries: Sequence[Entry]) -> list[int]:
        lines = [*self._pending, *(entry.line for entry in entries)]
        self._make_room(sum(_needed_bytes(line) for line in lines))
        for entry in entries:
            if entry.messages and isinstance(entry.line, IntentLine):
                self.segments.keep_bodies(self._number, entry.messages, entry.line.messages)
        numbers = self._write(lines)
        self._pending.clear()
        self._track_intents(zip(numbers, lines, strict=True))
        return numbers[len(numbers) - len(entries) :]

    def _write(self, lines: Sequence[Line]) -> list[int]:
        if not lines:
            return []
        first = self._end.sequence + 1
        content, end, tree = self._link_lines(lines)
        self._tail.write(content, durable=any(kind_of(line) in DURABLE for line in lines))
        self.segments.sizes[self._number] += len(content)
        self._advance(end, tree)
        return list(range(first, end.sequence + 1))

    def _link_lines(self, lines: Sequence[Line]) -> tuple[bytes, LinePosition, TreeHead]:
        """Return the bytes of the lines (with numbers, time and hashes), the new end and tree."""
        end, tree, content = self._end, self._tree, []
        now = rfc3339(self._clock.wall_ns() // 1_000_000)
        for line in lines:
            number = end.sequence + 1
            raw = encode(
                msgspec.structs.replace(line, sequence=number, time=now, previous=end.sha256)
            )
            content.append(raw + b"\n")
            end, tree = LinePosition(number, sha256_hex(raw)), tree.add(hash_leaf(raw))
        return b"".join(content), end, tree

    def _advance(self, end: LinePosition, tree: TreeHead) -> None:
        self._end, self._tree = end, tree
        if not self._tail.unsynced:
            self.durable, self.durable_tree = end, tree

    def _track_intents(self, written: "zip[tuple[int, Line]]") -> None:
        """Update the open intents."""
        for number, line in written:
            if isinstance(line, IntentLine):
                self._open[number] = None
            elif isinstance(line, ReceiptLine | UnknownLine):
                self._open.pop(line.intent, None)
        while len(self._open) > MAX_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            self._pending.append(UnknownLine(intent=oldest, why="stopped"))

    def _record_lost_receipts(self, entries: Sequence[Entry]) -> None:
        """Remember receipts that were not written: their intents' outcome is unknown here."""
        for entry in entries:
            if isinstance(entry.line, ReceiptLine) and entry.line.intent in self._open:
                del self._open[entry.line.intent]
                self._pending.append(UnknownLine(intent=entry.line.intent, why="receipt_lost"))

    # The bound.

    def _make_room(self, needed_bytes: int) -> None:
        """Remove the oldest files until these bytes fit, each stated before it goes."""
        removable = self._find_removable(needed_bytes)
        self._write([self._removed_line(number) for number in removable])
        for number in removable:
            with contextlib.suppress(OSError):  # stated again, and tried again, by a later group
                self.segments.remove(number)

    def _find_removable(self, needed_bytes: int) -> list[int]:
        total, removable = self.segments.total_bytes() + needed_bytes, []
        for number in sorted(self.segments.sizes):
            if total <= self._max_bytes or number >= self._number:
                break
            removable.append(number)
            total += 4 * LINK_BYTES - self.segments.sizes[number]
        return removable

    def _removed_line(self, number: int) -> RemovedLine:
        first, last = find_ends(self.segments.path(number))
        return RemovedLine(
            segment=number,
            first_sequence=first,
            last_sequence=last.sequence,
            last_sha256=last.sha256,
            bytes=self.segments.sizes[number],
        )

    # The files.

    def _ensure_ready(self) -> None:
        if not self._number:
            self._recover()
        if why := self._tail.ready():
            self._abandon(why)

    def _recover(self) -> None:
        """Continue the chain of the last process."""
        self._acquire_lock()
        self.segments.load()
        self.mismatch = find_mismatch(
            self.segments,
            self._expected,
            lambda: is_removal_needed(self.segments, self._max_bytes),
        )
        found = _find_end(self.segments)
        self._end = found.end
        self._pending = [
            *found.lines_to_write,
            *(UnknownLine(intent=i, why="crash") for i in found.open),
        ]
        if self.mismatch:
            self._pending.insert(0, self._mismatch_line(self.mismatch, found.number))
        if found.length:
            rewrite_and_sync(self.segments.path(found.number))
            self._tail.begin_file(self.segments.path(found.number), found.length)
            self._tail.ready()
            self._tail.sync()  # the last process may not have
            self._number, self.durable = found.number, found.end
            self._tree = self.durable_tree = found.tree or TreeHead()
            if found.tree is None or found.max_bytes != self._max_bytes:
                self._rotate()  # a file of 0.1.0, or another bound: the next file states both
        else:
            self._tree = found.tree or TreeHead()
            self._start(found.number)
        for number in found.removed & set(self.segments.sizes):
            self.segments.remove(number)

    def _mismatch_line(self, why: Literal["lost", "older"], number: int) -> RecoveredLine:
        if why == "lost":
            structlog.get_logger().error("ledger.lost", expected=self._expected)
        else:
            structlog.get_logger().error("ledger.older", expected=self._expected)
        return RecoveredLine(
            segment=number, why=why, bytes=0, sha256="", aside="", expected=self._expected
        )

    def _acquire_lock(self) -> None:
        if self._lock >= 0:
            return
        self.segments.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self.segments.directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            self._lock = -1
            where = str(self.segments.directory)
            raise OSError(error.errno, lock_refusal(error, "process"), where) from error

    def _abandon(self, why: RecoveredWhy) -> None:
        """Go on in a new file. `ledger verify` still reports the missing lines."""
        lost = RecoveredLine(segment=self._number, why=why, bytes=0, sha256="", aside="")
        structlog.get_logger().error("ledger.recovered", why=why, segment=self._number)
        self.segments.load()
        self._start(max([self._number, *self.segments.sizes]) + 1)
        self._tail.ready()
        self._pending.append(lost)

    def _rotate(self) -> None:
        self._sync()
        self._start(self._number + 1)
        self._tail.ready()

    def _start(self, number: int) -> None:
        """Create the next file with its first line, and write to it from now on."""
        unknown = {line.intent for line in self._pending if isinstance(line, UnknownLine)}
        in_flight = tuple(sorted({*self._open, *unknown}))
        first = SegmentLine(
            format=self._format,
            version=__version__,
            segment=number,
            open=in_flight,
            tree=self._tree,
            max_bytes=self._max_bytes,
            previous_bytes=self.segments.sizes.get(number - 1, 0),
        )
        content, end, tree = self._link_lines([first])
        self.segments.create(number, content)
        self._tail.begin_file(self.segments.path(number), len(content))
        self._number = number
        self._advance(end, tree)
        structlog.get_logger().info(
            "ledger.segment_started", segment=number, head=str(end), tree=str(tree)
        )

    def _sync(self) -> None:
        if self._tail.unsynced:
            self._tail.sync()
            self.durable, self.durable_tree = self._end, self._tree


def _needed_bytes(line: Line) -> int:
    kept = sum(s.bytes for s in line.messages if s.kept) if isinstance(line, IntentLine) else 0
    return len(encode(line)) + LINK_BYTES + kept


# Recovery at a start: the end of the chain, torn writes, and the lines to add.


class OpenedLedger(msgspec.Struct):
    """The place to continue at. `length` 0 = create this file, else cut it to this many bytes."""

    number: int
    length: int = 0
    end: LinePosition = START
    tree: TreeHead | None = None  # None: a file of 0.1.0, or no file
    max_bytes: int = 0  # the bound that the file states
    open: Sequence[int] = ()  # intents without an outcome
    removed: set[int] = msgspec.field(default_factory=set)  # files that were about to be deleted
    lines_to_write: list[Line] = msgspec.field(default_factory=list)  # about the recovery


def _find_end(segments: Segments) -> OpenedLedger:
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
            return _continue_file(segments, number, seen)
        _set_aside(segments, number, seen)  # not even a first line
        segments.path(number).unlink()
    number = numbers[0] if numbers else 1
    return OpenedLedger(number, lines_to_write=_list_unstated(segments, number, set()))


def _continue_file(segments: Segments, number: int, seen: Scan) -> OpenedLedger:
    found = OpenedLedger(
        number,
        length=seen.good_bytes,
        end=seen.end,
        tree=seen.tree,
        max_bytes=seen.max_bytes,
        open=sorted(seen.open),
        removed=seen.removed,
    )
    if seen.damaged:
        found.number, found.length, found.end = number + 1, 0, seen.last
        found.open, found.tree = sorted(seen.in_flight), seen.last_tree
        found.lines_to_write.append(
            RecoveredLine(segment=number, why="damaged", bytes=seen.rest_bytes, sha256="", aside="")
        )
    elif seen.rest_bytes:
        _set_aside(segments, number, seen)
    found.lines_to_write += _list_unstated(segments, number, seen.asides)
    return found


def _set_aside(segments: Segments, number: int, seen: Scan) -> None:
    content = segments.path(number).read_bytes()[seen.good_bytes :]
    segments.set_aside(number, seen.good_bytes, content)


def _list_unstated(segments: Segments, first: int, stated: set[str]) -> list[Line]:
    """Return a line for each torn end that no line names: of now, or of a start that was cut."""
    asides = [(n, path) for n, path in segments.asides() if n >= first and path.name not in stated]
    foreign = [(n, path) for n, path in segments.foreign() if path.name not in stated]
    return [
        *(_describe_aside(number, path) for number, path in sorted(asides)),
        *(_describe_foreign(number, path) for number, path in sorted(foreign) if number >= first),
    ]


def _describe_foreign(number: int, path: Path) -> RecoveredLine:
    size = path.lstat().st_size
    return RecoveredLine(segment=number, why="damaged", bytes=size, sha256="", aside=path.name)


def _describe_aside(number: int, path: Path) -> RecoveredLine:
    content = path.read_bytes()
    return RecoveredLine(
        segment=number, why="torn", bytes=len(content), sha256=sha256_hex(content), aside=path.name
    )
