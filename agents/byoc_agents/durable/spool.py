"""The spool: what has been accepted and not yet been delivered, on disk.

At least once from the moment `put` or `commit` returns. One writer thread owns the file; whatever
waits for it when it begins a transaction shares that transaction and its fsync (group commit).
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
from byoc_agents.durable.group import Operation, OperationKind, grows, together, tried
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

EPOCH = "spool/epoch"  # when this file was made, milliseconds since 1970; later than any before it
ORIGIN = "spool/origin"  # why it was made: "created" or "corrupt"
PROBE = "spool/probe"  # written to learn whether the disk takes writes again


class Spool:
    """A durable queue of messages with staged lines, checkpoints and dead letters beside it.

    Every method may wait for the disk. Raises SpoolFullError (bound reached),
    SpoolUnavailableError (disk full, read-only, failing; worth another try) and SpoolCorruptError
    (the file was damaged or lost; another one with what could be saved stands in its place, `epoch`
    has changed and all checkpoints are gone: start anew). After any error but SpoolFullError, and
    after a cancellation, the caller must not believe its own memory of what is stored, and reads it
    again.
    """

    def __init__(self, directory: Path, *, max_bytes: int, clock: Clock) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.path = directory / "spool.db"
        self.totals = Totals()
        self.changed = asyncio.Event()  # set when there is something to send after a write
        self.resets = 0  # how often the file was damaged or lost since the start
        self.salvaged = 0  # messages, lines and dead letters taken over from damaged files
        self._clock = clock
        self._writer = Writer(self)
        self._lock = DirectoryLock(directory)
        self._reserve = Reserve(directory / "reserve")
        self._store: Store | None = None
        self._epoch = 0
        self._refused: SpoolError | None = None  # why the last write failed
        self._held: frozenset[str] = frozenset()  # ids that no later message replaces

    async def __aenter__(self) -> Self:
        """Open the file. Raises SpoolUnavailableError when the directory cannot be used."""
        self._lock.hold()
        self._writer.start()
        try:
            with contextlib.suppress(SpoolCorruptError):  # another file stands there now
                await self._writer.ask(Store.totals, OperationKind.READ)
            await self._writer.ask(Store.totals, OperationKind.READ)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish what was asked for and close the file."""
        try:
            await self._writer.stop()
        finally:
            self._lock.release()

    @property
    def alive(self) -> bool:
        """Return whether the writer thread runs: part of /healthz."""
        return self._writer.alive

    async def put(self, *messages: Message) -> None:
        """Store messages durably. A message whose id is already there is left as it is."""
        await self.commit(Change(messages=messages))

    async def commit(self, change: Change) -> None:
        """Do all of the change durably, or nothing."""
        added = change if change.plain else None
        await self._writer.ask(lambda store: store.apply(change), OperationKind.GROW, added)

    async def head(
        self,
        max_messages: int = 1,
        max_bytes: int = 1 << 20,
        hold: int = 0,
    ) -> list[Message]:
        """Return the oldest messages: at least one where there is one, within both bounds.

        With `hold` not 0, a batch of several messages is kept together until the next such call or
        `release`: a later message with the same `replaces` is queued behind it and removes none of
        them. So a batch that may have been stored can be sent again as it was.
        """

        def read(store: Store) -> list[Message]:
            found = store.head(max_messages, max_bytes)
            if hold:
                self._held = frozenset(m.id for m in found) if len(found) > 1 else frozenset()
                store.held = self._held
            return found

        return await self._writer.ask(read, OperationKind.READ)

    def release(self) -> None:
        """Let messages replace those that `head` holds."""
        self._held = frozenset()
        if store := self._store:
            store.held = self._held

    async def remove(self, ids: Sequence[str]) -> None:
        """Acknowledge: the receiver has these."""
        await self._writer.ask(lambda store: store.remove(ids), OperationKind.SHRINK)

    async def dead_letter(self, message: Message, reason: str, detail: str) -> None:
        """Move a message that was refused for good to the dead letters."""
        died_at_ms = self._clock.wall_ns() // 1_000_000
        await self._writer.ask(
            lambda store: store.dead_letter(message, reason, detail, died_at_ms),
            OperationKind.SHRINK,
        )

    async def requeue(self, message_id: str) -> bool:
        """Queue a dead letter again. Return whether there was one."""
        return await self._writer.ask(lambda store: store.requeue(message_id), OperationKind.SHRINK)

    async def dead_letters(self) -> list[DeadLetter]:
        """Return what was refused for good, oldest first."""
        return await self._writer.ask(lambda store: store.dead_letters(), OperationKind.READ)

    async def staged(self) -> list[bytes]:
        """Return the lines that wait for their batch, oldest first."""
        return await self._writer.ask(lambda store: store.staged(), OperationKind.READ)

    async def state(self, prefix: str = "") -> dict[str, bytes]:
        """Return the checkpoints whose key starts with `prefix`."""
        return await self._writer.ask(lambda store: store.state(prefix), OperationKind.READ)

    async def later_epoch(self, least_ms: int) -> int:
        """Return an epoch, `least_ms` or more, later than any that began in this directory.

        For whose own numbers must not come again although this file is not new. Milliseconds since
        1970 where the clock is right.
        """
        return await self._writer.ask(lambda _: self._next_epoch(least_ms), OperationKind.READ)

    async def probe(self) -> None:
        """Raise SpoolError when the file can be neither read nor written.

        Writes only where the last write failed. A reached bound is no failure of the disk.
        """
        if self._refused:
            await self.commit(Change(state={PROBE: b""}))
        await self.state("spool/")

    def note(self, totals: Totals, *, written: bool) -> None:
        """Wake the shipper; here, since who has put the message may have been cancelled."""
        self.totals = totals
        if written and totals.oldest_created_at_ms is not None:
            self.changed.set()

    # Below here runs on the writer's thread only.

    def serve(
        self, group: list[Operation], *, second_look: bool = False
    ) -> tuple[list[Any], Totals]:
        """Return one answer an operation (its value, or the error it met), and the totals.

        A file that seems damaged is looked at twice: SQLite says the same of a disk that cannot be
        read for a moment, and what is set aside then loses its checkpoints.
        """
        try:
            store = self._opened()
            answers = self._answers(store, group)
            return answers, store.totals()
        except SpoolCorruptError as error:
            return self._doubted(error, group, second_look=second_look)
        except SpoolNewerError as error:  # nothing beside it is touched either
            return [error] * len(group), self.totals
        except SpoolUnavailableError as error:
            self.let_go()
            if not grows(group) and self._reserve.release():
                return self.serve(group)
            if len(group) == 1:
                self._refused = error
                return [error], self.totals
        alone = [self.serve([operation]) for operation in group]  # so that one may still succeed
        return [answer for (answer,), _ in alone], alone[-1][1]

    def _answers(self, store: Store, group: list[Operation]) -> list[Any]:
        if all(operation.kind is OperationKind.READ for operation in group):
            return [tried(operation.work, store) for operation in group]
        store.begin()
        try:
            if grows(group):
                self._reserve.take()
            answers = together(group, store)
            store.commit()
        except BaseException:
            with contextlib.suppress(SpoolError):
                store.roll_back()
            raise
        if any(operation.kind is OperationKind.SHRINK for operation in group):
            store.give_back()
        if grows(group):
            self._refused = None
        return answers

    def _count(self) -> Totals:
        return self._store.totals() if self._store else Totals()

    def _opened(self) -> Store:
        if self._store is None:
            if not self.path.exists():
                if self._epoch:
                    raise SpoolCorruptError(f"{self.path} was removed")
                make(self.path, self._marks("created"))
            with translated():  # here, not where a command opens it beside the one who writes it
                settle(self.path.with_name(f"{self.path.name}-wal"))
            self._store = Store(self.path, max_bytes=self.max_bytes)
            self._store.held = self._held
            self._epoch = max(self._epoch, _epoch(self._store))
        return self._store

    def _marks(self, origin: str) -> dict[str, bytes]:
        epoch = self._next_epoch(self._clock.wall_ns() // 1_000_000)
        return {EPOCH: str(epoch).encode(), ORIGIN: origin.encode()}

    def _next_epoch(self, least_ms: int) -> int:
        self._epoch = self._lock.number(max(least_ms, self._epoch + 1))
        return self._epoch

    def _replace(self, error: SpoolCorruptError) -> SpoolError:
        """Put another file in the place of the damaged one, with what can be taken over."""
        lost = self._lost()
        try:
            self._lock.hold()  # the directory may be gone
            self._reserve.release()
            rows, aside = rebuild(self.path, lost, self._marks("corrupt"))
        except SpoolError as second:
            self._store = lost  # not lost for good as long as we have it open
            self._refused = SpoolUnavailableError(f"{error}; no new file could be made: {second}")
            return self._refused
        self._opened()
        self.resets += 1
        self.salvaged += rows
        structlog.get_logger().error("spool.damaged", error=str(error), aside=aside, rows=rows)
        self._refused = None
        return SpoolCorruptError(f"{error}; {aside}, {rows} rows taken over")

    def _doubted(
        self, error: SpoolCorruptError, group: list[Operation], *, second_look: bool
    ) -> tuple[list[Any], Totals]:
        if second_look or self._moved():
            return [self._replace(error)] * len(group), self._count()
        self.let_go()
        if self._unreadable():
            return [self._refused] * len(group), self.totals
        return self.serve(group, second_look=True)

    def _unreadable(self) -> bool:
        """Tell whether the disk does not give the file out: that says nothing about the file."""
        try:
            read_through(self.path)
        except OSError as error:
            self._refused = SpoolUnavailableError(f"{self.path} cannot be read: {error.strerror}")
            return True
        return False

    def _moved(self) -> bool:
        with contextlib.suppress(SpoolError):
            return self._store is not None and self._store.moved()
        return False

    def _lost(self) -> Store | None:
        """Return the open store where its file is no longer at its path, else close it."""
        moved, store, self._store = self._moved(), self._store, None
        if moved:
            return store
        if store:
            store.close()
        return None

    def let_go(self) -> None:
        """Close the file, also after an error: what SQLite has in memory may not be on disk."""
        store, self._store = self._store, None
        if store:
            store.close()


def _epoch(store: Store) -> int:
    mark = store.state(EPOCH).get(EPOCH)
    if mark is None:
        raise SpoolCorruptError("the file does not say when it was made")
    return int(mark)
