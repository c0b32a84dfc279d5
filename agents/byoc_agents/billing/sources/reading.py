"""One reading of a target's counters, the common interface of all sources and the meter."""

from typing import Literal, Protocol

import msgspec

from byoc_agents.app.keyed_ids import keyed_id

SourceName = Literal["cgroup.v2", "cgroup.v1", "clickhouse", "process"]
# The source of a limit. `unknown`: the container certainly has no limit of its own, but a cgroup
# above it has one (pod-level resources). The downward API then returns the node's size: not used.
LimitSource = Literal["cgroup", "cgroup_ancestor", "clickhouse", "unknown"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one container, server or process tree at one instant.

    Two readings are of the same run of a counter if `source` and `incarnation` are equal and, if
    both have one, `born_boot_ns` differs by less than `continuity.BIRTH_TOLERANCE_NS`.

    The meter counts from zero only if the birth of exactly this counter is known, by `born_boot_ns`
    or `exclusive`. A source that is not certain omits both, and the first reading is a baseline.

    A limit is the effective one, the smallest on the visible path. None is unknown, never 0.

    `memory_bytes` of `cgroup.v1` and `cgroup.v2` includes the page cache (`memory.current`). That
    of `clickhouse` and `process` is the resident memory, without page cache.
    """

    source: SourceName
    incarnation: str  # constant over restarts of the daemon, not over a reboot; "" = see birth
    container_id: str  # 64 hex digits, or "" if unknown
    cpu_usec: int  # cumulative CPU time, microseconds, since `born_boot_ns`
    memory_bytes: int  # in use now
    born_boot_ns: int | None  # when this counter began at 0, on CLOCK_BOOTTIME; None = unknown
    # The counter is the target itself (cgroup:PATH), not one found by a process. Then a changed
    # incarnation, or the first one after a certain absence, began at 0 even without a known birth.
    exclusive: bool = False
    resets_to_zero: bool = True  # ignored: a fall alone does not count as a restart
    cpu_limit_millicores: int | None = None  # None = no limit, or not visible from here
    memory_limit_bytes: int | None = None
    cpu_limit_source: LimitSource | None = None  # None = by `source`
    memory_limit_source: LimitSource | None = None
    machine_cpus: int | None = None  # of the target's machine; None = as the daemon's machine
    named_born_boot_ns: int | None = None  # set by the meter: the birth in the records' incarnation
    # The incarnation in records, see `name_run`; "" = made of `incarnation`. A checkpoint of an
    # earlier version has none: its counter keeps the name that it had, until its end.
    run_name: str = ""


def name_run(boot_id: str, *parts: object) -> str:
    """Return a name for one run of a counter that shows none of `parts`, "" without a boot id.

    The parts, such as a start on the boot clock, would show when the node booted, and so which pods
    share a node. They could be guessed. `boot_id` is the keyed form of the node's boot id, of which
    records show nothing, and so is a secret.
    """
    return keyed_id(boot_id, "run", *map(str, parts))


class TargetAbsentError(Exception):
    """The target certainly does not run. `str()` names the target and the place of the search."""


class TargetUnreadableError(Exception):
    """The target may run, but cannot be read. `str()` names the file or URL and the remedy."""


class TargetForeignError(TargetUnreadableError):
    """Another target certainly runs here. No other source may be read instead."""


class ReadingSource(Protocol):
    """Reads the counters of one target."""

    name: SourceName

    async def read(self) -> Reading:
        """Return the present counters. Raises TargetAbsentError or TargetUnreadableError only.

        It blocks the event loop for a few file reads at most. HTTP requests have a time-out. It may
        be called again after an error.
        """
        ...

    def close(self) -> None:
        """Close the descriptors. `read` may be called again and reopens them."""
        ...
