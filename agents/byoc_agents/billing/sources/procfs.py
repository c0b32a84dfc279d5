"""What /proc says about a process: when it began, what it is called, which cgroup it is in.

Read by hand and not by psutil, because the root comes in by the constructor (tests, a host's /proc
mounted elsewhere) and because a pid alone names nothing: pid and start time together do.
"""

import os
import re
from pathlib import Path

import msgspec

from byoc_agents.billing.sources.reading import TargetAbsentError, TargetUnreadableError

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
COMM_BYTES = 15  # TASK_COMM_LEN - 1 in linux/sched.h: comm is cut there
_HEX64 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_DOCKER_MOUNT = re.compile(r"/containers/([0-9a-f]{64})/")  # of /etc/hostname in mountinfo
_START_FIELD = 19  # field 22 of proc(5) stat, counted from the state (field 3) behind the name


class Process(msgspec.Struct, frozen=True):
    """One life of a pid."""

    pid: int
    start_ticks: int  # since boot, in ticks of CLK_TCK

    @property
    def born_boot_ns(self) -> int:
        """Return the start time on CLOCK_BOOTTIME; exact to one tick (10 ms)."""
        return self.start_ticks * 1_000_000_000 // TICKS_PER_SECOND


class ProcFs:
    """A /proc."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self.root = root

    def file(self, pid: int, name: str) -> Path:
        """Return the path of a file of a process."""
        return self.root / str(pid) / name

    def text(self, pid: int, name: str) -> str:
        """Return a file's content. Raises OSError."""
        return self.file(pid, name).read_bytes().decode(errors="replace")

    def process(self, pid: int) -> Process:
        """Return the life that the pid names now.

        Raises TargetAbsentError where there is none or only a zombie, TargetUnreadableError where
        /proc refuses or talks nonsense.
        """
        try:
            stat = self.text(pid, "stat")
        except (FileNotFoundError, ProcessLookupError):
            raise TargetAbsentError(f"no process {pid} in {self.root}") from None
        except OSError as error:
            raise TargetUnreadableError(refused(self.file(pid, "stat"), error)) from None
        state, start_ticks = parse_stat(stat)
        if state in "ZXx":
            raise TargetAbsentError(f"process {pid} has ended")
        return Process(pid, start_ticks)

    def pids(self) -> list[int]:
        """Return all pids. Raises TargetUnreadableError."""
        try:
            return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdecimal())
        except OSError as error:
            raise TargetUnreadableError(refused(self.root, error)) from None

    def resident_bytes(self, pid: int) -> int:
        """Return the resident memory of a process, 0 where it is gone or not readable."""
        try:
            return int(self.text(pid, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def owner(self, pid: int) -> str:
        """Return `uid 101 gid 101` (effective ids) as far as they can be seen."""
        try:
            status = self.text(pid, "status")
        except OSError:
            return "another uid or gid"
        found = dict(re.findall(r"^(Uid|Gid):\t\d+\t(\d+)", status, re.MULTILINE))
        return f"uid {found.get('Uid', '?')} gid {found.get('Gid', '?')}"

    def is_called(self, pid: int, name: str) -> bool:
        """Tell whether a process is the program `name`: by comm, command line or executable.

        comm alone will not do: it is cut at 15 bytes, and a `clickhouse server` has the name of
        the multi-purpose binary.
        """
        try:
            comm = self.text(pid, "comm").rstrip("\n")
            arguments = self.text(pid, "cmdline").split("\0")
        except OSError:
            return False
        programs = {os.path.basename(arguments[0]), self._executable(pid)}  # noqa: PTH119
        if comm == name or name in programs:
            return True
        if name == "clickhouse-server" and "clickhouse" in programs:
            return arguments[1:2] == ["server"]
        return len(name) > COMM_BYTES and comm == name[:COMM_BYTES] and name in arguments[0]

    def container_id(self, pid: int) -> str:
        """Return the container's id (64 hex digits) of a process, "" where it cannot be seen."""
        for name, find in (("cgroup", container_id), ("mountinfo", _docker_id)):
            try:
                if found := find(self.text(pid, name)):
                    return found
            except OSError:
                continue
        return ""

    def _executable(self, pid: int) -> str:
        try:
            return self.file(pid, "exe").readlink().name
        except OSError:  # needs the right to trace it
            return ""


class Finder:
    """Finds one process by pid or by name and holds on to it as long as it lives."""

    def __init__(self, proc: ProcFs, wanted: int | str, *, shared: bool = True) -> None:
        """Take a pid or a program's name.

        `shared` says that the process would surely be visible: not to see it then means that it is
        not running. Without it that is sure only after it has been seen once.
        """
        self._proc = proc
        self._wanted = wanted
        self._shared = shared
        self._found: Process | None = None

    def __repr__(self) -> str:
        return f"{'pid' if isinstance(self._wanted, int) else 'process'} {self._wanted}"

    def find(self) -> Process:
        """Return the process; /proc is searched only when the one of last time has ended.

        Raises TargetAbsentError or TargetUnreadableError.
        """
        if isinstance(self._wanted, int):
            return self._by_pid(self._wanted)
        if self._found is None or not self._lives(self._found):
            self._found = self._by_name(self._wanted)
            self._shared = True
        return self._found

    def _lives(self, process: Process) -> bool:
        try:
            return self._proc.process(process.pid) == process
        except (TargetAbsentError, TargetUnreadableError):
            return False

    def _by_pid(self, pid: int) -> Process:
        now = self._proc.process(pid)
        if self._found is not None and now != self._found:
            raise TargetAbsentError(f"process {pid} has ended; the pid names another one now")
        self._found = now
        return now

    def _by_name(self, name: str) -> Process:
        matches = self._matches(name)
        if len(matches) == 1:
            return matches[0]
        if matches:
            pids = ", ".join(str(match.pid) for match in matches)
            raise TargetUnreadableError(
                f"processes {pids} are all called {name}: set BYOC_BILLING_TARGET to pid:N of one"
            )
        if self._shared:
            raise TargetAbsentError(f"no process called {name} in {self._proc.root}")
        raise TargetUnreadableError(
            f"no process called {name} in {self._proc.root}: it is not running, or the pod needs "
            "shareProcessNamespace: true"
        )

    def _matches(self, name: str) -> list[Process]:
        """Return the processes of that name that are no children of one of them (forks)."""
        pids = {pid for pid in self._proc.pids() if self._proc.is_called(pid, name)}
        pids.discard(os.getpid())
        found = []
        for pid in sorted(pids):
            try:
                if self._parent(pid) not in pids:
                    found.append(self._proc.process(pid))
            except (TargetAbsentError, OSError):
                continue
        return found

    def _parent(self, pid: int) -> int:
        return int(self._proc.text(pid, "stat").rpartition(")")[2].split()[1])


def parse_stat(text: str) -> tuple[str, int]:
    """Return (state, start time in ticks) of /proc/PID/stat. Raises TargetUnreadableError.

    The name may hold spaces and brackets, so the fields are counted from the last bracket.
    """
    fields = text.rpartition(")")[2].split()
    try:
        return fields[0], int(fields[_START_FIELD])
    except (IndexError, ValueError):
        raise TargetUnreadableError("/proc/PID/stat: not in the form of proc(5)") from None


def container_id(text: str) -> str:
    """Return the last 64 hex digits in a cgroup's path or in /proc/PID/cgroup, else ""."""
    found: list[str] = _HEX64.findall(text)
    return found[-1] if found else ""


def refused(path: Path, error: OSError, owner: str = "the owner") -> str:
    """Return which file failed and why; where a right is missing, whose it is and what to set."""
    reason = f"{path}: {os.strerror(error.errno) if error.errno else type(error).__name__}"
    if not isinstance(error, PermissionError):
        return reason
    return (
        f"{reason}; we are uid {os.geteuid()} gid {os.getegid()}, it wants {owner}: set runAsUser "
        "and runAsGroup of the agent to the target's, and allowPrivilegeEscalation: false on both"
    )


def _docker_id(mountinfo: str) -> str:
    match = _DOCKER_MOUNT.search(mountinfo)
    return match[1] if match else ""
