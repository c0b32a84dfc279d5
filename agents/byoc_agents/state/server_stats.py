"""Compute the figures from the rows of the probes, and check whether empty responses are true.

Without SHOW TABLES on a table, system.parts, replicas, mutations and detached_parts omit its rows
without an error. `system.metrics` is not filtered, so it shows whether rows should be there.
"""

from collections.abc import Mapping

from byoc_agents.state.observation import Figures, ProbeSource, SourceResult
from byoc_agents.state.queries import MAX_LAG_SECONDS

# If fewer of the server's active parts are visible, SHOW TABLES is missing on most tables. It is
# not closer to 1 because the parts of a dropped table stay active for 8 minutes
# (database_atomic_delay_before_drop_table_sec).
VISIBLE_RATIO = 0.1

_PROOF = (ProbeSource.PARTS, ProbeSource.METRICS, ProbeSource.ASYNCHRONOUS_METRICS)
_USABLE = frozenset({SourceResult.OK, SourceResult.RETRYING})
_FILTERED = (
    ProbeSource.PARTS,
    ProbeSource.REPLICAS,
    ProbeSource.MUTATIONS,
    ProbeSource.DETACHED_PARTS,
)


def compute_figures(
    rows: Mapping[str, str],
    sources: Mapping[ProbeSource, SourceResult],
    *,
    replicas_status_ok: bool | None,
) -> tuple[Figures, dict[ProbeSource, SourceResult], bool]:
    """Return the figures, the hidden sources, and whether SharedMergeTree is in use."""
    shared = bool(_read_int(rows, "system.parts.shared"))
    hidden = _find_hidden_sources(rows, sources)
    trusted = {
        name: value
        for name, value in rows.items()
        if not any(name.startswith(f"{source}.") for source in hidden)
    }
    return _build_figures(trusted, sources, replicas_status_ok), hidden, shared


def _find_hidden_sources(
    rows: Mapping[str, str], sources: Mapping[ProbeSource, SourceResult]
) -> dict[ProbeSource, SourceResult]:
    if _parts_are_visible(rows):
        return {}
    undecided = any(sources.get(source) is SourceResult.PENDING for source in _PROOF)
    return {
        source: SourceResult.PENDING if undecided else SourceResult.HIDDEN
        for source in _FILTERED
        if sources.get(source) in _USABLE and not _has_counted(rows, source)
    }


def _parts_are_visible(rows: Mapping[str, str]) -> bool:
    """Return whether all parts are visible, as far as that can be proven."""
    visible = _read_int(rows, "system.parts.sum")
    if visible is None:
        return False
    active = _read_int(rows, "system.metrics.PartsActive")
    if active is not None:
        return visible >= active * VISIBLE_RATIO
    largest = _read_int(rows, "system.asynchronous_metrics.MaxPartCountForPartition")
    return visible > 0 or largest == 0


def _has_counted(rows: Mapping[str, str], source: ProbeSource) -> bool:
    """Return whether a source counts anything. Visible parts do not prove that all are."""
    if source is ProbeSource.PARTS:
        return False
    values = (_read_number(rows, name) for name in rows if name.startswith(f"{source}."))
    return any(value is not None and value > 0 for value in values)


def _build_figures(
    rows: Mapping[str, str],
    sources: Mapping[ProbeSource, SourceResult],
    replicas_status_ok: bool | None,
) -> Figures:
    events = (
        sources.get(ProbeSource.EVENTS) in _USABLE
    )  # an event that has never happened has no row
    asynchronous = "system.asynchronous_metrics."
    lag, lag_unknown = _read_lag(rows)
    return Figures(
        readonly_replicas=_read_first_int(
            rows, "system.metrics.ReadonlyReplica", "system.replicas.readonly"
        ),
        replicated_tables=_read_int(rows, "system.replicas.tables"),
        keeper_sessions=_read_int(rows, "system.metrics.ZooKeeperSession"),
        expired_sessions=_read_first_int(
            rows, "system.replicas.expired", "system.metrics.ZooKeeperSessionExpired"
        ),
        replication_lag_seconds=lag,
        replication_lag_unknown=lag_unknown,
        replication_queue=_read_first_int(
            rows, f"{asynchronous}ReplicasSumQueueSize", "system.replicas.queue"
        ),
        replicas_status_ok=replicas_status_ok,
        lost_parts=_read_event(rows, "ReplicatedDataLoss", known=events),
        rejected_inserts=_read_event(rows, "RejectedInserts", known=events),
        delayed_inserts=_read_int(rows, "system.metrics.DelayedInserts"),
        server_errors=_read_int(rows, "system.errors.faults"),
        max_parts_in_partition=_read_first_int(
            rows, f"{asynchronous}MaxPartCountForPartition", "system.parts.max"
        ),
        active_parts=_read_int(rows, "system.parts.sum"),
        pending_mutations=_read_int(rows, "system.mutations.pending"),
        stuck_mutations=_read_int(rows, "system.mutations.stuck"),
        detached_parts=_count_detached_parts(rows),
        disk_free_ratio=_read_number(rows, "system.disks.free_ratio"),
        memory_used_ratio=_compute_memory_ratio(rows),
    )


def _read_lag(rows: Mapping[str, str]) -> tuple[int | None, bool]:
    """Return the largest known lag in seconds, and whether the lag of a table is unknown.

    A delay of `MAX_LAG_SECONDS` or more is not a lag: see queries.py.
    """
    largest = _read_int(rows, "system.asynchronous_metrics.ReplicasMaxAbsoluteDelay")
    if largest is not None and 0 <= largest < MAX_LAG_SECONDS:
        return largest, False
    of_tables = _read_int(rows, "system.replicas.lag")
    known = of_tables is not None and 0 <= of_tables < MAX_LAG_SECONDS
    unknown = largest is not None or bool(_read_int(rows, "system.replicas.lag_unknown"))
    return (of_tables, unknown) if known else (None, unknown or of_tables is not None)


def _count_detached_parts(rows: Mapping[str, str]) -> int | None:
    total = _read_int(rows, "system.asynchronous_metrics.NumberOfDetachedParts")
    if total is None:
        return _read_int(rows, "system.detached_parts.detached")
    by_user = _read_int(rows, "system.asynchronous_metrics.NumberOfDetachedByUserParts") or 0
    return max(0, total - by_user)


def _compute_memory_ratio(rows: Mapping[str, str]) -> float | None:
    used = _read_number(rows, "system.asynchronous_metrics.MemoryResident")
    limits = (
        _read_number(rows, f"system.asynchronous_metrics.{name}")
        for name in ("CGroupMemoryTotal", "OSMemoryTotal")
    )
    limit = min((limit for limit in limits if limit), default=None)
    return round(used / limit, 4) if used is not None and limit else None


def _read_event(rows: Mapping[str, str], name: str, *, known: bool) -> int | None:
    return _read_int(rows, f"system.events.{name}") or 0 if known else None


def _read_first_int(rows: Mapping[str, str], *names: str) -> int | None:
    return next((value for name in names if (value := _read_int(rows, name)) is not None), None)


def _read_int(rows: Mapping[str, str], name: str) -> int | None:
    value = _read_number(rows, name)
    return None if value is None else int(value)


def _read_number(rows: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(rows[name])
    except (KeyError, ValueError):  # absent, or not a number (float() accepts nan, see below)
        return None
    return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124
