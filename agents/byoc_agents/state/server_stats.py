"""Rows of the probes to figures, with the cross-check of what is empty.

Without SHOW TABLES on a table, system.parts, replicas, mutations and detached_parts leave its rows
out without an error. `system.metrics` is not filtered, so it says what there is to be seen.
"""

from collections.abc import Mapping

from byoc_agents.state.observation import Figures, Seen, Source

# Of the server's active parts; fewer are visible = SHOW TABLES is missing on most tables. It is not
# nearer to 1 because a dropped table's parts stay active for 8 minutes
# (database_atomic_delay_before_drop_table_sec).
VISIBLE_RATIO = 0.1

_FILTERED = (Source.PARTS, Source.REPLICAS, Source.MUTATIONS, Source.DETACHED_PARTS)


def figures(
    rows: Mapping[str, str], seen: Mapping[Source, Seen], *, replicas_status_ok: bool | None
) -> tuple[Figures, dict[Source, Seen], bool]:
    """Return the figures, the sources found to be hidden, and whether SharedMergeTree is in use."""
    shared = bool(_whole(rows, "system.parts.shared"))
    hidden = _hidden(rows, seen)
    trusted = {
        name: value
        for name, value in rows.items()
        if not any(name.startswith(f"{source}.") for source in hidden)
    }
    return _figures(trusted, seen, replicas_status_ok), hidden, shared


def _hidden(rows: Mapping[str, str], seen: Mapping[Source, Seen]) -> dict[Source, Seen]:
    if _parts_are_shown(rows):
        return {}
    return {
        source: Seen.HIDDEN
        for source in _FILTERED
        if seen.get(source) is Seen.OK and not _counts(rows, source)
    }


def _parts_are_shown(rows: Mapping[str, str]) -> bool:
    """Return whether the parts we see are all there are, as far as that can be proven."""
    visible = _whole(rows, "system.parts.sum")
    if visible is None:
        return False
    there = _whole(rows, "system.metrics.PartsActive")
    if there is not None:
        return visible >= there * VISIBLE_RATIO
    largest = _whole(rows, "system.asynchronous_metrics.MaxPartCountForPartition")
    return visible > 0 or largest == 0


def _counts(rows: Mapping[str, str], source: Source) -> bool:
    """Return whether a source has counted anything. Parts never prove themselves."""
    if source is Source.PARTS:
        return False
    values = (_number(rows, name) for name in rows if name.startswith(f"{source}."))
    return any(value is not None and value > 0 for value in values)


def _figures(
    rows: Mapping[str, str], seen: Mapping[Source, Seen], replicas_status_ok: bool | None
) -> Figures:
    events = seen.get(Source.EVENTS) is Seen.OK  # an event that has never happened has no row
    asynchronous = "system.asynchronous_metrics."
    return Figures(
        readonly_replicas=_first(
            rows, "system.metrics.ReadonlyReplica", "system.replicas.readonly"
        ),
        replicated_tables=_whole(rows, "system.replicas.tables"),
        keeper_sessions=_whole(rows, "system.metrics.ZooKeeperSession"),
        expired_sessions=_first(
            rows, "system.replicas.expired", "system.metrics.ZooKeeperSessionExpired"
        ),
        replication_lag_seconds=_first(
            rows, f"{asynchronous}ReplicasMaxAbsoluteDelay", "system.replicas.lag"
        ),
        replication_queue=_first(
            rows, f"{asynchronous}ReplicasSumQueueSize", "system.replicas.queue"
        ),
        replicas_status_ok=replicas_status_ok,
        lost_parts=_event(rows, "ReplicatedDataLoss", known=events),
        rejected_inserts=_event(rows, "RejectedInserts", known=events),
        delayed_inserts=_whole(rows, "system.metrics.DelayedInserts"),
        server_errors=_whole(rows, "system.errors.faults"),
        max_parts_in_partition=_first(
            rows, f"{asynchronous}MaxPartCountForPartition", "system.parts.max"
        ),
        active_parts=_whole(rows, "system.parts.sum"),
        pending_mutations=_whole(rows, "system.mutations.pending"),
        stuck_mutations=_whole(rows, "system.mutations.stuck"),
        detached_parts=_detached(rows),
        disk_free_ratio=_number(rows, "system.disks.free_ratio"),
        memory_used_ratio=_memory(rows),
    )


def _detached(rows: Mapping[str, str]) -> int | None:
    total = _whole(rows, "system.asynchronous_metrics.NumberOfDetachedParts")
    if total is None:
        return _whole(rows, "system.detached_parts.detached")
    by_user = _whole(rows, "system.asynchronous_metrics.NumberOfDetachedByUserParts") or 0
    return max(0, total - by_user)


def _memory(rows: Mapping[str, str]) -> float | None:
    used = _number(rows, "system.asynchronous_metrics.MemoryResident")
    limits = (
        _number(rows, f"system.asynchronous_metrics.{name}")
        for name in ("CGroupMemoryTotal", "OSMemoryTotal")
    )
    limit = min((limit for limit in limits if limit), default=None)
    return round(used / limit, 4) if used is not None and limit else None


def _event(rows: Mapping[str, str], name: str, *, known: bool) -> int | None:
    return _whole(rows, f"system.events.{name}") or 0 if known else None


def _first(rows: Mapping[str, str], *names: str) -> int | None:
    return next((value for name in names if (value := _whole(rows, name)) is not None), None)


def _whole(rows: Mapping[str, str], name: str) -> int | None:
    value = _number(rows, name)
    return None if value is None else int(value)


def _number(rows: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(rows[name])
    except (KeyError, ValueError):  # absent, or no number (nan is one, see below)
        return None
    return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124
