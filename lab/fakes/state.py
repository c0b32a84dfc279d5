"""Scripted ClickHouse servers for tests, in memory and over HTTP."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Self

from byoc_agents.clickhouse import ClickHouseError, ClickHouseServerError
from byoc_agents.state import queries
from byoc_agents.state.observation import ProbeSource
from lab.fakes.http import FakeHttp, Reply, Request, Script, serving

MODERN: dict[str, str] = {  # a server of 2024, busy enough for every figure
    "version": "24.8.4.13.altinitystable",
    "uptime": "4000",
    "system.metrics.ReadonlyReplica": "0",
    "system.metrics.ZooKeeperSession": "1",
    "system.metrics.DelayedInserts": "2",
    "system.metrics.PartsActive": "100",
    "system.events.RejectedInserts": "7",
    "system.asynchronous_metrics.MaxPartCountForPartition": "9",
    "system.asynchronous_metrics.ReplicasMaxAbsoluteDelay": "4",
    "system.asynchronous_metrics.NumberOfDetachedParts": "5",
    "system.asynchronous_metrics.NumberOfDetachedByUserParts": "3",
    "system.asynchronous_metrics.MemoryResident": "400",
    "system.asynchronous_metrics.CGroupMemoryTotal": "1000",
    "system.asynchronous_metrics.OSMemoryTotal": "8000",
    "system.disks.free_ratio": "0.25",
    "system.errors.faults": "1",
    "system.replicas.tables": "3",
    "system.replicas.readonly": "0",
    "system.replicas.expired": "1",
    "system.replicas.lag": "99",
    "system.replicas.lag_unknown": "0",
    "system.replicas.queue": "6",
    "system.parts.max": "8",
    "system.parts.sum": "98",
    "system.parts.shared": "0",
    "system.mutations.pending": "4",
    "system.mutations.stuck": "1",
    "system.detached_parts.detached": "2",
}
HEALTHY: dict[str, str] = MODERN | {
    "system.metrics.DelayedInserts": "0",
    "system.events.RejectedInserts": "0",
    "system.asynchronous_metrics.NumberOfDetachedParts": "0",
    "system.errors.faults": "0",
    "system.replicas.expired": "0",
    "system.mutations.stuck": "0",
}


@dataclass
class ScriptedServer:
    """A server for a prober. `rows` are its tables' values; `broken` maps a source to an error."""

    rows: dict[str, str] = field(default_factory=lambda: dict(MODERN))
    broken: dict[ProbeSource, Exception] = field(default_factory=dict)
    hanging: frozenset[ProbeSource] = frozenset()
    unknown_columns: tuple[str, ...] = ()
    lags: bool = False
    ping_error: ClickHouseError | None = None
    query_error: ClickHouseError | None = None
    queries: list[str] = field(default_factory=list)
    pings: int = 0
    status_requests: int = 0

    async def ping(self) -> None:
        """Raise `ping_error` if it is set: the server answers nothing then."""
        self.pings += 1
        if self.ping_error:
            raise self.ping_error

    async def replicas_status(self) -> bool:
        """Return whether it does not lag; raise the error in `broken`."""
        self.status_requests += 1
        error = self.ping_error or self.broken.get(ProbeSource.REPLICAS_STATUS)
        if error:
            raise error
        return not self.lags

    async def query(self, sql: str) -> list[dict[str, Any]]:
        """Return the rows of all sources that the query reads, or raise a scripted error."""
        if self.hanging & _find_sources(sql):
            await asyncio.Event().wait()
        return [{"name": name, "value": value} for name, value in self.find_rows(sql)]

    def find_rows(self, sql: str) -> list[tuple[str, str]]:
        """Return (name, value) of all sources that the query reads. Raises the scripted errors."""
        self.queries.append(sql)
        asked = _find_sources(sql)
        self._raise_scripted(sql, asked)
        wanted = tuple(f"{source}." for source in asked)
        wanted += ("version", "uptime") if queries.SERVER in sql else ()
        return [(name, value) for name, value in self.rows.items() if name.startswith(wanted)]

    def _raise_scripted(self, sql: str, asked: set[ProbeSource]) -> None:
        if refused := self.ping_error or self.query_error:
            raise refused
        for source, error in self.broken.items():
            if source in asked:
                raise error
        if any(column in sql for column in self.unknown_columns):
            raise ClickHouseServerError("status 404", 47)


def _find_sources(sql: str) -> set[ProbeSource]:
    text = f"{sql} "
    return {s for s in queries.TABLES if any(f"FROM {s}{end}" in text for end in (" ", ")"))}


class FakeClickHouse:
    """A `ScriptedServer` with ClickHouse's HTTP interface on a loopback port.

    `text` appears wherever a real server writes texts of its own or of its users: errors, headers,
    /replicas_status. Any password but `password` is refused.
    """

    def __init__(
        self, script: Script = serving, *, password: str = "", text: str = "my_db.my_table"
    ) -> None:
        self.server = ScriptedServer()
        self.http = FakeHttp(script, apply=self.apply)
        self._password = password
        self._headers = {"X-ClickHouse-Server-Display-Name": text}
        self._text = text

    async def __aenter__(self) -> Self:
        """Listen."""
        await self.http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, and yield to the loop until the closed connections have released their sockets."""
        await self.http.__aexit__()
        for _turn in range(3):
            await asyncio.sleep(0)

    @property
    def url(self) -> str:
        """Return `http://127.0.0.1:port`."""
        return self.http.url

    def apply(self, request: Request) -> Reply:
        """Answer /ping, /replicas_status or a query."""
        if request.path == "/ping":
            return Reply(200, self._headers, b"Ok.\n")
        if request.path == "/replicas_status":
            lags = self.server.lags
            text = f"{self._text}:\tAbsolute delay: 999.\n".encode()
            return Reply(503, self._headers, text) if lags else Reply(200, {}, b"Ok.\n")
        if request.headers.get("x-clickhouse-key", "") != self._password:
            return self._error(403, 516)
        return self._query(request.body.decode())

    def _query(self, sql: str) -> Reply:
        try:
            rows = self.server.find_rows(sql.removesuffix("\nFORMAT JSONCompact"))
        except ClickHouseError as error:
            return self._error(500, error.code)
        meta = [{"name": name, "type": "String"} for name in ("name", "value")]
        return Reply(200, self._headers, json.dumps({"meta": meta, "data": rows}).encode())

    def _error(self, status: int, code: int) -> Reply:
        text = f"Code: {code}. DB::Exception: {self._text}. (ERROR)"
        headers = {"X-ClickHouse-Exception-Code": str(code), **self._headers}
        return Reply(status, headers, text.encode())
