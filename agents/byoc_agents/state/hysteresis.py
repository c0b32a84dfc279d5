"""One figure over time: it must stay past a threshold for long enough before anything changes."""

import msgspec

from byoc_agents.state.thresholds import Threshold

NS = 1_000_000_000


class Now(msgspec.Struct, frozen=True):
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
    track: Track, threshold: Threshold, value: float | None, now: Now, *, counted: bool = False
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
