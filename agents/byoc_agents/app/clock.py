"""The clock: a constructor argument of every part that needs the time, so that tests never sleep.

Wall time is used for windows and time stamps, boot time for durations. CLOCK_BOOTTIME, unlike
CLOCK_MONOTONIC, also counts while the machine is suspended, so a suspend is not a clock step.
"""

import asyncio
import time
from pathlib import Path
from typing import Protocol

from byoc_agents.app.keyed_ids import keyed_id


class Clock(Protocol):
    """Two readings of the current time, and `sleep`, which takes seconds and may be cancelled."""

    boot_id: str  # boot times can be compared only if the boot id is the same

    def wall_ns(self) -> int:
        """Return nanoseconds since 1970-01-01T00:00:00Z; may jump in both directions."""
        ...

    def boot_ns(self) -> int:
        """Return nanoseconds since boot; never decreases under one `boot_id`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; a negative number returns in the next iteration of the event loop."""
        ...


def asleep_ns() -> int:
    """Return how long the machine has been suspended since its boot, nanoseconds.

    CLOCK_BOOTTIME counts that time and CLOCK_MONOTONIC does not. Only differences between two
    results are meaningful: a time namespace may shift each clock by a constant.
    """
    boot_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(boot_clock) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class SystemClock:
    """The clock of the machine.

    `boot_id` is the machine's boot id as `keyed_id` within `scope`: readers of another scope cannot
    see that two clocks are of the same machine.
    """

    def __init__(self, *scope: str) -> None:
        try:
            original = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:  # not Linux: a lower boot time shows a restart of the machine
            original = ""
        self.boot_id = keyed_id(original, "boot", *scope)
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
