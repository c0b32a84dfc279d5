"""The ledger for the shipper and the gate: one writer thread, never blocks the event loop.

All lines that wait when the thread begins share one write and one fsync (group commit).
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.durable.files import Disk
from byoc_agents.durable.worker import GroupCommitWorker
from byoc_agents.errors import LedgerError
from byoc_agents.ledger.chain import MIN_BYTES, Chain, Entry
from byoc_agents.ledger.format import (
    FORMAT,
    FORMAT_WITH_FACTS,
    SUPPRESSED,
    FactLine,
    RefusedLine,
    clean,
    intent_of,
    receipt_of,
)
from byoc_agents.ledger.recent import unknown_batch
from byoc_agents.ledger.removal import MAX_GROUP, REFUSED_BURST
from byoc_agents.ledger.tree import TreeHead
from byoc_agents.message import Message, Outcome

HEAD_KEY = "ledger/head"  # in the spool's state: size and root
REFUSED_REFILL_NS = (
    3_000_000_000  # one more line than REFUSED_BURST after so long: 28,800 lines a day at most
)

T = TypeVar("T")


class _IntentRequest(NamedTuple):
    """An intent line to write."""

    destination: str
    batch: Sequence[Message]


class _ReceiptRequest(NamedTuple):
    """A receipt line to write for the intent with this number."""

    intent: int
    batch: Sequence[Message]
    outcomes: Sequence[Outcome]


class _RefusalsRequest(NamedTuple):
    """Only the refusals that wait are to be written."""

    batch: Sequence[Message] = ()


class _FactRequest(NamedTuple):
    """A fact line to write."""

    line: FactLine
    batch: Sequence[Message] = ()


_LineRequest = _IntentRequest | _ReceiptRequest | _FactRequest
_WriteRequest = _LineRequest | _RefusalsRequest


class FileLedger:
    """An append-only hash chain in one directory; `async with` opens and closes it.

    The directory belongs to one process at a time. It stays within `max_bytes` (at least 64 KiB),
    bodies included: the oldest eighth is removed, and a line states it. With `keep_bodies` the
    exact bytes are kept, but for bodies above an eighth of the bound.

    It opens even if the disk fails: then each `intent` raises LedgerError until a write succeeds.
    """

    def __init__(  # noqa: PLR0913  the directory, its limits, and the seams for tests
        self,
        directory: Path,
        *,
        clock: Clock,
        max_bytes: int,
        keep_bodies: bool = False,
        expected: str = "",
        disk: Disk | None = None,
        facts: bool = False,
    ) -> None:
        """Open nothing yet. `expected` is a head that the ledger must have: SIZE ROOT, or "".

        `facts` is for a ledger that `fact` is called on.
        """
        if max_bytes < MIN_BYTES:
            raise ValueError(f"max_bytes is {max_bytes}; expected at least {MIN_BYTES}")
        self.directory = directory
        self._file = _LedgerFile(
            Chain(
                directory,
                clock=clock,
                max_bytes=max_bytes,
                disk=disk or Disk(),
                expected=expected,
                line_format=FORMAT_WITH_FACTS if facts else FORMAT,
            ),
            clock,
            keep=keep_bodies,
        )
        self._worker = GroupCommitWorker(
            "ledger", self._file, max_group=MAX_GROUP, drop_cancelled=True
        )

    def __repr__(self) -> str:
        """Return its directory."""
        return f"FileLedger({self.directory})"

    async def __aenter__(self) -> Self:
        """Open the files, and write a line per open intent. A failing disk is reported later.

        Raises LedgerNewerError if a later version wrote the files: then nothing is changed.
        """
        await asyncio.to_thread(self._file.open)
        self._worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write a line for each open intent, and close."""
        await self._worker.stop()

    @property
    def last_error(self) -> str:
        """Return the error of the last write, or an empty string."""
        return self._file.last_error

    @property
    def unknown_batch(self) -> tuple[str, ...]:
        """The ids of the last process's last batch if its outcome is unknown."""
        return self._file.unknown_batch

    @property
    def tree(self) -> TreeHead:
        """The tree over all durable lines. From any thread."""
        return self._file.chain.durable_tree

    async def intent(self, destination: str, batch: Sequence[Message]) -> int:
        """Write the intent to send a batch, durably; return the number of the line.

        Waits for one fsync. Raises LedgerError; see `Ledger`.
        """
        return int(await self._worker.ask(_IntentRequest(destination, batch)))

    async def receipt(
        self, intent: int, batch: Sequence[Message], outcomes: Sequence[Outcome]
    ) -> None:
        """Write the outcomes; see `Ledger`.

        Durable with the next intent or a second later, whichever comes first: a receipt that a
        power cut takes is stated as unknown at the next start.
        """
        await self._worker.ask(_ReceiptRequest(intent, batch, outcomes))

    async def fact(self, line: FactLine) -> int:
        """Write a fact, durably, and return the number of the line. Waits for one fsync.

        Raises LedgerError: then the fact must not take effect. After a cancellation it is unknown
        whether the line was written.
        """
        return int(await self._worker.ask(_FactRequest(line)))

    def record_refusal(self, reason: str, detail: str) -> None:
        """Record a refusal of the egress gate. From any thread; never blocks, never raises.

        At most REFUSED_BURST lines at once and one each 3 s after it; the others are counted in
        the `suppressed` of the next line.
        """
        if self._file.refusals.note(clean(str(reason)), clean(detail)):
            self._worker.post(_RefusalsRequest())

    def status(self) -> dict[str, Any]:
        """Return what /status shows. `ledger verify --heads` takes both `head` and `tree`.

        `head` is the position of the last line, under the name that it had in 0.1.0.

        They are durable, and None if nothing could be written yet.
        """
        segments, end = self._file.chain.segments, self._file.chain.durable
        return {
            "head": str(end) if end.sequence >= 0 else None,
            "tree": str(self.tree) if self.tree.size else None,
            "lines": end.sequence + 1,
            "bytes": segments.total_bytes(),
            "segments": len(segments.sizes),
            "last_error": self.last_error or None,
            "mismatch": self._file.chain.mismatch,
        }

    def state(self) -> dict[str, bytes]:
        """Return what the spool stores, so that the next start notices a lost or older ledger."""
        return {HEAD_KEY: str(self.tree).encode()} if self.tree.size else {}


class _LedgerFile:
    """The files of the ledger, for one thread. An error is a result and becomes `last_error`."""

    def __init__(self, chain: Chain, clock: Clock, *, keep: bool) -> None:
        self.chain = chain
        self.refusals = _Refusals(clock)
        self.last_error = ""  # why the last write failed
        self.unknown_batch: tuple[str, ...] = ()
        self._directory = chain.segments.directory
        self._kept_bytes = self.chain.segment_bytes if keep else None  # bodies of one intent

    def open(self) -> None:
        """Open the files. Raises LedgerNewerError; a failing disk becomes `last_error`."""
        with contextlib.suppress(OSError):  # the chain reports it below
            self.chain.check_format()
        self.unknown_batch = unknown_batch(self._directory)
        self._attempt(self.chain.open)

    def close(self) -> None:
        """Write the refusals that wait and a line for each open intent, and close the files."""
        self._append([], self.refusals.pop_lines(last=True))
        self._attempt(self.chain.close)

    def serve(self, group: Sequence[_WriteRequest]) -> tuple[list[int | LedgerError], None]:
        """Return one result per request: the number of its line, or the error."""
        results: list[int | LedgerError] = []
        part: list[_WriteRequest] = []
        for request in group:  # the bodies of one write fit into one file
            part.append(request)
            if _body_bytes(part) > self.chain.segment_bytes:
                results += self._append(part, [])
                part = []
        return results + self._append(part, self.refusals.pop_lines()), None

    def _append(
        self, group: Sequence[_WriteRequest], refusals: Sequence[RefusedLine]
    ) -> list[int | LedgerError]:
        lines = [one for one in group if not isinstance(one, _RefusalsRequest)]
        numbers: list[int] | None = []
        if lines or refusals:
            numbers = self._attempt(
                lambda: self.chain.append([*map(self._entry, lines), *map(Entry, refusals)])
            )
        if numbers is None:
            self.refusals.restore(sum(line.count() for line in refusals))
            return [LedgerError(self.last_error)] * len(group)
        written = iter(numbers)
        return [0 if isinstance(one, _RefusalsRequest) else next(written) for one in group]

    def _entry(self, request: _LineRequest) -> Entry:
        if isinstance(request, _FactRequest):
            return Entry(request.line)
        if isinstance(request, _ReceiptRequest):
            return Entry(receipt_of(request.intent, request.batch, request.outcomes))
        line = intent_of(request.destination, request.batch, self._kept_bytes)
        return Entry(line, () if self._kept_bytes is None else request.batch)

    def _attempt(self, work: Callable[[], T]) -> T | None:
        """Return the result of `work`, or None with `last_error` set."""
        try:
            result = work()
        except OSError as error:
            name = Path(error.filename).name if error.filename else self._directory.name
            self._set_last_error(f"{error.strerror or error} ({name})")
            return None
        except Exception as error:  # noqa: BLE001  the thread continues, the callers get the error
            self._set_last_error(type(error).__name__, exc_info=True)
            return None
        self.last_error = ""
        return result

    def _set_last_error(self, error: str, *, exc_info: bool = False) -> None:
        if error != self.last_error:
            structlog.get_logger().error("ledger.write_failed", error=error, exc_info=exc_info)
        self.last_error = error


def _body_bytes(group: Sequence[_WriteRequest]) -> int:
    return sum(len(message.body) for request in group for message in request.batch)


class _Refusals:
    """Refusals that wait for the writer: a token bucket in front of a bounded queue."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._waiting: deque[RefusedLine] = deque()
        self._suppressed = 0
        self._tokens = REFUSED_BURST
        self._refilled_ns = clock.boot_ns()

    def note(self, reason: str, detail: str) -> bool:
        """Return whether it gets a line."""
        with self._mutex:
            self._refill()
            if not self._tokens:
                self._suppressed += 1
                return False
            self._wait(reason, detail)
            return True

    def pop_lines(self, *, last: bool = False) -> list[RefusedLine]:
        """Return the queued lines, and one for the suppressed refusals if a token is left."""
        with self._mutex:
            self._refill()
            if self._suppressed and (self._tokens or last):
                self._wait(SUPPRESSED, "more refusals of which only the number is known")
            found = list(self._waiting)
            self._waiting.clear()
            return found

    def _wait(self, reason: str, detail: str) -> None:
        self._tokens -= 1
        line = RefusedLine(reason=reason, detail=detail, suppressed=self._suppressed)
        self._waiting.append(line)
        self._suppressed = 0

    def restore(self, count: int) -> None:
        """Count refusals whose lines could not be written."""
        with self._mutex:
            self._suppressed += count

    def _refill(self) -> None:
        earned = (self._clock.boot_ns() - self._refilled_ns) // REFUSED_REFILL_NS
        self._refilled_ns += earned * REFUSED_REFILL_NS
        self._tokens = min(REFUSED_BURST, self._tokens + earned)
