"""An event loop in its own thread, for servers that answer while the main thread waits."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 60.0
SETTLE_SECONDS = 0.05


class LoopThread:
    """Runs coroutines that other threads ask for."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop; return its result or raise its exception."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)

    def close(self) -> None:
        """End the thread; tasks that still run are dropped."""
        self.run(asyncio.sleep(SETTLE_SECONDS))  # closed connections let go of their sockets
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()


@contextmanager
def entered(manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter an asynchronous context manager in its own loop thread."""
    thread = LoopThread()
    try:
        yield thread.run(manager.__aenter__())
    finally:
        try:
            thread.run(manager.__aexit__(None, None, None))
        finally:
            thread.close()
