"""From what was seen to a state and its reasons: pure functions, a fold over polls.

What cannot be seen never counts as well: a reason whose figure is missing stays as it is, and what
ought to be seen and is not is a reason itself.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from byoc_agents.state.hysteresis import NS, Now, Track, step
from byoc_agents.state.observation import BLIND, Login, Observation, Ping, Seen, Source
from byoc_agents.state.thresholds import COUNTED, Code, Limits

HURRY_HOLD_SECONDS = 10.0  # a reason that is about to be raised within this is looked at faster


class State(StrEnum):
    """ClickHouse Cloud's own words, limited to what one replica can know."""

    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPING = "stopping"


class End(StrEnum):
    """Whether this is the exporter's last look, because it was asked to stop."""

    NONE = "none"
    AGENT = "agent"  # the exporter stops; of the server that says nothing
    BOTH = "both"  # it stands in the server's pod, which is being stopped: so is the server


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What one assessment hands to the next. Durable but for the boot-clock fields."""

    tracks: dict[Code, Track] = {}
    counters: dict[Code, int] = {}  # cumulative counters of the server at the last poll
    state: State | None = None
    state_since_ms: int = 0
    previous: State | None = None  # the state before this one
    uptime_seconds: int | None = None
    was_up: bool = False  # it has answered since the agent's start
    began_ns: int | None = None  # boot clock: the agent's first poll


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why. `value` and `threshold` are in the unit of the code's figure."""

    code: Code
    value: float
    threshold: float
    since_ms: int
    detail: Ping | None = None  # of PING_FAILED
    missing: tuple[Source, ...] = ()  # of OBSERVABILITY_PARTIAL


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """The result. While it is not `sure` nothing is sent; `state` is then the last one known."""

    state: State | None
    sure: bool
    reasons: tuple[Reason, ...]
    hurry: bool  # a decision is near: look again soon

    @property
    def healthy(self) -> bool:
        """Return whether it runs, all of it was seen, and nothing is wrong."""
        return self.state is State.RUNNING and not self.reasons


def assess(
    seen: Observation, memory: Memory, limits: Limits, now: Now, *, end: End = End.NONE
) -> tuple[Assessment, Memory]:
    """Return what the poll means, and the memory for the next one."""
    memory = _begin(memory, seen, now)
    values = _values(seen, memory)
    tracks = {
        code: step(
            memory.tracks.get(code, Track()), limit, values.get(code), now, counted=code in COUNTED
        )
        for code, limit in limits.by_code.items()
    }
    if tracks[Code.QUERIES_FAILING].active:  # then nothing at all is seen
        since_ms = tracks[Code.QUERIES_FAILING].since_ms
        tracks[Code.OBSERVABILITY_PARTIAL] = Track(active=True, since_ms=since_ms, value=1)
    if tracks[Code.PING_FAILED].active:  # what was wrong inside a dead server is over
        tracks = {Code.PING_FAILED: tracks[Code.PING_FAILED]}
    found = State.STOPPING if end is End.BOTH else _state(seen, memory, tracks, limits, now)
    state = found or memory.state
    reasons = (*_active(seen, tracks, limits), *_circumstances(seen, limits, now, state, end))
    after = _after(memory, seen, tracks, state, now)
    sure = found is not None
    hurry = _hurry(tracks, limits)
    return Assessment(state=state, sure=sure, reasons=reasons, hurry=hurry), after


def restored(memory: Memory) -> Memory:
    """Return a memory from disk: the boot clock's fields mean nothing to another process."""
    tracks = {
        code: msgspec.structs.replace(track, edge_ns=None) for code, track in memory.tracks.items()
    }
    return msgspec.structs.replace(memory, tracks=tracks, began_ns=None, was_up=False)


def _begin(memory: Memory, seen: Observation, now: Now) -> Memory:
    """Note the first poll, and forget counters of an earlier life of the server."""
    began = now.boot_ns if memory.began_ns is None else memory.began_ns
    up, before = seen.uptime_seconds, memory.uptime_seconds
    restarted = up is not None and before is not None and up < before
    return msgspec.structs.replace(
        memory,
        began_ns=began,
        was_up=memory.was_up or seen.ping is Ping.OK,
        counters=dict.fromkeys(memory.counters, 0) if restarted else memory.counters,
        tracks={} if restarted else memory.tracks,
    )


def _values(seen: Observation, memory: Memory) -> dict[Code, float | None]:
    """Return the figure behind each code; None = not seen now."""
    if seen.ping is not Ping.OK:
        return {Code.PING_FAILED: 1}
    if seen.login is Login.REFUSED:
        return {Code.PING_FAILED: 0, Code.AUTH_FAILED: 1, Code.OBSERVABILITY_PARTIAL: 1}
    answered = seen.seen.get(Source.QUERIES) is Seen.OK
    values: dict[Code, float | None] = {
        Code.PING_FAILED: 0,
        Code.QUERIES_FAILING: 0 if answered else 1,
        Code.AUTH_FAILED: 0 if answered else None,
        Code.OBSERVABILITY_PARTIAL: len(missing(seen)) if answered else None,
    }
    return values | _gauges(seen) | _growth(seen, memory)


def _gauges(seen: Observation) -> dict[Code, float | None]:
    figures = seen.figures
    return {
        Code.READONLY_REPLICA: figures.readonly_replicas,
        Code.KEEPER_SESSION_EXPIRED: _expired(seen),
        Code.REPLICATION_LAG: figures.replication_lag_seconds,
        Code.REPLICAS_STATUS_FAILED: _refuted(figures.replicas_status_ok),
        Code.TOO_MANY_PARTS: figures.max_parts_in_partition,
        Code.STUCK_MUTATION: figures.stuck_mutations,
        Code.MUTATIONS_PENDING: figures.pending_mutations,
        Code.DISK_LOW: figures.disk_free_ratio,
        Code.MEMORY_PRESSURE: figures.memory_used_ratio,
        Code.DETACHED_PARTS: figures.detached_parts,
        Code.INSERTS_DELAYED: figures.delayed_inserts,
    }


def _refuted(ok: bool | None) -> int | None:
    return None if ok is None else int(not ok)


def _expired(seen: Observation) -> int | None:
    """Return tables with an expired session; all of them where there is no session at all."""
    figures = seen.figures
    if figures.keeper_sessions == 0 and figures.replicated_tables:
        return figures.replicated_tables
    return figures.expired_sessions


def _counters(seen: Observation) -> dict[Code, int | None]:
    return {
        Code.DATA_LOSS: seen.figures.lost_parts,
        Code.INSERTS_REJECTED: seen.figures.rejected_inserts,
        Code.SERVER_ERRORS: seen.figures.server_errors,
    }


def _growth(seen: Observation, memory: Memory) -> dict[Code, float | None]:
    """Return how much each counter grew. At first sight only lost data counts from zero."""
    growth: dict[Code, float | None] = {}
    for code, count in _counters(seen).items():
        before = memory.counters.get(code, 0 if code is Code.DATA_LOSS else count)
        growth[code] = None if count is None or before is None else max(0, count - before)
    return growth


def _state(
    seen: Observation, memory: Memory, tracks: Mapping[Code, Track], limits: Limits, now: Now
) -> State | None:
    if tracks[Code.PING_FAILED].active:
        return _silent(seen, memory, limits, now)
    if seen.ping is not Ping.OK:
        return None  # not sure yet
    if seen.uptime_seconds is None:  # it answers, but lets us see nothing
        blind = any(t.active for t in tracks.values())
        return State.DEGRADED if blind else None
    if seen.uptime_seconds < limits.starting_seconds:
        return State.STARTING
    return State.DEGRADED if _wrong(seen, tracks) else State.RUNNING


def _silent(seen: Observation, memory: Memory, limits: Limits, now: Now) -> State:
    """Return what a server that does not answer is."""
    if seen.ping is Ping.TLS:  # it is there; that we do not trust it is our trouble, not its
        return State.DEGRADED
    began = now.boot_ns if memory.began_ns is None else memory.began_ns
    fresh = memory.state in {None, State.STARTING, State.STOPPING} and not memory.was_up
    in_grace = now.boot_ns - began < limits.start_grace_seconds * NS
    return State.STARTING if fresh and in_grace else State.FAILED


def _wrong(seen: Observation, tracks: Mapping[Code, Track]) -> bool:
    """Return whether a reason is serious.

    A source that this version does not have leaves a server running; one that it has and that we
    may not see, or that does not answer, does not.
    """
    partial = tracks[Code.OBSERVABILITY_PARTIAL].active
    serious = any(t.active for c, t in tracks.items() if c is not Code.OBSERVABILITY_PARTIAL)
    return serious or (partial and any(how in BLIND for how in seen.seen.values()))


def missing(seen: Observation) -> tuple[Source, ...]:
    """Return the sources that could not be looked at, in the order of their names."""
    if seen.login is Login.REFUSED:
        return (Source.QUERIES,)
    return tuple(sorted(source for source, how in seen.seen.items() if how is not Seen.OK))


def _active(seen: Observation, tracks: Mapping[Code, Track], limits: Limits) -> list[Reason]:
    return [
        Reason(
            code=code,
            value=round(track.value, 4),
            threshold=limits.by_code[code].enter,
            since_ms=track.since_ms,
            detail=seen.ping if code is Code.PING_FAILED else None,
            missing=missing(seen) if code is Code.OBSERVABILITY_PARTIAL else (),
        )
        for code, track in sorted(tracks.items())
        if track.active
    ]


def _circumstances(
    seen: Observation, limits: Limits, now: Now, state: State | None, end: End
) -> list[Reason]:
    """Return the reasons that are no trouble: a fresh start, an end that was asked for."""
    up, enough, found = seen.uptime_seconds, limits.starting_seconds, []
    if up is not None and up < enough and state is State.STARTING:
        began = now.wall_ms - up * 1000
        found = [Reason(code=Code.STARTING_UP, value=up, threshold=enough, since_ms=began)]
    if end is not End.NONE:
        found += [Reason(code=Code.AGENT_STOPPING, value=1, threshold=1, since_ms=now.wall_ms)]
    return found


def _hurry(tracks: Mapping[Code, Track], limits: Limits) -> bool:
    return any(
        track.edge_ns is not None
        and not track.active
        and limits.by_code[code].hold_seconds <= HURRY_HOLD_SECONDS
        for code, track in tracks.items()
    )


def _after(
    memory: Memory,
    seen: Observation,
    tracks: dict[Code, Track],
    state: State | None,
    now: Now,
) -> Memory:
    counters = {c: n for c, n in _counters(seen).items() if n is not None}
    changed = state is not memory.state
    return msgspec.structs.replace(
        memory,
        tracks=tracks,
        counters=memory.counters | counters,
        state=state,
        state_since_ms=now.wall_ms if changed else memory.state_since_ms,
        previous=memory.state if changed else memory.previous,
        uptime_seconds=memory.uptime_seconds
        if seen.uptime_seconds is None
        else seen.uptime_seconds,
    )
