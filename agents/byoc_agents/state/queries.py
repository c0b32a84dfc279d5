"""The SQL of the probes: every row is (name, value), both text, names are constants of ours.

All is aggregated on the server. No column is read that holds a name or a text of the customer,
and none that makes the server ask Keeper (in system.replicas: log_max_index, log_pointer,
total_replicas, active_replicas, lost_part_count, zookeeper_exception, replica_is_active;
ClickHouse src/Storages/System/StorageSystemReplicas.cpp).
"""

from collections.abc import Mapping, Sequence

from byoc_agents.state.observation import Source

COMMENT = "byoc-state-exporter"  # how the customer finds us in query_log; the profile's log_comment

MUTATION_STUCK_SECONDS = 3600  # ours: a mutation of one hour is looked at by a person
SERVER_ERRORS = (  # ClickHouse src/Common/ErrorCodes.cpp: the server's fault, not a query's
    "CHECKSUM_DOESNT_MATCH",
    "CORRUPTED_DATA",
    "CANNOT_READ_ALL_DATA",
    "POTENTIALLY_BROKEN_DATA_PART",
    "NOT_ENOUGH_SPACE",
    "NO_ZOOKEEPER",
    "LOGICAL_ERROR",
)
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


def _named(source: Source, column: str, names: Sequence[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    return (
        f"SELECT concat('{source}.', {column}) AS name, toString(value) AS value"  # noqa: S608
        f" FROM {source} WHERE {column} IN ({listed})"
    )


def _aggregates(source: Source, aggregates: Mapping[str, str], table: str = "") -> str:
    """Return one pass over a table that gives a row for each aggregate."""
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

# Cheap enough for every poll: what the server keeps in memory. One query where all are there.
FAST: dict[Source, str] = {
    Source.METRICS: _named(Source.METRICS, "metric", METRICS),
    Source.EVENTS: _named(Source.EVENTS, "event", EVENTS),
    Source.ASYNCHRONOUS_METRICS: _named(
        Source.ASYNCHRONOUS_METRICS, "metric", ASYNCHRONOUS_METRICS
    ),
    Source.DISKS: _aggregates(
        Source.DISKS,
        {"free_ratio": "min(if(total_space = 0, 1, free_space / total_space))"},
    ),
    Source.ERRORS: _aggregates(Source.ERRORS, {"faults": f"sumIf(value, name IN ({_FAULTS}))"}),
}

# These walk over every table, so they run less often and each alone. A list of variants: the next
# one is for servers that do not know a column of the one before.
SLOW: dict[Source, tuple[str, ...]] = {
    Source.REPLICAS: (
        _aggregates(
            Source.REPLICAS,
            {
                "tables": "count()",
                "readonly": "sum(is_readonly)",
                "expired": "sum(is_session_expired)",
                "lag": "max(absolute_delay)",
                "queue": "sum(queue_size)",
            },
        ),
    ),
    Source.PARTS: (
        _aggregates(
            Source.PARTS,
            {"max": "max(parts)", "sum": "sum(parts)", "shared": "max(shared)"},
            _PARTITIONS,
        ),
    ),
    Source.MUTATIONS: (
        _aggregates(
            Source.MUTATIONS,
            {
                "pending": "countIf(is_done = 0 AND is_killed = 0)",
                "stuck": f"countIf({_OPEN} AND is_killed = 0)",
            },
        ),
        _aggregates(
            Source.MUTATIONS, {"pending": "countIf(is_done = 0)", "stuck": f"countIf({_OPEN})"}
        ),
    ),
    # parts that a user detached have an empty reason (docs: system.detached_parts)
    Source.DETACHED_PARTS: (
        _aggregates(Source.DETACHED_PARTS, {"detached": "countIf(reason != '')"}),
    ),
}

TABLES = frozenset(source for source in (*FAST, *SLOW))
"""Every table that is read: what the least-privilege user is granted, no more and no less."""


def union(selects: Sequence[str]) -> str:
    """Return one query of several."""
    return f"/* {COMMENT} */ " + " UNION ALL ".join(selects)
