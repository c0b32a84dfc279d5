"""What is metered, and by which source: the best one that works, with the others beside it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from byoc_agents.app.clock import Clock
from byoc_agents.billing.sources.cgroup import CgroupSource, at_path, of_process
from byoc_agents.billing.sources.cgroup_paths import Locator
from byoc_agents.billing.sources.clickhouse import ServerSource
from byoc_agents.billing.sources.procfs import Finder, ProcFs
from byoc_agents.billing.sources.reading import (
    Reading,
    Source,
    SourceName,
    TargetAbsentError,
    TargetUnreadableError,
)
from byoc_agents.clickhouse import ClickHouse, base_url

SERVER = "clickhouse-server"
PROBE_NS = 60_000_000_000  # how long a better source may be back without being used
MAX_PID = 2**22  # PID_MAX_LIMIT of linux/threads.h, 64 bit


class TargetName(msgspec.Struct, frozen=True):
    """BYOC_BILLING_TARGET, parsed."""

    kind: Literal["auto", "cgroup", "pid", "process", "clickhouse"]
    value: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}" if self.value else self.kind

    def clickhouse_url(self, default: str) -> str | None:
        """Return the server that is asked, None where none is. `default` is for `auto`."""
        if self.kind == "clickhouse":
            return self.value
        return default if self.kind == "auto" else None


class Observation(msgspec.Struct, frozen=True):
    """One look at the target.

    `standby` are readings of the other sources at the same moment, so that a change of source finds
    a common one. `trouble` says which better source fails and what to set; it is the same text as
    long as the trouble is. `absent`: no reading, because surely nothing runs.
    """

    reading: Reading | None
    standby: tuple[Reading, ...] = ()
    trouble: str = ""
    absent: bool = False


class Target:
    """Reads the best source that works."""

    def __init__(self, name: str, sources: Sequence[Source], clock: Clock) -> None:
        """Take the sources, best first. They are closed by `close`."""
        self._name = name
        self._sources = tuple(sources)
        self._clock = clock
        self._active = 0
        self._probed_ns = clock.boot_ns()
        self._failures: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"{self._name} by {', else '.join(source.name for source in self._sources)}"

    async def read(self, *, standby: bool = False) -> Observation:
        """Return what there is to see now; raises nothing but CancelledError.

        With `standby` every source is read and the best one taken. Without it only the one of last
        time is, the others where it fails, and all now and then, to find a better one again.
        """
        now_ns = self._clock.boot_ns()
        everything = standby or (self._active and now_ns - self._probed_ns >= PROBE_NS)
        if everything:
            self._probed_ns = now_ns
        readings: list[Reading] = []
        absent = False
        order = range(len(self._sources)) if everything else self._from_active()
        for index in order:
            try:
                reading = await self._sources[index].read()
            except (TargetAbsentError, TargetUnreadableError) as error:
                self._failures[index] = f"{self._sources[index].name}: {error}"
                absent = absent or isinstance(error, TargetAbsentError)
                continue
            self._failures.pop(index, None)
            self._active = self._active if readings else index
            readings.append(reading)
            if not everything and index == order[0]:
                break  # after a change of source all others are read as well: standbys
        return self._observed(readings, absent=absent)

    def close(self) -> None:
        """Give up descriptors; `read` may be called again."""
        for source in self._sources:
            source.close()

    def _from_active(self) -> list[int]:
        """Return the one of last time, then the others, best first."""
        others = [index for index in range(len(self._sources)) if index != self._active]
        return [self._active, *others]

    def _observed(self, readings: list[Reading], *, absent: bool) -> Observation:
        better = range(self._active if readings else len(self._sources))
        trouble = "; ".join(self._failures[i] for i in better if i in self._failures)
        if not readings:
            return Observation(None, trouble=trouble, absent=absent)
        return Observation(readings[0], tuple(readings[1:]), trouble)


def parse_target(text: str) -> TargetName:
    """Return what BYOC_BILLING_TARGET names. Raises ValueError saying what is wanted."""
    kind, colon, value = text.strip().partition(":")
    match kind:
        case "auto" if not colon:
            return TargetName("auto")
        case "cgroup" if value.startswith("/") and value.isprintable():
            return TargetName("cgroup", value)
        case "pid" if re.fullmatch(r"[1-9][0-9]{0,6}", value) and int(value) <= MAX_PID:
            return TargetName("pid", value)
        case "process" if value and "/" not in value and value.isprintable():
            return TargetName("process", value)
        case "clickhouse":
            return TargetName("clickhouse", base_url(value))
    raise ValueError(
        "wants auto, cgroup:/absolute/path, pid:N, process:NAME or clickhouse:http://host:port"
    )


def open_target(
    name: TargetName, clickhouse: ClickHouse, clock: Clock, proc: ProcFs | None = None
) -> Target:
    """Return the target. `clickhouse` is asked for `auto` and `clickhouse:URL`; not closed here."""
    proc = proc or ProcFs()
    if name.kind == "clickhouse":
        return Target(str(name), [ServerSource(clickhouse, clock)], clock)
    if name.kind == "cgroup":
        locate = at_path(Locator(proc), Path(name.value))
        return Target(str(name), [CgroupSource(locate, proc, clock.boot_id)], clock)
    if name.kind == "pid":
        return Target(str(name), _of_process(Finder(proc, int(name.value)), proc, clock), clock)
    if name.kind == "process":
        return Target(str(name), _of_process(Finder(proc, name.value), proc, clock), clock)
    # Here nobody said that the server is in our pid namespace.
    cgroup, process = _of_process(Finder(proc, SERVER, shared=False), proc, clock)
    return Target(str(name), [cgroup, ServerSource(clickhouse, clock), process], clock)


def _of_process(finder: Finder, proc: ProcFs, clock: Clock) -> list[Source]:
    locate = of_process(Locator(proc), finder, proc)
    return [
        CgroupSource(locate, proc, clock.boot_id),
        _Processes(finder, proc, clock.boot_id),
    ]


class _Processes:
    """The process tree, loaded with the first reading that nothing better could give."""

    name: SourceName = "process"

    def __init__(self, finder: Finder, proc: ProcFs, boot_id: str) -> None:
        self._parts = finder, proc, boot_id
        self._source: Source | None = None

    async def read(self) -> Reading:
        if self._source is None:
            from byoc_agents.billing.sources.process_tree import ProcessSource  # noqa: PLC0415  psutil: 0.8 MiB

            self._source = ProcessSource(*self._parts)
        return await self._source.read()

    def close(self) -> None:
        if self._source:
            self._source.close()
