"""The last source: CPU and memory of a process and all its descendants, from /proc by psutil.

Readable for every user, but it misses what a cgroup counts: page cache, limits, and children that
lived and died between two readings without being waited for. Figures are clock ticks, 10 ms each
where CLK_TCK is 100, cut down per process.

A process counts with its own time and with that of the children it has waited for. A child that
ends and is waited for by a process of the tree so moves from one figure to the other. One that is
not (its parent ignores SIGCHLD, or it was handed to init) would vanish: what it had used is carried
on, so the sum never falls while the agent runs. After a restart of the agent it may.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial

import msgspec
import psutil

from byoc_agents.billing.sources.procfs import Finder, Process, ProcFs
from byoc_agents.billing.sources.reading import (
    Reading,
    SourceName,
    TargetAbsentError,
    TargetUnreadableError,
)


class _Use(msgspec.Struct, frozen=True):
    parent: int  # pid
    own_usec: int
    reaped_usec: int  # of children that were waited for, and of theirs
    resident_bytes: int


MAX_PASSES = 5  # some milliseconds; then it is a missed sample, which costs nothing

_Tree = dict[psutil.Process, _Use]  # psutil compares processes by pid and start time


class ProcessSource:
    """Reads one process tree of our pid namespace. Searches /proc once for each reading."""

    name: SourceName = "process"

    def __init__(self, finder: Finder, proc: ProcFs, boot_id: str) -> None:
        """Take what finds the root of the tree, a /proc for its container id, and the boot id."""
        self._finder = finder
        self._proc = proc
        self._boot_id = boot_id
        self._root: Process | None = None
        self._tree: _Tree = {}
        self._carried_usec = 0

    async def read(self) -> Reading:
        """Return the tree's figures. Raises TargetAbsentError or TargetUnreadableError."""
        root = self._finder.find()
        if root != self._root:
            self.close()
        try:
            tree = read_consistent_tree(partial(_observe, root.pid, self._tree))
        except psutil.NoSuchProcess:
            if self._finder.find() != root:  # raises if it is gone, or may only be hidden
                raise TargetAbsentError(f"process {root.pid} has ended") from None
            raise TargetUnreadableError(f"process {root.pid}: not in /proc for a moment") from None
        except psutil.Error as error:
            raise TargetUnreadableError(
                f"process {root.pid}: {type(error).__name__} in /proc"
            ) from None
        self._carried_usec += lost_usec(self._tree, tree)
        self._root, self._tree = root, tree
        return self._reading(root)

    def close(self) -> None:
        """Forget the tree; the next reading begins anew, and may be lower by what was carried."""
        self._root, self._tree, self._carried_usec = None, {}, 0

    def _reading(self, root: Process) -> Reading:
        uses = self._tree.values()
        return Reading(
            source="process",
            incarnation=f"{self._boot_id[:8]}-{root.pid}-{root.start_ticks}",
            container_id=self._proc.container_id(root.pid),
            cpu_usec=self._carried_usec + sum(use.own_usec + use.reaped_usec for use in uses),
            memory_bytes=sum(use.resident_bytes for use in uses),  # shared pages count for each
            born_boot_ns=root.born_boot_ns,
            resets_to_zero=False,
            machine_cpus=self._proc.cpus(),
        )


def lost_usec(before: _Tree, now: _Tree) -> int:
    """Return the CPU time of processes that ended without a process of the tree waiting for them.

    What a process waited for, it got at once: its figure for children then grew at least as much as
    theirs was. The nearest ancestor that still lives is asked; it may have waited for others too.
    """
    living = {process.pid: process for process in now}
    ended: Counter[psutil.Process | None] = Counter()
    parents = {process.pid: use.parent for process, use in before.items()}
    for process, use in before.items():
        if process not in now:
            ended[_nearest_living_ancestor(use.parent, parents, living)] += (
                use.own_usec + use.reaped_usec
            )
    return sum(
        max(0, used - _reaped_since(ancestor, before, now)) for ancestor, used in ended.items()
    )


def _nearest_living_ancestor(
    pid: int, parents: dict[int, int], living: dict[int, psutil.Process]
) -> psutil.Process | None:
    for _ in range(len(parents) + 1):  # a reused pid could close a circle
        if pid in living or pid not in parents:
            break
        pid = parents[pid]
    return living.get(pid)


def _reaped_since(ancestor: psutil.Process | None, before: _Tree, now: _Tree) -> int:
    if ancestor is None or ancestor not in before:
        return 0
    return now[ancestor].reaped_usec - before[ancestor].reaped_usec


def read_consistent_tree(observe: Callable[[], _Tree]) -> _Tree:
    """Return the tree as it was at one moment. Raises TargetUnreadableError where there is none.

    /proc is read a process at a time: a child that is waited for meanwhile would be counted twice
    or not at all. It then is gone, or its parent's figure has grown, when the tree is read again.
    """
    tree = observe()
    for _ in range(MAX_PASSES):
        again = observe()
        if _reaped(again) == _reaped(tree):
            return tree
        tree = again
    raise TargetUnreadableError("its children come and go too quickly to be read")


def _reaped(tree: _Tree) -> dict[psutil.Process, int]:
    return {process: use.reaped_usec for process, use in tree.items()}


def _observe(pid: int, before: _Tree) -> _Tree:
    """Return the tree as it is now. Raises psutil.Error for the root only."""
    root = psutil.Process(pid)
    members = {root, *root.children(recursive=True)}
    for process in before.keys() - members:  # handed to init, but still of this tree
        if process.is_running():
            members |= {process, *_children(process)}
    tree = {root: _use(root)}
    for process in members - {root}:
        try:
            tree[process] = _use(process)
        except psutil.NoSuchProcess:
            continue
    return tree


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _use(process: psutil.Process) -> _Use:
    with process.oneshot():
        times = process.cpu_times()
        return _Use(
            parent=process.ppid(),
            own_usec=round((times.user + times.system) * 1e6),
            reaped_usec=round((times.children_user + times.children_system) * 1e6),
            resident_bytes=process.memory_info().rss,
        )
