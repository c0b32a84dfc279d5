"""One ClickHouse server over HTTP, for the broker: a `ClickHouseAdmin`.

Permissions: the login of `sql/broker.sql`. Every statement is one of `clickhouse_sql`. Each method
ends within METHOD_SECONDS, and `collect` within COLLECT_SECONDS, so that a server that hangs delays
the others only so long.
"""

import asyncio
import datetime as dt
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec

from byoc_agents.access import clickhouse_sql as sql
from byoc_agents.access.clickhouse_admin import CollectedLogs, GrantAccount
from byoc_agents.access.errors import ServerError
from byoc_agents.access.server_checks import check_server
from byoc_agents.clickhouse import (
    Bounds,
    ClickHouse,
    ClickHouseError,
    ClickHouseServerError,
    ClickHouseTooLargeError,
)

METHOD_SECONDS = 10.0
COLLECT_SECONDS = 60.0
BOUNDS = Bounds(seconds=5.0, response_bytes=4 << 20)  # of one request of the broker
LOG_BOUNDS = Bounds(seconds=30.0, response_bytes=4 << 20)  # of one page of a log
PAGE_ROWS = 500
MAX_LOG_BYTES = 8 << 20  # of one log of one server; about 4,000 queries
EARLIER = dt.timedelta(minutes=5)  # the server's clock may be behind: logs are read from then on
UNKNOWN_TABLE = 60  # ClickHouse src/Common/ErrorCodes.cpp


class ClickHouseServer:
    """One server."""

    def __init__(
        self, name: str, server: ClickHouse, logs: ClickHouse, storage: sql.Storage
    ) -> None:
        """`server` has BOUNDS and `logs` has LOG_BOUNDS; both are the same server and login."""
        self.name = name
        self._server = server
        self._logs = logs
        self._storage = storage

    def __repr__(self) -> str:
        return f"ClickHouseServer({self.name}, {self._server})"

    async def find_problems(self, *, plain_names: bool, allow_open_system: bool) -> Sequence[str]:
        """Return the failed checks, each with what the server has and what is expected."""
        names = sql.Names.PLAIN if plain_names else sql.Names.HASHED
        async with self._translated():
            problems = await check_server(
                self._server.query, names=names, allow_open_system=allow_open_system
            )
        return [str(problem) for problem in problems]

    async def read_clock_ms(self) -> int:
        """Return the server's wall time in milliseconds since 1970."""
        async with self._translated():
            (row,) = await self._server.query(sql.server_clock())
            return int(row["milliseconds"])

    async def create_user(self, account: GrantAccount) -> None:
        """Create the user with all its limits in one statement."""
        async with self._translated():
            await self._server.execute(sql.create_user(self._user(account)))

    async def find_differences(self, account: GrantAccount) -> Sequence[str]:
        """Return how the server's user differs from the account; `missing` if it has none."""
        async with self._translated():
            rows = await self._server.query(sql.read_back(account.grant_id))
            return sql.user_differences(self._user(account), rows)

    async def list_users(self) -> Sequence[str]:
        """Return the names of all users with the prefix of a grant."""
        async with self._translated():
            return [row["name"] for row in await self._server.query(sql.grant_users())]

    async def drop_user(self, user: str) -> None:
        """Drop the user, or do nothing if it does not exist."""
        async with self._translated():
            await self._server.execute(sql.drop_orphan(user))

    async def kill_queries(self, user: str) -> None:
        """End the user's running queries, without waiting for their end."""
        async with self._translated():
            await self._server.execute(sql.kill_orphan(user))

    async def running_queries(self, user: str) -> Sequence[str]:
        """Return the ids of the user's running queries."""
        async with self._translated():
            rows = await self._server.query(sql.running_queries(_id_of(user)))
            return [row["query_id"] for row in rows]

    async def collect(self, user: str, since_ms: int) -> CollectedLogs:
        """Write the server's logs to its tables, and return the lines about the user.

        The record has a gap if the server refuses to write its logs, has no query_log, has other
        lines than it counts, or has more than MAX_LOG_BYTES of them. session_log is optional: most
        releases do not write it by default.
        """
        grant_id = _id_of(user)
        since = dt.datetime.fromtimestamp(since_ms / 1000, tz=dt.UTC) - EARLIER
        async with self._translated(COLLECT_SECONDS):
            gaps = [] if await self._flush() else ["the server refused to write its logs"]
            queries, totals = await self._read_queries(grant_id, since)
            sessions, failed = await self._read_sessions(grant_id, since)
        gaps += [log.gap for log in (queries, sessions) if log.gap]
        return CollectedLogs(
            queries=queries.content,
            sessions=sessions.content,
            counts=totals | failed,
            gap=", ".join(gaps),
        )

    async def _flush(self) -> bool:
        try:
            await self._logs.execute(sql.flush_logs())
        except ClickHouseServerError:
            return False
        return True

    async def _read_queries(
        self, grant_id: str, since: dt.datetime
    ) -> "tuple[_Log, dict[str, int]]":
        try:
            (row,) = await self._logs.query(sql.count_queries(grant_id, since))
        except ClickHouseServerError as error:
            if error.code != UNKNOWN_TABLE:
                raise
            return _Log(b"", "the server has no query_log"), {}

        def page(limit: int, offset: int) -> str:
            return sql.collect_queries(grant_id, since, limit, offset)

        log = await self._read_log("query_log", int(row["lines"]), page)
        counts = {name: int(row[name]) for name in ("failed", "result_rows", "result_bytes")}
        return log, {"queries": int(row["started"]), **counts}

    async def _read_sessions(
        self, grant_id: str, since: dt.datetime
    ) -> "tuple[_Log, dict[str, int]]":
        columns = {row["name"] for row in await self._logs.query(sql.session_log_columns())}
        if not columns:
            return _Log(b""), {}
        certificates = columns >= set(sql.CERTIFICATE_COLUMNS)
        (row,) = await self._logs.query(sql.count_sessions(grant_id, since))

        def page(limit: int, offset: int) -> str:
            return sql.collect_sessions(
                grant_id, since, certificates=certificates, limit=limit, offset=offset
            )

        log = await self._read_log("session_log", int(row["lines"]), page)
        return log, {"failed_logins": int(row["failed_logins"])}

    async def _read_log(self, table: str, lines: int, page: Callable[[int, int], str]) -> "_Log":
        """Return the lines of a log, one JSON object each, read in pages."""
        content, offset, limit = bytearray(), 0, PAGE_ROWS
        while True:
            try:
                rows = await self._logs.query(page(limit, offset))
            except ClickHouseTooLargeError:
                if limit == 1:
                    return _Log(bytes(content), f"a line of {table} is too large")
                limit //= 2
                continue
            for row in rows:
                content += msgspec.json.encode(row) + b"\n"
                offset += 1
                if len(content) > MAX_LOG_BYTES:
                    return _Log(bytes(content), f"{table} has more lines than are collected")
            if len(rows) < limit:
                break
        if offset != lines:
            return _Log(bytes(content), f"{table} has {lines} lines, and {offset} were read")
        return _Log(bytes(content))

    def _user(self, account: GrantAccount) -> sql.GrantUser:
        return sql.GrantUser(
            grant_id=account.grant_id,
            certificate_uri=account.certificate_uri,
            role=account.role,
            ticket=account.ticket,
            valid_until=dt.datetime.fromtimestamp(account.end_ms // 1000, tz=dt.UTC),
            storage=self._storage,
        )

    @asynccontextmanager
    async def _translated(self, seconds: float = METHOD_SECONDS) -> AsyncIterator[None]:
        """Limit the time, and raise ServerError for every failure."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except ClickHouseError as error:
            name = type(error).__name__.removeprefix("ClickHouse").removesuffix("Error").lower()
            raise ServerError(f"{self.name}: {name}: {error}") from error
        except TimeoutError:
            raise ServerError(f"{self.name}: no response in {seconds:g} s") from None
        except ValueError as error:  # a value of the policy or of a request that is not allowed
            raise ServerError(f"{self.name}: {error}") from error
        except (LookupError, TypeError) as error:  # the server must not end the broker's pass
            name = type(error).__name__
            raise ServerError(f"{self.name}: a response of another form: {name}") from error


class _Log(NamedTuple):
    """The lines of one log, and why they may not be all."""

    content: bytes
    gap: str = ""


def _id_of(user: str) -> str:
    """Return the grant's id of a user. Raises ServerError for a user of no grant."""
    try:
        return str(uuid.UUID(user.removeprefix(sql.USER_PREFIX)))
    except ValueError:
        raise ServerError(f"{user}: expected the user of a grant") from None
