"""The SQL of the probes: every row is (name, value), both text; all names are constants.

Everything is aggregated on the server. No query reads a column that holds a name or a text of the
customer, or one that makes the server ask Keeper (in system.replicas: log_max_index, log_pointer,
total_replicas, active_replicas, lost_part_count, zookeeper_exception, replica_is_active;
ClickHouse src/Storages/System/StorageSystemReplicas.cpp).
"""

from collections.abc import Mapping, Sequence

from byoc_agents.state.observation import ProbeSource

COMMENT = "byoc-state-exporter"  # in query_log, and the profile's log_comment

MUTATION_STUCK_SECONDS = 3600  # ours: a person should look at a mutation that is open for an hour

# Ten years. Between a new Keeper session and its first update of the queue, ReplicatedMergeTree
# reports the current Unix time (1.8e9) as a table's delay (ClickHouse issue 42305). A delay is the
# age of a queue entry. It can exceed the uptime of the server (a replica that was off for a week is
# a week behind), so the uptime is not a bound; but no entry is older than the published form of
# ReplicatedMergeTree (2016).
MAX_LAG_SECONDS = 10 * 365 * 86400
SERVER_ERRORS: Mapping[str, str] = {
    "CANNOT_STATVFS": "a disk from the server's own configuration does not answer statvfs",
    "TOO_MANY_UNEXPECTED_DATA_PARTS": "a table is not loaded: too many of its parts are broken or"
    " unexpected; no statement writes files of a part",
    "POTENTIALLY_BROKEN_DATA_PART": "a part on the server's disk differs from the written one",
}
"""Error names that count as SERVER_ERRORS, with the reason (ClickHouse src/Common/ErrorCodes.cpp).

`system.errors` counts by name, not by who caused the error. So a name is listed only if no
statement of a customer can raise it. That excludes names that sound like the server's fault:

- CHECKSUM_DOESNT_MATCH, CORRUPTED_DATA, CANNOT_READ_ALL_DATA: a client that sends damaged blocks
  or leaves during an INSERT;
- NO_ZOOKEEPER: a replicated table without Keeper; ALL_REPLICAS_LOST: CREATE during a DROP;
- NOT_ENOUGH_SPACE: a table's own min_free_disk_bytes_to_perform_insert;
- LOGICAL_ERROR: CREATE TABLE with some engines, and every bug that a query meets;
- CANNOT_READ_FROM_FILE_DESCRIPTOR: file(); CANNOT_FSYNC: writing to hdfs();
- BAD_SIZE_OF_FILE_IN_DATA_PART: replicas that ran a non-deterministic mutation.

The conditions behind them have figures that no statement can raise: free disk space, read-only
replicas, Keeper sessions, detached and lost parts. Rows with remote = 1 come from other servers.
tests/real/test_real_state_errors.py runs such statements.
"""
METRICS = (
    "ReadonlyReplica",
    "ZooKeeperSession",
    "ZooKeeperSessionExpired",
    "DelayedInserts",
    "PartsActive",
)
EVENTS = ("RejectedInserts", "ReplicatedDataLoss")
ASYNCHRONOUS_METRICS = (
    "MaxPartCountForPartition",
    "ReplicasMaxAbsoluteDelay",
    "ReplicasSumQueueSize",
    "NumberOfDetachedParts",
    "NumberOfDetachedByUserParts",
    "MemoryResident",
    "CGroupMemoryTotal",
    "OSMemoryTotal",
)


def _select_named(source: ProbeSource, column: str, names: Sequence[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    return (
        f"SELECT concat('{source}.', {column}) AS name, toString(value) AS value"  # noqa: S608
        f" FROM {source} WHERE {column} IN ({listed})"
    )


def _select_aggregates(source: ProbeSource, aggregates: Mapping[str, str], table: str = "") -> str:
    """Return a query that reads a table once and returns one row per aggregate."""
    columns = ", ".join(f"toString({sql}) AS a{i}" for i, sql in enumerate(aggregates.values()))
    pairs = ", ".join(f"('{source}.{name}', a{i})" for i, name in enumerate(aggregates))
    return (
        f"SELECT pair.1 AS name, pair.2 AS value FROM (SELECT arrayJoin([{pairs}]) AS pair"  # noqa: S608
        f" FROM (SELECT {columns} FROM {table or source}))"
    )


_PARTITIONS = (
    "(SELECT count() AS parts, max(engine LIKE 'Shared%') AS shared FROM system.parts"
    " WHERE active GROUP BY database, table, partition_id)"
)
_OPEN = f"is_done = 0 AND create_time < now() - {MUTATION_STUCK_SECONDS}"
_FAULTS = ", ".join(f"'{name}'" for name in SERVER_ERRORS)

SERVER = (
    "SELECT 'version' AS name, version() AS value"
    " UNION ALL SELECT 'uptime' AS name, toString(uptime()) AS value"
)

# Cheap enough for every poll: the server keeps these in memory. One query reads all of them.
FAST: dict[ProbeSource, str] = {
    ProbeSource.METRICS: _select_named(ProbeSource.METRICS, "metric", METRICS),
    ProbeSource.EVENTS: _select_named(ProbeSource.EVENTS, "event", EVENTS),
    ProbeSource.ASYNCHRONOUS_METRICS: _select_named(
        ProbeSource.ASYNCHRONOUS_METRICS, "metric", ASYNCHRONOUS_METRICS
    ),
    ProbeSource.DISKS: _select_aggregates(
        ProbeSource.DISKS,
        {"free_ratio": "min(if(total_space = 0, 1, free_space / total_space))"},
    ),
    ProbeSource.ERRORS: _select_aggregates(
        ProbeSource.ERRORS, {"faults": f"sumIf(value, name IN ({_FAULTS}) AND NOT remote)"}
    ),
}

# These read every table, so they run less often and each alone. Each is a list of variants: the
# next one is for servers that lack a column of the one before.
SLOW: dict[ProbeSource, tuple[str, ...]] = {
    ProbeSource.REPLICAS: (
        _select_aggregates(
            ProbeSource.REPLICAS,
            {
                "tables": "count()",
                "readonly": "sum(is_readonly)",
                "expired": "sum(is_session_expired)",
                "lag": f"maxIf(absolute_delay, absolute_delay < {MAX_LAG_SECONDS})",
                "lag_unknown": f"countIf(absolute_delay >= {MAX_LAG_SECONDS})",
                "queue": "sum(queue_size)",
            },
        ),
    ),
    ProbeSource.PARTS: (
        _select_aggregates(
            ProbeSource.PARTS,
            {"max": "max(parts)", "sum": "sum(parts)", "shared": "max(shared)"},
            _PARTITIONS,
        ),
    ),
    ProbeSource.MUTATIONS: (
        _select_aggregates(
            ProbeSource.MUTATIONS,
            {
                "pending": "countIf(is_done = 0 AND is_killed = 0)",
                "stuck": f"countIf({_OPEN} AND is_killed = 0)",
            },
        ),
        _select_aggregates(
            ProbeSource.MUTATIONS, {"pending": "countIf(is_done = 0)", "stuck": f"countIf({_OPEN})"}
        ),
    ),
    # parts that a user detached have an empty reason (docs: system.detached_parts)
    ProbeSource.DETACHED_PARTS: (
        _select_aggregates(ProbeSource.DETACHED_PARTS, {"detached": "countIf(reason != '')"}),
    ),
}

TABLES = frozenset(source for source in (*FAST, *SLOW))
"""Every table that is read: exactly those that the least-privilege user may read."""


def combine_selects(selects: Sequence[str]) -> str:
    """Return one query that combines several with UNION ALL."""
    return f"/* {COMMENT} */ " + " UNION ALL ".join(selects)
