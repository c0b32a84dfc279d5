"""Make real control groups, and file systems small enough to fill.

Root only. Mounted hierarchies are used as they are; none is mounted or unmounted.
"""

import errno
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.real.parts.process import POLL_SECONDS, PartError

REMOVE_SECONDS = 5.0  # a killed process leaves its group only when the kernel has reaped it


@dataclass(frozen=True)
class ControlGroup:
    """One group: a directory in each hierarchy it needs, by controller (v2: `unified`)."""

    directories: dict[str, Path]

    def __getitem__(self, controller: str) -> Path:
        return self.directories[controller]

    def add(self, pid: int) -> None:
        """Move a process in. Its earlier usage stays in its former group."""
        for directory in self.directories.values():
            (directory / "cgroup.procs").write_text(str(pid))

    def peak_bytes(self) -> int:
        """Return the peak memory of the group, page cache included."""
        (directory,) = self.directories.values()
        found = [directory / name for name in ("memory.max_usage_in_bytes", "memory.peak")]
        return int(next(file for file in found if file.exists()).read_text())

    def command(self, command: list[str]) -> list[str]:
        """Return a command that enters the group first, so that all of its usage counts."""
        files = [str(directory / "cgroup.procs") for directory in self.directories.values()]
        enter = "; ".join(f"echo $$ > {file}" for file in files)
        return ["sh", "-ec", f'{enter}; exec "$@"', "sh", *command]


@contextmanager
def cgroup_v1(*controllers: str) -> Iterator[ControlGroup]:
    """Make a group in these v1 hierarchies, remove it at the end."""
    with _made({controller: _mounted("cgroup", controller) for controller in controllers}) as group:
        yield group


@contextmanager
def cgroup_v2() -> Iterator[ControlGroup]:
    """Make a group in the v2 hierarchy; `cpu.stat` exists even without a controller."""
    with _made({"unified": _mounted("cgroup2", "")}) as group:
        yield group


@contextmanager
def memory_limited(limit_bytes: int) -> Iterator[ControlGroup]:
    """Make a group whose processes get no more memory than this, in v1 or v2."""
    try:
        hierarchy, file = {"memory": _mounted("cgroup", "memory")}, "memory.limit_in_bytes"
    except PartError:
        hierarchy, file = {"unified": _mounted("cgroup2", "")}, "memory.max"
    with _made(hierarchy) as group:
        (directory,) = group.directories.values()
        (directory / file).write_text(str(limit_bytes))
        yield group


@contextmanager
def cpu_counted() -> Iterator[tuple[ControlGroup, Callable[[], float]]]:
    """Make a group in v1 or v2. The function returns the core seconds that it has used."""
    try:
        hierarchy = {"cpuacct": _mounted("cgroup", "cpuacct")}
    except PartError:
        hierarchy = {"unified": _mounted("cgroup2", "")}
    with _made(hierarchy) as group:
        (directory,) = group.directories.values()

        def used() -> float:
            if "cpuacct" in hierarchy:
                return int((directory / "cpuacct.usage").read_text()) / 1e9
            counters = dict(map(str.split, (directory / "cpu.stat").read_text().splitlines()))
            return int(counters["usage_usec"]) / 1e6

        yield group, used


@contextmanager
def tmpfs(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Mount an empty tmpfs of this size on `directory`, unmount it at the end."""
    with _mount(directory, "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs"):
        yield directory


@contextmanager
def ext4(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Mount an ext4 image of this size (8 MiB or more) on `directory`, through a loop device."""
    image = directory.with_name(f"{directory.name}.img")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    with _mount(directory, "-t", "ext4", "-o", "loop", str(image)):
        yield directory
    image.unlink()


@contextmanager
def _mount(directory: Path, *arguments: str) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    _run("mount", *arguments, str(directory))
    try:
        yield
    finally:
        _run("umount", str(directory))


@contextmanager
def _made(hierarchies: dict[str, Path]) -> Iterator[ControlGroup]:
    name = f"byoc-test-{secrets.token_hex(4)}"
    group = ControlGroup({key: root / name for key, root in hierarchies.items()})
    for directory in group.directories.values():
        directory.mkdir()
    try:
        yield group
    finally:
        for directory in group.directories.values():
            _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a group. Raises PartError if a process stays in it."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while _busy(directory):
        if time.monotonic() > deadline:
            inside = (directory / "cgroup.procs").read_text().split()
            raise PartError(f"{directory} still holds processes {inside}")
        time.sleep(POLL_SECONDS)


def _busy(directory: Path) -> bool:
    """Try to remove a group; return whether the kernel refused, as while a process exits."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


def _mounted(kind: str, controller: str) -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, found, options, *_ = line.split()
        if found == kind and (not controller or controller in options.split(",")):
            return Path(place)
    raise PartError(f"this machine mounts no {kind} hierarchy {controller}".rstrip())


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartError(f"{' '.join(command)}: {done.stderr.strip()} (root is needed)")
