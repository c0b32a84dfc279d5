"""Inserts the rows of many senders together: ClickHouse prefers few large inserts to many small."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import structlog

from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.rows import TableRow
from byoc_control_plane.store import RowsRefusedError, Store, StoreError, insert_rows

MAX_ROWS = 10_000  # of one insert; some 20 MiB


class _Waiting(NamedTuple):
    rows: Sequence[TableRow]
    stored: asyncio.Future[None]


class Inserter:
    """Collects the rows that arrive while one insert runs, and inserts them with the next one.

    Every caller waits for its own rows, so the number of callers bounds the memory.
    """

    def __init__(self, store: Store, metrics: PlaneMetrics, *, max_rows: int = MAX_ROWS) -> None:
        self._store = store
        self._metrics = metrics
        self._max_rows = max_rows
        self._waiting: list[_Waiting] = []
        self._filled = asyncio.Event()

    async def insert(self, rows: Sequence[TableRow]) -> None:
        """Return after ClickHouse has stored all rows. Raises as `Store.run`.

        After an error some of the rows may be stored: insert the same rows again.
        """
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(rows, stored))
        self._filled.set()
        await stored

    async def run(self) -> None:
        """Insert until cancelled."""
        while True:
            await self._filled.wait()
            group = self._next_group()
            try:
                await self._insert_group(group)
            finally:
                for one in group:  # cancelled: the caller must not wait
                    if not one.stored.done():
                        one.stored.set_exception(StoreError("the process is stopping"))

    def _next_group(self) -> list[_Waiting]:
        count = size = 0
        for one in self._waiting:
            if count and size + len(one.rows) > self._max_rows:
                break
            count, size = count + 1, size + len(one.rows)
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        if not self._waiting:
            self._filled.clear()
        return group

    async def _insert_group(self, group: Sequence[_Waiting]) -> None:
        error = await self._try(row for one in group for row in one.rows)
        if isinstance(error, RowsRefusedError) and len(group) > 1:
            for one in group:  # find whose rows are refused
                _resolve(one.stored, await self._try(one.rows))
            return
        for one in group:
            _resolve(one.stored, error)

    async def _try(self, rows: Iterable[TableRow]) -> StoreError | None:
        """Insert into each table; return the error instead of raising it."""
        # Only equal lines are one row here. Two events with one source and id may be of two
        # organizations, or differ: the table's sorting key decides which of them replace others.
        tables: dict[str, dict[bytes, None]] = {}
        for row in rows:
            tables.setdefault(row.table, {})[row.line] = None
        try:
            for table, lines in tables.items():
                await insert_rows(self._store, table, lines)
        except StoreError as error:
            self._metrics.store_errors.inc()
            structlog.get_logger().error("insert.failed", error=str(error)[:300])
            return error
        return None


def _resolve(stored: asyncio.Future[None], error: StoreError | None) -> None:
    if stored.done():  # the caller was cancelled
        return
    if error is None:
        stored.set_result(None)
    else:
        stored.set_exception(error)
