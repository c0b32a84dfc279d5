"""Group commit: one thread owns a file and serves all operations that wait for it together.

The operations that wait when the thread is free share one write and one fsync.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from byoc_agents.errors import ByocError

GROUP_WAIT_SECONDS = 0.0005  # half an fsync: halves their number if operations come in groups
ENOUGH_FOR_A_GROUP = 16  # operations in the last group, above which there is no need to wait

Operation_contra = TypeVar("Operation_contra", contravariant=True)


class GroupFile(Protocol[Operation_contra]):
    """The file that the operations are for. Its methods run on the thread and may block."""

    def serve(self, group: Sequence[Operation_contra]) -> tuple[Sequence[Any], Any]:
        """Return one result per operation (its value or its error), and the file's totals."""
        ...

    def close(self) -> None:
        """Close the file. The next operation opens it again."""
        ...


class _Waiting(NamedTuple):
    operation: Any
    future: asyncio.Future[Any] | None  # None: no caller waits


class GroupCommitWorker(Generic[Operation_contra]):
    """Runs operations on a thread. Started and stopped once, by the loop that calls `ask`."""

    def __init__(  # noqa: PLR0913  spool and ledger differ in these
        self,
        name: str,
        file: GroupFile[Operation_contra],
        *,
        max_group: int,
        drop_cancelled: bool = False,
        waits_for_group: Callable[[Operation_contra], bool] = lambda _: False,
        on_served: Callable[[Sequence[Operation_contra], Any], None] = lambda *_: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`name` is the thread's name.

        At most `max_group` operations share a commit. With `drop_cancelled`, an operation whose
        caller is cancelled while it is in the queue is not done; otherwise it is done. After a
        group of several, an operation for which `waits_for_group` is true waits GROUP_WAIT_SECONDS
        for others.
        `on_served` is called on the loop with the group and the file's totals after it, before any
        caller gets its result. It must not block.
        """
        self._name = name
        self._file = file
        self._max_group = max_group
        self._drop_cancelled = drop_cancelled
        self._waits_for_group = waits_for_group
        self._on_served = on_served
        self._sleep = sleep
        self._operations: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._last_size = 0  # of a group
        self.is_open = False

    @property
    def alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self.is_open = True

    async def stop(self) -> None:
        """Finish the queued operations, close the file and end the thread."""
        self.is_open = False
        self._operations.put(None)
        await asyncio.to_thread(self._thread.join)

    async def ask(self, operation: Operation_contra) -> Any:
        """Run the operation and return its result, or raise it if it is an error.

        See `drop_cancelled` for a caller that is cancelled meanwhile.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._operations.put(_Waiting(operation, future))
        return await future

    def post(self, operation: Operation_contra) -> None:
        """Queue an operation whose result nobody needs. From any thread; does not block."""
        self._operations.put(_Waiting(operation, None))

    def _run(self) -> None:
        while (group := self._next_group()) is not None:
            if self._drop_cancelled:
                group = [one for one in group if one.future is None or not one.future.cancelled()]
            operations = [waiting.operation for waiting in group]
            totals: Any = None
            try:
                results, totals = self._file.serve(operations)
            except Exception as error:  # noqa: BLE001  the thread continues, the callers get the error
                results = [error] * len(group)
                with contextlib.suppress(Exception):
                    self._file.close()
            with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits
                self._loop.call_soon_threadsafe(self._hand_out, group, results, totals)
        self._file.close()

    def _next_group(self) -> list[_Waiting] | None:
        waiting = self._operations.get()
        if waiting is None:
            return None
        if 1 < self._last_size < ENOUGH_FOR_A_GROUP and self._waits_for_group(waiting.operation):
            with contextlib.suppress(OSError):  # libfaketime: the thread continues
                self._sleep(GROUP_WAIT_SECONDS)
        group = [waiting]
        while len(group) < self._max_group:
            try:
                waiting = self._operations.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                self._operations.put(None)  # finish this group first
                break
            group.append(waiting)
        self._last_size = len(group)
        return group

    def _hand_out(self, group: Sequence[_Waiting], results: Sequence[Any], totals: Any) -> None:
        if totals is not None:
            self._on_served([waiting.operation for waiting in group], totals)
        for (_, future), result in zip(group, results, strict=True):
            if future is None or future.done():  # nobody waits, or it was cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(self._copy_error(result))
            else:
                future.set_result(result)

    def _copy_error(self, error: Exception) -> Exception:
        """Return an error for one caller: a shared one would collect the tracebacks of all."""
        if isinstance(error, ByocError):
            return type(error)(*error.args)
        own = RuntimeError(f"defect in the {self._name}: {error!r}")
        own.__cause__ = error
        return own
