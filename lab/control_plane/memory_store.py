"""A store in memory, for tests of the processes around it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from byoc_control_plane.store import StoreError


class MemoryStore:
    """Keeps the rows of INSERT statements; answers other statements with `results`.

    `refuse(table, row)` may return an error for a row; `error` fails every statement.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.inserts = 0
        self.error: StoreError | None = None
        self.entered = asyncio.Event()  # set when a statement begins
        self.released = asyncio.Event()  # statements wait for it
        self.released.set()
        self.refuse: Callable[[str, dict[str, Any]], StoreError | None] = lambda _table, _row: None
        self.results: list[tuple[str, list[dict[str, Any]]]] = []  # part of a query, its rows

    async def run(self, statement: str, data: bytes = b"") -> bytes:
        """Execute a statement; see `Store.run`."""
        self.entered.set()
        await self.released.wait()
        if self.error:
            raise self.error
        if not statement.startswith("INSERT INTO "):
            found = [rows for part, rows in self.results if part in statement]
            return b"\n".join(json.dumps(row).encode() for row in (found[0] if found else []))
        table = statement.split()[2]
        rows = [json.loads(line) for line in data.splitlines()]
        for row in rows:
            if error := self.refuse(table, row):
                raise error
        self.inserts += 1
        self.rows.setdefault(table, []).extend(rows)
        return b""

    def ids(self, table: str) -> list[str]:
        """Return the ids of a table's rows, repeats included."""
        return [row["id"] for row in self.rows.get(table, [])]
