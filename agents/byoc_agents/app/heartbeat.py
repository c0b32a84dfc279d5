"""The interval between heartbeats: shorter after a change, longer while nothing changes.

Each heartbeat states the time within which the next one comes, so a receiver needs no setting.
"""

from typing import Self

import msgspec

CHANGE_SECONDS = 600.0  # so long after a change the shorter interval is used
IDLE_FACTOR = 5  # the longer interval is by default so many times the shorter one
MAX_IDLE_SECONDS = 1800.0  # the alert ByocNoSuccess of the chart fires after a longer time


class HeartbeatIntervals(msgspec.Struct, frozen=True):
    """The two intervals of one daemon, in seconds."""

    seconds: float
    idle_seconds: float

    @classmethod
    def choose(cls, prefix: str, seconds: float, idle_seconds: float | None) -> Self:
        """Return the intervals of a daemon whose settings begin with `prefix`.

        Raises ValueError if the longer interval is shorter than the other.
        """
        if idle_seconds is None:
            idle_seconds = max(seconds, min(IDLE_FACTOR * seconds, MAX_IDLE_SECONDS))
        if idle_seconds < seconds:
            reason = (
                f"{prefix}_IDLE_HEARTBEAT_SECONDS: invalid value '{idle_seconds:g}': "
                f"expected at least {prefix}_HEARTBEAT_SECONDS, which is {seconds:g}"
            )
            raise ValueError(reason)
        return cls(seconds, idle_seconds)

    def __str__(self) -> str:
        """Return `60 to 300 s`, or `60 s` if the interval is always the same."""
        same = self.seconds == self.idle_seconds
        return f"{self.seconds:g}{'' if same else f' to {self.idle_seconds:g}'} s"

    def after(self, unchanged_ns: int) -> float:
        """Return the seconds to the next heartbeat, so many nanoseconds after the last change."""
        return self.seconds if unchanged_ns < CHANGE_SECONDS * 1e9 else self.idle_seconds
