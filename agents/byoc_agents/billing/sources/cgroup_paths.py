"""Locates the cgroup of a process: v1, v2 or both, in our own mounts or in the target's.

A path in /proc/PID/cgroup is joined only to a mount whose root contains it, both as our cgroup
namespace shows them. `/../x` therefore never refers to our own mount, while a sibling container is
found below /proc/PID/root. The machine's root cgroup, our own and those above it are never used.
"""

import errno
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from byoc_agents.billing.sources.procfs import ProcFs, container_id, describe_error
from byoc_agents.billing.sources.reading import TargetAbsentError, TargetUnreadableError

_MAX_DEPTH = 64  # levels of a path; runtimes create about six
# The names that the kubelet gives to the cgroups above a pod's, by both of its drivers
_NODE = re.compile(r"(.*-)?kubepods(-burstable|-besteffort)?(\.slice)?|burstable|besteffort")
UNIFIED = ""  # the v2 hierarchy's name in /proc/PID/cgroup
DirectoryIdentity = tuple[int, int]  # device and inode of a directory


class Hierarchy(msgspec.Struct, frozen=True):
    """The directories of one cgroup. In v2 they are the same directory."""

    version: Literal["cgroup.v1", "cgroup.v2"]
    path: str  # as /proc/PID/cgroup or the settings name it
    cpuacct: Path  # cpu.stat or cpuacct.usage
    cpu: Path | None  # cpu.max or cpu.cfs_quota_us
    memory: Path | None  # memory.current or memory.usage_in_bytes


class Mount(msgspec.Struct, frozen=True):
    """A cgroup file system in a mount table."""

    root: PurePosixPath  # the cgroup that is mounted at `point`
    point: Path
    names: frozenset[str]  # controllers of v1; {""} for v2

    def directory(self, path: str) -> Path | None:
        """Return the directory of a cgroup in this mount, or None if it is not in the mount."""
        try:
            below = PurePosixPath(path).relative_to(self.root)
        except ValueError:
            return None
        return None if ".." in below.parts else self.point / below


class Locator:
    """Finds the directories of a cgroup. Nothing is cached."""

    def __init__(self, proc: ProcFs) -> None:
        self._proc = proc

    def of_process(self, pid: int) -> Hierarchy:
        """Return the cgroup of a process.

        Raises TargetAbsentError if the process has ended, and TargetUnreadableError if its cgroup
        must not be billed or cannot be read, with the reason for each directory.
        """
        search = _Search(self._proc, pid)
        for mounts in search.views():
            for version in (_v1, _v2):
                if found := version(search, mounts):
                    return found
        reasons = "; ".join(dict.fromkeys(search.reasons)) or "no cgroup mount contains it"
        raise TargetUnreadableError(f"cgroup of process {pid}: {reasons}")

    def of_path(self, path: Path) -> Hierarchy:
        """Return the cgroup at a directory, for v1 with the other controllers' directories.

        Raises TargetAbsentError if there is none, and TargetUnreadableError if it must not be
        billed or cannot be read.
        """
        search = _Search(self._proc, None)
        try:
            path.stat()
            if reason := search.refusal(path):
                raise TargetUnreadableError(reason)
            if (path / "cgroup.controllers").exists():
                return Hierarchy("cgroup.v2", str(path), path, path, path)
            return _v1_at(search, path)
        except (FileNotFoundError, NotADirectoryError):
            if not any(path.is_relative_to(mount.point) for mount in search.own_mounts):
                raise TargetUnreadableError(
                    f"no cgroup {path}: expected a directory of a cgroup file system that is "
                    "mounted here"
                ) from None
            raise TargetAbsentError(f"no cgroup {path}") from None
        except OSError as error:
            raise TargetUnreadableError(describe_error(path, error)) from None


class _Search:
    """One search for a process (None: for a path): its cgroups, ours, and rejected directories."""

    def __init__(self, proc: ProcFs, pid: int | None) -> None:
        self._proc = proc
        self._pid = pid
        self.reasons: list[str] = []
        self.paths = {} if pid is None else parse_membership(self._text(str(pid), "cgroup"))
        self.own_mounts = parse_mounts(self._text("self", "mountinfo"))
        self._own = self._identities(parse_membership(self._text("self", "cgroup")))

    def views(self) -> Iterator[list[Mount]]:
        """Yield our own mount table, then the target's with paths below /proc/PID/root."""
        yield self.own_mounts
        prefix = self._proc.file(self._pid or 0, "root")
        mounts = parse_mounts(self._text(str(self._pid), "mountinfo"))
        yield [Mount(m.root, prefix / m.point.relative_to("/"), m.names) for m in mounts]

    def find(self, mounts: list[Mount], controller: str) -> Path | None:
        """Return a controller's directory if it may be billed. Add the reasons if not."""
        path = self.paths.get(controller)
        for mount in mounts if path is not None else ():
            directory = mount.directory(path or "") if controller in mount.names else None
            if directory is None:
                continue
            reason = self.refusal(directory)
            if not reason:
                return directory
            self.reasons.append(reason)
        return None

    def refusal(self, directory: Path) -> str:
        """Return why a directory must not be billed, or "" if it may."""
        try:
            if is_root(directory):
                return f"{directory}: the machine's root cgroup"
            if identity(directory) in self._own:
                return f"{directory}: the daemon's own cgroup, or one that contains it"
            return "" if self._holds(directory) else f"{directory}: does not contain the process"
        except PermissionError as error:
            owner = "root" if self._pid is None else self._proc.owner(self._pid)
            return describe_error(Path(error.filename or directory), error, owner)
        except OSError as error:
            return describe_error(directory, error)

    def _holds(self, directory: Path) -> bool:
        if self._pid is None:
            return True
        try:
            return str(self._pid) in (directory / "cgroup.procs").read_text().split()
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # a threaded cgroup of v2 does not list processes
                return True
            raise

    def _identities(self, paths: dict[str, str]) -> set[DirectoryIdentity]:
        """Return the identities of our cgroups and all above them, up to their mount points."""
        found = set()
        for mount in self.own_mounts:
            for name in mount.names & paths.keys():
                directory = mount.directory(paths[name])
                while directory is not None:
                    found |= _identity_if_any(directory)
                    directory = directory.parent if directory != mount.point else None
        return found

    def _text(self, who: str, name: str) -> str:
        path = self._proc.root / who / name
        try:
            return path.read_bytes().decode(errors="replace")
        except OSError as error:
            if who != "self" and isinstance(error, FileNotFoundError | ProcessLookupError):
                self._proc.process(int(who))  # raises if it has ended
            raise TargetUnreadableError(describe_error(path, error)) from None


def _v1(search: _Search, mounts: list[Mount]) -> Hierarchy | None:
    cpuacct = search.find(mounts, "cpuacct")
    if cpuacct is None:
        return None
    cpu, memory = search.find(mounts, "cpu"), search.find(mounts, "memory")
    return Hierarchy("cgroup.v1", search.paths["cpuacct"], cpuacct, cpu, memory)


def _v2(search: _Search, mounts: list[Mount]) -> Hierarchy | None:
    directory = search.find(mounts, UNIFIED)
    if directory is None:
        return None
    return Hierarchy("cgroup.v2", search.paths[UNIFIED], directory, directory, directory)


def _v1_at(search: _Search, path: Path) -> Hierarchy:
    """Return the same cgroup in each v1 hierarchy: the same path below each mount."""
    found: dict[str, Path] = {}
    for mount in search.own_mounts:
        if path.is_relative_to(mount.point) and mount.names != {UNIFIED}:
            below = path.relative_to(mount.point)
            for other in search.own_mounts:
                same = other.point / below
                if same.is_dir() and not search.refusal(same):
                    found |= dict.fromkeys(other.names, same)
            found |= dict.fromkeys(mount.names, path)
    for name, file in _FILES_V1.items():  # an unknown mount, or controllers mounted together
        if (path / file).exists():
            found[name] = path
    if "cpuacct" not in found:
        raise TargetUnreadableError(f"{path}: no cgroup with cpu.stat or cpuacct.usage")
    cpu, memory = found.get("cpu"), found.get("memory")
    return Hierarchy("cgroup.v1", str(path), found["cpuacct"], cpu, memory)


_FILES_V1 = {
    "cpuacct": "cpuacct.usage",
    "cpu": "cpu.cfs_quota_us",
    "memory": "memory.usage_in_bytes",
}


class Levels(msgspec.Struct, frozen=True):
    """The directories of one controller whose limits apply to a process."""

    own: tuple[Path, ...]  # the process's cgroup, up to its container's
    above: tuple[Path, ...]  # cgroups that contain it, as far as they are visible


def levels(directory: Path, path: str) -> Levels:
    """Return the cgroups from `directory` up to the top of its mount.

    `path` is the cgroup's path in /proc/PID/cgroup. It is needed because in a container the mount
    shows the container's cgroup as the top, under another name. Kubernetes' own cgroups (`kubepods`
    and the QoS classes) are omitted: their limits are the node's, not a pod's.
    """
    chain = [directory]
    while len(chain) < _MAX_DEPTH and (chain[-1].parent / "cgroup.procs").exists():
        chain.append(chain[-1].parent)
    named = list(reversed(PurePosixPath(path).parts))
    names = [*named[: len(chain)], *(level.name for level in chain[len(named) :])]
    node = next((i for i, name in enumerate(names) if _NODE.fullmatch(name)), len(chain))
    of_container = (i for i, name in enumerate(names[:node]) if container_id(name))
    own = next(of_container, 0) + 1
    return Levels(tuple(chain[:own]), tuple(chain[own : max(node, own)]))


def is_root(directory: Path) -> bool:
    """Return whether this is the root of a whole hierarchy. Raises OSError.

    kernel/cgroup: v1 has cgroup.sane_behavior in the root only, v2 has cgroup.events everywhere
    else. This is also true in a cgroup namespace, where a container's own cgroup is shown as `/`.
    """
    directory.stat()
    if (directory / "cgroup.controllers").exists():
        return not (directory / "cgroup.events").exists()
    return (directory / "cgroup.sane_behavior").exists()


def identity(directory: Path) -> DirectoryIdentity:
    """Return device and inode. Raises OSError."""
    status = directory.stat()
    return status.st_dev, status.st_ino


def _identity_if_any(directory: Path) -> set[DirectoryIdentity]:
    try:
        return {identity(directory)}
    except OSError:
        return set()


def parse_membership(text: str) -> dict[str, str]:
    """Return controller -> path of /proc/PID/cgroup. Lines in another form are ignored."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        names, separator, path = rest.partition(":")
        if number.isdecimal() and separator and path.startswith("/"):
            path = path.removesuffix(" (deleted)")
            paths |= dict.fromkeys(names.split(","), path)
    return paths


def parse_mounts(text: str) -> list[Mount]:
    """Return the cgroup mounts of /proc/PID/mountinfo. Lines in another form are ignored."""
    found = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(kinds) < 3 or kinds[0] not in {"cgroup", "cgroup2"}:  # noqa: PLR2004 - proc(5)
            continue
        root, point = unescape_path(fields[3]), unescape_path(fields[4])
        names = {UNIFIED} if kinds[0] == "cgroup2" else set(kinds[2].split(",")) - {UNIFIED}
        if root.startswith("/") and point.startswith("/"):
            found.append(Mount(PurePosixPath(root), Path(point), frozenset(names)))
    return found


def unescape_path(text: str) -> str:
    r"""Return a path of mountinfo with escapes such as \040 decoded."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8) & 0xFF), text)
