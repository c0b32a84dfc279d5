"""Stores for the rows: ClickHouse by its HTTP interface, or an embedded chdb."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import aiohttp

from byoc_agents.errors import ConfigError
from byoc_control_plane.schema import TableEngine, table_statements
from byoc_control_plane.stored_tables import (
    COLUMNS_QUERY,
    TABLES_QUERY,
    find_differences,
    is_table,
    stored_tables,
)

STATEMENT_SECONDS = 30.0  # one statement
# Texts of times as the messages have them; fields of later versions are in the `event` column. By
# default ClickHouse refuses an insert into more than 100 months, with the error of a busy server:
# messages with the times of wrong clocks would be sent again and again.
INSERT_SETTINGS = (
    "date_time_input_format='best_effort', input_format_skip_unknown_fields=1,"
    " max_partitions_per_insert_block=0"
)
QUERY_SETTINGS = "output_format_json_quote_64bit_integers=0"
# ClickHouse's numbers of errors in the data of an INSERT (src/Common/ErrorCodes.cpp): trying the
# same row again never helps. Every other error may be the server's and is tried again.
DATA_ERRORS = frozenset({6, 25, 26, 27, 32, 33, 38, 41, 53, 69, 70, 72, 117, 130, 131, 349, 407})


class StoreError(Exception):
    """The statement was not executed, or nobody knows whether it was. It may be tried again."""


class RowsRefusedError(StoreError):
    """The rows can never be stored as they are."""


class Store(Protocol):
    """Executes statements. `run` may be called again with the same rows: they replace each other.

    It returns the response after ClickHouse has executed the statement. Raises RowsRefusedError if
    the data can never be accepted, and StoreError if the statement may be tried again.
    """

    async def run(self, statement: str, data: bytes = b"") -> bytes:
        """Execute a statement; `data` follows an INSERT ... FORMAT."""
        ...


async def insert_rows(store: Store, table: str, lines: Iterable[bytes]) -> None:
    """Insert rows, each a JSON object. Raises as `Store.run`."""
    statement = f"INSERT INTO {table} SETTINGS {INSERT_SETTINGS} FORMAT JSONEachRow"
    await store.run(statement, b"\n".join(lines))


async def fetch_rows(store: Store, query: str) -> list[dict[str, Any]]:
    """Return the rows of a query. Raises as `Store.run`."""
    response = await store.run(f"{query} SETTINGS {QUERY_SETTINGS} FORMAT JSONEachRow")
    return [json.loads(line) for line in response.splitlines() if line]


async def create_tables(store: Store, engine: TableEngine = "single") -> None:
    """Create the tables that do not exist, and this version's views in place of all others.

    Raises ConfigError if a table is of an earlier build; then no view is changed.
    """
    statements = table_statements(engine)
    for statement in filter(is_table, statements):
        await store.run(statement)
    await check_tables(store, engine)
    for statement in statements:
        if not is_table(statement):
            await store.run(statement)


async def check_tables(store: Store, engine: TableEngine = "single") -> None:
    """Raise ConfigError if a table is missing or of an earlier build, with what changes that."""
    stored = stored_tables(
        await fetch_rows(store, TABLES_QUERY), await fetch_rows(store, COLUMNS_QUERY)
    )
    if differences := find_differences(table_statements(engine), stored):
        raise ConfigError(differences)


class HttpStore:
    """ClickHouse's HTTP interface: `http[s]://[user@]host:port/[?database=name]`."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        password: str = "",
        timeout_seconds: float = STATEMENT_SECONDS,
    ) -> None:
        parts = urlsplit(url)
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        netloc = parts.netloc.rpartition("@")[2]
        self._url = urlunsplit((parts.scheme, netloc, parts.path or "/", "", ""))
        # The response comes after the whole statement; an error in the middle is never a 200.
        self._query = dict(parse_qsl(parts.query)) | {"wait_end_of_query": "1"}
        self._headers = {"X-ClickHouse-User": parts.username or "default"}
        if password:
            self._headers["X-ClickHouse-Key"] = password

    def __repr__(self) -> str:
        """Return the server's address, without a user."""
        return f"HttpStore({self._url})"

    async def run(self, statement: str, data: bytes = b"") -> bytes:
        """Execute a statement; see `Store.run`."""
        try:
            async with self._session.post(
                self._url,
                params=self._query | ({"query": statement} if data else {}),
                data=data or statement.encode(),
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                body = await response.read()
                if response.status == 200:  # noqa: PLR2004  the only success of this interface
                    return body
                code = response.headers.get("X-ClickHouse-Exception-Code", "")
                raise _error(int(code) if code.isdigit() else 0, f"status {response.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise StoreError(f"ClickHouse does not respond: {type(error).__name__}") from error


class EmbeddedStore:
    """chdb, the engine of ClickHouse in this process, on one directory.

    chdb has one session per process, which runs one statement at a time: a thread of its own.
    """

    def __init__(self, session: Any, thread: ThreadPoolExecutor) -> None:
        self._session = session
        self._thread = thread

    async def run(self, statement: str, data: bytes = b"") -> bytes:
        """Execute a statement; see `Store.run`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.execute, statement, data)

    def execute(self, statement: str, data: bytes = b"") -> bytes:
        """Execute a statement, blocking."""
        try:
            response = self._session.query(f"{statement}\n{data.decode()}" if data else statement)
        except (RuntimeError, UnicodeDecodeError) as error:
            text = str(error)
            code = text.partition("Code: ")[2].partition(".")[0]
            raise _error(int(code) if code.isdigit() else 0, text) from error
        return bytes(response.bytes()) if response is not None else b""


def _error(code: int, text: str) -> StoreError:
    what = f"ClickHouse error {code}: {text}"
    return RowsRefusedError(what) if code in DATA_ERRORS else StoreError(what)


@asynccontextmanager
async def open_embedded(directory: str) -> AsyncIterator[EmbeddedStore]:
    """Open an embedded store. Raises ConfigError if chdb is not installed."""
    try:
        from chdb.session import Session  # noqa: PLC0415  200 MiB, only for local use
    except ImportError as error:
        raise ConfigError(
            ["BYOC_PLANE_STORE_URL: chdb is not installed: expected `pip install chdb`, or http(s)"]
        ) from error
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="chdb") as thread:
        loop = asyncio.get_running_loop()
        session = await loop.run_in_executor(thread, Session, directory)
        try:
            yield EmbeddedStore(session, thread)
        finally:
            await loop.run_in_executor(thread, session.close)


@asynccontextmanager
async def open_store(url: str, password: str = "") -> AsyncIterator[Store]:
    """Open `chdb:/directory`, or ClickHouse at an http(s) URL. Raises ConfigError."""
    if url.startswith("chdb:"):
        async with open_embedded(url.removeprefix("chdb:")) as embedded:
            yield embedded
        return
    async with aiohttp.ClientSession() as session:
        yield HttpStore(url, session, password=password)
