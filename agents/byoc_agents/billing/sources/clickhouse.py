"""The second source: ClickHouse's own counters over HTTP. Needs a user, but no shared namespace.

`OSCPUVirtualTimeMicroseconds` is the CPU time of threads while they work for a query, a merge, a
mutation or a view (ThreadStatusExt.cpp: counters start when a thread joins a thread group). Each
thread adds its time every 10 ms of progress and when it leaves the group (ThreadStatus.cpp). Long
steps are therefore counted late, but completely. Not counted are accepting connections, background
schedules without a group, and the allocator's threads. It is a lower bound of the cgroup's counter.
"""

import hashlib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation

import msgspec

from byoc_agents.app.clock import Clock
from byoc_agents.billing.sources.reading import (
    Reading,
    SourceName,
    TargetUnreadableError,
    name_run,
)
from byoc_agents.clickhouse import (
    ClickHouse,
    ClickHouseAuthError,
    ClickHouseError,
    ClickHouseServerError,
    Row,
)

CPU = "OSCPUVirtualTimeMicroseconds"
# In order of preference: the process's resident memory; the cgroup's memory without page cache; the
# memory that ClickHouse tracks itself, which always exists but is far lower. In old servers
# asynchronous_metrics is empty for the first minute, and never has the first two.
MEMORY = ("MemoryResident", "CGroupMemoryUsed", "MemoryTracking")
MEMORY_LIMIT, CPU_LIMIT = "CGroupMemoryTotal", "CGroupMaxCPU"
UPTIME = "uptime"
MACHINE_CPUS = "machine_cpus"
SERVER_UUID, HOST_NAME = "server_uuid", "host_name"
NO_UUID = "00000000-0000-0000-0000-000000000000"
SUCCESSOR_RESPONSES = 12  # consecutive ones before a server that replaces another one is accepted
ALONE_RESPONSES = 60  # the same if several have answered; by chance for two servers: 2**-59
UPTIME_SLACK_NS = 250_000_000  # for the duration of a response; uptime() is cut to whole seconds
_NO_LIMIT_BYTES = 2**62
_MAX_VALUE = 2**64  # UInt64
_ACCESS_DENIED, _UNKNOWN_TABLE, _UNKNOWN_FUNCTION = (
    497,
    60,
    46,
)  # ClickHouse src/Common/ErrorCodes.cpp

# Values as text: the tables have UInt64, Float64 and Int64, which have no common type.
OLD_SQL = f"""
SELECT event AS name, toString(value) AS value FROM system.events WHERE event = '{CPU}'
UNION ALL
SELECT metric AS name, toString(value) AS value FROM system.asynchronous_metrics
WHERE metric IN ('{MEMORY[0]}', '{MEMORY[1]}', '{MEMORY_LIMIT}', '{CPU_LIMIT}')
UNION ALL
SELECT metric AS name, toString(value) AS value FROM system.metrics WHERE metric = '{MEMORY[2]}'
UNION ALL
SELECT '{UPTIME}' AS name, toString(uptime()) AS value
UNION ALL
SELECT '{MACHINE_CPUS}' AS name, toString(count()) AS value FROM system.asynchronous_metrics
WHERE metric LIKE 'OSUserTimeCPU%'
UNION ALL
SELECT '{HOST_NAME}' AS name, hostName() AS value
"""  # noqa: S608 - constants of this file
# One server answers one request, so the same request must ask for the server's identity.
SQL = f"{OLD_SQL}UNION ALL\nSELECT '{SERVER_UUID}' AS name, toString(serverUUID()) AS value\n"
GRANT = (
    "GRANT SELECT(event, value) ON system.events and GRANT SELECT(metric, value) ON"
    " system.asynchronous_metrics and system.metrics"
)


class ServerResponse(msgspec.Struct, frozen=True):
    """The identity of the server that answered, and the values that distinguish servers."""

    server_uuid: str  # "" before ClickHouse 21.12
    host_name: str
    cpu_usec: int
    uptime_ns: int  # cut to whole seconds
    asked_ns: int  # boot clock
    answered_ns: int

    @property
    def known(self) -> bool:
        """Return whether the server returned a UUID or a host name."""
        return bool(self.server_uuid or self.host_name)

    def __str__(self) -> str:
        uuid = f" (serverUUID {self.server_uuid})" if self.server_uuid else ""
        return f"{self.host_name or 'a server without a host name'}{uuid}"

    @property
    def latest_start_ns(self) -> int:
        """Return the latest possible start of the server, on our boot clock."""
        return self.answered_ns - self.uptime_ns + UPTIME_SLACK_NS

    @property
    def earliest_start_ns(self) -> int:
        """Return the earliest possible start of the server, on our boot clock."""
        return self.asked_ns - self.uptime_ns - 1_000_000_000 - UPTIME_SLACK_NS

    def began_after(self, before: "ServerResponse") -> bool:
        """Return whether this server may have started after an earlier response."""
        return self.latest_start_ns >= before.asked_ns

    def is_same_server(self, before: "ServerResponse") -> bool:
        """Return whether one server can have given both responses, this one later.

        A restart does not change serverUUID and host name. Without a serverUUID, uptime and counter
        must agree: the start of one server never moves back (it moves forward while the machine
        sleeps), and its counter falls only at a restart.
        """
        if self.host_name != before.host_name:
            return False
        if self.server_uuid and before.server_uuid:
            return self.server_uuid == before.server_uuid
        drift_ns = (self.asked_ns - before.answered_ns) // 1000  # of two clocks, ten times NTP's
        if self.latest_start_ns + drift_ns < before.earliest_start_ns:
            return False
        return self.cpu_usec >= before.cpu_usec or self.began_after(before)


class OneServer:
    """Checks that all responses under one URL are from one server.

    Behind a Service or a load balancer several replicas answer in turn. Their counters are not one
    counter, so none is billed until only one of them answers. A permanent successor (of a pod that
    was moved) is accepted at once if it started after the last response of the earlier server, and
    otherwise after `SUCCESSOR_RESPONSES` consecutive responses. After two servers have answered in
    turn, it takes `ALONE_RESPONSES` consecutive responses.
    """

    def __init__(self) -> None:
        self._accepted: ServerResponse | None = None
        self._last: ServerResponse | None = None
        self._in_a_row = 0
        self._refused: ServerResponse | None = None  # since the last accepted one
        self._several: tuple[ServerResponse, ServerResponse] | None = None

    def check(self, response: ServerResponse) -> None:
        """Check the newest response. Raises TargetUnreadableError if it is not accepted."""
        last, accepted = self._last, self._accepted
        self._last = response
        if last is None or accepted is None:
            self._accepted, self._in_a_row = response, 1
            return
        self._in_a_row = self._in_a_row + 1 if response.is_same_server(last) else 1
        ours = response.is_same_server(accepted)
        if ours and self._refused:  # it answers again, after another one did
            self._several = self._several or (accepted, self._refused)
        if self._several:
            believed = self._in_a_row >= ALONE_RESPONSES
        else:
            successor = response.began_after(accepted) or self._in_a_row >= SUCCESSOR_RESPONSES
            believed = ours or successor
        if not believed:
            self._refused = response
            raise TargetUnreadableError(self._describe_conflict(response, accepted))
        self._accepted, self._refused, self._several = response, None, None

    def _describe_conflict(self, response: ServerResponse, accepted: ServerResponse) -> str:
        if not self._several:
            return (
                f"another server answers now: {response} instead of {accepted}; it is taken as the "
                f"successor after {SUCCESSOR_RESPONSES} responses in a row"
            )
        one, two = self._several
        names = f"{one} and {two}" if one.known and str(one) != str(two) else "by their uptimes"
        return (
            f"more than one server answers under this URL ({names}): expected the address of one "
            "server, not of a Service or a load balancer"
        )


class ServerSource:
    """Queries one server. The caller opens and closes the client."""

    name: SourceName = "clickhouse"

    def __init__(self, client: ClickHouse, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._sql = SQL
        self._one = OneServer()

    async def read(self) -> Reading:
        """Return the server's counters.

        Raises TargetUnreadableError only: a server that does not answer may still run.
        """
        asked_ns = self._clock.boot_ns()
        rows = await self._ask()
        answered_ns = self._clock.boot_ns()
        figures = figures_of(rows)
        if UPTIME not in figures:
            raise TargetUnreadableError(f"{self._client}: not ClickHouse's response")
        if CPU not in figures:
            raise TargetUnreadableError(f"{self._client}: {_NO_CPU}")
        response = response_of(rows, figures, asked_ns, answered_ns)
        try:
            self._one.check(response)
        except TargetUnreadableError as error:
            raise TargetUnreadableError(f"{self._client}: {error}") from None
        now_ns = (asked_ns + answered_ns) // 2
        return reading_of(figures, now_ns, self._clock.boot_id, response)

    async def _ask(self) -> list[Row]:
        try:
            return await self._client.query(self._sql)
        except ClickHouseError as error:
            no_uuid = isinstance(error, ClickHouseServerError) and error.code == _UNKNOWN_FUNCTION
            if not no_uuid or self._sql == OLD_SQL:
                raise TargetUnreadableError(f"{self._client}: {_advice(error)}") from None
        self._sql = OLD_SQL  # a server from before serverUUID()
        return await self._ask()

    def close(self) -> None:
        """Nothing to close."""


_NO_CPU = (
    f"system.events has no {CPU}: the server has just started, or cannot see the CPU time of its "
    "threads; it needs a readable /proc/thread-self/schedstat or CAP_NET_ADMIN"
)


def figures_of(rows: list[Row]) -> dict[str, Decimal]:
    """Return name -> value. Values that are not numbers of a possible size are omitted."""
    figures = {}
    for row in rows:
        try:
            value = Decimal(str(row["value"]))
        except (KeyError, InvalidOperation):
            continue
        if value.is_finite() and value.copy_abs() < _MAX_VALUE:
            figures[str(row.get("name"))] = value
    return figures


def response_of(
    rows: list[Row], figures: Mapping[str, Decimal], asked_ns: int, answered_ns: int
) -> ServerResponse:
    """Return the identity of the server. Values that an old server does not have are empty."""
    texts = {str(row.get("name")): str(row.get("value")) for row in rows}
    uuid = texts.get(SERVER_UUID, "")
    return ServerResponse(
        server_uuid="" if uuid == NO_UUID else uuid,
        host_name=texts.get(HOST_NAME, ""),
        cpu_usec=int(figures[CPU]),
        uptime_ns=int(figures[UPTIME] * 1_000_000_000),
        asked_ns=asked_ns,
        answered_ns=answered_ns,
    )


def reading_of(
    figures: Mapping[str, Decimal],
    now_ns: int,
    boot_id: str,
    response: ServerResponse | None = None,
) -> Reading:
    """Return the reading. `now_ns` is boot time; the server's start is known to about a second.

    The start distinguishes one run of the server from the next, so `incarnation` is the boot id
    and, if `response` identifies it, the server.
    """
    server = ""
    if response and response.known:
        name = f"{response.server_uuid} {response.host_name}"
        server = f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    born_boot_ns = now_ns - int(figures[UPTIME] * 1_000_000_000)
    cpus = figures.get(MACHINE_CPUS, Decimal(0))
    memory = next((figures[name] for name in MEMORY if name in figures), Decimal(0))
    cores, limit = figures.get(CPU_LIMIT, Decimal(0)), figures.get(MEMORY_LIMIT, Decimal(0))
    return Reading(
        source="clickhouse",
        incarnation=boot_id[:8] + server,
        container_id="",
        cpu_usec=max(0, int(figures[CPU])),
        memory_bytes=max(0, int(memory)),
        born_boot_ns=born_boot_ns,
        cpu_limit_millicores=round(cores * 1000) if cores > 0 else None,
        # 0 means the whole machine for ClickHouse; a huge number means no limit for the kernel
        memory_limit_bytes=int(limit) if 0 < limit < _NO_LIMIT_BYTES else None,
        cpu_limit_source="clickhouse" if cores > 0 else None,
        memory_limit_source="clickhouse" if 0 < limit < _NO_LIMIT_BYTES else None,
        machine_cpus=int(cpus) if cpus >= 1 else None,
        run_name=name_run(boot_id, server, born_boot_ns // 10**9),
    )


def _advice(error: ClickHouseError) -> str:
    if isinstance(error, ClickHouseAuthError):
        return f"{error}; set BYOC_CLICKHOUSE_USER and BYOC_CLICKHOUSE_PASSWORD"
    if isinstance(error, ClickHouseServerError) and error.code in {_ACCESS_DENIED, _UNKNOWN_TABLE}:
        return f"{error}; the user needs {GRANT}"
    return str(error)
