"""One reading of a target's counters: what every source gives and the meter takes."""

from typing import Literal, Protocol

import msgspec

SourceName = Literal["cgroup.v2", "cgroup.v1", "clickhouse", "process"]
# Where a size was seen. `unknown`: the container surely has no limit of its own while a cgroup
# above it has one (pod-level resources). The downward API then gives the node's size: not used.
LimitSource = Literal["cgroup", "cgroup_ancestor", "clickhouse", "unknown"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one container, server or process tree at one instant.

    Two readings belong to the same life of a counter if `source` and `incarnation` are equal and
    `born_boot_ns`, when both know it, differs by less than `life.BIRTH_TOLERANCE_NS`.

    The meter counts from zero only if the birth of exactly this counter is known: `born_boot_ns`,
    or `exclusive`. A source that is not sure leaves both out, and the first reading is a baseline.

    A limit is the effective one, the smallest on the visible path. None is unknown, never 0.

    `memory_bytes` of `cgroup.v1` and `cgroup.v2` includes the page cache (`memory.current`), that
    of `clickhouse` and `process` does not (resident memory).
    """

    source: SourceName
    incarnation: str  # same over restarts of the agent, not over a reboot; "" = see birth
    container_id: str  # 64 hex digits where it can be known, else ""
    cpu_usec: int  # cumulative CPU time, microseconds, since `born_boot_ns`
    memory_bytes: int  # in use now
    born_boot_ns: int | None  # when this counter began at 0, on CLOCK_BOOTTIME; None = unknown
    # The counter is the target itself (cgroup:PATH) and not one found by a process: another
    # incarnation, and the first one after a sure absence, began at 0 also if the birth is unknown.
    exclusive: bool = False
    resets_to_zero: bool = True  # ignored: a fall alone is never taken for a restart
    cpu_limit_millicores: int | None = None  # None = no limit, or not visible from here
    memory_limit_bytes: int | None = None
    cpu_limit_source: LimitSource | None = None  # None = by `source`
    memory_limit_source: LimitSource | None = None
    machine_cpus: int | None = None  # of the target's machine; None = of the agent's machine
    named_born_boot_ns: int | None = None  # set by the meter: the birth in the records' incarnation


class TargetAbsentError(Exception):
    """Surely not running now. `str()` says what was looked for, and where."""


class TargetUnreadableError(Exception):
    """It may be running, but cannot be read: which file or URL, which uid, what to set."""


class TargetForeignError(TargetUnreadableError):
    """What runs here is surely another target: no other source may take it for ours."""


class ReadingSource(Protocol):
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
