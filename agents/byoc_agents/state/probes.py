"""Query one server's health with a few bounded queries. A query that fails hides no other figure.

A query that gets no response (an error, or its time limit) is asked again at the next poll before
it counts: `TOO_MANY_SIMULTANEOUS_QUERIES` comes in bursts of seconds. Until then the last response
is used, if it is recent (`RETRYING`); without one the poll decides nothing (`PENDING`).
"""

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
from byoc_agents.state.observation import (
    UNCONFIRMED,
    Login,
    Ping,
    ProbeSource,
    SourceResult,
    StateObservation,
)
from byoc_agents.state.server_stats import compute_figures

SLOW_EVERY_SECONDS = 60.0  # for queries that read every table
RELEARN_SECONDS = 600.0  # how long a missing table or grant is remembered as missing
REUSE_SECONDS = 150.0  # twice SLOW_EVERY_SECONDS and some polls: how old a used response may be

# ClickHouse src/Common/ErrorCodes.cpp
ABSENT_CODES = frozenset({16, 46, 47, 60, 81})  # no such column, function, name, table, database
DENIED_CODES = frozenset({291, 497})  # DATABASE_ACCESS_DENIED, ACCESS_DENIED
# rows, time, slow, rows, memory, rows or bytes of a result, bytes
BOUND_CODES = frozenset({158, 159, 160, 191, 241, 307, 396})
# A replica cannot lag if both are 0. A read-only one fails /replicas_status.
NO_LAG = (
    f"{ProbeSource.ASYNCHRONOUS_METRICS}.ReplicasMaxAbsoluteDelay",
    f"{ProbeSource.METRICS}.ReadonlyReplica",
)
NO_RESPONSE = frozenset({SourceResult.FAILED, SourceResult.OVER_BOUND})
"""Outcomes that count only if the next attempt ends in one of them as well."""

Rows = dict[str, str]


class Server(Protocol):
    """The methods of `byoc_agents.clickhouse.ClickHouse` in use: same contracts and errors."""

    async def ping(self) -> None:
        """Return if the server answers `/ping`. Raises ClickHouseError."""
        ...

    async def replicas_status(self) -> bool:
        """Return False if the server reports that a replica lags. Raises ClickHouseError."""
        ...

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of one SELECT by column name. Raises ClickHouseError."""
        ...


class PollBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Time limits of one request."""

    ping_seconds: float = 2.0  # a local /ping takes 1 ms; the kubelet's probes time out after 1 s
    fast_seconds: float = 3.0
    slow_seconds: float = 5.0  # the profile's max_execution_time is 4 s: the server ends it first


DEFAULT_BOUNDS = PollBounds()


class SourceResponse(msgspec.Struct, frozen=True):
    """The last good response of a source."""

    rows: Rows
    at_seconds: float  # boot clock


class Prober:
    """Polls one server. Remembers missing sources, last responses and unanswered queries."""

    def __init__(
        self, server: Server, *, clock: Clock, bounds: PollBounds = DEFAULT_BOUNDS
    ) -> None:
        self._server = server
        self._bounds = bounds
        self._clock = clock
        self._missing: dict[ProbeSource, SourceResult] = {}
        self._variants: dict[ProbeSource, int] = {}
        self._learned_at = float("-inf")
        self._responses: dict[ProbeSource, SourceResponse] = {}
        self._unanswered: set[ProbeSource] = set()  # the last attempt got no response
        self._slow_sources: dict[ProbeSource, SourceResult] = {}  # outcome of the last attempt
        self._slow_due_at: dict[ProbeSource, float] = {}
        self._uptime: int | None = None
        self._answered = False  # the query of the last poll was answered

    async def observe(self) -> StateObservation:
        """Poll once. Takes some seconds at most; every failure of the server is in the result.

        An answered query proves what an answered /ping does. So /ping is requested after a query
        that fails, and before the query only if that of the last poll failed: a server that does
        not answer is then found without waiting for a query.
        """
        pinged, self._answered = not self._answered, False
        if pinged and (ping := await self._send_ping()) is not Ping.OK:
            return StateObservation(ping=ping)
        self._expire_missing()
        wanted = [source for source in queries.FAST if source not in self._missing]
        selects = [queries.FAST[source] for source in wanted]
        observation = StateObservation(
            ping=Ping.OK, login=Login.REFUSED, sources={ProbeSource.QUERIES: SourceResult.DENIED}
        )
        try:
            rows, outcome = await self._query_server(selects)
            self._answered = outcome is SourceResult.OK
            if self._answered or pinged or (ping := await self._send_ping()) is Ping.OK:
                observation = await self._query_sources(wanted, rows, outcome)
            else:
                return StateObservation(ping=ping)
        except ClickHouseAuthError:
            self._answered = True  # it refuses the login
        if (UNCONFIRMED | {SourceResult.FAILED}) & set(observation.sources.values()):
            ping = await self._send_ping()  # the server may have stopped during this poll
            return observation if ping is Ping.OK else StateObservation(ping=ping)
        return observation

    async def _query_sources(
        self, wanted: Sequence[ProbeSource], rows: Rows, outcome: SourceResult
    ) -> StateObservation:
        """Build the observation from the answer to the query of all fast sources, `wanted`."""
        rows, sources = await self._settle_fast_sources(wanted, rows, outcome)
        if sources[ProbeSource.QUERIES] is not SourceResult.OK:
            return StateObservation(ping=Ping.OK, sources=sources)
        status_ok, sources[ProbeSource.REPLICAS_STATUS] = await self._check_replicas(rows)
        detached_known = any("NumberOfDetachedParts" in name for name in rows)
        slow_rows, slow_sources = await self._query_slow_sources(detached_known=detached_known)
        figures, hidden, shared = compute_figures(
            rows | slow_rows, sources | slow_sources, replicas_status_ok=status_ok
        )
        return StateObservation(
            ping=Ping.OK,
            login=Login.OK,
            sources=sources | slow_sources | hidden,
            figures=figures,
            version=_parse_version(rows["version"]),
            uptime_seconds=self._uptime,
            shared_merge_tree=shared,
        )

    def _expire_missing(self) -> None:
        """Forget which sources are missing every `RELEARN_SECONDS`: a grant may have been added."""
        now = self._now_seconds()
        if now - self._learned_at >= RELEARN_SECONDS:
            self._missing, self._variants, self._learned_at = {}, {}, now

    def _record_uptime(self, uptime_seconds: int) -> None:
        if self._uptime is not None and uptime_seconds < self._uptime:  # the server has restarted
            self._learned_at = float("-inf")
            self._slow_due_at.clear()
            self._responses.clear()
            self._unanswered.clear()
        self._uptime = uptime_seconds

    async def _send_ping(self) -> Ping:
        try:
            async with asyncio.timeout(self._bounds.ping_seconds):
                await self._server.ping()
        except (TimeoutError, ClickHouseTimeoutError):
            return Ping.TIMEOUT
        except ClickHouseUnreachableError as error:
            return _classify_connection_error(error.__context__)
        except ClickHouseError:
            return Ping.HTTP_ERROR
        return Ping.OK

    async def _check_replicas(self, rows: Rows) -> tuple[bool | None, SourceResult]:
        """Return what /replicas_status reports about the lag of this server's replicas.

        The server asks every replicated table for it. So it is requested if the figures in memory
        show a lag or a read-only replica, or do not exclude them, and otherwise once a minute.
        """
        source, now = ProbeSource.REPLICAS_STATUS, self._now_seconds()
        has_no_lag = all(rows.get(name) == "0" for name in NO_LAG)
        if has_no_lag and now < self._slow_due_at.get(source, float("-inf")):
            return True, self._settle_response(source, {}, SourceResult.OK)[1]
        ok, outcome = await self._request_replicas_status()
        self._slow_due_at[source] = now + SLOW_EVERY_SECONDS if ok else now
        return ok, outcome

    async def _request_replicas_status(self) -> tuple[bool | None, SourceResult]:
        try:
            async with asyncio.timeout(self._bounds.fast_seconds):
                ok = await self._server.replicas_status()
        except (TimeoutError, ClickHouseError) as error:
            return None, self._settle_response(
                ProbeSource.REPLICAS_STATUS, {}, _classify_error(error)
            )[1]
        return ok, self._settle_response(ProbeSource.REPLICAS_STATUS, {}, SourceResult.OK)[1]

    async def _settle_fast_sources(
        self, wanted: Sequence[ProbeSource], rows: Rows, outcome: SourceResult
    ) -> tuple[Rows, dict[ProbeSource, SourceResult]]:
        """Return the rows and outcome of each source; if the one query failed, query each alone."""
        if outcome is SourceResult.OK:
            sources = {ProbeSource.QUERIES: outcome, **self._missing}
            for source in wanted:
                found = _select_rows(rows, source)
                _, sources[source] = self._settle_response(source, found, outcome)
        else:
            rows, sources = await self._query_one_by_one(wanted)
        if sources.get(ProbeSource.ASYNCHRONOUS_METRICS) is SourceResult.OK and not _select_rows(
            rows, ProbeSource.ASYNCHRONOUS_METRICS
        ):
            sources[ProbeSource.ASYNCHRONOUS_METRICS] = (
                SourceResult.EMPTY
            )  # old servers, in their first minute
        return rows, sources

    async def _query_one_by_one(
        self, wanted: Sequence[ProbeSource]
    ) -> tuple[Rows, dict[ProbeSource, SourceResult]]:
        rows, outcome = await self._query_server([])
        sources = {ProbeSource.QUERIES: outcome, **self._missing}
        if outcome is not SourceResult.OK:
            return rows, sources
        for source in wanted:
            found, outcome = await self._run_query(
                [queries.FAST[source]], self._bounds.fast_seconds
            )
            more, sources[source] = self._settle_response(source, found, outcome)
            rows |= more
        return rows, sources

    async def _query_server(self, selects: Sequence[str]) -> tuple[Rows, SourceResult]:
        """Query version and uptime, and `selects` with them."""
        seconds = self._bounds.fast_seconds
        rows, outcome = await self._run_query([queries.SERVER, *selects], seconds)
        if outcome is not SourceResult.OK:
            return rows, outcome
        if not _is_server(rows):
            return {}, SourceResult.FAILED
        self._record_uptime(int(rows["uptime"]))
        return rows, outcome

    async def _query_slow_sources(
        self, *, detached_known: bool
    ) -> tuple[Rows, dict[ProbeSource, SourceResult]]:
        """Query the slow sources that are due; return the last responses of the others."""
        rows: Rows = {}
        sources: dict[ProbeSource, SourceResult] = {}
        for source in queries.SLOW:
            if source is ProbeSource.DETACHED_PARTS and detached_known:
                continue
            if self._now_seconds() >= self._slow_due_at.get(source, float("-inf")):
                await self._query_slow_source(source)
            sources[source] = self._slow_sources[source]
            if sources[source] in {SourceResult.OK, SourceResult.RETRYING}:
                rows |= self._responses[source].rows
        return rows, sources

    async def _query_slow_source(self, source: ProbeSource) -> None:
        started = self._now_seconds()
        if source in self._missing:
            outcome = self._missing[source]
        else:
            found, raw = await self._query_variants(source)
            _, outcome = self._settle_response(source, found, raw)
        self._slow_sources[source] = outcome
        # A refusal is cheap for the server, so it is asked at every poll until it answers. A query
        # that reached its limit is not: it is asked once more, then every minute.
        soon = outcome in UNCONFIRMED or outcome is SourceResult.FAILED
        self._slow_due_at[source] = started if soon else started + SLOW_EVERY_SECONDS

    async def _query_variants(self, source: ProbeSource) -> tuple[Rows, SourceResult]:
        """Run the first variant whose columns this server has."""
        variants = queries.SLOW[source]
        for number in range(self._variants.get(source, 0), len(variants)):
            rows, outcome = await self._run_query([variants[number]], self._bounds.slow_seconds)
            if outcome is not SourceResult.ABSENT:
                self._variants[source] = number
                break
        return rows, outcome

    def _settle_response(
        self, source: ProbeSource, rows: Rows, outcome: SourceResult
    ) -> tuple[Rows, SourceResult]:
        """Return the rows to use and the outcome to report for one attempt."""
        outcome = self._confirm_outcome(source, outcome)
        if outcome is SourceResult.OK:
            self._responses[source] = SourceResponse(rows, self._now_seconds())
        if outcome in {SourceResult.ABSENT, SourceResult.DENIED}:
            self._missing[source] = outcome
        if outcome is SourceResult.RETRYING:
            return self._responses[source].rows, outcome
        return rows, outcome

    def _confirm_outcome(self, source: ProbeSource, outcome: SourceResult) -> SourceResult:
        """Return the outcome; the first of several attempts without a response is not confirmed."""
        if outcome not in NO_RESPONSE:
            self._unanswered.discard(source)
            return outcome
        if source in self._unanswered:
            return outcome
        self._unanswered.add(source)
        response = self._responses.get(source)
        recent = response is not None and self._now_seconds() - response.at_seconds <= REUSE_SECONDS
        return SourceResult.RETRYING if recent else SourceResult.PENDING

    async def _run_query(self, selects: Sequence[str], seconds: float) -> tuple[Rows, SourceResult]:
        """Run one query. Raises ClickHouseAuthError only."""
        try:
            async with asyncio.timeout(seconds):
                rows = await self._server.query(queries.combine_selects(selects))
            return {str(row["name"]): str(row["value"]) for row in rows}, SourceResult.OK
        except ClickHouseAuthError:
            raise
        except (TimeoutError, ClickHouseError, KeyError) as error:
            return {}, _classify_error(error)

    def _now_seconds(self) -> float:
        return self._clock.boot_ns() / 1e9


def _classify_connection_error(cause: BaseException | None) -> Ping:
    """Return the meaning of aiohttp's error, which the client's own exception has as context."""
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


def _classify_error(error: Exception) -> SourceResult:
    match error:
        case TimeoutError() | ClickHouseTimeoutError() | ClickHouseTooLargeError():
            return SourceResult.OVER_BOUND
        case ClickHouseAuthError():
            return SourceResult.DENIED
        case ClickHouseServerError(code=code) if code in ABSENT_CODES:
            return SourceResult.ABSENT
        case ClickHouseServerError(code=code) if code in DENIED_CODES:
            return SourceResult.DENIED
        case ClickHouseServerError(code=code) if code in BOUND_CODES:
            return SourceResult.OVER_BOUND
    return SourceResult.FAILED


def _is_server(rows: Rows) -> bool:
    """Return whether these are the rows of `queries.SERVER`; a proxy may answer anything."""
    return bool(re.fullmatch(r"\d{1,18}", rows.get("uptime", ""), re.ASCII)) and "version" in rows


def _select_rows(rows: Mapping[str, str], source: ProbeSource) -> Rows:
    return {name: value for name, value in rows.items() if name.startswith(f"{source}.")}


def _parse_version(text: str) -> str:
    """Return the numbers of `24.8.4.13.altinitystable`; the names of a build are left out."""
    match = re.match(r"\d{1,5}(?:\.\d{1,9}){1,4}", text)
    return match[0] if match else ""
