"""One reading of a target's counters: what every source gives and the meter takes."""

from typing import Literal, Protocol

import msgspec

SourceName = Literal["cgroup.v2", "cgroup.v1", "clickhouse", "process"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one container, server or process tree at one instant.

    Two readings belong to the same life of a counter when `source` and `incarnation` are equal and
    `born_boot_ns`, where both know it, differs by less than `meter.BIRTH_TOLERANCE_NS`.
    """

    source: SourceName
    incarnation: str  # same over restarts of the agent, not over a reboot; "" = see birth
    container_id: str  # 64 hex digits where it can be known, else ""
    cpu_usec: int  # cumulative CPU time, microseconds, since `born_boot_ns`
    memory_bytes: int  # in use now
    born_boot_ns: int | None  # when the counter began at 0, on CLOCK_BOOTTIME; None = unknown
    resets_to_zero: bool = True  # a lower cpu_usec means a fresh counter (False: process trees)
    cpu_limit_millicores: int | None = None  # None = no limit, or not visible from here
    memory_limit_bytes: int | None = None


class TargetAbsentError(Exception):
    """Surely not running now. `str()` says what was looked for, and where."""


class TargetUnreadableError(Exception):
    """It may be running, but cannot be read: which file or URL, which uid, what to set."""


class Source(Protocol):
    """Reads one target in one way."""

    name: SourceName

    async def read(self) -> Reading:
        """Return the counters now. Raises TargetAbsentError or TargetUnreadableError, nothing else.

        Never blocks the event loop for longer than a few file reads; HTTP has its own time-out.
        """
        ...

    def close(self) -> None:
        """Give up descriptors; `read` may be called again and reopens them."""
        ...
