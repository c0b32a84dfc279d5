"""Namespaces and control groups of one cluster, and their end.

A command runs in namespaces of its own for the network, mounts and processes. The kernel removes
all three with their first process, whatever runs, listens or is mounted in them: that process is
ended by its pid, also when this one is killed. Control groups and the directory are removed here.
If this process was killed, its groups are removed by the next one.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.real.parts.install import ROOT
from lab.real.parts.process import POLL_SECONDS, PartError

GROUP = "byoc-cluster-"  # and the pid of its owner
RUN = "BYOC_CLUSTER_RUN"  # the directory of one cluster
GROUPS = "BYOC_CLUSTER_GROUP"  # the name of its control groups
END_SECONDS = 10  # from Ctrl-C, which a terminal sends to the command as well
REMOVE_SECONDS = 20  # the kernel may need some after the last process


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command in namespaces of its own, as root; remove everything; return its exit code.

    The command finds its directory in RUN and the name of its control groups in GROUPS.
    """
    if os.geteuid() != 0:
        raise PartError("a cluster needs root: namespaces, mounts and control groups")
    exit_on_signals()
    with _directory() as directory, _control_groups() as group:
        own = {RUN: str(directory), GROUPS: group, **environment}
        return _run(command, directory, {**os.environ, **own})


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process by an exception, which removes all on its way."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def _run(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> int:
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    first = ["setpriv", "--pdeathsig", "KILL", *namespaces]
    process = subprocess.Popen(
        [*first, sys.executable, "-m", "lab.cluster.inside", *command], cwd=ROOT, env=environment
    )
    try:
        _write_entry(directory, process.pid)
        return process.wait()
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(END_SECONDS)
        return 130
    finally:
        process.kill()  # and with it the first process of the namespaces
        process.wait()


def _write_entry(directory: Path, pid: int) -> None:
    """Write a program that runs its arguments inside, for a person's other terminal."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := children.read_text().split()):
        time.sleep(POLL_SECONDS)
    enter = f"nsenter --target {found[0]} --net --mount --pid --wd={shlex.quote(str(ROOT))}"
    path = directory / "enter"
    path.write_text(f'#!/bin/sh\nexec {enter} -- env {RUN}={shlex.quote(str(directory))} "$@"\n')
    path.chmod(0o755)


@contextmanager
def _directory() -> Iterator[Path]:
    """Make a directory, and remove it; the programs' unfinished writes are ended by then."""
    path = Path(tempfile.mkdtemp(prefix=GROUP))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def _control_groups() -> Iterator[str]:
    """Make the kubelet's root group in each hierarchy; remove it and all groups below it."""
    name = f"{GROUP}{os.getpid()}"
    hierarchies = find_hierarchies()
    for hierarchy in hierarchies:
        for left in hierarchy.glob(f"{GROUP}*"):
            if not Path(f"/proc/{left.name.removeprefix(GROUP)}").exists():
                _remove(left)
    try:
        for hierarchy in hierarchies:
            _make_group(hierarchy, name)
        yield name
    finally:
        for hierarchy in find_hierarchies():
            _remove(hierarchy / name)


def find_hierarchies() -> list[Path]:
    """Return where the hierarchies of cgroup v1 and v2 are mounted."""
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(place) for _, place, kind in mounts if kind in {"cgroup", "cgroup2"}]


def _make_group(hierarchy: Path, name: str) -> None:
    (hierarchy / name).mkdir()
    for file in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group, which then takes no process
        if (hierarchy / file).exists():
            (hierarchy / name / file).write_text((hierarchy / file).read_text())


def _remove(group: Path) -> None:
    """Remove a group and those below it. Raises PartError if a process stays in one."""
    for directory, _, _ in os.walk(group, topdown=False):
        deadline = time.monotonic() + REMOVE_SECONDS
        while not _removed(Path(directory)):
            if time.monotonic() > deadline:
                inside = Path(directory, "cgroup.procs").read_text().split()
                raise PartError(f"{directory} still holds processes {inside}")
            time.sleep(POLL_SECONDS)


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
