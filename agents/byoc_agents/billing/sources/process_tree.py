"""The default source: CPU and memory of a process and its descendants, from /proc by psutil.

It reads `/proc/PID/stat`, `statm` and `cgroup`. The kernel shows these three to every user, unless
/proc is mounted with hidepid. The counter begins at 0 with the root process, whose start time
(field 22 of stat) and boot id name the incarnation, so another process with the same pid is
noticed. The values are clock ticks (10 ms if CLK_TCK is 100), rounded down per process.

Not included, although a cgroup counts it: page cache, limits, children that started and ended
between two readings without being waited for, and processes of the same container that do not
descend from the root, such as those that `kubectl exec` or an exec probe starts.

The time of a process is its own and that of the children for which it has waited. If a child ends
and a process of the tree waits for it, its time moves from one value to the other. The time of a
child for which none waits (its parent ignores SIGCHLD, or init became its parent) would disappear.
It is therefore carried, so the sum never falls while the daemon runs. It may fall at a restart of
the daemon.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial

import msgspec
import psutil

from byoc_agents.billing.sources.procfs import Finder, ProcessIdentity, ProcFs
from byoc_agents.billing.sources.reading import (
    Reading,
    SourceName,
    TargetAbsentError,
    TargetUnreadableError,
    name_run,
)


class ProcessUse(msgspec.Struct, frozen=True):
    """The CPU time and memory of one process."""

    parent: int  # pid
    own_usec: int
    reaped_usec: int  # of children that were waited for, recursively
    resident_bytes: int


MAX_PASSES = 5  # a few milliseconds; after that the sample is missed, without loss

_Tree = dict[psutil.Process, ProcessUse]  # psutil compares processes by pid and start time


class ProcessSource:
    """Reads one process tree of our pid namespace. Searches /proc once per reading."""

    name: SourceName = "process"

    def __init__(self, finder: Finder, proc: ProcFs, boot_id: str) -> None:
        """Take the finder of the root process, a /proc for its container id, and the boot id."""
        self._finder = finder
        self._proc = proc
        self._boot_id = boot_id
        self._root: ProcessIdentity | None = None
        self._tree: _Tree = {}
        self._carried_usec = 0
        self._named: ProcessIdentity | None = None  # whose name `_name` is
        self._name = ""

    async def read(self) -> Reading:
        """Return the counters of the tree. Raises TargetAbsentError or TargetUnreadableError."""
        root = self._finder.find()
        if root != self._root:
            self.close()
        try:
            tree = read_consistent_tree(partial(_observe, root.pid, self._tree))
        except psutil.NoSuchProcess:
            if self._finder.find() != root:  # raises if it has ended or may be hidden
                raise TargetAbsentError(f"process {root.pid} has ended") from None
            raise TargetUnreadableError(f"process {root.pid}: temporarily not in /proc") from None
        except psutil.Error as error:
            raise TargetUnreadableError(
                f"process {root.pid}: {type(error).__name__} in /proc"
            ) from None
        self._carried_usec += lost_usec(self._tree, tree)
        self._root, self._tree = root, tree
        return self._reading(root)

    def close(self) -> None:
        """Forget the tree. The next reading may be lower by the carried time."""
        self._root, self._tree, self._carried_usec = None, {}, 0

    def _reading(self, root: ProcessIdentity) -> Reading:
        uses = self._tree.values()
        return Reading(
            source="process",
            incarnation=f"{self._boot_id[:8]}-{root.pid}-{root.start_ticks}",
            container_id=self._proc.container_id(root.pid),
            cpu_usec=self._carried_usec + sum(use.own_usec + use.reaped_usec for use in uses),
            memory_bytes=sum(
                use.resident_bytes for use in uses
            ),  # shared pages count once per process
            born_boot_ns=root.born_boot_ns,
            resets_to_zero=False,
            machine_cpus=self._proc.cpus(),
            run_name=self._run_name(root),
        )

    def _run_name(self, root: ProcessIdentity) -> str:
        if self._named != root:
            self._name = name_run(self._boot_id, root.pid, root.start_ticks)
            self._named = root
        return self._name


def lost_usec(before: _Tree, now: _Tree) -> int:
    """Return the CPU time, microseconds, of ended processes for which none of the tree has waited.

    If a process waits for a child, its time for children grows at once by at least the child's. The
    nearest ancestor that still runs is checked. It may have waited for other processes as well.
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
    for _ in range(len(parents) + 1):  # a reused pid could create a cycle
        if pid in living or pid not in parents:
            break
        pid = parents[pid]
    return living.get(pid)


def _reaped_since(ancestor: psutil.Process | None, before: _Tree, now: _Tree) -> int:
    if ancestor is None or ancestor not in before:
        return 0
    return now[ancestor].reaped_usec - before[ancestor].reaped_usec


def read_consistent_tree(observe: Callable[[], _Tree]) -> _Tree:
    """Return the tree as of one moment. Raises TargetUnreadableError if it changes all the time.

    /proc is read one process at a time. A child that is waited for in between would be counted
    twice or not at all. This is detected by reading the tree again: the child is missing, or its
    parent's time for children has grown.
    """
    tree = observe()
    for _ in range(MAX_PASSES):
        again = observe()
        if _sum_reaped(again) == _sum_reaped(tree):
            return tree
        tree = again
    raise TargetUnreadableError("its children start and end too quickly to be read")


def _sum_reaped(tree: _Tree) -> dict[psutil.Process, int]:
    return {process: use.reaped_usec for process, use in tree.items()}


def _observe(pid: int, before: _Tree) -> _Tree:
    """Return the present tree. Raises psutil.Error for the root only."""
    root = psutil.Process(pid)
    members = {root, *root.children(recursive=True)}
    for process in before.keys() - members:  # init became its parent, but it is still of this tree
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


def _use(process: psutil.Process) -> ProcessUse:
    with process.oneshot():
        times = process.cpu_times()
        return ProcessUse(
            parent=process.ppid(),
            own_usec=round((times.user + times.system) * 1e6),
            reaped_usec=round((times.children_user + times.children_system) * 1e6),
            resident_bytes=process.memory_info().rss,
        )
