"""The spool's file on its thread: open it, run groups of operations, replace it when it is damaged.

A damaged file is replaced by a new one with the intact rows, and loses its checkpoints. So damage
is confirmed first: SQLite reports the same error for a disk that cannot be read for a moment.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.durable.files import DirectoryLock, DiskReserve, rewrite_and_sync
from byoc_agents.durable.model import SpoolInfo, Totals, WriteBatch, merge_batches
from byoc_agents.durable.recovery import (
    EPOCH,
    ORIGIN,
    create_spool_file,
    discard_unfinished,
    finish_replacement,
    read_through,
    rebuild,
)
from byoc_agents.durable.schema import translated
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import (
    SpoolCorruptError,
    SpoolError,
    SpoolNewerError,
    SpoolUnavailableError,
)

T = TypeVar("T")


class OperationKind(Enum):
    """The effect of an operation on disk usage."""

    READ = auto()
    GROW = auto()  # stores new data: only while the reserve for acknowledgments is held
    SHRINK = auto()  # may use the reserve


class Operation(NamedTuple):
    """Work on the store."""

    work: Callable[[SpoolStore], Any]
    kind: OperationKind
    added: WriteBatch | None = None  # its whole effect, if it is a plain change


def grows(group: Sequence[Operation]) -> bool:
    """Return whether one of them stores new data."""
    return any(operation.kind is OperationKind.GROW for operation in group)


class Step(Enum):
    """The next step for a group of operations."""

    RUN = auto()
    CONFIRM = auto()  # close the file, open it and run the group again: is the damage real?
    REPLACE = auto()  # make a new file; every operation fails with SpoolCorruptError
    SPLIT = auto()  # run each operation alone, because some may succeed
    REFUSE = auto()  # every operation fails with the error


class Failure(Enum):
    """The reason why a group could not be run."""

    DAMAGED = auto()  # the stored bytes are wrong
    REMOVED = auto()  # another file, or none, is at the path
    UNREADABLE = auto()  # the disk cannot read the file, so it may be intact
    FREED = auto()  # the disk failed or is full, and the reserve was just freed for this group
    DISK = auto()  # the disk failed or is full
    DISK_ALONE = auto()  # the same, for a single operation
    NEWER = auto()  # a later version wrote the file


TRANSITIONS = {
    (Step.RUN, Failure.DAMAGED): Step.CONFIRM,
    (Step.RUN, Failure.REMOVED): Step.REPLACE,
    (Step.RUN, Failure.UNREADABLE): Step.REFUSE,
    (Step.RUN, Failure.FREED): Step.RUN,
    (Step.RUN, Failure.DISK): Step.SPLIT,
    (Step.RUN, Failure.DISK_ALONE): Step.REFUSE,
    (Step.RUN, Failure.NEWER): Step.REFUSE,
    (Step.CONFIRM, Failure.DAMAGED): Step.REPLACE,
    (Step.CONFIRM, Failure.REMOVED): Step.REPLACE,
    (Step.CONFIRM, Failure.UNREADABLE): Step.REFUSE,
    (Step.CONFIRM, Failure.FREED): Step.CONFIRM,
    (Step.CONFIRM, Failure.DISK): Step.SPLIT,
    (Step.CONFIRM, Failure.DISK_ALONE): Step.REFUSE,
    (Step.CONFIRM, Failure.NEWER): Step.REFUSE,
}


class SpoolFile:
    """Serves groups of operations. Every method may block and runs on one thread."""

    def __init__(
        self, directory: Path, lock: DirectoryLock, *, max_bytes: int, clock: Clock
    ) -> None:
        self.path = directory / "spool.db"
        self.corruptions = 0  # damaged or lost files since the start
        self.salvaged = 0  # messages, lines and dead letters copied from damaged files
        self.write_error: SpoolError | None = None  # why the last write failed
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = lock
        self._reserve = DiskReserve(directory / "reserve")
        self._store: SpoolStore | None = None
        self._totals = Totals()  # of the file when it was last read or written
        self._epoch = 0
        self._pinned: frozenset[str] = frozenset()

    def pin(self, ids: frozenset[str]) -> None:
        """Keep queued messages with these ids when a later message replaces them.

        Replaces the ids of the last call. From any thread; does not block.
        """
        self._pinned = ids
        if store := self._store:
            store.pinned = ids

    def next_epoch(self, least_ms: int) -> int:
        """Return an epoch of at least `least_ms` that is later than all earlier ones here."""
        self._epoch = self._lock.next_epoch(max(least_ms, self._epoch + 1))
        return self._epoch

    def serve(self, group: Sequence[Operation]) -> tuple[list[Any], Totals]:
        """Return one result per operation (its value or its error), and the file's totals."""
        return self._serve(group), self._totals

    def _serve(self, group: Sequence[Operation]) -> list[Any]:
        step = Step.RUN
        while step in {Step.RUN, Step.CONFIRM}:
            try:
                results = self._run(self._open(), group)
                self._totals = self._open().totals()
            except (SpoolCorruptError, SpoolUnavailableError) as failed:
                failure, error = self._examine(failed, group)
                step = TRANSITIONS[step, failure]
            else:
                return results
        if step is Step.SPLIT:
            return [self._serve([operation])[0] for operation in group]
        if step is Step.REPLACE:
            error = self._replace(error)
        elif failure is not Failure.NEWER:  # then the daemon ends, and all files stay unchanged
            self.write_error = error
        return [error] * len(group)

    def close(self) -> None:
        """Close the file. Needed after an error: SQLite's memory may differ from the disk."""
        store, self._store = self._store, None
        if store:
            store.close()

    def _open(self) -> SpoolStore:
        if self._store is None:
            if not self.path.exists():
                if self._epoch:
                    raise SpoolCorruptError(f"{self.path} was removed")
                if finish_replacement(self.path):
                    self.corruptions += 1
                    structlog.get_logger().error("spool.replacement_finished")
                else:
                    create_spool_file(self.path, self._metadata("created"))
            elif not self._epoch:  # it would replace this file if this one is removed later
                discard_unfinished(self.path)
            with translated():  # only here: the command `dead-letters` may run at the same time
                rewrite_and_sync(self.path.with_name(f"{self.path.name}-wal"))
            self._store = SpoolStore(self.path, max_bytes=self._max_bytes)
            self._store.pinned = self._pinned
            self._epoch = max(self._epoch, read_info(self._store).epoch)
        return self._store

    def _run(self, store: SpoolStore, group: Sequence[Operation]) -> list[Any]:
        if all(operation.kind is OperationKind.READ for operation in group):
            return [_run_one(operation.work, store) for operation in group]
        if grows(group):
            store.check_location()  # before the reserve, which would fail in a removed directory
            self._reserve.allocate()
        results = run_group(group, store)
        if any(operation.kind is OperationKind.SHRINK for operation in group):
            store.vacuum()
        if grows(group):
            self.write_error = None
        return results

    def _examine(self, error: SpoolError, group: Sequence[Operation]) -> tuple[Failure, SpoolError]:
        """Return the kind of the failure and the error to report. Closes the file.

        A file that was removed stays open: it can still be read, so its rows are not lost.
        """
        if isinstance(error, SpoolNewerError):
            return Failure.NEWER, error
        if isinstance(error, SpoolCorruptError) and self._was_replaced():
            return Failure.REMOVED, error
        self.close()
        if isinstance(error, SpoolCorruptError):
            unreadable = self._find_read_error()
            return (Failure.UNREADABLE, unreadable) if unreadable else (Failure.DAMAGED, error)
        if not grows(group) and self._reserve.release():
            return Failure.FREED, error
        return (Failure.DISK if len(group) > 1 else Failure.DISK_ALONE), error

    def _find_read_error(self) -> SpoolError | None:
        try:
            read_through(self.path)
        except OSError as error:
            return SpoolUnavailableError(f"{self.path} cannot be read: {error.strerror}")
        return None

    def _was_replaced(self) -> bool:
        with suppress(SpoolError):
            return self._store is not None and self._store.was_replaced()
        return False

    def _replace(self, error: SpoolError) -> SpoolError:
        """Replace the damaged file with a new one that has the intact rows."""
        lost, self._store = self._store, None  # open only if its file was removed
        try:
            self._lock.hold()  # the directory may be gone
            self._reserve.release()
            rows, aside = rebuild(self.path, lost, self._metadata("corrupt"))
        except SpoolError as second:
            self._store = lost  # its data can be read while it is open
            self.write_error = SpoolUnavailableError(
                f"{error}; no new file could be made: {second}"
            )
            return self.write_error
        self._totals = self._open().totals()
        self.corruptions += 1
        self.salvaged += rows
        structlog.get_logger().error("spool.corrupted", error=str(error), aside=aside, rows=rows)
        self.write_error = None
        return SpoolCorruptError(f"{error}; {aside}, {rows} rows copied to the new file")

    def _metadata(self, origin: str) -> dict[str, bytes]:
        epoch = self.next_epoch(self._clock.wall_ns() // 1_000_000)
        return {EPOCH: str(epoch).encode(), ORIGIN: origin.encode()}


def read_info(store: SpoolStore) -> SpoolInfo:
    """Return the epoch and the origin of the file. Raises SpoolCorruptError if it has no epoch."""
    marks = store.state("spool/")
    if EPOCH not in marks:
        raise SpoolCorruptError("the file has no epoch: expected the key spool/epoch")
    return SpoolInfo(int(marks[EPOCH]), replaced=marks.get(ORIGIN) == b"corrupt")


def run_group(group: Sequence[Operation], store: SpoolStore) -> list[Any]:
    """Commit the operations and return one result each: its value or its error.

    They run in one transaction. If one fails, nothing is kept and all run again, each in its own
    savepoint, so that the others are stored. Raises SpoolCorruptError and SpoolUnavailableError.
    """
    try:
        with store.transaction():
            return _run_merged(group, store)
    except (SpoolCorruptError, SpoolUnavailableError):
        raise  # the whole transaction is lost
    except Exception:  # noqa: BLE001  raised again below, and returned to its caller
        with store.transaction():
            return [_run_one(_isolate(operation.work), store) for operation in group]


def _run_merged(group: Sequence[Operation], store: SpoolStore) -> list[Any]:
    """Run the operations. Consecutive plain changes become one: SQLite is called a few times only.

    Each call of SQLite releases the interpreter to the thread of the event loop.
    """
    if len(group) == 1:
        return [group[0].work(store)]
    results: list[Any] = []
    for plain, some in groupby(group, lambda operation: operation.added is not None):
        operations = list(some)
        if plain:
            store.apply(merge_batches([one.added for one in operations if one.added]))
            results += [None] * len(operations)
        else:
            results += [operation.work(store) for operation in operations]
    return results


def _isolate(work: Callable[[SpoolStore], T]) -> Callable[[SpoolStore], T]:
    def isolated(store: SpoolStore) -> T:
        with store.savepoint():
            return work(store)

    return isolated


def _run_one(work: Callable[[SpoolStore], T], store: SpoolStore) -> T | Exception:
    """Return the value or the error. Raises SpoolCorruptError and SpoolUnavailableError."""
    try:
        return work(store)
    except (SpoolCorruptError, SpoolUnavailableError):
        raise  # the whole file is concerned
    except Exception as error:  # noqa: BLE001  returned to the caller
        return error
