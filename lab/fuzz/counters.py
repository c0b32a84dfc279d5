"""Harnesses of the kernel's files about cgroups and processes, and damaged forms of them."""

from collections.abc import Callable
from pathlib import Path

from byoc_agents.billing.sources.cgroup_files import (
    parse_count,
    parse_cpu_max,
    parse_cpu_stat,
    parse_memory_max,
    parse_quota,
)
from byoc_agents.billing.sources.cgroup_paths import parse_membership, parse_mounts
from byoc_agents.billing.sources.procfs import container_id, parse_stat
from byoc_agents.billing.sources.reading import TargetUnreadableError
from lab.fuzz.harness import Harness, text

PARSERS: tuple[Callable[[bytes], int | None], ...] = (
    parse_cpu_stat,
    parse_count,
    parse_cpu_max,
    parse_quota,
    parse_memory_max,
)
HIGHEST = 10**24  # 20 digits, times 1000 for millicores


def cgroup(data: bytes) -> None:
    """Parse it as each of the files: a figure in its range, None, or ValueError."""
    for parse in PARSERS:
        try:
            figure = parse(data)
        except ValueError:
            continue
        assert figure is None or 0 <= figure < HIGHEST
        if parse is parse_count:
            assert int(data) == figure


def proc_stat(data: bytes) -> None:
    """Parse /proc/PID/stat: state and start, or TargetUnreadableError."""
    try:
        state, start_ticks = parse_stat(text(data))
    except TargetUnreadableError:
        return
    assert state
    assert start_ticks >= 0


def hierarchy(data: bytes) -> None:
    """Parse a membership and a mount table: no path leads out of its mount."""
    first, _, second = data.partition(b"\n\n")
    found = container_id(text(data))
    assert len(found) in {0, 64}
    mounts = parse_mounts(text(second))
    for path in parse_membership(text(first)).values():
        for mount in mounts:
            directory = mount.directory(path)
            assert directory is None or directory.is_relative_to(mount.point)
            assert directory is None or ".." not in directory.relative_to(mount.point).parts
            assert directory is None or isinstance(directory, Path)


STAT = b"4711 (a) b (c) S 1 " + b" ".join(b"%d" % n for n in range(5, 53))
MOUNT = b"36 25 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
V1 = b"37 25 0:32 /docker/x /sys/fs/cgroup/cpu\\040acct rw - cgroup cgroup rw,cpu,cpuacct\n"
HARNESSES = {
    "cgroup": Harness(
        cgroup,
        [b"usage_usec 123\nuser_usec 100\n", b"150000 100000\n", b"max 100000", b"-1\n", b"max\n"],
        [b"usage_usec ", b"max", b"\n", b" ", b"-1", b"0", b"18446744073709551615", b"1_0", b"+1"],
    ),
    "proc-stat": Harness(
        proc_stat, [STAT], [b")", b"(", b" Z ", b" -1 ", "٣".encode(), b" 1_000 ", b"\0"]
    ),
    "hierarchy": Harness(
        hierarchy,
        [
            b"12:cpu,cpuacct:/docker/x/y\n0::/a/b (deleted)\n\n" + MOUNT + V1,
            b"0::/../../x\n\n" + MOUNT,
            b"0::/" + b"0123456789abcdef" * 4 + b"\n\n" + MOUNT,
        ],
        [b"::", b"/..", b"/../", b"//", b" - cgroup2 ", b"\\040", b"\\777", b"\n\n", b" (deleted)"],
    ),
}
