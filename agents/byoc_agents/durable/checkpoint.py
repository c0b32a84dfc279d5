"""A value in memory whose durable copy is in the spool, in the commits of the messages."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolFullError

T = TypeVar("T")


class Checkpointed(Generic[T]):
    """Knows when the value in memory may differ from the stored one, and reads it again then.

    That is so after a commit that failed or was cancelled, because it may have been made, and after
    a damaged file was replaced, because the new one has no checkpoints. A full spool has stored
    nothing: the value stays.
    """

    def __init__(self, spool: Spool, read: Callable[[], Awaitable[T]]) -> None:
        """`read` returns the stored value. It may raise SpoolError; the next `load` calls it again.

        It is not called twice at the same time.
        """
        self._spool = spool
        self._read = read
        self._reading = asyncio.Lock()
        self._value: T
        self._read_at: tuple[int, int] | None = None  # `_disruptions` at the last read
        self._failures = 0  # commits whose result is unknown
        self._commits = 0

    @property
    def latest(self) -> T | None:
        """The value in memory, which may be out of date. None before the first `load`."""
        return None if self._read_at is None else self._value

    @property
    def is_current(self) -> bool:
        """Return whether the value in memory is known to be the stored one."""
        return self._read_at == self._disruptions()

    async def load(self) -> T:
        """Return the value, from memory if it is known to be the stored one. Raises SpoolError."""
        if not self.is_current:
            async with self._reading:
                while self._read_at != (disruptions := self._disruptions()):
                    commits = self._commits
                    value = await self._read()
                    if commits == self._commits:  # else it may lack what they have stored
                        self._value, self._read_at = value, disruptions
        return self._value

    async def commit(self, batch: WriteBatch, after: T) -> None:
        """Store the batch, which contains the value `after`. Raises SpoolError as the spool does.

        Several commits may run at the same time if they all have the same `after`, an object that
        the caller changes when its commit has returned.
        """
        with self.committing(after):
            await self._spool.commit(batch)

    @contextmanager
    def committing(self, after: T) -> Iterator[None]:
        """Run a commit of `after` that the caller makes. See `commit`.

        For a batch that stores the values of several objects of this class.
        """
        try:
            yield
        except SpoolFullError:
            raise
        except BaseException:
            self._failures += 1
            raise
        self._commits += 1
        self._value = after

    def _disruptions(self) -> tuple[int, int]:
        """Return numbers that rise whenever the value in memory may have become wrong."""
        return self._failures, self._spool.corruptions
