"""The second source: ClickHouse's own counters over HTTP. Needs a login, but no shared namespace.

`OSCPUVirtualTimeMicroseconds` is the CPU time of threads while they work for a query, a merge, a
mutation or a view (ThreadStatusExt.cpp: counters start when a thread joins a thread group). Each
thread adds its own every 10 ms of progress and when it leaves the group (ThreadStatus.cpp), so long
steps come late, but nothing of them is lost. Not counted: accepting connections, background
schedules without a group, the allocator's threads. It is a lower bound of what the cgroup counts.
"""

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

from byoc_agents.app.clock import Clock
from byoc_agents.billing.sources.reading import Reading, SourceName, TargetUnreadableError
from byoc_agents.clickhouse import (
    ClickHouse,
    ClickHouseAuthError,
    ClickHouseError,
    ClickHouseServerError,
    Row,
)

CPU = "OSCPUVirtualTimeMicroseconds"
# The process's resident memory; the cgroup's without page cache; what ClickHouse tracks itself,
# always there but far less than the process has, where the first two are missing (in old servers
# asynchronous_metrics is empty for a minute, and never has them).
MEMORY = ("MemoryResident", "CGroupMemoryUsed", "MemoryTracking")
MEMORY_LIMIT, CPU_LIMIT = "CGroupMemoryTotal", "CGroupMaxCPU"
UPTIME = "uptime"
_NO_LIMIT_BYTES = 2**62
_MAX_VALUE = 2**64  # UInt64
_ACCESS_DENIED, _UNKNOWN_TABLE = 497, 60  # ClickHouse src/Common/ErrorCodes.cpp

# Values as text: the tables have UInt64, Float64 and Int64, which no common type holds.
SQL = f"""
SELECT event AS name, toString(value) AS value FROM system.events WHERE event = '{CPU}'
UNION ALL
SELECT metric AS name, toString(value) AS value FROM system.asynchronous_metrics
WHERE metric IN ('{MEMORY[0]}', '{MEMORY[1]}', '{MEMORY_LIMIT}', '{CPU_LIMIT}')
UNION ALL
SELECT metric AS name, toString(value) AS value FROM system.metrics WHERE metric = '{MEMORY[2]}'
UNION ALL
SELECT '{UPTIME}' AS name, toString(uptime()) AS value
"""  # noqa: S608 - constants of this file
GRANT = "GRANT SELECT ON system.events, system.asynchronous_metrics and system.metrics"


class ServerSource:
    """Asks one server. The caller opens and closes the client."""

    name: SourceName = "clickhouse"

    def __init__(self, client: ClickHouse, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def read(self) -> Reading:
        """Return the server's counters.

        Raises TargetUnreadableError only: a server that does not answer may be running yet.
        """
        asked_ns = self._clock.boot_ns()
        try:
            rows = await self._client.query(SQL)
        except ClickHouseError as error:
            raise TargetUnreadableError(f"{self._client}: {_advice(error)}") from None
        now_ns = (asked_ns + self._clock.boot_ns()) // 2
        figures = figures_of(rows)
        if UPTIME not in figures:
            raise TargetUnreadableError(f"{self._client}: not ClickHouse's answer")
        if CPU not in figures:
            raise TargetUnreadableError(f"{self._client}: {_NO_CPU}")
        return reading_of(figures, now_ns, self._clock.boot_id)

    def close(self) -> None:
        """Nothing is held."""


_NO_CPU = (
    f"system.events has no {CPU}: the server has just started, or cannot see the CPU time of its "
    "threads; it needs a readable /proc/thread-self/schedstat or CAP_NET_ADMIN"
)


def figures_of(rows: list[Row]) -> dict[str, Decimal]:
    """Return name -> value; what is no number that the server can mean is left out."""
    figures = {}
    for row in rows:
        try:
            value = Decimal(str(row["value"]))
        except (KeyError, InvalidOperation):
            continue
        if value.is_finite() and value.copy_abs() < _MAX_VALUE:
            figures[str(row.get("name"))] = value
    return figures


def reading_of(figures: Mapping[str, Decimal], now_ns: int, boot_id: str) -> Reading:
    """Return the reading. `now_ns` is boot time; the server's start is known to about a second.

    The start tells one life of the server from the next, so `incarnation` is the boot alone.
    """
    memory = next((figures[name] for name in MEMORY if name in figures), Decimal(0))
    cores, limit = figures.get(CPU_LIMIT, Decimal(0)), figures.get(MEMORY_LIMIT, Decimal(0))
    return Reading(
        source="clickhouse",
        incarnation=boot_id[:8],
        container_id="",
        cpu_usec=max(0, int(figures[CPU])),
        memory_bytes=max(0, int(memory)),
        born_boot_ns=now_ns - int(figures[UPTIME] * 1_000_000_000),
        cpu_limit_millicores=round(cores * 1000) if cores > 0 else None,
        # 0 is ClickHouse's word for the whole machine, a huge number the kernel's for no limit
        memory_limit_bytes=int(limit) if 0 < limit < _NO_LIMIT_BYTES else None,
    )


def _advice(error: ClickHouseError) -> str:
    if isinstance(error, ClickHouseAuthError):
        return f"{error}; set BYOC_CLICKHOUSE_USER and BYOC_CLICKHOUSE_PASSWORD"
    if isinstance(error, ClickHouseServerError) and error.code in {_ACCESS_DENIED, _UNKNOWN_TABLE}:
        return f"{error}; the user needs {GRANT}"
    return str(error)
