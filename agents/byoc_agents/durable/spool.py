"""The spool: accepted messages that are not yet delivered, on disk.

Delivery is at least once after `put` or `commit` returns. One thread owns the file (`worker.py`).
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from byoc_agents.app.clock import Clock
from byoc_agents.durable.files import DirectoryLock
from byoc_agents.durable.model import DeadLetter, SpoolInfo, Totals, WriteBatch
from byoc_agents.durable.spool_file import Operation, OperationKind, SpoolFile, read_info
from byoc_agents.durable.store import SpoolStore
from byoc_agents.durable.worker import GroupCommitWorker
from byoc_agents.errors import SpoolCorruptError, SpoolUnavailableError
from byoc_agents.message import Message

MAX_GROUP = 512  # operations that share one fsync
PROBE = "spool/probe"  # written to test whether the disk accepts writes again

T = TypeVar("T")


class Spool:
    """A durable queue of messages, with staged lines, checkpoints and dead letters.

    Staged lines are usage records that are not yet sealed into a message. The state is bytes that a
    daemon stores under keys of its own; its checkpoints are part of it.

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
        self.totals = Totals()
        self.lock = DirectoryLock(directory)
        self.changed = asyncio.Event()  # set after each write that leaves a message in the queue
        self._clock = clock
        self._file = SpoolFile(directory, self.lock, max_bytes=max_bytes, clock=clock)
        self._worker = GroupCommitWorker(
            "spool",
            self._file,
            max_group=MAX_GROUP,
            waits_for_group=lambda operation: operation.kind is OperationKind.GROW,
            on_served=self._on_served,
        )

    async def __aenter__(self) -> Self:
        """Open the file. Raises SpoolUnavailableError if the directory cannot be used."""
        self.lock.hold()
        self._worker.start()
        try:
            with contextlib.suppress(SpoolCorruptError):  # a new file has replaced it
                await self.run(SpoolStore.totals, OperationKind.READ)
            await self.run(SpoolStore.totals, OperationKind.READ)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish the queued operations and close the file."""
        try:
            await self._worker.stop()
        finally:
            self.lock.release()

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def corruptions(self) -> int:
        """Damaged or lost files since the start."""
        return self._file.corruptions

    @property
    def salvaged(self) -> int:
        """Messages, lines and dead letters that were copied from damaged files since the start."""
        return self._file.salvaged

    @property
    def alive(self) -> bool:
        """Return whether the writer thread runs: part of /healthz."""
        return self._worker.alive

    async def put(self, *messages: Message) -> None:
        """Store messages durably. A message whose id is already queued is ignored."""
        await self.commit(WriteBatch(messages=messages))

    async def commit(self, change: WriteBatch) -> None:
        """Store all of the change durably, or nothing."""
        added = change if change.plain else None
        await self.run(lambda store: store.apply(change), OperationKind.GROW, added)

    async def peek(
        self,
        max_messages: int = 1,
        max_bytes: int = 1 << 20,
        *,
        pin: bool = False,
    ) -> list[Message]:
        """Return the oldest messages within both bounds, but at least one if any is queued.

        With `pin`, a batch of several messages stays unchanged until the next such call or
        `unpin`: a later message with the same `replaces` is queued behind the batch and removes
        none of it. So a batch that may have been stored can be sent again unchanged.
        """

        def read(store: SpoolStore) -> list[Message]:
            found = store.peek(max_messages, max_bytes)
            if pin:
                self._file.pin(frozenset(m.id for m in found) if len(found) > 1 else frozenset())
            return found

        return await self.run(read, OperationKind.READ)

    def unpin(self) -> None:
        """Allow later messages to replace those that `peek` has pinned. Does not block."""
        self._file.pin(frozenset())

    async def remove(self, ids: Sequence[str], state: Mapping[str, bytes] | None = None) -> None:
        """Delete messages that the receiver has stored, and write `state` with it."""

        def work(store: SpoolStore) -> None:
            store.remove(ids)
            if state:
                store.apply(WriteBatch(state=state), bounded=False)

        await self.run(work, OperationKind.SHRINK)

    async def dead_letter(self, message: Message, reason: str, detail: str) -> None:
        """Move a message that the receiver rejected for good to the dead letters."""
        died_at_ms = self._clock.wall_ns() // 1_000_000
        await self.run(
            lambda store: store.dead_letter(message, reason, detail, died_at_ms),
            OperationKind.SHRINK,
        )

    async def requeue(self, message_id: str) -> bool:
        """Queue a dead letter again. Return whether it existed."""
        return await self.run(lambda store: store.requeue(message_id), OperationKind.SHRINK)

    async def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, oldest first."""
        return await self.run(lambda store: store.dead_letters(), OperationKind.READ)

    async def staged(self) -> list[bytes]:
        """Return the staged lines, oldest first."""
        return await self.run(lambda store: store.staged(), OperationKind.READ)

    async def state(self, prefix: str = "") -> dict[str, bytes]:
        """Return the parts of the state whose key starts with `prefix`."""
        return await self.run(lambda store: store.state(prefix), OperationKind.READ)

    async def info(self) -> SpoolInfo:
        """Return the epoch of the file, and whether it replaced a damaged one."""
        return await self.run(read_info, OperationKind.READ)

    async def later_epoch(self, least_ms: int) -> int:
        """Return an epoch of at least `least_ms` that is later than all earlier ones here.

        For a caller whose numbers must not repeat although the file is not new. Milliseconds since
        1970 if the clock is correct.
        """
        return await self.run(lambda _: self._file.next_epoch(least_ms), OperationKind.READ)

    async def probe(self) -> None:
        """Raise SpoolError if the file cannot be read or written.

        Writes only if the last write failed. A reached size limit is not a failure of the disk.
        """
        if self._file.write_error:
            await self.commit(WriteBatch(state={PROBE: b""}))
        await self.state("spool/")

    async def run(
        self, work: Callable[[SpoolStore], T], kind: OperationKind, added: WriteBatch | None = None
    ) -> T:
        """Run `work` on the file's thread and wait until it is durable. Return its value.

        Every other method is such a call. `added` is the whole effect of `work`, if it is a plain
        change.
        """
        if not self._worker.is_open:
            raise SpoolUnavailableError("the spool is not open")
        result: T = await self._worker.ask(Operation(work, kind, added))
        return result

    def _on_served(self, group: Sequence[Operation], totals: Totals) -> None:
        """Wake the shipper. Done here because the caller of `put` may have been cancelled."""
        self.totals = totals
        written = any(operation.kind is not OperationKind.READ for operation in group)
        if written and self.totals.oldest_created_at_ms is not None:
            self.changed.set()
