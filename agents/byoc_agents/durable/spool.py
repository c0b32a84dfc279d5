"""The spool: accepted messages that are not yet delivered, on disk.

Delivery is at least once after `put` or `commit` returns. One writer thread owns the file. All
operations that wait when it begins a transaction share it and its fsync (group commit).
"""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.delivery.sink import Message
from byoc_agents.durable.files import settle
from byoc_agents.durable.group import Operation, OperationKind, grows, run_group, run_isolated
from byoc_agents.durable.lock import DirectoryLock
from byoc_agents.durable.recovery import make, read_through, rebuild
from byoc_agents.durable.reserve import Reserve
from byoc_agents.durable.schema import translated
from byoc_agents.durable.store import Store
from byoc_agents.durable.worker import Writer
from byoc_agents.durable.write_batch import Change, DeadLetter, Totals
from byoc_agents.errors import (
    SpoolCorruptError,
    SpoolError,
    SpoolNewerError,
    SpoolUnavailableError,
)

EPOCH = "spool/epoch"  # creation of this file, milliseconds since 1970; later than all earlier ones
ORIGIN = "spool/origin"  # reason for its creation: "created" or "corrupt"
PROBE = "spool/probe"  # written to test whether the disk accepts writes again


class Spool:
    """A durable queue of messages, with staged lines, checkpoints and dead letters.

    Every method may wait for the disk. Raises:

    - SpoolFullError: the size limit is reached.
    - SpoolUnavailableError: the disk is full, read-only or failing; try again later.
    - SpoolCorruptError: the file was damaged or lost. A new file with the intact rows has replaced
      it, with a new epoch and without checkpoints: the caller starts again.

    After a cancellation, and after any error except SpoolFullError, the caller does not know the
    stored state and must read it again.
    """

    def __init__(self, directory: Path, *, max_bytes: int, clock: Clock) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.path = directory / "spool.db"
        self.totals = Totals()
        self.changed = asyncio.Event()  # set after a write if a message is queued
        self.resets = 0  # damaged or lost files since the start
        self.salvaged = 0  # messages, lines and dead letters copied from damaged files
        self._clock = clock
        self._writer = Writer(self)
        self._lock = DirectoryLock(directory)
        self._reserve = Reserve(directory / "reserve")
        self._store: Store | None = None
        self._epoch = 0
        self._refused: SpoolError | None = None  # why the last write failed
        self._held: frozenset[str] = frozenset()  # ids that later messages must not replace

    async def __aenter__(self) -> Self:
        """Open the file. Raises SpoolUnavailableError if the directory cannot be used."""
        self._lock.hold()
        self._writer.start()
        try:
            with contextlib.suppress(SpoolCorruptError):  # a new file has replaced it
                await self._writer.ask(Store.totals, OperationKind.READ)
            await self._writer.ask(Store.totals, OperationKind.READ)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish the queued operations and close the file."""
        try:
            await self._writer.stop()
        finally:
            self._lock.release()

    @property
    def alive(self) -> bool:
        """Return whether the writer thread runs: part of /healthz."""
        return self._writer.alive

    async def put(self, *messages: Message) -> None:
        """Store messages durably. A message whose id is already queued is ignored."""
        await self.commit(Change(messages=messages))

    async def commit(self, change: Change) -> None:
        """Store all of the change durably, or nothing."""
        added = change if change.plain else None
        await self._writer.ask(lambda store: store.apply(change), OperationKind.GROW, added)

    async def head(
        self,
        max_messages: int = 1,
        max_bytes: int = 1 << 20,
        hold: int = 0,
    ) -> list[Message]:
        """Return the oldest messages within both bounds, but at least one if any is queued.

        If `hold` is not 0, a batch of several messages stays unchanged until the next such call or
        `release`: a later message with the same `replaces` is queued behind the batch and removes
        none of it. So a batch that may have been stored can be sent again unchanged.
        """

        def read(store: Store) -> list[Message]:
            found = store.head(max_messages, max_bytes)
            if hold:
                self._held = frozenset(m.id for m in found) if len(found) > 1 else frozenset()
                store.held = self._held
            return found

        return await self._writer.ask(read, OperationKind.READ)

    def release(self) -> None:
        """Allow messages to replace those that `head` holds. Does not block."""
        self._held = frozenset()
        if store := self._store:
            store.held = self._held

    async def remove(self, ids: Sequence[str]) -> None:
        """Delete messages that the receiver has stored."""
        await self._writer.ask(lambda store: store.remove(ids), OperationKind.SHRINK)

    async def dead_letter(self, message: Message, reason: str, detail: str) -> None:
        """Move a message that the receiver rejected for good to the dead letters."""
        died_at_ms = self._clock.wall_ns() // 1_000_000
        await self._writer.ask(
            lambda store: store.dead_letter(message, reason, detail, died_at_ms),
            OperationKind.SHRINK,
        )

    async def requeue(self, message_id: str) -> bool:
        """Queue a dead letter again. Return whether it existed."""
        return await self._writer.ask(lambda store: store.requeue(message_id), OperationKind.SHRINK)

    async def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, oldest first."""
        return await self._writer.ask(lambda store: store.dead_letters(), OperationKind.READ)

    async def staged(self) -> list[bytes]:
        """Return the lines that wait for their batch, oldest first."""
        return await self._writer.ask(lambda store: store.staged(), OperationKind.READ)

    async def state(self, prefix: str = "") -> dict[str, bytes]:
        """Return the checkpoints whose key starts with `prefix`."""
        return await self._writer.ask(lambda store: store.state(prefix), OperationKind.READ)

    async def later_epoch(self, least_ms: int) -> int:
        """Return an epoch of at least `least_ms` that is later than all earlier ones here.

        For a caller whose numbers must not repeat although the file is not new. Milliseconds since
        1970 if the clock is correct.
        """
        return await self._writer.ask(lambda _: self._next_epoch(least_ms), OperationKind.READ)

    async def probe(self) -> None:
        """Raise SpoolError if the file cannot be read or written.

        Writes only if the last write failed. A reached size limit is not a failure of the disk.
        """
        if self._refused:
            await self.commit(Change(state={PROBE: b""}))
        await self.state("spool/")

    def on_commit(self, totals: Totals, *, written: bool) -> None:
        """Wake the shipper. Done here because the caller of `put` may have been cancelled."""
        self.totals = totals
        if written and totals.oldest_created_at_ms is not None:
            self.changed.set()

    # Below here runs on the writer's thread only.

    def serve(self, group: list[Operation], *, confirmed: bool = False) -> tuple[list[Any], Totals]:
        """Return one answer per operation (its value or its error), and the totals.

        If a file seems damaged, the group runs twice: SQLite reports the same error for a disk that
        cannot be read for a moment, and a replaced file loses its checkpoints.
        """
        try:
            store = self._open_store()
            answers = self._answers(store, group)
            return answers, store.totals()
        except SpoolCorruptError as error:
            return self._handle_corruption(error, group, confirmed=confirmed)
        except SpoolNewerError as error:  # the other files stay unchanged too
            return [error] * len(group), self.totals
        except SpoolUnavailableError as error:
            self.close_file()
            if not grows(group) and self._reserve.release():
                return self.serve(group)
            if len(group) == 1:
                self._refused = error
                return [error], self.totals
        alone = [self.serve([operation]) for operation in group]  # some may succeed
        return [answer for (answer,), _ in alone], alone[-1][1]

    def _answers(self, store: Store, group: list[Operation]) -> list[Any]:
        if all(operation.kind is OperationKind.READ for operation in group):
            return [run_isolated(operation.work, store) for operation in group]
        store.begin()
        try:
            if grows(group):
                self._reserve.take()
            answers = run_group(group, store)
            store.commit()
        except BaseException:
            with contextlib.suppress(SpoolError):
                store.roll_back()
            raise
        if any(operation.kind is OperationKind.SHRINK for operation in group):
            store.vacuum()
        if grows(group):
            self._refused = None
        return answers

    def _count(self) -> Totals:
        return self._store.totals() if self._store else Totals()

    def _open_store(self) -> Store:
        if self._store is None:
            if not self.path.exists():
                if self._epoch:
                    raise SpoolCorruptError(f"{self.path} was removed")
                make(self.path, self._metadata("created"))
            with translated():  # not in `dead-letters`, which runs next to the daemon
                settle(self.path.with_name(f"{self.path.name}-wal"))
            self._store = Store(self.path, max_bytes=self.max_bytes)
            self._store.held = self._held
            self._epoch = max(self._epoch, _epoch(self._store))
        return self._store

    def _metadata(self, origin: str) -> dict[str, bytes]:
        epoch = self._next_epoch(self._clock.wall_ns() // 1_000_000)
        return {EPOCH: str(epoch).encode(), ORIGIN: origin.encode()}

    def _next_epoch(self, least_ms: int) -> int:
        self._epoch = self._lock.number(max(least_ms, self._epoch + 1))
        return self._epoch

    def _replace(self, error: SpoolCorruptError) -> SpoolError:
        """Replace the damaged file with a new one that has the intact rows."""
        lost = self._detach_lost_store()
        try:
            self._lock.hold()  # the directory may be gone
            self._reserve.release()
            rows, aside = rebuild(self.path, lost, self._metadata("corrupt"))
        except SpoolError as second:
            self._store = lost  # its data can be read while it is open
            self._refused = SpoolUnavailableError(f"{error}; no new file could be made: {second}")
            return self._refused
        self._open_store()
        self.resets += 1
        self.salvaged += rows
        structlog.get_logger().error("spool.corrupted", error=str(error), aside=aside, rows=rows)
        self._refused = None
        return SpoolCorruptError(f"{error}; {aside}, {rows} rows taken over")

    def _handle_corruption(
        self, error: SpoolCorruptError, group: list[Operation], *, confirmed: bool
    ) -> tuple[list[Any], Totals]:
        if confirmed or self._was_replaced():
            return [self._replace(error)] * len(group), self._count()
        self.close_file()
        if self._is_unreadable():
            return [self._refused] * len(group), self.totals
        return self.serve(group, confirmed=True)

    def _is_unreadable(self) -> bool:
        """Return whether the disk cannot read the file: then the file may be intact."""
        try:
            read_through(self.path)
        except OSError as error:
            self._refused = SpoolUnavailableError(f"{self.path} cannot be read: {error.strerror}")
            return True
        return False

    def _was_replaced(self) -> bool:
        with contextlib.suppress(SpoolError):
            return self._store is not None and self._store.was_replaced()
        return False

    def _detach_lost_store(self) -> Store | None:
        """Return the open store if its file is no longer at the path, else close it."""
        replaced, store, self._store = self._was_replaced(), self._store, None
        if replaced:
            return store
        if store:
            store.close()
        return None

    def close_file(self) -> None:
        """Close the file. Needed after an error: SQLite's memory may differ from the disk."""
        store, self._store = self._store, None
        if store:
            store.close()


def _epoch(store: Store) -> int:
    mark = store.state(EPOCH).get(EPOCH)
    if mark is None:
        raise SpoolCorruptError("the file has no epoch: expected the key spool/epoch")
    return int(mark)
