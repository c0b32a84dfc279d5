"""Derive a replica's state and its reasons from an observation: pure functions, a fold over polls.

Missing data is never treated as healthy: a reason whose figure is missing stays as it is, and a
source that should be readable and is not raises a reason itself.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from byoc_agents.state.observation import (
    BLIND,
    UNCONFIRMED,
    Login,
    Ping,
    ProbeSource,
    SourceResult,
    StateObservation,
)
from byoc_agents.state.thresholds import (
    COUNTED,
    NS,
    PollTime,
    ReasonCode,
    Thresholds,
    Track,
    update_track,
)

POLL_SOON_HOLD_SECONDS = 10.0  # a reason that may be raised within this time is polled faster


class ServiceState(StrEnum):
    """The states of ClickHouse Cloud, limited to those that one replica can be in."""

    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPING = "stopping"


class ShutdownScope(StrEnum):
    """The scope of the shutdown, if this is the exporter's last assessment."""

    NONE = "none"
    DAEMON = "daemon"  # the exporter only; this states nothing about the server
    POD = "pod"  # the exporter runs in the server's pod, so the server is being stopped too


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """State kept from one assessment to the next. On disk, except for the boot clock's fields."""

    tracks: dict[ReasonCode, Track] = {}
    counters: dict[ReasonCode, int] = {}  # cumulative counters of the server at the last poll
    state: ServiceState | None = None
    state_since_ms: int = 0
    previous: ServiceState | None = None  # the state before this one
    uptime_seconds: int | None = None
    was_up: bool = False  # it has answered since the exporter's start
    began_ns: int | None = None  # boot clock: the exporter's first poll


class StateReason(msgspec.Struct, frozen=True, kw_only=True):
    """One reason. `value` and `threshold` are in the unit of the code's figure."""

    code: ReasonCode
    value: float
    threshold: float
    since_ms: int
    detail: Ping | None = None  # of PING_FAILED
    missing: tuple[ProbeSource, ...] = ()  # of OBSERVABILITY_PARTIAL


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """The result. Until it is `confirmed`, nothing is published and `state` is the last known."""

    state: ServiceState | None
    confirmed: bool
    reasons: tuple[StateReason, ...]
    poll_soon: bool  # the next poll may change the state

    @property
    def healthy(self) -> bool:
        """Return whether the server runs, everything was seen, and there is no reason."""
        return self.state is ServiceState.RUNNING and not self.reasons


def assess(
    observation: StateObservation,
    memory: Memory,
    thresholds: Thresholds,
    now: PollTime,
    *,
    shutdown: ShutdownScope = ShutdownScope.NONE,
) -> tuple[Assessment, Memory]:
    """Return the assessment of one poll, and the memory for the next one."""
    memory = _record_start(memory, observation, now)
    tracks = _update_tracks(observation, memory, thresholds, now)
    if shutdown is ShutdownScope.POD:
        current: ServiceState | None = ServiceState.STOPPING
    else:
        current = _derive_state(observation, memory, tracks, thresholds, now)
    state = current or memory.state
    reasons = (
        *_list_active_reasons(observation, tracks, thresholds),
        *_list_circumstances(observation, thresholds, now, state, shutdown),
    )
    assessment = Assessment(
        state=state,
        confirmed=current is not None,
        reasons=reasons,
        poll_soon=_may_change_soon(tracks, thresholds),
    )
    return assessment, _update_memory(memory, observation, tracks, state, now)


def restore_memory(memory: Memory) -> Memory:
    """Return a memory read from disk without the boot clock's fields of another process."""
    tracks = {
        code: msgspec.structs.replace(track, edge_ns=None) for code, track in memory.tracks.items()
    }
    return msgspec.structs.replace(memory, tracks=tracks, began_ns=None, was_up=False)


def _record_start(memory: Memory, observation: StateObservation, now: PollTime) -> Memory:
    """Record the first poll, and drop counters and tracks if the server has restarted."""
    began = now.boot_ns if memory.began_ns is None else memory.began_ns
    up, before = observation.uptime_seconds, memory.uptime_seconds
    restarted = up is not None and before is not None and up < before
    return msgspec.structs.replace(
        memory,
        began_ns=began,
        was_up=memory.was_up or observation.ping is Ping.OK,
        counters=dict.fromkeys(memory.counters, 0) if restarted else memory.counters,
        tracks={} if restarted else memory.tracks,
    )


def _update_tracks(
    observation: StateObservation, memory: Memory, thresholds: Thresholds, now: PollTime
) -> dict[ReasonCode, Track]:
    values = _read_values(observation, memory, thresholds)
    tracks = {
        code: update_track(
            memory.tracks.get(code, Track()),
            threshold,
            values.get(code),
            now,
            counted=code in COUNTED,
        )
        for code, threshold in thresholds.by_code.items()
    }
    if tracks[ReasonCode.QUERIES_FAILING].active:  # then no source can be read
        since_ms = tracks[ReasonCode.QUERIES_FAILING].since_ms
        tracks[ReasonCode.OBSERVABILITY_PARTIAL] = Track(active=True, since_ms=since_ms, value=1)
    if tracks[ReasonCode.PING_FAILED].active:  # the other reasons ended with the server
        return {ReasonCode.PING_FAILED: tracks[ReasonCode.PING_FAILED]}
    return tracks


def _read_values(
    observation: StateObservation, memory: Memory, thresholds: Thresholds
) -> dict[ReasonCode, float | None]:
    """Return the figure of each code; None = not seen at this poll."""
    if observation.ping is not Ping.OK:
        return {ReasonCode.PING_FAILED: 1}
    if observation.login is Login.REFUSED:
        return {
            ReasonCode.PING_FAILED: 0,
            ReasonCode.AUTH_FAILED: 1,
            ReasonCode.OBSERVABILITY_PARTIAL: 1,
        }
    answered = observation.sources.get(ProbeSource.QUERIES) is SourceResult.OK
    values: dict[ReasonCode, float | None] = {
        ReasonCode.PING_FAILED: 0,
        ReasonCode.QUERIES_FAILING: 0 if answered else 1,
        ReasonCode.AUTH_FAILED: 0 if answered else None,
        ReasonCode.OBSERVABILITY_PARTIAL: len(missing_sources(observation)) if answered else None,
    }
    return values | _read_gauges(observation, thresholds) | _measure_growth(observation, memory)


def _read_gauges(
    observation: StateObservation, thresholds: Thresholds
) -> dict[ReasonCode, float | None]:
    figures = observation.figures
    status_ok = figures.replicas_status_ok
    return {
        ReasonCode.READONLY_REPLICA: figures.readonly_replicas,
        ReasonCode.KEEPER_SESSION_EXPIRED: _count_expired_sessions(observation),
        ReasonCode.REPLICATION_LAG: _read_lag(observation, thresholds),
        ReasonCode.REPLICAS_STATUS_FAILED: None if status_ok is None else int(not status_ok),
        ReasonCode.TOO_MANY_PARTS: figures.max_parts_in_partition,
        ReasonCode.STUCK_MUTATION: figures.stuck_mutations,
        ReasonCode.MUTATIONS_PENDING: figures.pending_mutations,
        ReasonCode.DISK_LOW: figures.disk_free_ratio,
        ReasonCode.MEMORY_PRESSURE: figures.memory_used_ratio,
        ReasonCode.DETACHED_PARTS: figures.detached_parts,
        ReasonCode.INSERTS_DELAYED: figures.delayed_inserts,
    }


def _count_expired_sessions(observation: StateObservation) -> int | None:
    """Return the tables with an expired session: all of them if there is no session at all."""
    figures = observation.figures
    if figures.keeper_sessions == 0 and figures.replicated_tables:
        return figures.replicated_tables
    return figures.expired_sessions


def _read_lag(observation: StateObservation, thresholds: Thresholds) -> int | None:
    """Return the lag in seconds. If some table's lag is unknown, it can only raise the reason."""
    figures = observation.figures
    lag = figures.replication_lag_seconds
    threshold = thresholds.by_code[ReasonCode.REPLICATION_LAG]
    if lag is not None and figures.replication_lag_unknown and not threshold.is_over(lag):
        return None
    return lag


def _read_counters(observation: StateObservation) -> dict[ReasonCode, int | None]:
    return {
        ReasonCode.DATA_LOSS: observation.figures.lost_parts,
        ReasonCode.INSERTS_REJECTED: observation.figures.rejected_inserts,
        ReasonCode.SERVER_ERRORS: observation.figures.server_errors,
    }


def _measure_growth(
    observation: StateObservation, memory: Memory
) -> dict[ReasonCode, float | None]:
    """Return the growth of each counter. At the first poll only lost data counts from zero."""
    growth: dict[ReasonCode, float | None] = {}
    for code, count in _read_counters(observation).items():
        before = memory.counters.get(code, 0 if code is ReasonCode.DATA_LOSS else count)
        growth[code] = None if count is None or before is None else max(0, count - before)
    return growth


def _derive_state(
    observation: StateObservation,
    memory: Memory,
    tracks: Mapping[ReasonCode, Track],
    thresholds: Thresholds,
    now: PollTime,
) -> ServiceState | None:
    """Return the state, or None if this poll does not decide it."""
    if tracks[ReasonCode.PING_FAILED].active:
        return _classify_silence(observation, memory, thresholds, now)
    if observation.ping is not Ping.OK:
        return None
    if observation.uptime_seconds is None:  # /ping works, queries do not
        return ServiceState.DEGRADED if any(track.active for track in tracks.values()) else None
    if observation.uptime_seconds < thresholds.starting_seconds:
        return ServiceState.STARTING
    if SourceResult.PENDING in observation.sources.values():
        return None
    return ServiceState.DEGRADED if _is_degraded(observation, tracks) else ServiceState.RUNNING


def _classify_silence(
    observation: StateObservation, memory: Memory, thresholds: Thresholds, now: PollTime
) -> ServiceState:
    """Return the state of a server whose /ping fails."""
    if observation.ping is Ping.TLS:  # it listens; only our trust in its certificate is missing
        return ServiceState.DEGRADED
    began = now.boot_ns if memory.began_ns is None else memory.began_ns
    fresh = (
        memory.state in {None, ServiceState.STARTING, ServiceState.STOPPING} and not memory.was_up
    )
    in_grace = now.boot_ns - began < thresholds.start_grace_seconds * NS
    return ServiceState.STARTING if fresh and in_grace else ServiceState.FAILED


def _is_degraded(observation: StateObservation, tracks: Mapping[ReasonCode, Track]) -> bool:
    """Return whether a reason is serious.

    A source that this version does not have leaves the server running. A source that it has and
    that is denied or does not answer makes it degraded.
    """
    partial = tracks[ReasonCode.OBSERVABILITY_PARTIAL].active
    serious = any(
        track.active
        for code, track in tracks.items()
        if code is not ReasonCode.OBSERVABILITY_PARTIAL
    )
    blind = any(outcome in BLIND for outcome in observation.sources.values())
    return serious or (partial and blind)


def missing_sources(observation: StateObservation) -> tuple[ProbeSource, ...]:
    """Return the sources that could not be read, in the order of their names.

    A source without a response at one poll only is not among them.
    """
    if observation.login is Login.REFUSED:
        return (ProbeSource.QUERIES,)
    usable = UNCONFIRMED | {SourceResult.OK}
    return tuple(
        sorted(source for source, outcome in observation.sources.items() if outcome not in usable)
    )


def _list_active_reasons(
    observation: StateObservation, tracks: Mapping[ReasonCode, Track], thresholds: Thresholds
) -> list[StateReason]:
    return [
        StateReason(
            code=code,
            value=round(track.value, 4),
            threshold=thresholds.by_code[code].enter,
            since_ms=track.since_ms,
            detail=observation.ping if code is ReasonCode.PING_FAILED else None,
            missing=missing_sources(observation)
            if code is ReasonCode.OBSERVABILITY_PARTIAL
            else (),
        )
        for code, track in sorted(tracks.items())
        if track.active
    ]


def _list_circumstances(
    observation: StateObservation,
    thresholds: Thresholds,
    now: PollTime,
    state: ServiceState | None,
    shutdown: ShutdownScope,
) -> list[StateReason]:
    """Return the reasons that are not problems: a recent start, a requested stop."""
    reasons = []
    up, enough = observation.uptime_seconds, thresholds.starting_seconds
    if up is not None and up < enough and state is ServiceState.STARTING:
        since_ms = now.wall_ms - up * 1000
        reasons.append(
            StateReason(code=ReasonCode.STARTING_UP, value=up, threshold=enough, since_ms=since_ms)
        )
    if shutdown is not ShutdownScope.NONE:
        reasons.append(
            StateReason(code=ReasonCode.AGENT_STOPPING, value=1, threshold=1, since_ms=now.wall_ms)
        )
    return reasons


def _may_change_soon(tracks: Mapping[ReasonCode, Track], thresholds: Thresholds) -> bool:
    return any(
        track.edge_ns is not None
        and not track.active
        and thresholds.by_code[code].hold_seconds <= POLL_SOON_HOLD_SECONDS
        for code, track in tracks.items()
    )


def _update_memory(
    memory: Memory,
    observation: StateObservation,
    tracks: dict[ReasonCode, Track],
    state: ServiceState | None,
    now: PollTime,
) -> Memory:
    counters = {
        code: count for code, count in _read_counters(observation).items() if count is not None
    }
    changed = state is not memory.state
    return msgspec.structs.replace(
        memory,
        tracks=tracks,
        counters=memory.counters | counters,
        state=state,
        state_since_ms=now.wall_ms if changed else memory.state_since_ms,
        previous=memory.state if changed else memory.previous,
        uptime_seconds=memory.uptime_seconds
        if observation.uptime_seconds is None
        else observation.uptime_seconds,
    )
