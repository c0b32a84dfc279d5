"""The sealer: decides when a batch of staged records becomes an object, and builds it.

Sealing removes the staged lines and adds the object in one commit. A kill therefore neither loses
nor repeats a record.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from typing import NamedTuple

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.billing.checkpoint import Checkpoint, encode_checkpoint
from byoc_agents.billing.objects import Compression, SharedNumbers, runs, seal
from byoc_agents.billing.record import charge_period_ms
from byoc_agents.billing.streams import EpochStart, ObjectStream, advance_numbers
from byoc_agents.billing.window import HOUR_MS
from byoc_agents.durable.checkpoint import Checkpointed
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolCorruptError
from byoc_agents.ledger.recent import RecentSend
from byoc_agents.message import Message

MAX_LINES = 1000  # per object; about half a MiB of JSON


class Intervals(msgspec.Struct, frozen=True, kw_only=True):
    """Intervals, milliseconds."""

    sample_ms: int
    window_ms: int
    seal_ms: int
    seal_phase_ms: int = 0  # offset of the seals from full seal intervals of the wall clock


def seal_phase_ms(pod: str, seal_ms: int) -> int:
    """Return the phase at which this pod's objects are sealed, 0 <= phase < `seal_ms`.

    It is a hash of the pod's uid (or the replica's name). The pods of a fleet, whose clocks agree,
    therefore do not all send in the same second, and a restarted daemon keeps its phase.
    """
    digest = hashlib.sha256(pod.encode()).digest()
    return int.from_bytes(digest[:8], "big") % seal_ms


class Staged(NamedTuple):
    """The staged records, and the numbers of the next object."""

    lines: Sequence[bytes]  # oldest first
    numbers: SharedNumbers | None  # None if they are the records' sequences


class ReplicaCheckpoint(Checkpointed[Checkpoint | EpochStart]):
    """The checkpoint of one replica, or how to begin without it. `Sealer.stage` changes it."""

    def __init__(
        self, spool: Spool, read: Callable[[str], Awaitable[Checkpoint | EpochStart]], key: str
    ) -> None:
        """`key` is that of the checkpoint in the spool's state."""
        super().__init__(spool, partial(read, key))
        self.key = key


class Sealer:
    """Stages encoded records in a spool and seals them into objects.

    Several scrapers may share one. Its writes follow one another, so the staged lines have one
    order. Every method that writes raises SpoolError. The change may be stored even if the write
    fails or is cancelled; the staged lines are then read again before the next one.
    """

    def __init__(  # noqa: PLR0913  its dependencies
        self,
        daemon: str,
        *,
        intervals: Intervals,
        spool: Spool,
        stream: ObjectStream,
        clock: Clock,
        prefix: str,
        compression: Compression,
        sent: Callable[[], Sequence[RecentSend]] = tuple,
    ) -> None:
        """Take the dependencies.

        `sent` may block. It returns the objects that the ledger has announced recently.
        """
        self.intervals = intervals
        self._spool = spool
        self._stream = stream
        self._clock = clock
        self._prefix = prefix
        self._compression: Compression = compression
        self._sent = sent
        self._log = structlog.get_logger().bind(daemon=daemon)
        self._staged = Checkpointed(spool, self._read_staged)
        self._interval: int | None = None  # of the last seal
        self._lock = asyncio.Lock()

    @property
    def staged(self) -> int:
        """The number of staged records."""
        staged = self._staged.latest
        return len(staged.lines) if staged else 0

    def checkpoint(self, key: str) -> ReplicaCheckpoint:
        """Return the checkpoint that is stored under a key."""
        return ReplicaCheckpoint(self._spool, self._read_checkpoint, key)

    async def choose_epoch(self, start: EpochStart, wall_ms: int) -> int:
        """Return the number of an epoch that begins now. Raises SpoolError."""
        if start.epoch is not None:
            return start.epoch
        return await self._spool.later_epoch(max(wall_ms, start.least_epoch))

    async def stage(
        self, lines: Sequence[bytes], checkpoint: ReplicaCheckpoint, after: Checkpoint
    ) -> None:
        """Store encoded records, and the checkpoint after them, in one commit.

        The records continue from `checkpoint`. Raises SpoolCorruptError if another caller has found
        the file damaged since it was loaded.
        """
        async with self._writing() as staged:
            if not checkpoint.is_current:
                raise SpoolCorruptError("the file was replaced: expected the new checkpoint")
            batch = WriteBatch(stage=lines, state={checkpoint.key: encode_checkpoint(after)})
            with checkpoint.committing(after):
                await self._staged.commit(batch, Staged([*staged.lines, *lines], staged.numbers))

    def interval_ended(self, wall_ms: int) -> bool:
        """Return whether a seal interval ended since the last `seal_due`."""
        return self._interval != self._interval_at(wall_ms)

    def _interval_at(self, wall_ms: int) -> int:
        return (wall_ms - self.intervals.seal_phase_ms) // self.intervals.seal_ms

    async def seal_due(self, wall_ms: int) -> None:
        """Seal at this pod's phase. Seal overdue records of an earlier run at once."""
        async with self._writing() as staged:
            times, interval = self.intervals, self._interval_at(wall_ms)
            if staged.lines:
                _, end_ms = charge_period_ms(staged.lines[0])
                overdue = wall_ms - end_ms >= times.seal_ms + times.window_ms
                due = self._interval is not None and interval != self._interval
                if due or overdue or len(staged.lines) >= MAX_LINES:
                    await self._seal_lines(staged)
            self._interval = interval

    async def seal_all(self) -> None:
        """Seal all staged records."""
        async with self._writing() as staged:
            await self._seal_lines(staged)

    async def _seal_lines(self, staged: Staged) -> None:
        for lines in _batches(staged):
            message = self._seal(lines, staged.numbers)
            numbers, state = advance_numbers(staged.numbers, len(lines))
            staged = Staged(staged.lines[len(lines) :], numbers)
            batch = WriteBatch(messages=[message], unstage=len(lines), state=state)
            await self._staged.commit(batch, staged)
            self._log.info(
                "billing.sealed", id=message.id, records=len(lines), bytes=len(message.body)
            )

    def _seal(self, lines: Sequence[bytes], numbers: SharedNumbers | None) -> Message:
        return seal(
            lines,
            created_at_ms=self._clock.wall_ns() // 1_000_000,
            prefix=self._prefix,
            compression=self._compression,
            numbers=numbers,
        )

    def wait_ms(self) -> float:
        """Return the time until the next regular seal, milliseconds."""
        times, wall_ms = self.intervals, self._clock.wall_ns() / 1e6
        return times.seal_ms - (wall_ms - times.seal_phase_ms) % times.seal_ms

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Staged]:
        """Run the body alone, with the lines that the spool has."""
        async with self._lock:
            yield await self._staged.load()

    async def _read_checkpoint(self, key: str) -> Checkpoint | EpochStart:
        async with self._writing():
            return await self._stream.read_checkpoint(key)

    async def _read_staged(self) -> Staged:
        """Read the staged lines and remove those that were announced and need no new object."""
        lines = await self._spool.staged()
        sent = await asyncio.to_thread(self._sent)
        numbers, gone, resend, state = await self._stream.load(sent, lines)
        if gone or state:
            messages = [self._seal(lost.lines, lost.numbers) for lost in resend]
            await self._spool.commit(WriteBatch(messages=messages, unstage=gone, state=state))
        return Staged(lines[gone:], numbers)


def _batches(staged: Staged) -> Iterator[list[bytes]]:
    """Yield the records of each object: they follow each other and start in one hour."""
    for run in runs(staged.lines, shared=staged.numbers is not None):
        for _, hour in groupby(run, lambda line: charge_period_ms(line)[0] // HOUR_MS):
            lines = list(hour)
            for start in range(0, len(lines), MAX_LINES):
                yield lines[start : start + MAX_LINES]
