"""The best source: the kernel's own counters of the target's cgroup, v1 or v2.

Descriptors are kept open and read with pread. Each sample also checks, with one more small read,
that they still belong to the target. A removed cgroup returns ENODEV, but a cgroup that the target
has left, or whose path now names another one, can still be read.

`incarnation` is the boot id, and the device and inode of the cgroup's directory. kernfs allocates
inode numbers in a cycle (idr_alloc_cyclic; since Linux 5.6 also with a generation), so none is
reused within a boot. It is the same after a restart of the daemon. `born_boot_ns` is known for a
container's own cgroup only: the start of the oldest process in it. A runtime ends a container with
its first process, so this time is constant. Other cgroups (of a service or a login session) may
have been used by processes that have ended, and exist longer than their oldest process. Their birth
is unknown, as is that of a cgroup that used more CPU than its oldest process had time for.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec

from byoc_agents.billing.record import MAX_CPUS
from byoc_agents.billing.sources.cgroup_files import KeptFile, Limit, counters_of
from byoc_agents.billing.sources.cgroup_paths import Hierarchy, Locator, identity
from byoc_agents.billing.sources.procfs import (
    Finder,
    ProcessIdentity,
    ProcFs,
    container_id,
    describe_error,
)
from byoc_agents.billing.sources.reading import (
    LimitSource,
    Reading,
    SourceName,
    TargetAbsentError,
    TargetUnreadableError,
)

HIDDEN_PID = 0  # of a process in another pid namespace, in cgroup.procs
_SLACK_USEC = 50_000  # per CPU: a start time is cut to 10 ms, and a tick is 10 ms at most
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESTALE, errno.ESRCH, errno.ENOTDIR})


class CgroupPlace(msgspec.Struct, frozen=True):
    """The location of a cgroup."""

    hierarchy: Hierarchy
    container_id: str
    owner: str  # the user who may read it, for error messages
    # The location is outdated if the result changes. Raises OSError.
    fingerprint: Callable[[], object]
    close: Callable[[], None]  # closes the files of `fingerprint`
    exclusive: bool = False  # the target is the cgroup itself, not a process in it


def boottime_ns() -> int:
    """Return the time since boot, nanoseconds, on the clock of processes' start times."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class CgroupSource:
    """Reads one cgroup. Locates it again if it was removed or replaced."""

    name: SourceName = "cgroup.v2"  # until the first reading

    def __init__(
        self,
        locate: Callable[[], CgroupPlace],
        proc: ProcFs,
        boot_id: str,
        *,
        boot_ns: Callable[[], int] = boottime_ns,
    ) -> None:
        """Take a locator of the cgroup (`at_path`, `of_process`), a /proc and the boot clock."""
        self._locate = locate
        self._boot_ns = boot_ns
        self._proc = proc
        self._boot_id = boot_id
        self._opened: _OpenCgroup | None = None
        self._birth: tuple[str, int | None] = ("", None)  # incarnation and its birth

    async def read(self) -> Reading:
        """Return the counters now. Raises TargetAbsentError or TargetUnreadableError.

        It may be called again after an error, and then locates the cgroup again.
        """
        for _ in range(2):  # the open cgroup may have been removed: locate it once more
            opened = self._opened or self._open()
            try:
                if opened.is_current():
                    return opened.read()
            except TargetUnreadableError:
                self.close()
                raise
            except OSError as error:
                if error.errno not in _GONE:
                    self.close()
                    raise TargetUnreadableError(opened.describe_error(error)) from None
            self.close()
        raise TargetAbsentError(f"{opened.directory} went away")

    def _born(self, opened: "_OpenCgroup") -> int | None:
        try:
            return opened.born(self._boot_ns())
        except (OSError, TargetUnreadableError):  # the reading itself reports the error
            return None

    def close(self) -> None:
        """Close the descriptors."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _open(self) -> "_OpenCgroup":
        place = self._locate()
        directory = place.hierarchy.cpuacct
        try:
            opened = _OpenCgroup(place, self._proc, self._boot_id)
        except OSError as error:
            place.close()
            if error.errno in _GONE and not directory.exists():
                raise TargetAbsentError(f"{directory} went away") from None
            path = Path(error.filename or directory)
            raise TargetUnreadableError(describe_error(path, error, place.owner)) from None
        if self._birth[0] != opened.incarnation or self._birth[1] is None:
            self._birth = (opened.incarnation, self._born(opened))
        opened.born_boot_ns = self._birth[1]
        self._opened, self.name = opened, place.hierarchy.version
        return opened


class _OpenCgroup:
    """A cgroup whose files are open."""

    def __init__(self, place: CgroupPlace, proc: ProcFs, boot_id: str) -> None:
        device, inode = identity(place.hierarchy.cpuacct)
        self.directory = place.hierarchy.cpuacct
        self.incarnation = f"{boot_id[:8]}-{device:x}-{inode}"
        self.born_boot_ns: int | None = None
        self._place = place
        self._proc = proc
        self._fingerprint = place.fingerprint()
        self._counters = counters_of(place.hierarchy)
        self._cpus = proc.cpus()

    def is_current(self) -> bool:
        """Return whether these are still the target's files. Raises OSError."""
        return self._place.fingerprint() == self._fingerprint

    def read(self) -> Reading:
        """Return the counters. Raises OSError or TargetUnreadableError."""
        memory_bytes = self._counters.memory_bytes()
        cpu, memory = self._counters.cpu_limit(), self._counters.memory_limit()
        # No limit of its own, but one above: it is the pod's, not the container's. The downward API
        # then returns the node's size for a limit that is not set (kubernetes/kubernetes#132603).
        shared = cpu.own is None and memory.own is None and (cpu.above or memory.above)
        unlimited: LimitSource | None = "unknown" if shared else None
        return Reading(
            source=self._place.hierarchy.version,
            incarnation=self.incarnation,
            container_id=self._place.container_id,
            cpu_usec=self._counters.cpu_usec(),
            memory_bytes=self._resident_bytes() if memory_bytes is None else memory_bytes,
            born_boot_ns=self.born_boot_ns,
            cpu_limit_millicores=cpu.effective,
            memory_limit_bytes=memory.effective,
            cpu_limit_source=_limit_source(cpu) or unlimited,
            memory_limit_source=_limit_source(memory) or unlimited,
            exclusive=self._place.exclusive,
            machine_cpus=self._cpus,
        )

    def born(self, now_ns: int) -> int | None:
        """Return the start of a container's oldest process, or None if it is not the birth.

        It is not the birth if the cgroup is not a container's own, if a process in it cannot be
        read and may be older, or if the counter is higher than the machine could provide since
        then, because the cgroup was used before.
        """
        if not container_id(PurePosixPath(self._place.hierarchy.path).name):
            return None
        pids = self._pids()
        try:
            started = [self._read_start(pid) for pid in pids]
        except TargetUnreadableError:
            return None
        born_ns = min(filter(None, started), default=None)
        if born_ns is None or HIDDEN_PID in pids:
            return None
        most_usec = (max(0, now_ns - born_ns) // 1000 + _SLACK_USEC) * (self._cpus or MAX_CPUS)
        return born_ns if self._counters.cpu_usec() <= most_usec else None

    def describe_error(self, error: OSError) -> str:
        """Return the message for an error."""
        return describe_error(Path(error.filename or self.directory), error, self._place.owner)

    def close(self) -> None:
        self._counters.close()
        self._place.close()

    def _resident_bytes(self) -> int:
        """Return the resident memory of all processes. Shared pages count once per process."""
        return sum(self._proc.resident_bytes(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        """Return all pids in the cgroup and below it; HIDDEN_PID for another pid namespace."""
        pids: list[int] = []
        for directory, _, _ in os.walk(self.directory):
            try:
                pids += map(int, Path(directory, "cgroup.procs").read_text().split())
            except (OSError, ValueError):
                continue
        return pids

    def _read_start(self, pid: int) -> int | None:
        """Return a process's start, None if it has ended. Raises TargetUnreadableError."""
        try:
            return self._proc.process(pid).born_boot_ns if pid != HIDDEN_PID else None
        except TargetAbsentError:
            return None


def _limit_source(limit: Limit) -> LimitSource | None:
    if limit.effective is None:
        return None
    return "cgroup" if limit.effective == limit.own else "cgroup_ancestor"


def at_path(locator: Locator, path: Path) -> Callable[[], CgroupPlace]:
    """Return a function that locates the cgroup at a directory."""

    def locate() -> CgroupPlace:
        hierarchy = locator.of_path(path)
        found = container_id(str(path))
        return CgroupPlace(
            hierarchy, found, "root", lambda: identity(path), lambda: None, exclusive=True
        )

    return locate


def of_process(locator: Locator, finder: Finder, proc: ProcFs) -> Callable[[], CgroupPlace]:
    """Return a function that locates the cgroup of a process.

    A descriptor of /proc/PID/cgroup belongs to the process, not to the pid. It shows that the
    process has ended (ESRCH) or was moved, even if the pid was reused. If a process never had the
    file (gVisor), a missing file does not mean that it has ended.
    """
    had_membership: ProcessIdentity | None = None

    def locate() -> CgroupPlace:
        nonlocal had_membership
        process = finder.find()
        pid = process.pid
        try:
            membership = KeptFile(proc.file(pid, "cgroup"))
            had_membership = process
        except OSError as error:
            ended = process == had_membership or finder.find() != process
            if error.errno in _GONE and ended:
                raise TargetAbsentError(f"process {pid} has ended") from None
            reason = describe_error(proc.file(pid, "cgroup"), error)
            if error.errno in _GONE:  # gVisor has no such file
                reason += f", although process {pid} runs: this kernel shows no cgroups"
            raise TargetUnreadableError(reason) from None
        try:
            hierarchy = locator.of_process(pid)
            if finder.find() != process:  # the descriptor may belong to another process
                raise TargetAbsentError(f"process {pid} has ended")
        except (TargetAbsentError, TargetUnreadableError):
            membership.close()
            raise
        found, owner = proc.container_id(pid), proc.owner(pid)
        return CgroupPlace(hierarchy, found, owner, membership.read, membership.close)

    return locate
