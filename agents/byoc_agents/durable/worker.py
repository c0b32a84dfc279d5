"""Group commit: one thread owns a file and serves all operations that wait for it together.

The operations that wait when the thread is free share one transaction and one fsync.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar

from byoc_agents.durable.model import Totals, WriteBatch
from byoc_agents.durable.store import Store
from byoc_agents.errors import SpoolError, SpoolUnavailableError

MAX_GROUP = 512  # operations that share one fsync
GATHER_SECONDS = 0.0005  # half an fsync: halves their number if operations come in groups
ENOUGH = 16  # operations in the last group, above which there is no need to wait

T = TypeVar("T")


class OperationKind(Enum):
    """The effect of an operation on disk usage."""

    READ = 1
    GROW = 2  # stores new data: only while the reserve for acknowledgements is held
    SHRINK = 3  # may use the reserve


class Operation(NamedTuple):
    """Work on the store, and the future of its caller."""

    work: Callable[[Store], Any]
    future: asyncio.Future[Any]
    kind: OperationKind
    added: WriteBatch | None = None  # its whole effect, if it is a plain change


def grows(group: Sequence[Operation]) -> bool:
    """Return whether one of them stores new data."""
    return any(operation.kind is OperationKind.GROW for operation in group)


class Served(Protocol):
    """The file that the operations are for. Its methods run on the thread and may block."""

    def serve(self, group: Sequence[Operation]) -> tuple[list[Any], Totals]:
        """Return one answer per operation, its value or its error, and the totals of the file."""
        ...

    def close(self) -> None:
        """Close the file. The next operation opens it again."""
        ...


class GroupCommitWorker:
    """Runs operations on a thread. Started and stopped once, by the loop that calls `ask`."""

    def __init__(
        self,
        file: Served,
        on_served: Callable[[Totals, bool], None],
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`on_served` is called on the loop before any caller of the group gets its answer.

        Its arguments are the totals, and whether an operation of the group may have written. It
        must not block.
        """
        self._file = file
        self._on_served = on_served
        self._sleep = sleep
        self._operations: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._closed = True
        self._last_size = 0  # of a group

    @property
    def alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self._closed = False

    async def stop(self) -> None:
        """Finish the queued operations, then end the thread."""
        self._closed = True
        self._operations.put(None)
        await asyncio.to_thread(self._thread.join)

    async def ask(
        self, work: Callable[[Store], T], kind: OperationKind, added: WriteBatch | None = None
    ) -> T:
        """Run `work` on the thread and wait until it is durable. Raises SpoolError.

        It is also done if the caller is cancelled meanwhile.
        """
        if self._closed:
            raise SpoolUnavailableError("the spool is not open")
        future: asyncio.Future[T] = self._loop.create_future()
        self._operations.put(Operation(work, future, kind, added))
        return await future

    def _run(self) -> None:
        totals = Totals()
        while (group := self._next_group()) is not None:
            try:
                answers, totals = self._file.serve(group)
            except Exception as error:  # noqa: BLE001  the thread continues, the callers get the error
                answers = [error] * len(group)
                with contextlib.suppress(Exception):
                    self._file.close()
            with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits
                self._loop.call_soon_threadsafe(self._answer, group, answers, totals)
        self._file.close()

    def _next_group(self) -> list[Operation] | None:
        operation = self._operations.get()
        if operation is None:
            return None
        if 1 < self._last_size < ENOUGH and operation.kind is OperationKind.GROW:
            with contextlib.suppress(OSError):  # libfaketime: the thread continues
                self._sleep(GATHER_SECONDS)
        group = [operation]
        while len(group) < MAX_GROUP:
            try:
                operation = self._operations.get_nowait()
            except queue.Empty:
                break
            if operation is None:
                self._operations.put(None)  # finish this group first
                break
            group.append(operation)
        self._last_size = len(group)
        return group

    def _answer(self, group: list[Operation], answers: list[Any], totals: Totals) -> None:
        written = any(operation.kind is not OperationKind.READ for operation in group)
        self._on_served(totals, written)
        for operation, answer in zip(group, answers, strict=True):
            if operation.future.done():  # cancelled
                continue
            if isinstance(answer, Exception):
                operation.future.set_exception(_copy_error(answer))
            else:
                operation.future.set_result(answer)


def _copy_error(error: Exception) -> Exception:
    """Return an error for one caller: a shared one would collect the tracebacks of all."""
    if isinstance(error, SpoolError):
        return type(error)(*error.args)
    own = RuntimeError(f"defect in the spool: {error!r}")
    own.__cause__ = error
    return own
