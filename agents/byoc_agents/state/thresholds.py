"""Reason codes and their thresholds: the values to enter and leave, and how long they must hold.

A figure must stay past a threshold for that long before anything changes (hysteresis).
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

NS = 1_000_000_000


class ReasonCode(StrEnum):
    """A reason why a replica is not simply running. A closed set that receivers may rely on."""

    READONLY_REPLICA = "READONLY_REPLICA"
    KEEPER_SESSION_EXPIRED = "KEEPER_SESSION_EXPIRED"
    REPLICATION_LAG = "REPLICATION_LAG"
    REPLICAS_STATUS_FAILED = "REPLICAS_STATUS_FAILED"
    TOO_MANY_PARTS = "TOO_MANY_PARTS"
    STUCK_MUTATION = "STUCK_MUTATION"
    MUTATIONS_PENDING = "MUTATIONS_PENDING"
    DISK_LOW = "DISK_LOW"
    MEMORY_PRESSURE = "MEMORY_PRESSURE"
    DETACHED_PARTS = "DETACHED_PARTS"
    DATA_LOSS = "DATA_LOSS"
    SERVER_ERRORS = "SERVER_ERRORS"
    INSERTS_REJECTED = "INSERTS_REJECTED"
    INSERTS_DELAYED = "INSERTS_DELAYED"
    PING_FAILED = "PING_FAILED"
    QUERIES_FAILING = "QUERIES_FAILING"
    AUTH_FAILED = "AUTH_FAILED"
    OBSERVABILITY_PARTIAL = "OBSERVABILITY_PARTIAL"
    STARTING_UP = "STARTING_UP"
    AGENT_STOPPING = "AGENT_STOPPING"


COUNTED = frozenset({ReasonCode.DATA_LOSS, ReasonCode.INSERTS_REJECTED, ReasonCode.SERVER_ERRORS})
"""Codes whose figure is a cumulative counter: its growth is compared with the threshold."""


class Threshold(msgspec.Struct, frozen=True):
    """The values at which a figure becomes a reason and stops being one.

    `enter` above `leave`: high values are bad. `enter` below `leave`: low values are bad.
    """

    enter: float
    leave: float
    hold_seconds: float = 0.0  # it must stay past `enter` for this long
    clear_seconds: float = 0.0  # it must stay past `leave` for this long

    def is_over(self, value: float) -> bool:
        """Return whether the value is bad enough to raise the reason."""
        return value >= self.enter if self.enter >= self.leave else value <= self.enter

    def is_clear(self, value: float) -> bool:
        """Return whether the value is good enough to drop the reason."""
        return value <= self.leave if self.enter >= self.leave else value >= self.leave


# Each number with its source. Altinity: the alert rules shipped with its operator
# (prometheus-alert-rules-clickhouse.yaml). Server: a default of ClickHouse. Prior: common practice
# collected for this project (Altinity's rules, ClickHouse's docs and warnings). Ours: no source.
DEFAULTS: Mapping[ReasonCode, Threshold] = {
    # Altinity: ReadonlyReplica > 0. It clears late because Keeper sessions flap.
    ReasonCode.READONLY_REPLICA: Threshold(1, 0, 0, 30),
    ReasonCode.KEEPER_SESSION_EXPIRED: Threshold(1, 0, 0, 30),  # as READONLY_REPLICA
    # seconds. Altinity, and server: min_relative_delay_to_close = 300; leave: ours. Hold: as the
    # chart's rule (`for: 1m`), because a new Keeper session can report a false delay for a moment
    ReasonCode.REPLICATION_LAG: Threshold(300, 60, 60, 30),
    # server: /replicas_status answers 503; computed from the same delays, so the same hold
    ReasonCode.REPLICAS_STATUS_FAILED: Threshold(1, 0, 60, 30),
    # Altinity: MaxPartCountForPartition > 100; hold (a burst of inserts is not a state): ours
    ReasonCode.TOO_MANY_PARTS: Threshold(100, 80, 300, 60),
    ReasonCode.STUCK_MUTATION: Threshold(1, 0, 0, 60),  # ours: one that has been open for an hour
    ReasonCode.MUTATIONS_PENDING: Threshold(100, 50, 60, 60),  # prior: mutations > 100; leave: ours
    ReasonCode.DISK_LOW: Threshold(0.10, 0.15, 60, 60),  # free part; ours (Altinity: 20 % free)
    ReasonCode.MEMORY_PRESSURE: Threshold(
        0.90, 0.85, 600, 60
    ),  # used part; prior: 0.9, 0.85, 600 s
    ReasonCode.DETACHED_PARTS: Threshold(1, 0, 60, 60),  # prior: > 0
    ReasonCode.DATA_LOSS: Threshold(1, 0, 0, 3600),  # Altinity: growth > 0; an hour: ours
    ReasonCode.SERVER_ERRORS: Threshold(1, 0, 0, 300),  # ours
    ReasonCode.INSERTS_REJECTED: Threshold(1, 0, 0, 300),  # Altinity: growth > 0; 300 s: ours
    ReasonCode.INSERTS_DELAYED: Threshold(1, 0, 60, 60),  # Altinity: DelayedInserts > 0; hold: ours
    # ours: a failed ping is sent again every second; it counts after failing for two seconds
    ReasonCode.PING_FAILED: Threshold(1, 0, 2, 0),
    ReasonCode.QUERIES_FAILING: Threshold(1, 0, 5, 5),  # ours
    ReasonCode.AUTH_FAILED: Threshold(1, 0, 0, 0),
    # ours: a source counts after two attempts without a response (probes.py), clears at the first
    ReasonCode.OBSERVABILITY_PARTIAL: Threshold(1, 0, 0, 0),
}


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """All thresholds in use."""

    by_code: dict[ReasonCode, Threshold] = msgspec.field(default_factory=lambda: dict(DEFAULTS))
    starting_seconds: float = 180.0  # Altinity: uptime < 180 s counts as recently restarted
    start_grace_seconds: float = 180.0  # ours: how long a server that was never up may stay silent


def parse_thresholds(text: str) -> dict[ReasonCode, Threshold]:
    """Return the defaults, replaced by those of `CODE=threshold,CODE=threshold`.

    Raises ValueError, with a text that states what is expected.
    """
    found = dict(DEFAULTS)
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, threshold = pair.partition("=")
        if name not in DEFAULTS:
            raise ValueError(f"{name}: no such code; expected one of {', '.join(DEFAULTS)}")
        found[ReasonCode(name)] = parse_threshold(threshold)
    return found


def parse_threshold(text: str) -> Threshold:
    """Parse `300/60`, `300/60/0` or `300/60/0/30`: enter, leave, hold, clear. Raises ValueError."""
    expected = "expected enter/leave/hold_seconds/clear_seconds; the last two are optional"
    try:
        numbers = [float(part) for part in text.split("/")]
        threshold = Threshold(*numbers)
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    if (
        not all(0 <= number < float("inf") for number in numbers)
        or threshold.enter == threshold.leave
    ):
        raise ValueError(expected)
    return threshold


class PollTime(msgspec.Struct, frozen=True):
    """Both clocks at one instant. Durations are measured on the boot clock only."""

    wall_ms: int
    boot_ns: int


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """The history of one reason code."""

    active: bool = False
    since_ms: int = 0  # when the value passed `enter`
    edge_ns: int | None = None  # boot clock: when it passed a threshold that has not held yet
    value: float = 0.0  # last seen; of a counter: its growth since `since_ms`


def update_track(
    track: Track, threshold: Threshold, value: float | None, now: PollTime, *, counted: bool = False
) -> Track:
    """Return the track after one more poll. A value of None (not seen) changes nothing.

    For a counter (`counted`) the value is its growth since the last poll, and the track sums it.
    """
    if value is None:
        return track
    total = track.value + value if counted and track.active else value
    bad = not threshold.is_clear(value) if track.active else threshold.is_over(value)
    if bad == track.active:
        return Track(active=bad, since_ms=track.since_ms if bad else 0, value=total)
    edge = now.boot_ns if track.edge_ns is None else track.edge_ns
    since = now.wall_ms if track.edge_ns is None and bad else track.since_ms
    wait = threshold.clear_seconds if track.active else threshold.hold_seconds
    if now.boot_ns - edge < wait * NS:
        return Track(active=track.active, since_ms=since, edge_ns=edge, value=total)
    return Track(active=True, since_ms=since, value=total) if bad else Track(value=value)
