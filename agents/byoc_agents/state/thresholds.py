"""Reason codes, and from which value on each counts: enter, leave and how long it must hold."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class Code(StrEnum):
    """Why a replica is not simply running. A closed set; receivers may rely on the words."""

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


COUNTED = frozenset({Code.DATA_LOSS, Code.INSERTS_REJECTED, Code.SERVER_ERRORS})
"""Codes whose figure is a cumulative counter: what counts is how much it grows."""


class Limit(msgspec.Struct, frozen=True):
    """When a figure becomes a reason and when it stops being one.

    `enter` above `leave`: high values are bad. `enter` below `leave`: low values are bad.
    """

    enter: float
    leave: float
    hold_seconds: float = 0.0  # it must be past `enter` for so long
    clear_seconds: float = 0.0  # it must be past `leave` for so long

    def is_over(self, value: float) -> bool:
        """Return whether the value is bad enough to raise the reason."""
        return value >= self.enter if self.enter >= self.leave else value <= self.enter

    def is_clear(self, value: float) -> bool:
        """Return whether the value is good enough to drop the reason."""
        return value <= self.leave if self.enter >= self.leave else value >= self.leave


# Each number with its source. Altinity: the alert rules shipped with its operator
# (prometheus-alert-rules-clickhouse.yaml). Server: a default of ClickHouse. Prior: common practice
# collected for this project (Altinity's rules, ClickHouse's docs and warnings). Ours: no source.
DEFAULTS: Mapping[Code, Limit] = {
    # Altinity: ReadonlyReplica > 0. It clears late because Keeper sessions flap.
    Code.READONLY_REPLICA: Limit(1, 0, 0, 30),
    Code.KEEPER_SESSION_EXPIRED: Limit(1, 0, 0, 30),  # as READONLY_REPLICA
    # seconds. Altinity, and server: min_relative_delay_to_close = 300; leave: ours
    Code.REPLICATION_LAG: Limit(300, 60, 0, 30),
    Code.REPLICAS_STATUS_FAILED: Limit(1, 0, 0, 30),  # server: /replicas_status answers 503
    # Altinity: MaxPartCountForPartition > 100; a burst of inserts is no state, so hold: ours
    Code.TOO_MANY_PARTS: Limit(100, 80, 300, 60),
    Code.STUCK_MUTATION: Limit(1, 0, 0, 60),  # ours: one that is open for an hour
    Code.MUTATIONS_PENDING: Limit(100, 50, 60, 60),  # prior: mutations > 100; leave: ours
    Code.DISK_LOW: Limit(0.10, 0.15, 60, 60),  # free part; ours (Altinity: 20 % free)
    Code.MEMORY_PRESSURE: Limit(0.90, 0.85, 600, 60),  # used part; prior: 0.9, 0.85, 600 s
    Code.DETACHED_PARTS: Limit(1, 0, 60, 60),  # prior: > 0
    Code.DATA_LOSS: Limit(1, 0, 0, 3600),  # Altinity: growth > 0; an hour: ours
    Code.SERVER_ERRORS: Limit(1, 0, 0, 300),  # ours
    Code.INSERTS_REJECTED: Limit(1, 0, 0, 300),  # Altinity: growth > 0; 300 s: ours
    Code.INSERTS_DELAYED: Limit(1, 0, 60, 60),  # Altinity: DelayedInserts > 0; hold: ours
    # ours: a ping that fails is asked again every second; it must fail for two to be believed
    Code.PING_FAILED: Limit(1, 0, 2, 0),
    Code.QUERIES_FAILING: Limit(1, 0, 5, 5),  # ours
    Code.AUTH_FAILED: Limit(1, 0, 0, 0),
    Code.OBSERVABILITY_PARTIAL: Limit(1, 0, 0, 30),  # ours: a time-out now and then would flap
}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Every limit in use."""

    by_code: dict[Code, Limit] = msgspec.field(default_factory=lambda: dict(DEFAULTS))
    starting_seconds: float = 180.0  # Altinity: uptime < 180 s counts as recently restarted
    start_grace_seconds: float = 180.0  # ours: how long a server that was never up may be silent


def parse_limits(text: str) -> dict[Code, Limit]:
    """Return the defaults with `CODE=limit,CODE=limit` over them. Raises ValueError."""
    found = dict(DEFAULTS)
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, limit = pair.partition("=")
        if name not in DEFAULTS:
            raise ValueError(f"{name}: no such code; wants one of {', '.join(DEFAULTS)}")
        found[Code(name)] = parse_limit(limit)
    return found


def parse_limit(text: str) -> Limit:
    """Return the limit of `300/60`, `300/60/0` or `300/60/0/30`: enter, leave, hold, clear."""
    wanted = "enter/leave/hold_seconds/clear_seconds, the last two may be left out"
    try:
        numbers = [float(part) for part in text.split("/")]
        limit = Limit(*numbers)
    except (TypeError, ValueError):
        raise ValueError(wanted) from None
    if not all(0 <= number < float("inf") for number in numbers) or limit.enter == limit.leave:
        raise ValueError(wanted)
    return limit
