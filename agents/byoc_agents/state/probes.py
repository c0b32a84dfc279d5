"""Ask one server how it is: few queries, each with its own bound; one that fails hides no other."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import aiohttp
import msgspec

from byoc_agents.app.clock import Clock
from byoc_agents.clickhouse import (
    ClickHouseAuthError,
    ClickHouseError,
    ClickHouseServerError,
    ClickHouseTimeoutError,
    ClickHouseTooLargeError,
    ClickHouseUnreachableError,
)
from byoc_agents.state import queries
from byoc_agents.state.observation import Login, Observation, Ping, Seen, Source
from byoc_agents.state.server_stats import figures

SLOW_EVERY_SECONDS = 60.0  # probes that walk over every table
RELEARN_SECONDS = 600.0  # how long a missing table or grant is believed to be missing

# ClickHouse src/Common/ErrorCodes.cpp
ABSENT_CODES = frozenset({16, 46, 47, 60, 81})  # no such column, function, name, table, database
DENIED_CODES = frozenset({291, 497})  # DATABASE_ACCESS_DENIED, ACCESS_DENIED
# rows, time, slow, rows, memory, rows or bytes of a result, bytes
BOUND_CODES = frozenset({158, 159, 160, 191, 241, 307, 396})

Rows = dict[str, str]


class Server(Protocol):
    """What we need of `byoc_agents.clickhouse.ClickHouse`: same contracts, same exceptions."""

    async def ping(self) -> None: ...  # noqa: D102

    async def replicas_status(self) -> bool: ...  # noqa: D102

    async def query(self, sql: str) -> list[dict[str, Any]]: ...  # noqa: D102


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How long each probe may take."""

    ping_seconds: float = 2.0  # a local /ping takes 1 ms; the kubelet's probes time out after 1 s
    fast_seconds: float = 3.0
    slow_seconds: float = 5.0  # the profile's max_execution_time is 4 s: the server ends it first


DEFAULT_BOUNDS = Bounds()


class Prober:
    """Looks at one server. Remembers what it may not see, and the last answers of slow probes."""

    def __init__(self, server: Server, *, clock: Clock, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._server = server
        self._bounds = bounds
        self._clock = clock
        self._missing: dict[Source, Seen] = {}
        self._variant: dict[Source, int] = {}
        self._learned_at = self._slow_at = float("-inf")
        self._slow: tuple[Rows, dict[Source, Seen]] = ({}, {})
        self._uptime: int | None = None

    async def observe(self) -> Observation:
        """Look once. Raises nothing but what a defect raises; takes at most some seconds."""
        ping = await self._ping()
        if ping is not Ping.OK:
            return Observation(ping=ping)
        self._forget()
        try:
            seen = await self._look()
        except ClickHouseAuthError:
            missing = {Source.QUERIES: Seen.DENIED}
            return Observation(ping=ping, login=Login.REFUSED, seen=missing)
        if Seen.FAILED in seen.seen.values():  # it may have gone away in this moment
            again = await self._ping()
            return seen if again is Ping.OK else Observation(ping=again)
        return seen

    async def _look(self) -> Observation:
        rows, seen = await self._fast()
        if seen[Source.QUERIES] is Seen.OK and not _is_server(rows):
            seen[Source.QUERIES] = Seen.FAILED
        if seen[Source.QUERIES] is not Seen.OK:
            return Observation(ping=Ping.OK, seen=seen)
        self._note_uptime(int(rows["uptime"]))
        ok = await self._replicas_status(seen)
        slow_rows, slow_seen = await self._slow_probes("NumberOfDetachedParts" in "".join(rows))
        found, hidden, shared = figures(rows | slow_rows, seen | slow_seen, replicas_status_ok=ok)
        return Observation(
            ping=Ping.OK,
            login=Login.OK,
            seen=seen | slow_seen | hidden,
            figures=found,
            version=_version(rows["version"]),
            uptime_seconds=self._uptime,
            shared_merge_tree=shared,
        )

    def _forget(self) -> None:
        """Believe nothing to be missing any more, from time to time: a grant may have come."""
        now = self._clock.boot_ns() / 1e9
        if now - self._learned_at >= RELEARN_SECONDS:
            self._missing, self._variant, self._learned_at = {}, {}, now

    def _note_uptime(self, uptime_seconds: int) -> None:
        if self._uptime is not None and uptime_seconds < self._uptime:  # another life of the server
            self._learned_at = self._slow_at = float("-inf")
        self._uptime = uptime_seconds

    async def _ping(self) -> Ping:
        try:
            async with asyncio.timeout(self._bounds.ping_seconds):
                await self._server.ping()
        except (TimeoutError, ClickHouseTimeoutError):
            return Ping.TIMEOUT
        except ClickHouseUnreachableError as error:
            return _unreachable(error.__context__)
        except ClickHouseError:
            return Ping.HTTP_ERROR
        return Ping.OK

    async def _replicas_status(self, seen: dict[Source, Seen]) -> bool | None:
        try:
            async with asyncio.timeout(self._bounds.fast_seconds):
                ok = await self._server.replicas_status()
        except (TimeoutError, ClickHouseError) as error:
            seen[Source.REPLICAS_STATUS] = _seen(error)
            return None
        seen[Source.REPLICAS_STATUS] = Seen.OK
        return ok

    async def _fast(self) -> tuple[Rows, dict[Source, Seen]]:
        """Ask for all in one query; where that fails, for each source alone."""
        wanted = [source for source in queries.FAST if source not in self._missing]
        rows, how = await self._ask(
            [queries.SERVER, *(queries.FAST[source] for source in wanted)],
            self._bounds.fast_seconds,
        )
        seen = dict.fromkeys((Source.QUERIES, *wanted), how) | self._missing
        if how is not Seen.OK:
            rows, seen = await self._one_by_one(wanted)
        if seen.get(Source.ASYNCHRONOUS_METRICS) is Seen.OK and not _has(
            rows, Source.ASYNCHRONOUS_METRICS
        ):
            seen[Source.ASYNCHRONOUS_METRICS] = Seen.EMPTY  # old servers, in their first minute
        return rows, seen

    async def _one_by_one(self, wanted: Sequence[Source]) -> tuple[Rows, dict[Source, Seen]]:
        rows, how = await self._ask([queries.SERVER], self._bounds.fast_seconds)
        seen = {Source.QUERIES: how, **self._missing}
        if how is not Seen.OK:
            return rows, seen
        for source in wanted:
            more, seen[source] = await self._ask([queries.FAST[source]], self._bounds.fast_seconds)
            rows |= more
            self._learn(source, seen[source])
        return rows, seen

    async def _slow_probes(self, detached_known: bool) -> tuple[Rows, dict[Source, Seen]]:
        """Return the last answers; ask anew when they are old."""
        now = self._clock.boot_ns() / 1e9
        if now - self._slow_at >= SLOW_EVERY_SECONDS:
            rows: Rows = {}
            seen: dict[Source, Seen] = {}
            for source in queries.SLOW:
                if not (source is Source.DETACHED_PARTS and detached_known):
                    more, seen[source] = await self._slow_probe(source)
                    rows |= more
            self._slow, self._slow_at = (rows, seen), now
        return self._slow

    async def _slow_probe(self, source: Source) -> tuple[Rows, Seen]:
        if source in self._missing:
            return {}, self._missing[source]
        variants = queries.SLOW[source]
        for number in range(self._variant.get(source, 0), len(variants)):
            rows, how = await self._ask([variants[number]], self._bounds.slow_seconds)
            if how is not Seen.ABSENT:
                self._variant[source] = number
                break
        self._learn(source, how)
        return rows, how

    def _learn(self, source: Source, how: Seen) -> None:
        if how in {Seen.ABSENT, Seen.DENIED}:
            self._missing[source] = how

    async def _ask(self, selects: Sequence[str], seconds: float) -> tuple[Rows, Seen]:
        """Run one query. Raises ClickHouseAuthError only."""
        try:
            async with asyncio.timeout(seconds):
                rows = await self._server.query(queries.union(selects))
            return {str(row["name"]): str(row["value"]) for row in rows}, Seen.OK
        except ClickHouseAuthError:
            raise
        except (TimeoutError, ClickHouseError, KeyError) as error:
            return {}, _seen(error)


def _unreachable(cause: BaseException | None) -> Ping:
    """Return what aiohttp's own error means, in the handling of which the client raised its own."""
    match cause:
        case aiohttp.ClientSSLError() | aiohttp.ServerFingerprintMismatch():
            return Ping.TLS
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return Ping.REFUSED
        case aiohttp.ClientConnectorError():
            return Ping.UNREACHABLE
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            return Ping.RESET
    return Ping.UNREACHABLE


def _seen(error: Exception) -> Seen:
    match error:
        case TimeoutError() | ClickHouseTimeoutError() | ClickHouseTooLargeError():
            return Seen.OVER_BOUND
        case ClickHouseAuthError():
            return Seen.DENIED
        case ClickHouseServerError(code=code) if code in ABSENT_CODES:
            return Seen.ABSENT
        case ClickHouseServerError(code=code) if code in DENIED_CODES:
            return Seen.DENIED
        case ClickHouseServerError(code=code) if code in BOUND_CODES:
            return Seen.OVER_BOUND
    return Seen.FAILED


def _is_server(rows: Rows) -> bool:
    """Return whether these are the rows of `queries.SERVER`; a proxy may answer anything."""
    return bool(re.fullmatch(r"\d{1,18}", rows.get("uptime", ""), re.ASCII)) and "version" in rows


def _has(rows: Mapping[str, str], source: Source) -> bool:
    return any(name.startswith(f"{source}.") for name in rows)


def _version(text: str) -> str:
    """Return the numbers of `24.8.4.13.altinitystable`: a build's own words do not leave."""
    match = re.match(r"\d{1,5}(?:\.\d{1,9}){1,4}", text)
    return match[0] if match else ""
