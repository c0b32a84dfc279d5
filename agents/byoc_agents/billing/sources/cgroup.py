"""The best source: the kernel's own counters of the target's cgroup, v1 or v2.

Descriptors are kept and read with pread. Each sample also makes sure, with one more small read,
that they still belong to the target: a removed cgroup answers ENODEV, but one that the target has
left, or whose path now names another one, goes on answering.

`incarnation` is boot id, device and inode of the cgroup's directory. kernfs gives inode numbers out
in a cycle (idr_alloc_cyclic; since Linux 5.6 under a generation as well), so none comes back within
a boot, and it is the same after a restart of the agent. `born_boot_ns` is given for a container's
own cgroup only: the start of the oldest process in it. A runtime ends a container with its first
process, so that time is the same whenever it is asked for; other cgroups outlive their oldest one.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec

from byoc_agents.billing.sources.cgroup_files import KeptFile, counters_of
from byoc_agents.billing.sources.cgroup_paths import Hierarchy, Locator, identity
from byoc_agents.billing.sources.procfs import Finder, ProcFs, container_id, refused
from byoc_agents.billing.sources.reading import (
    Reading,
    SourceName,
    TargetAbsentError,
    TargetUnreadableError,
)

_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.ESTALE, errno.ESRCH, errno.ENOTDIR})


class Place(msgspec.Struct, frozen=True):
    """A cgroup that was found."""

    hierarchy: Hierarchy
    container_id: str
    owner: str  # who may read it, for an error's text
    witness: Callable[[], object]  # another answer than before, or an OSError: look again
    close: Callable[[], None]  # of the witness


class CgroupSource:
    """Reads one cgroup; looks for it again when it is gone or another one took its place."""

    name: SourceName = "cgroup.v2"  # until the first read has seen which

    def __init__(self, locate: Callable[[], Place], proc: ProcFs, boot_id: str) -> None:
        """Take a way to find the cgroup (`at_path`, `of_process`), a /proc and the boot id."""
        self._locate = locate
        self._proc = proc
        self._boot_id = boot_id
        self._opened: _Opened | None = None
        self._birth: tuple[str, int | None] = ("", None)  # incarnation and its birth

    async def read(self) -> Reading:
        """Return the counters now. Raises TargetAbsentError or TargetUnreadableError.

        May be called again after either; it then looks for the cgroup anew.
        """
        for _ in range(2):  # what was kept may be gone: look for it once more
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
                    raise TargetUnreadableError(opened.refused(error)) from None
            self.close()
        raise TargetAbsentError(f"{opened.directory} went away")

    def close(self) -> None:
        """Give up the descriptors."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _open(self) -> "_Opened":
        place = self._locate()
        directory = place.hierarchy.cpuacct
        try:
            opened = _Opened(place, self._proc, self._boot_id)
        except OSError as error:
            place.close()
            if error.errno in _GONE:
                raise TargetAbsentError(f"{directory} went away") from None
            path = Path(error.filename or directory)
            raise TargetUnreadableError(refused(path, error, place.owner)) from None
        if self._birth[0] != opened.incarnation or self._birth[1] is None:
            self._birth = (opened.incarnation, opened.born())
        opened.born_boot_ns = self._birth[1]
        self._opened, self.name = opened, place.hierarchy.version
        return opened


class _Opened:
    """A cgroup whose files are open."""

    def __init__(self, place: Place, proc: ProcFs, boot_id: str) -> None:
        device, inode = identity(place.hierarchy.cpuacct)
        self.directory = place.hierarchy.cpuacct
        self.incarnation = f"{boot_id[:8]}-{device:x}-{inode}"
        self.born_boot_ns: int | None = None
        self._place = place
        self._proc = proc
        self._testimony = place.witness()
        self._counters = counters_of(place.hierarchy)

    def is_current(self) -> bool:
        """Tell whether these are still the target's files. Raises OSError."""
        return self._place.witness() == self._testimony

    def read(self) -> Reading:
        """Return the counters. Raises OSError or TargetUnreadableError."""
        memory_bytes = self._counters.memory_bytes()
        return Reading(
            source=self._place.hierarchy.version,
            incarnation=self.incarnation,
            container_id=self._place.container_id,
            cpu_usec=self._counters.cpu_usec(),
            memory_bytes=self._resident_bytes() if memory_bytes is None else memory_bytes,
            born_boot_ns=self.born_boot_ns,
            cpu_limit_millicores=self._counters.cpu_limit_millicores(),
            memory_limit_bytes=self._counters.memory_limit_bytes(),
        )

    def born(self) -> int | None:
        """Return when a container's oldest process began; None where that is no birth."""
        if not container_id(PurePosixPath(self._place.hierarchy.path).name):
            return None
        return min(filter(None, map(self._started, self._pids())), default=None)

    def refused(self, error: OSError) -> str:
        """Return an error's text for people."""
        return refused(Path(error.filename or self.directory), error, self._place.owner)

    def close(self) -> None:
        self._counters.close()
        self._place.close()

    def _resident_bytes(self) -> int:
        """Return the memory without a memory controller: a page that is shared counts for each."""
        return sum(self._proc.resident_bytes(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        """Return the processes in it and below; those of another pid namespace show as 0."""
        pids: list[int] = []
        for directory, _, _ in os.walk(self.directory):
            try:
                pids += map(int, Path(directory, "cgroup.procs").read_text().split())
            except (OSError, ValueError):
                continue
        return [pid for pid in pids if pid > 0]

    def _started(self, pid: int) -> int | None:
        try:
            return self._proc.process(pid).born_boot_ns
        except (TargetAbsentError, TargetUnreadableError):
            return None


def at_path(locator: Locator, path: Path) -> Callable[[], Place]:
    """Return a way to find the cgroup at a directory."""

    def locate() -> Place:
        hierarchy = locator.of_path(path)
        found = container_id(str(path))
        return Place(hierarchy, found, "root", lambda: identity(path), lambda: None)

    return locate


def of_process(locator: Locator, finder: Finder, proc: ProcFs) -> Callable[[], Place]:
    """Return a way to find the cgroup of a process.

    A descriptor of /proc/PID/cgroup is bound to the process and not to the pid: it tells when the
    process has ended (ESRCH) and when it was moved, even where another one got its pid.
    """

    def locate() -> Place:
        process = finder.find()
        pid = process.pid
        try:
            membership = KeptFile(proc.file(pid, "cgroup"))
        except OSError as error:
            if error.errno in _GONE:
                raise TargetAbsentError(f"process {pid} has ended") from None
            raise TargetUnreadableError(refused(proc.file(pid, "cgroup"), error)) from None
        try:
            hierarchy = locator.of_process(pid)
            if finder.find() != process:  # the descriptor may be another one's
                raise TargetAbsentError(f"process {pid} has ended")
        except (TargetAbsentError, TargetUnreadableError):
            membership.close()
            raise
        found, owner = proc.container_id(pid), proc.owner(pid)
        return Place(hierarchy, found, owner, membership.read, membership.close)

    return locate
