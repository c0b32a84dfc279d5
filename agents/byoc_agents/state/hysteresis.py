"""One figure over time: it must be past a limit for long enough before anything changes."""

import msgspec

from byoc_agents.state.thresholds import Limit

NS = 1_000_000_000


class Now(msgspec.Struct, frozen=True):
    """Both clocks at one instant. Durations are measured on the boot clock only."""

    wall_ms: int
    boot_ns: int


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about one code over time."""

    active: bool = False
    since_ms: int = 0  # when the value passed `enter`
    edge_ns: int | None = None  # boot clock: when it passed a limit that has not held long enough
    value: float = 0.0  # last seen; of a counter: how much it grew since `since_ms`


def step(
    track: Track, limit: Limit, value: float | None, now: Now, *, counted: bool = False
) -> Track:
    """Return the track after one more look. None = not seen: it stays as it is.

    Of a counter (`counted`) the value is its growth since the last look, and the track adds up.
    """
    if value is None:
        return track
    total = track.value + value if counted and track.active else value
    bad = not limit.is_clear(value) if track.active else limit.is_over(value)
    if bad == track.active:
        return Track(active=bad, since_ms=track.since_ms if bad else 0, value=total)
    edge = now.boot_ns if track.edge_ns is None else track.edge_ns
    since = now.wall_ms if track.edge_ns is None and bad else track.since_ms
    wait = limit.clear_seconds if track.active else limit.hold_seconds
    if now.boot_ns - edge < wait * NS:
        return Track(active=track.active, since_ms=since, edge_ns=edge, value=total)
    return Track(active=True, since_ms=since, value=total) if bad else Track(value=value)
