"""Verify a ledger: report each changed, missing or reordered line.

Not detectable from the files alone: a change of the last line, the loss of lines at the end, and a
whole chain written again. Heads that were kept elsewhere show all three.

A removal by rotation is believed only if the bound required it: see `removal`.
"""

import errno
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from byoc_agents.app.files import open_regular
from byoc_agents.ledger.format import (
    FORMAT,
    FORMAT_WITH_FACTS,
    FORMATS,
    GENESIS,
    FactLine,
    IntentLine,
    LedgerLine,
    LedgerMessage,
    LinePosition,
    ReceiptLine,
    RecoveredLine,
    RefusedLine,
    RemovedLine,
    SegmentLine,
    UnknownLine,
    decode,
    sha256_hex,
)
from byoc_agents.ledger.heads import KeptHead, KeptHeads
from byoc_agents.ledger.reader import MAX_LINE_BYTES, Raw, extend, raw_lines
from byoc_agents.ledger.removal import MAX_SHORT_BYTES, Removals
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.tree import TreeHead, encode_hash

MAX_PROBLEMS = 100  # listed; the others are counted
TRIES = 5  # the oldest file may be removed by the running daemon while we read
SETTLE_SECONDS = 0.2  # a write in progress ends within this time


class LedgerVerdict(msgspec.Struct, kw_only=True):
    """The result for one directory."""

    directory: str
    problems: list[str] = []
    more_problems: int = 0
    notes: list[str] = []
    files: int = 0
    lines: int = 0
    intents: int = 0
    receipts: int = 0
    unknown: int = 0
    refused: int = 0
    bodies: int = 0  # kept bodies with the size and hash of their line
    first_time: str = ""
    last_time: str = ""
    head: str = ""  # position of the last line, as in /status: SEQUENCE:SHA256
    tree: str = ""  # SIZE ROOT over all lines since 0.2; "" = there are none
    heads: int = 0  # kept heads and anchors that this history has

    @property
    def ok(self) -> bool:
        """Return whether there is no problem."""
        return not self.problems


def verify(
    directory: Path,
    kept: KeptHeads = KeptHeads(),  # noqa: B008  immutable
    settle: Callable[[], None] = lambda: time.sleep(SETTLE_SECONDS),
    *,
    bounds: Sequence[int] = (),
) -> LedgerVerdict:
    """Read a ledger, also while it is written. Blocks. Raises OSError if it cannot be read.

    `kept` are heads from outside. `bounds` are all bounds that the reader has ever set; without
    any, the largest bound that the ledger states is believed.
    """
    for _ in range(TRIES):
        try:
            return _Verifier(Segments(directory), kept, settle, bounds).run()
        except _MovedOnError:
            continue
    raise OSError(f"{directory}: files keep vanishing while they are read")


class _MovedOnError(Exception):
    """A file went away by rotation."""


class _Verifier:
    def __init__(
        self,
        segments: Segments,
        kept: KeptHeads,
        settle: Callable[[], None],
        bounds: Sequence[int],
    ) -> None:
        self.verdict = LedgerVerdict(directory=str(segments.directory))
        self._segments = segments
        self._settle = settle
        self._anchors: dict[int, list[LinePosition]] = {}
        for anchor in kept.anchors:
            self._anchors.setdefault(anchor.sequence, []).append(anchor)
        self._heads: dict[int, list[KeptHead]] = {}
        for kept_head in kept.heads:
            self._heads.setdefault(kept_head.size, []).append(kept_head)
        self._any_kept = bool(kept.heads or kept.anchors)
        self._tree: TreeHead | None = None  # over the lines so far
        self._first_size: int | None = None  # of the tree before the first line of the first file
        self._first: int | None = None  # number of the first line
        self._first_file = 0
        self._removals = Removals(segments, bounds)
        self._format = FORMAT  # of the current file
        self._before: LinePosition | None = None  # number and hash of the line before
        self._readable = True  # whether that line could be decoded
        self._place = ""  # file and number of that line
        # The last line that was removed, if the first one here is not line 0.
        self._cut_at: LinePosition | None = None
        self._open: dict[int, tuple[str, ...]] = {}  # intent -> ids; () where its line is gone

    def run(self) -> LedgerVerdict:
        numbers = self._segments.numbers()
        if not numbers:
            self._add_problem(self.verdict.directory, "holds no ledger file")
        self._first_file = numbers[0] if numbers else 0
        for number in numbers:
            try:
                self._check_file(number, last=number == numbers[-1])
            except FileNotFoundError as error:
                raise _MovedOnError from error
        self._conclude()
        return self.verdict

    def _add_problem(self, place: str, text: str) -> None:
        if len(self.verdict.problems) < MAX_PROBLEMS:
            self.verdict.problems.append(f"{place}: {text}")
        else:
            self.verdict.more_problems += 1

    # Files and lines.

    def _check_file(self, number: int, *, last: bool) -> None:
        self.verdict.files += 1
        path = self._segments.path(number)
        try:
            self._check_lines(path, number, last=last)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._add_problem(path.name, f"is {error.strerror}")

    def _check_lines(self, path: Path, number: int, *, last: bool) -> None:
        for position, raw in enumerate(raw_lines(path), start=1):
            place = f"{path.name}:{position}"
            if len(raw.content) > MAX_LINE_BYTES:
                rest = path.stat().st_size - raw.offset
                text = f"the line is longer than {MAX_LINE_BYTES} bytes: it is not a ledger line"
                self._add_problem(place, f"{text}; {rest} bytes from here on were not read")
            elif raw.whole:
                self._check_line(raw, place, number, first=position == 1)
            elif not last or self._is_cut_off(path, raw):
                why = (
                    "; a crash does this, and the next start of the daemon reports it"
                    if last
                    else ""
                )
                self._add_problem(place, f"the line is cut off{why}")

    def _is_cut_off(self, path: Path, raw: Raw) -> bool:
        """Return whether a line without an end is not a write in progress."""
        size = raw.offset + len(raw.content)
        self._settle()
        return path.stat().st_size == size

    def _check_line(self, raw: Raw, place: str, number: int, *, first: bool) -> None:
        self.verdict.lines += 1
        line = decode(raw.content)
        if line is None:
            self._add_problem(place, "changed: it is not a ledger line")
        else:
            self._link(line, place)
            self._check_first_line(line, place, number, first=first)
            self._count(line, place)
            self._check_content(line, place, number)
        sequence = self._before.sequence + 1 if self._before else 0
        self._before = LinePosition(line.sequence if line else sequence, sha256_hex(raw.content))
        self._first = self._before.sequence if self._first is None else self._first
        self._readable, self._place = line is not None, place
        self._anchor(self._before, place)
        self._removals.add(len(raw.content) + 1, line, place)
        self._check_length(line, len(raw.content), place)
        self._add_to_tree(raw.content, line, place)

    def _check_length(self, line: LedgerLine | None, size: int, place: str) -> None:
        """Check that a line without messages has a length that the writer can give it."""
        short = UnknownLine | RefusedLine | RemovedLine | RecoveredLine
        if isinstance(line, short) and size > MAX_SHORT_BYTES:
            text = f"the line is longer than {MAX_SHORT_BYTES} bytes: no daemon writes it"
            self._add_problem(place, text)

    def _add_to_tree(self, content: bytes, line: LedgerLine | None, place: str) -> None:
        """Add the line to the tree, and compare the kept heads of its size."""
        if isinstance(line, SegmentLine):
            self._begin_tree(line, place)
        self._tree = extend(self._tree, content, line)
        if self._tree:
            self._compare(self._tree, place)

    def _begin_tree(self, line: SegmentLine, place: str) -> None:
        if line.tree is None or not line.tree.valid:
            if self._tree or line.tree:
                self._add_problem(place, "states no valid tree, and an earlier file does")
            return
        if self._first_size is None:
            self._first_size = line.tree.size
            self._compare(line.tree, place)
            if line.tree.size and self.verdict.lines > 1:
                self._add_problem(
                    place, f"states {line.tree.size} lines of a tree that are not there"
                )
        elif line.tree != self._tree:
            self._add_problem(place, f"states the tree {line.tree}; the lines make {self._tree}")

    def _compare(self, tree: TreeHead, place: str) -> None:
        for kept in self._heads.pop(tree.size, ()):
            if kept.root == encode_hash(tree.root):
                self.verdict.heads += 1
            else:
                what = f"the kept head {kept.size} {kept.root}"
                self._add_problem(place, f"does not end the history of {what}: another history")

    def _link(self, line: LedgerLine, place: str) -> None:
        """Compare number and hash with the line before."""
        if self._before is None:
            self._begin(line, place)
        elif line.sequence > self._before.sequence + 1:
            lost = f"{self._before.sequence + 1} to {line.sequence - 1}"
            self._add_problem(place, f"lines {lost} are missing before it")
        elif line.sequence <= self._before.sequence:
            after = self._before.sequence
            self._add_problem(place, f"out of order: line {line.sequence} after line {after}")
        elif line.previous != self._before.sha256 and self._readable:
            self._add_problem(
                self._place, f"changed, or {place} is: the hash there is of other bytes"
            )

    def _begin(self, line: LedgerLine, place: str) -> None:
        if line.sequence > 0:
            self._cut_at = LinePosition(line.sequence - 1, line.previous)
        elif line.previous != GENESIS:
            self._add_problem(place, "changed: the first line of all follows on 64 zeros")

    def _check_first_line(self, line: LedgerLine, place: str, number: int, *, first: bool) -> None:
        """Check that each file begins with its own number, and nothing else does."""
        if not isinstance(line, SegmentLine):
            if first:
                self._add_problem(place, "the first line of the file is missing")
        elif not first or line.segment != number:
            self._add_problem(place, f"is the first line of file {line.segment}")
        elif line.format not in FORMATS:
            self._add_problem(
                place, f"is in format {line.format}; this version reads up to {max(FORMATS)}"
            )
        if isinstance(line, SegmentLine):
            self._format = line.format

    def _anchor(self, position: LinePosition, place: str) -> None:
        for wanted in self._anchors.pop(position.sequence, ()):
            if wanted == position:
                self.verdict.heads += 1
                self.verdict.notes.append(f"{place} is the given anchor {position.sequence}")
            else:
                self._add_problem(
                    place, f"is not the given anchor {position.sequence}: another history"
                )

    # What lines say.

    def _count(self, line: LedgerLine, place: str) -> None:
        verdict = self.verdict
        verdict.first_time = verdict.first_time or line.time
        verdict.last_time = line.time
        verdict.intents += isinstance(line, IntentLine)
        verdict.receipts += isinstance(line, ReceiptLine)
        verdict.unknown += isinstance(line, UnknownLine)
        if isinstance(line, RefusedLine):
            verdict.refused += line.count()
        if isinstance(line, SegmentLine) and self._before is None:
            self._open = dict.fromkeys(line.open, ())
            verdict.notes += [f"{place} carries {len(line.open)} open intents"] * bool(line.open)

    def _check_content(self, line: LedgerLine, place: str, number: int) -> None:
        match line:
            case IntentLine():
                self._open[line.sequence] = tuple(sent.id for sent in line.messages)
                self._check_bodies(line, place, number)
            case ReceiptLine():
                self._close(line.intent, tuple(ended.id for ended in line.outcomes), place)
            case UnknownLine():
                self._close(line.intent, (), place)
                self.verdict.notes.append(f"{place} states line {line.intent} unknown: {line.why}")
            case RemovedLine():
                self._check_removal(line, place)
            case RecoveredLine():
                self._check_recovery(line, place)
            case FactLine() if self._format < FORMAT_WITH_FACTS:
                self._add_problem(place, f"is a fact in a file of format {self._format}")

    def _close(self, intent: int, ids: Sequence[str], place: str) -> None:
        announced = self._open.pop(intent, None)
        if announced is None:
            self._add_problem(place, f"is about line {intent}, which is not an open intent")
        elif announced and ids and announced != ids:
            self._add_problem(place, f"names other ids than its intent, line {intent}")

    def _check_removal(self, line: RemovedLine, place: str) -> None:
        end = LinePosition(line.last_sequence, line.last_sha256)
        if end == self._cut_at and line.segment == self._first_file - 1:
            self._cut_at = None
            lines = f"lines 0 to {line.last_sequence}"
            self.verdict.notes.append(f"{place} states that {lines} were removed by rotation")
        self._anchor(end, place)

    def _check_recovery(self, line: RecoveredLine, place: str) -> None:
        text = f"{line.bytes} bytes kept in {line.aside}" if line.aside else "see there"
        if line.expected:
            text = f"the spool knew the head {line.expected}"
        about = f"states file {line.segment} {line.why}"
        self.verdict.notes.append(f"{place} {about}: {text}")
        aside = self._segments.directory / line.aside
        if line.aside and line.sha256 and self._segments.path(line.segment).exists():
            self._has_stated_digest(aside, line.segment, line, place)

    def _check_bodies(self, line: IntentLine, place: str, number: int) -> None:
        for sent in line.messages:
            if sent.kept:
                path = self._segments.body_path(number, sent.sha256)
                self.verdict.bodies += self._has_stated_digest(path, number, sent, place)

    def _has_stated_digest(
        self, path: Path, number: int, stated: LedgerMessage | RecoveredLine, place: str
    ) -> bool:
        """Return whether a kept file has the size and hash that its line states."""
        try:
            with open_regular(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._add_problem(place, f"the kept bytes {path.name} are {error.strerror}")
                return False
            if not isinstance(error, FileNotFoundError):
                raise
            if not self._segments.path(number).exists():
                raise
            self._add_problem(place, f"the kept bytes {path.name} are missing")
            return False
        if found != stated.sha256 or path.stat().st_size != stated.bytes:
            self._add_problem(place, f"the kept bytes {path.name} have changed")
            return False
        return True

    def _conclude(self) -> None:
        if self._cut_at:
            lines = f"lines 0 to {self._cut_at.sequence}"
            self._add_problem(
                self.verdict.directory, f"{lines} are missing and no line states their removal"
            )
        if found := self._removals.find_unneeded():
            self._add_problem(*found)
        self._conclude_heads()
        for intent in self._open:
            self.verdict.notes.append(f"line {intent} has no outcome yet: in flight, or a crash")
        self.verdict.head = str(self._before) if self._before else ""
        self.verdict.tree = str(self._tree) if self._tree else ""

    def _conclude_heads(self) -> None:
        """Report the kept heads that no line has: lost at the end, or removed at the beginning."""
        last = self._before.sequence if self._before else -1
        for sequence in self._anchors:
            self._report_missing("anchor", sequence, (self._first or 0, last))
        size = self._tree.size if self._tree else 0
        for kept in self._heads:
            self._report_missing("kept head", kept, (self._first_size or 0, size))
        if self._any_kept and not self.verdict.heads and self.verdict.ok:
            lines = f"lines {self._first} to {last}"
            why = "no kept head is of a size from there on: nothing confirms them"
            self._add_problem(self.verdict.directory, f"{lines} are all that is left, and {why}")

    def _report_missing(self, kind: str, number: int, present: tuple[int, int]) -> None:
        first, last = present
        if number > last:
            why = "lines were cut off the end, an older copy was restored, or it was begun again"
            text = f"ends with {last}, before the {kind} {number}: {why}"
        elif number < first:
            self.verdict.notes.append(
                f"{kind} {number} cannot be compared: its lines were removed, before {first}"
            )
            return
        else:
            text = f"{kind} {number} is not in this ledger"
        self._add_problem(self.verdict.directory, text)
