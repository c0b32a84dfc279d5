"""Selects the target and its source: the best one that works, and the others as secondaries."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from byoc_agents.app.clock import Clock
from byoc_agents.billing.continuity import BIRTH_TOLERANCE_NS
from byoc_agents.billing.sources.cgroup import CgroupPlace, CgroupSource, at_path, of_process
from byoc_agents.billing.sources.cgroup_paths import Locator
from byoc_agents.billing.sources.clickhouse import ServerSource
from byoc_agents.billing.sources.procfs import SERVER, Finder, ProcFs
from byoc_agents.billing.sources.reading import (
    Reading,
    ReadingSource,
    SourceName,
    TargetAbsentError,
    TargetForeignError,
    TargetUnreadableError,
)
from byoc_agents.clickhouse import ClickHouse, base_url

PROBE_NS = 60_000_000_000  # interval of the attempts to read a better source again
# ClickHouse adds a thread's CPU time when the thread reports progress, so its counter may include
# earlier usage. 10 s without a report is long, and each CPU runs one thread at a time.
LAG_SECONDS = 10
MOVED_USEC = {"clickhouse": 10_000, "process": 1_000_000}  # ten samples of progress; 100 ticks
AGREED = 2  # consecutive comparisons after which a kernel counter is trusted again
# Sources that read the kernel's counters; ClickHouse's own counter is a lower bound of each.
KERNEL = frozenset({"cgroup.v1", "cgroup.v2", "process"})
MAX_PID = 2**22  # PID_MAX_LIMIT of linux/threads.h, 64 bit


MeterKind = Literal["process", "clickhouse", "cgroup"]
# The meter that a target needs or excludes. `auto` accepts each of the three.
METERS: dict[str, tuple[MeterKind, ...]] = {
    "auto": ("process", "clickhouse", "cgroup"),
    "pid": ("process", "cgroup"),
    "process": ("process", "cgroup"),
    "cgroup": ("cgroup",),
    "clickhouse": ("clickhouse",),
}


class TargetName(msgspec.Struct, frozen=True):
    """BYOC_BILLING_TARGET, parsed."""

    kind: Literal["auto", "cgroup", "pid", "process", "clickhouse"]
    value: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}" if self.value else self.kind

    def meter(self, wanted: MeterKind | None) -> MeterKind:
        """Return BYOC_BILLING_METER, or the first one that fits the target if it is not set.

        Raises ValueError with the values that fit.
        """
        fitting = METERS[self.kind]
        if wanted is not None and wanted not in fitting:
            raise ValueError(f"expected {' or '.join(fitting)} for BYOC_BILLING_TARGET={self}")
        return wanted or fitting[0]

    def clickhouse_url(self, default: str) -> str | None:
        """Return the URL of the server to query, or None. `default` is used for `auto`."""
        if self.kind == "clickhouse":
            return self.value
        return default if self.kind == "auto" else None


class TargetObservation(msgspec.Struct, frozen=True):
    """The result of reading the target once.

    `secondary` are readings of the other sources at the same moment, so that a change of source
    finds a common one. `error` names the better source that fails and the setting that helps. The
    text stays the same as long as the failure does. `absent`: there is no reading because the
    target certainly does not run.
    """

    reading: Reading | None
    secondary: tuple[Reading, ...] = ()
    error: str = ""
    absent: bool = False


def continues(before: Reading, now: Reading) -> bool:
    """Return whether two readings in one run of the daemon show one counter that has only grown."""
    same = (before.source, before.incarnation) == (now.source, now.incarnation)
    if before.born_boot_ns is not None and now.born_boot_ns is not None:
        same = same and abs(before.born_boot_ns - now.born_boot_ns) < BIRTH_TOLERANCE_NS
    return same and now.cpu_usec >= before.cpu_usec


class _Pair(msgspec.Struct, frozen=True):
    """A kernel counter and another counter of the same target, read at the same time."""

    kernel: Reading
    other: Reading

    @property
    def excess_usec(self) -> int:
        """Return by how much the other counter is higher, microseconds."""
        return self.other.cpu_usec - self.kernel.cpu_usec

    def follows(self, before: "_Pair") -> bool:
        """Return whether both counters are the same as before and have only grown."""
        return continues(before.kernel, self.kernel) and continues(before.other, self.other)


class Plausibility:
    """Compares a kernel counter with lower bounds of the same usage.

    ClickHouse's own counter is a lower bound of the process tree's usage, and both are lower bounds
    of the cgroup's usage.
    The kernel's counter is distrusted if it does not move while one of them rises, or if it falls
    behind ClickHouse's by more than `LAG_SECONDS` per CPU. It is trusted again after it has kept up
    in `AGREED` comparisons, or when the cgroup changes.
    """

    def __init__(self) -> None:
        self._last: dict[SourceName, _Pair] = {}
        self._least: dict[SourceName, _Pair] = {}  # with the smallest excess of this counter
        self._distrusted: Reading | None = None
        self._agreed = 0

    @property
    def doubts(self) -> bool:
        """Return whether a kernel counter is distrusted."""
        return self._distrusted is not None

    def reason_to_doubt(self, kernel: Reading, others: Sequence[Reading]) -> str:
        """Compare readings of one moment. Return why not to use the kernel's; "" to use it."""
        earlier = self._distrusted
        if earlier and (earlier.source, earlier.incarnation) != (kernel.source, kernel.incarnation):
            self._distrusted = None
        behind = [other.source for other in others if self._is_behind(_Pair(kernel, other))]
        if behind:
            self._distrusted, self._agreed = kernel, 0
        elif self._distrusted and others:
            self._agreed += 1
            if self._agreed >= AGREED:
                self._distrusted = None
        if not self._distrusted:
            return ""
        return "its CPU counter stands still or falls behind another counter of the same target"

    def _is_behind(self, now: _Pair) -> bool:
        name = now.other.source
        last, self._last[name] = self._last.get(name), now
        if last is None or not now.follows(last):
            self._least[name] = now
            return False
        kernel_usec = now.kernel.cpu_usec - last.kernel.cpu_usec
        other_usec = now.other.cpu_usec - last.other.cpu_usec
        # The process tree is read in whole ticks, so a small rise may not show in it.
        least_usec = max(MOVED_USEC.get(name, 0), MOVED_USEC.get(now.kernel.source, 0))
        stuck = kernel_usec == 0 and other_usec >= least_usec
        if name != "clickhouse":
            return stuck
        if self._distrusted:  # compare this interval only: the total may never catch up
            return stuck or kernel_usec + least_usec < other_usec
        least = min(self._least[name], now, key=lambda pair: pair.excess_usec)
        self._least[name] = least
        cpus = now.kernel.machine_cpus or os.cpu_count() or 1
        return stuck or now.excess_usec - least.excess_usec > LAG_SECONDS * 1_000_000 * cpus


class Target:
    """Reads the best source that works."""

    def __init__(self, name: str, sources: Sequence[ReadingSource], clock: Clock) -> None:
        """Take the sources, best first. `close` closes them."""
        self._name = name
        self._sources = tuple(sources)
        self._servers = [i for i, source in enumerate(sources) if source.name == "clickhouse"]
        self._clock = clock
        self._active = 0
        self._probed_ns = clock.boot_ns()
        self._failures: dict[int, str] = {}
        self._plausibility = Plausibility()
        self._kernel: Reading | None = None  # the previous one

    def __repr__(self) -> str:
        return f"{self._name} by {', else '.join(source.name for source in self._sources)}"

    async def read(self, *, secondary: bool = False) -> TargetObservation:
        """Return the best reading of now. Raises nothing but CancelledError.

        With `secondary` every source is read, and the best one that works is used. Without it only
        the source of the last time is read. The others are read as well if that one fails, if the
        kernel's counter has not moved since the last reading, and once per `PROBE_NS` while a
        better source fails.
        """
        now_ns = self._clock.boot_ns()
        everything = secondary or (self._active and now_ns - self._probed_ns >= PROBE_NS)
        if everything:
            self._probed_ns = now_ns
        readings: dict[int, Reading] = {}
        absent = False
        best_first = everything or not self._active
        order = range(len(self._sources)) if best_first else self._active_first()
        for index in order:
            try:
                reading = await self._sources[index].read()
            except TargetForeignError as error:
                self._failures[index] = f"{self._sources[index].name}: {error}"
                return TargetObservation(None, error=self._failures[index])
            except (TargetAbsentError, TargetUnreadableError) as error:
                self._failures[index] = f"{self._sources[index].name}: {error}"
                absent = absent or isinstance(error, TargetAbsentError)
                continue
            self._failures.pop(index, None)
            readings[index] = reading
            if everything or index != order[0]:
                continue
            if index or not self._has_not_moved(reading):
                break  # after a change of source all others are read as well, as secondaries
        absent = absent and not readings
        self._drop_implausible(readings)
        self._active = next(iter(readings), self._active)
        return self._observation(list(readings.values()), absent=absent)

    def _has_not_moved(self, reading: Reading) -> bool:
        """Return whether a kernel counter did not move and ClickHouse's can be read to check it.

        A ClickHouse that answers uses CPU for the response, so this is rare.
        """
        if reading.source not in KERNEL:
            return False
        before, self._kernel = self._kernel, reading
        if before is None or before.cpu_usec != reading.cpu_usec or not continues(before, reading):
            return False
        return any(index not in self._failures for index in self._servers)

    def _drop_implausible(self, readings: dict[int, Reading]) -> None:
        """Remove a kernel counter that another one contradicts, and report it as a failure."""
        best = readings.get(0)
        if best is None or best.source not in KERNEL:
            return
        others = [other for index, other in readings.items() if index]
        if not others and not self._plausibility.doubts:
            return
        if reason := self._plausibility.reason_to_doubt(best, others):
            self._failures[0] = f"{best.source}: {reason}"
            del readings[0]

    def _observation(self, readings: list[Reading], *, absent: bool) -> TargetObservation:
        if readings and not self._failures:
            return TargetObservation(readings[0], tuple(readings[1:]))
        better = range(self._active if readings else len(self._sources))
        error = "; ".join(self._failures[i] for i in better if i in self._failures)
        if not readings:
            return TargetObservation(None, error=error, absent=absent)
        return TargetObservation(readings[0], tuple(readings[1:]), error)

    def close(self) -> None:
        """Close the descriptors. `read` may be called again."""
        for source in self._sources:
            source.close()

    def _active_first(self) -> list[int]:
        """Return the source that was used last, then the others, best first."""
        others = [index for index in range(len(self._sources)) if index != self._active]
        return [self._active, *others]


def parse_target(text: str) -> TargetName:
    """Return the target that BYOC_BILLING_TARGET names. Raises ValueError with the valid forms."""
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
        "expected auto, cgroup:/absolute/path, pid:N, process:NAME or clickhouse:http://host:port"
    )


def open_target(  # noqa: PLR0913  the target, its parts and two choices
    name: TargetName,
    clickhouse: ClickHouse,
    clock: Clock,
    proc: ProcFs | None = None,
    *,
    container: str = "",
    meter: MeterKind | None = None,
) -> Target:
    """Return the target, read by `meter` and by what may replace it. See docs/contracts/billing.md.

    `clickhouse` is used for `auto` and `clickhouse:URL`, and not closed. `container` is the name of
    the target's container in our pod. "" accepts any container. Raises ValueError if the meter
    cannot read the target.
    """
    proc = proc or ProcFs()
    meter = name.meter(meter)
    server = [ServerSource(clickhouse, clock)] if name.kind in {"auto", "clickhouse"} else []
    if meter == "clickhouse":
        return Target(str(name), server, clock)
    if name.kind == "cgroup":
        locate = at_path(Locator(proc), Path(name.value))
        return Target(str(name), [_cgroup_source(locate, proc, clock)], clock)
    if name.kind == "pid":
        finder = Finder(proc, int(name.value))
    elif name.kind == "process":
        finder = Finder(proc, name.value, container=container)
    else:  # `auto` does not imply that the server is in our pid namespace
        finder = Finder(proc, SERVER, shared=False, container=container)
    process = _Processes(finder, proc, clock.boot_id)
    if meter == "process":
        return Target(str(name), [process, *server], clock)
    cgroup = _cgroup_source(of_process(Locator(proc), finder, proc), proc, clock)
    return Target(str(name), [cgroup, *server, process], clock)


def _cgroup_source(locate: Callable[[], CgroupPlace], proc: ProcFs, clock: Clock) -> CgroupSource:
    return CgroupSource(locate, proc, clock.boot_id, boot_ns=clock.boot_ns)


class _Processes:
    """The process tree. Its module is loaded when it is read for the first time."""

    name: SourceName = "process"

    def __init__(self, finder: Finder, proc: ProcFs, boot_id: str) -> None:
        self._parts = finder, proc, boot_id
        self._source: ReadingSource | None = None

    async def read(self) -> Reading:
        if self._source is None:
            from byoc_agents.billing.sources.process_tree import ProcessSource  # noqa: PLC0415  psutil: 0.8 MiB

            self._source = ProcessSource(*self._parts)
        return await self._source.read()

    def close(self) -> None:
        if self._source:
            self._source.close()
