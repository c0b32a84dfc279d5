"""The ledger for the shipper and the gate: one writer thread, never blocks the event loop.

All lines that wait when the thread begins share one write and one fsync (group commit).
"""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.delivery.sink import Message, Outcome
from byoc_agents.errors import LedgerError, LedgerNewerError
from byoc_agents.ledger.chain import MIN_BYTES, Chain, Entry
from byoc_agents.ledger.files import Disk
from byoc_agents.ledger.format import SUPPRESSED, Refused, clean, intent_of, receipt_of
from byoc_agents.ledger.recent import unfinished_batch

MAX_GROUP = 16  # lines that share one fsync
REFUSED_BURST = 20  # lines at once, and
REFUSED_REFILL_NS = 3_000_000_000  # one more after so long: 28,800 lines a day at most


class _WriteRequest(NamedTuple):
    destination: str  # "" for a receipt
    intent: int  # 0 for an intent
    batch: Sequence[Message]
    outcomes: Sequence[Outcome]
    future: Future[int]


class FileLedger:
    """An append-only hash chain in one directory; `async with` opens and closes it.

    The directory belongs to one process at a time. It stays within `max_bytes` (at least 64 KiB),
    bodies included: the oldest eighth goes, and a line says so. With `keep_bodies` the exact bytes
    are kept, but for bodies above an eighth of the bound.

    It opens even if the disk fails: then each `intent` raises LedgerError until a write succeeds.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        max_bytes: int,
        keep_bodies: bool = False,
        disk: Disk | None = None,
    ) -> None:
        if max_bytes < MIN_BYTES:
            raise ValueError(f"max_bytes is {max_bytes}; expected at least {MIN_BYTES}")
        self.directory = directory
        self.last_error = ""  # why the last write failed
        self.unfinished: tuple[str, ...] = ()  # ids of the batch that was in flight at the start
        self._chain = Chain(directory, clock=clock, max_bytes=max_bytes, disk=disk or Disk())
        self._kept_bytes = self._chain.segment_bytes if keep_bodies else -1
        self._operations: queue.SimpleQueue[_WriteRequest] = queue.SimpleQueue()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._refusals = _Refusals(clock)

    def __repr__(self) -> str:
        """Return its directory."""
        return f"FileLedger({self.directory})"

    async def __aenter__(self) -> Self:
        """Open the files, and write a line per open intent. A failing disk is reported later.

        Raises LedgerNewerError if a later version wrote the files: then nothing is changed.
        """
        try:
            await self._run(self._check_format)
        except LedgerNewerError:
            self._writer.shutdown(wait=False)
            raise
        await self._run(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write a line for each open intent, and close."""
        await self._run(self._close)
        await asyncio.to_thread(self._writer.shutdown)

    async def intent(self, destination: str, batch: Sequence[Message]) -> int:
        """Write the intent to send a batch, durably; see `Ledger`. Waits for one fsync."""
        return await self._ask(_WriteRequest(destination, 0, batch, (), Future()))

    async def receipt(
        self, intent: int, batch: Sequence[Message], outcomes: Sequence[Outcome]
    ) -> None:
        """Write the outcomes; see `Ledger`.

        Durable with the next intent or a second later, whichever comes first: a receipt that a
        power cut takes is stated as unknown at the next start.
        """
        await self._ask(_WriteRequest("", intent, batch, outcomes, Future()))

    def record_refusal(self, reason: str, detail: str) -> None:
        """Record a refusal of the egress gate. From any thread; never blocks, never raises.

        At most REFUSED_BURST lines at once and one each 3 s after it; the others are counted in
        the `suppressed` of the next line.
        """
        if self._refusals.note(clean(str(reason)), clean(detail)):
            try:
                self._writer.submit(self._drain)
            except RuntimeError:  # closed
                self._refusals.give_back(1)

    def status(self) -> dict[str, Any]:
        """Return what /status shows. `head` is durable: pin it, `ledger verify --anchor` takes it.

        None if nothing could be written yet.
        """
        segments, head = self._chain.segments, self._chain.durable
        return {
            "head": str(head) if head.sequence >= 0 else None,
            "lines": head.sequence + 1,
            "bytes": segments.total_bytes(),
            "segments": len(segments.sizes),
            "last_error": self.last_error or None,
        }

    async def _ask(self, operation: _WriteRequest) -> int:
        self._operations.put(operation)
        self._writer.submit(self._drain)
        return await asyncio.wrap_future(operation.future)

    async def _run(self, work: Any) -> None:
        await asyncio.wrap_future(self._writer.submit(work))

    # Below here runs on the writer thread only.

    def _check_format(self) -> None:
        with contextlib.suppress(OSError):  # `_open` reports it
            self._chain.check_format()

    def _open(self) -> None:
        self.unfinished = unfinished_batch(self.directory)
        self._attempt(self._chain.open)

    def _close(self) -> None:
        self._drain()
        self._write([], self._refusals.take(last=True))
        self._attempt(self._chain.close)

    def _drain(self) -> None:
        """Write the queued lines. Most calls find none: an earlier call wrote them."""
        group: list[_WriteRequest] = []
        while len(group) < MAX_GROUP and _body_bytes(group) <= self._chain.segment_bytes:
            try:
                operation = self._operations.get_nowait()
            except queue.Empty:
                break
            if operation.future.set_running_or_notify_cancel():
                group.append(operation)
        refusals = self._refusals.take()
        if group or refusals:
            self._write(group, refusals)

    def _write(self, group: Sequence[_WriteRequest], refusals: Sequence[Refused]) -> None:
        numbers = self._attempt(
            lambda: self._chain.append(
                [*map(self._entry, group), *(Entry(line) for line in refusals)]
            )
        )
        if numbers is None:
            self._refusals.give_back(sum(line.count() for line in refusals))
        for position, operation in enumerate(group):
            if numbers is None:
                operation.future.set_exception(LedgerError(self.last_error))
            else:
                operation.future.set_result(numbers[position])

    def _entry(self, operation: _WriteRequest) -> Entry:
        if operation.destination:
            line = intent_of(operation.destination, operation.batch, self._kept_bytes)
            return Entry(line, operation.batch if self._kept_bytes >= 0 else ())
        return Entry(receipt_of(operation.intent, operation.batch, operation.outcomes))

    def _attempt(self, work: Any) -> Any:
        """Return the result of `work`, or None with `last_error` set."""
        try:
            answer = work()
        except OSError as error:
            name = Path(error.filename).name if error.filename else self.directory.name
            self._set_last_error(f"{error.strerror or error} ({name})")
            return None
        except Exception as error:  # noqa: BLE001  the thread continues, the callers get the error
            self._set_last_error(type(error).__name__, exc_info=True)
            return None
        self.last_error = ""
        return answer

    def _set_last_error(self, error: str, *, exc_info: bool = False) -> None:
        if error != self.last_error:
            structlog.get_logger().error("ledger.write_failed", error=error, exc_info=exc_info)
        self.last_error = error


def _body_bytes(group: Sequence[_WriteRequest]) -> int:
    return sum(len(message.body) for operation in group for message in operation.batch)


class _Refusals:
    """Refusals that wait for the writer: a token bucket in front of a bounded queue."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._waiting: deque[Refused] = deque()
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

    def take(self, *, last: bool = False) -> list[Refused]:
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
        line = Refused(reason=reason, detail=detail, suppressed=self._suppressed)
        self._waiting.append(line)
        self._suppressed = 0

    def give_back(self, count: int) -> None:
        """Count refusals whose lines could not be written."""
        with self._mutex:
            self._suppressed += count

    def _refill(self) -> None:
        earned = (self._clock.boot_ns() - self._refilled_ns) // REFUSED_REFILL_NS
        self._refilled_ns += earned * REFUSED_REFILL_NS
        self._tokens = min(REFUSED_BURST, self._tokens + earned)
