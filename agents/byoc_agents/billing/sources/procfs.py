"""Reads /proc: the start time, the name and the cgroup of a process.

psutil is not used here because the root is a constructor argument (for tests and for a host's /proc
mounted elsewhere), and because a pid alone does not identify a process: pid and start time do.
"""

import os
import re
from pathlib import Path

import msgspec

from byoc_agents.billing.sources.reading import (
    TargetAbsentError,
    TargetForeignError,
    TargetUnreadableError,
)

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SERVER = "clickhouse-server"
COMM_BYTES = 15  # TASK_COMM_LEN - 1 in linux/sched.h: comm is cut there
_HEX64 = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_DOCKER_MOUNT = re.compile(r"/containers/([0-9a-f]{64})/")  # of /etc/hostname in mountinfo
# The kubelet's directory of a container, bind-mounted into it for its termination message
_POD_MOUNT = re.compile(r"/pods/([0-9a-z-]+)/containers/([a-z0-9-]+)/[0-9a-z]+$")
_POD_CGROUP = re.compile(r"\bkubepods\S*pod([0-9a-f]{8}[0-9a-f_-]{24,28})(?=\.slice|/)")
_CPU_LINE = re.compile(r"^cpu\d+ ", re.MULTILINE)
_CAP_SYS_PTRACE = 1 << 19  # linux/capability.h; hidepid does not apply to a process that has it
_HIDES = (
    "it hides other users' processes; mount it without hidepid (systemd: ProtectProc=default), or "
    "give the daemon the target's uid or the group of the mount's gid option"
)
_ONLY_SHOWN = frozenset({"--version", "-V", "--help", "-h"})  # these options print text and exit
_START_FIELD = 19  # field 22 of proc(5) stat, counted from the state (field 3) after the name


class ProcessIdentity(msgspec.Struct, frozen=True):
    """One process: a pid and its start time, since pids are reused."""

    pid: int
    start_ticks: int  # since boot, in ticks of CLK_TCK

    @property
    def born_boot_ns(self) -> int:
        """Return the start time on CLOCK_BOOTTIME, exact to one tick (10 ms)."""
        return self.start_ticks * 1_000_000_000 // TICKS_PER_SECOND


class PodContainer(msgspec.Struct, frozen=True):
    """The pod and the container of a process, from the kubelet's mounts or cgroups."""

    pod_uid: str
    name: str  # "" if only the pod is known


class ProcFs:
    """A proc file system."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self.root = root

    def file(self, pid: int, name: str) -> Path:
        """Return the path of a file of a process."""
        return self.root / str(pid) / name

    def text(self, pid: int, name: str) -> str:
        """Return a file's content. Raises OSError."""
        return self.file(pid, name).read_bytes().decode(errors="replace")

    def cpus(self) -> int | None:
        """Return the number of online CPUs, or None if /proc/stat does not contain it."""
        try:
            return len(_CPU_LINE.findall((self.root / "stat").read_text())) or None
        except (OSError, ValueError):
            return None

    def hides(self) -> str:
        """Return why this /proc may hide a running process, or "" if it shows all of them.

        proc(5), hidepid: 1 denies access to the files of other users' processes, 2 and 4 hide them,
        unless we have CAP_SYS_PTRACE or the mount's gid. systemd's ProtectProc= sets the same
        option. Every pid namespace has a process 1. A /proc that does not show it is incomplete.
        """
        options = self._options()
        if options is None:
            return ""
        try:
            self.text(1, "stat")
            others = self.file(1, "").stat().st_uid != os.geteuid()
        except FileNotFoundError:
            return f"{self.root} does not show process 1: {_HIDES}"
        except OSError as error:
            return describe_error(self.file(1, "stat"), error)
        hidden = dict(option.partition("=")[::2] for option in options).get("hidepid", "off")
        if hidden in {"0", "off"} or others or self._may_trace():
            return ""
        return f"{self.root} is mounted with hidepid={hidden}: {_HIDES}"

    def shows_only_us(self) -> bool:
        """Return whether process 1 is in our own cgroup, as in a pid namespace of our own."""
        own = self._text_of("self", "cgroup")
        return bool(own) and self._text_of(1, "cgroup") == own

    def pod_container(self, who: int | str) -> PodContainer | None:
        """Return the pod and the container of a process ("self": ours), or None if not visible.

        The kubelet mounts a directory of the container into it. It also names the pod's cgroup
        after the pod's uid, but that is visible only from another pod (hostPID).
        """
        mounts = self._text_of(who, "mountinfo")
        roots = (line.split(" ")[3:4] for line in mounts.splitlines())
        found = (_POD_MOUNT.search(root[0]) for root in roots if root)
        if match := next((match for match in found if match), None):
            return PodContainer(match[1], match[2])
        match = _POD_CGROUP.search(self._text_of(who, "cgroup"))
        return PodContainer(match[1].replace("_", "-"), "") if match else None

    def _text_of(self, who: int | str, name: str) -> str:
        try:
            return (self.root / str(who) / name).read_bytes().decode(errors="replace")
        except OSError:
            return ""

    def _options(self) -> list[str] | None:
        """Return the options of the last /proc in our mount table, or None if there is none."""
        found = None
        for line in self._text_of("self", "mountinfo").splitlines():
            left, _, right = line.partition(" - ")
            point, kinds = left.split(" ")[4:5], right.split(" ")
            if kinds[0] == "proc" and point in (["/proc"], [str(self.root)]):
                found = ",".join(kinds[2:]).split(",")
        return found

    def _may_trace(self) -> bool:
        status = self._text_of("self", "status")
        match = re.search(r"^CapEff:\t([0-9a-f]+)$", status, re.MULTILINE)
        return bool(match and int(match[1], 16) & _CAP_SYS_PTRACE)

    def process(self, pid: int) -> ProcessIdentity:
        """Return the process that has this pid now.

        Raises TargetAbsentError if there is none or it is a zombie, and TargetUnreadableError if
        /proc denies access, hides processes or cannot be parsed.
        """
        try:
            stat = self.text(pid, "stat")
        except (FileNotFoundError, ProcessLookupError):
            if reason := self.hides():
                raise TargetUnreadableError(f"process {pid}: {reason}") from None
            raise TargetAbsentError(f"no process {pid} in {self.root}") from None
        except OSError as error:
            raise TargetUnreadableError(describe_error(self.file(pid, "stat"), error)) from None
        state, start_ticks = parse_stat(stat)
        if state in "ZXx":
            raise TargetAbsentError(f"process {pid} has ended")
        return ProcessIdentity(pid, start_ticks)

    def pids(self) -> list[int]:
        """Return all pids. Raises TargetUnreadableError."""
        try:
            return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdecimal())
        except OSError as error:
            raise TargetUnreadableError(describe_error(self.root, error)) from None

    def resident_bytes(self, pid: int) -> int:
        """Return the resident memory of a process, bytes; 0 if it has ended or is not readable."""
        try:
            return int(self.text(pid, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def owner(self, pid: int) -> str:
        """Return the effective ids, as `uid 101 gid 101`, or a general text if not visible."""
        try:
            status = self.text(pid, "status")
        except OSError:
            return "another uid or gid"
        found = dict(re.findall(r"^(Uid|Gid):\t\d+\t(\d+)", status, re.MULTILINE))
        return f"uid {found.get('Uid', '?')} gid {found.get('Gid', '?')}"

    def is_called(self, pid: int, name: str) -> bool:
        """Return whether a process is the program `name`, by comm, command line or executable.

        comm alone is not sufficient: it is cut at 15 bytes, and a `clickhouse server` has the name
        of the multi-purpose binary. A server that only prints its version does not count. Raises
        TargetUnreadableError if /proc denies access.
        """
        try:
            comm = self.text(pid, "comm").rstrip("\n")
            arguments = self.text(pid, "cmdline").split("\0")
        except PermissionError as error:
            raise TargetUnreadableError(describe_error(self.file(pid, "cmdline"), error)) from None
        except OSError:
            return False
        if name == SERVER and not _ONLY_SHOWN.isdisjoint(arguments[1:]):
            return False
        programs = {os.path.basename(arguments[0]), self._executable(pid)}  # noqa: PTH119
        if comm == name or name in programs:
            return True
        if name == SERVER and programs & {"clickhouse", "ch"}:  # programs/main.cpp takes both
            return arguments[1] in {"server", "--server"} if len(arguments) > 1 else False
        return len(name) > COMM_BYTES and comm == name[:COMM_BYTES] and name in arguments[0]

    def container_id(self, pid: int) -> str:
        """Return the container id (64 hex digits) of a process, or "" if it is not visible."""
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
        except OSError:  # needs the permission to trace the process
            return ""


class Finder:
    """Finds one process by pid or by name, and keeps it until the process ends.

    A process is absent only if it would be visible if it ran. It is unreadable if /proc may hide it
    (`hidepid`), if it may be in another pid namespace, or if access to its files is denied.
    """

    def __init__(
        self, proc: ProcFs, wanted: int | str, *, shared: bool = True, container: str = ""
    ) -> None:
        """Take a pid or a program's name.

        `shared` means that the process should be in our pid namespace. Without it, its absence is
        certain only after it has been found once. `container` is the name of its container in the
        pod; "" accepts any. A process of another pod is never selected by its name.
        """
        self._proc = proc
        self._wanted = wanted
        self._shared = shared
        self._container = container
        self._found: ProcessIdentity | None = None

    def __repr__(self) -> str:
        return f"{'pid' if isinstance(self._wanted, int) else 'process'} {self._wanted}"

    def find(self) -> ProcessIdentity:
        """Return the process. /proc is searched only after the process found before has ended.

        Raises TargetAbsentError, TargetUnreadableError or TargetForeignError.
        """
        if isinstance(self._wanted, int):
            return self._by_pid(self._wanted)
        if self._found is None or not self._still_runs(self._found):
            self._found = self._by_name(self._wanted)
            self._shared = True
        return self._found

    def _still_runs(self, process: ProcessIdentity) -> bool:
        try:
            return self._proc.process(process.pid) == process
        except (TargetAbsentError, TargetUnreadableError):
            return False

    def _by_pid(self, pid: int) -> ProcessIdentity:
        try:
            now = self._proc.process(pid)
        except TargetAbsentError as error:
            self._require_visible(str(error))
            raise
        if self._found is not None and now != self._found:
            raise TargetAbsentError(f"process {pid} has ended; the pid names another one now")
        self._found = now
        return now

    def _by_name(self, name: str) -> ProcessIdentity:
        matches, elsewhere, refusals = self._matches(name)
        if len(matches) == 1:
            return matches[0]
        if matches:
            pids = ", ".join(str(match.pid) for match in matches)
            raise TargetUnreadableError(
                f"processes {pids} are all called {name}: set BYOC_BILLING_TARGET to pid:N of one; "
                "in a pod, where pids change, set BYOC_CONTAINER_NAME to the container to meter, "
                "or BYOC_BILLING_TARGET to clickhouse:http://host:port of its server"
            )
        if elsewhere:
            raise TargetForeignError(
                f"{name} runs in container {', '.join(sorted(elsewhere))} of this pod: expected "
                f"container {self._container} (BYOC_CONTAINER_NAME)"
            )
        text = f"no process called {name} in {self._proc.root}"
        if refusals:
            raise TargetUnreadableError(f"{text}; {refusals[0]}")
        self._require_visible(text)
        raise TargetAbsentError(text)

    def _require_visible(self, text: str) -> None:
        """Raise TargetUnreadableError if the process may run without being visible."""
        if reason := self._proc.hides():
            raise TargetUnreadableError(f"{text}: {reason}")
        seen = self._found is not None
        if not seen and (not self._shared or self._proc.shows_only_us()):
            raise TargetUnreadableError(
                f"{text}: it is not running, or the pod needs shareProcessNamespace: true"
            )

    def _matches(self, name: str) -> tuple[list[ProcessIdentity], set[str], list[str]]:
        """Return (processes of that name, other containers of our pod with one, errors).

        Children of these processes (forks) are omitted.
        """
        pids, elsewhere, refusals = set(), set(), []
        own = self._proc.pod_container("self")
        for pid in self._proc.pids():
            try:
                if pid == os.getpid() or not self._proc.is_called(pid, name):
                    continue
            except TargetUnreadableError as error:
                refusals.append(str(error))
                continue
            place = self._proc.pod_container(pid)
            if own and place and place.pod_uid != own.pod_uid:
                continue  # of another pod, visible with hostPID
            if place and place.name and self._container not in {"", place.name}:
                elsewhere.add(place.name)
            else:
                pids.add(pid)
        found = []
        for pid in sorted(pids):
            try:
                if self._parent(pid) not in pids:
                    found.append(self._proc.process(pid))
            except (TargetAbsentError, OSError):
                continue
        return found, elsewhere, refusals

    def _parent(self, pid: int) -> int:
        return int(self._proc.text(pid, "stat").rpartition(")")[2].split()[1])


def parse_stat(text: str) -> tuple[str, int]:
    """Return (state, start time in ticks) of /proc/PID/stat. Raises TargetUnreadableError.

    The name may contain spaces and brackets, so the fields are counted from the last bracket.
    """
    fields = text.rpartition(")")[2].split()
    try:
        return fields[0], int(fields[_START_FIELD])
    except (IndexError, ValueError):
        raise TargetUnreadableError("/proc/PID/stat: not in the form of proc(5)") from None


def container_id(text: str) -> str:
    """Return the last 64 hex digits in a cgroup's path or in /proc/PID/cgroup, or ""."""
    found: list[str] = _HEX64.findall(text)
    return found[-1] if found else ""


def describe_error(path: Path, error: OSError, owner: str = "the owner") -> str:
    """Return the file and the error; for a missing permission also the owner and the remedy."""
    reason = f"{path}: {os.strerror(error.errno) if error.errno else type(error).__name__}"
    if not isinstance(error, PermissionError):
        return reason
    return (
        f"{reason}; we are uid {os.geteuid()} gid {os.getegid()}, expected {owner}: set runAsUser "
        "and runAsGroup of the daemon to the target's, and allowPrivilegeEscalation: false on both"
    )


def _docker_id(mountinfo: str) -> str:
    match = _DOCKER_MOUNT.search(mountinfo)
    return match[1] if match else ""
