"""The clock comes in by the constructor, so that tests never sleep.

Wall time makes windows and time stamps; boot time makes durations. CLOCK_BOOTTIME, unlike
CLOCK_MONOTONIC, also counts while the machine is suspended, so a suspend is not a clock step.
"""

import asyncio
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Two readings of now and a way to wait. `sleep` may be cancelled and takes seconds."""

    boot_id: str  # boot times compare only under the same boot id

    def wall_ns(self) -> int:
        """Return nanoseconds since 1970-01-01T00:00:00Z; may jump both ways."""
        ...

    def boot_ns(self) -> int:
        """Return nanoseconds since boot; never falls under one `boot_id`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; a negative number returns at the next turn of the loop."""
        ...


def asleep_ns() -> int:
    """Return how long the machine has been suspended since its boot, nanoseconds.

    CLOCK_BOOTTIME counts that time and CLOCK_MONOTONIC does not. Only differences between two
    answers mean anything: a time namespace may move each clock by a constant.
    """
    boot_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(boot_clock) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class SystemClock:
    """The machine's own clock."""

    def __init__(self) -> None:
        try:
            self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:  # no Linux: restarts of the machine are then seen by the falling boot time
            self.boot_id = ""
        self._boot_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def wall_ns(self) -> int:
        """Return CLOCK_REALTIME."""
        return time.time_ns()

    def boot_ns(self) -> int:
        """Return CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(self._boot_clock)

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running event loop."""
        await asyncio.sleep(max(0.0, seconds))
