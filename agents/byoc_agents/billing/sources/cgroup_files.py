"""The files of one cgroup, kept open and parsed: what v1 and v2 write, in the same four figures."""

import os
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

from byoc_agents.billing.sources.cgroup_paths import Hierarchy
from byoc_agents.billing.sources.reading import TargetUnreadableError

T = TypeVar("T")

_FILE_BYTES = 4096  # kernfs gives at most a page a read; the longest file here has some 500 bytes
_NO_LIMIT_BYTES = 2**62  # v1 writes no limit as PAGE_COUNTER_MAX, 2**63 - 1 cut to a page
_COUNT = re.compile(rb"(\d{1,20})\n?")
_USAGE = re.compile(rb"^usage_usec (\d{1,20})$", re.MULTILINE)
_CPU_MAX = re.compile(rb"(max|\d{1,20}) ([1-9]\d{0,19})\n?")
_QUOTA = re.compile(rb"(-1|\d{1,20})\n?")


class KeptFile:
    """A file that is opened once and read again and again."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises OSError."""
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        """Return what it says now. Raises OSError: ENODEV once the cgroup is removed."""
        return os.pread(self._fd, _FILE_BYTES, 0)

    def parsed(self, parse: Callable[[bytes], T]) -> T:
        """Return its value. Raises OSError; TargetUnreadableError where it is in no known form."""
        content = self.read()
        try:
            return parse(content)
        except ValueError:
            raise TargetUnreadableError(f"{self.path}: not in the form of cgroups(7)") from None

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


class Counters(Protocol):
    """One cgroup's figures. Each method raises OSError or TargetUnreadableError."""

    def cpu_usec(self) -> int:
        """Return the CPU time used since the cgroup was made, children included, microseconds."""
        ...

    def memory_bytes(self) -> int | None:
        """Return what is charged, page cache included; None without the memory controller."""
        ...

    def cpu_limit_millicores(self) -> int | None:
        """Return the quota in thousandths of a core, None where there is none."""
        ...

    def memory_limit_bytes(self) -> int | None:
        """Return the limit, None where there is none."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


class CountersV2:
    """kernel: Documentation/admin-guide/cgroup-v2.rst. cpu.stat is there in every cgroup."""

    def __init__(self, at: Hierarchy) -> None:
        """Open the files. Raises OSError."""
        self._stat, self._memory, self._max, self._limit = _opened(
            [
                (at.cpuacct, "cpu.stat", True),
                (at.memory, "memory.current", False),
                (at.cpu, "cpu.max", False),
                (at.memory, "memory.max", False),
            ]
        )

    def cpu_usec(self) -> int:
        """See Counters."""
        return _value(self._stat, parse_cpu_stat) or 0

    def memory_bytes(self) -> int | None:
        """See Counters."""
        return _value(self._memory, parse_count)

    def cpu_limit_millicores(self) -> int | None:
        """See Counters."""
        return _value(self._max, parse_cpu_max)

    def memory_limit_bytes(self) -> int | None:
        """See Counters."""
        return _value(self._limit, parse_memory_max)

    def close(self) -> None:
        """See Counters."""
        _close([self._stat, self._memory, self._max, self._limit])


class CountersV1:
    """kernel: Documentation/admin-guide/cgroup-v1/cpuacct.rst and memory.rst."""

    def __init__(self, at: Hierarchy) -> None:
        """Open the files. Raises OSError."""
        self._usage, self._memory, self._quota, self._period, self._limit = _opened(
            [
                (at.cpuacct, "cpuacct.usage", True),
                (at.memory, "memory.usage_in_bytes", False),
                (at.cpu, "cpu.cfs_quota_us", False),
                (at.cpu, "cpu.cfs_period_us", False),
                (at.memory, "memory.limit_in_bytes", False),
            ]
        )

    def cpu_usec(self) -> int:
        """See Counters. The file counts nanoseconds."""
        return (_value(self._usage, parse_count) or 0) // 1000

    def memory_bytes(self) -> int | None:
        """See Counters."""
        return _value(self._memory, parse_count)

    def cpu_limit_millicores(self) -> int | None:
        """See Counters."""
        quota, period = _value(self._quota, parse_quota), _value(self._period, parse_count)
        return quota * 1000 // period if quota is not None and period else None

    def memory_limit_bytes(self) -> int | None:
        """See Counters."""
        return _value(self._limit, parse_memory_max)

    def close(self) -> None:
        """See Counters."""
        _close([self._usage, self._memory, self._quota, self._period, self._limit])


def counters_of(at: Hierarchy) -> Counters:
    """Open the files of a cgroup. Raises OSError."""
    return CountersV2(at) if at.version == "cgroup.v2" else CountersV1(at)


def parse_cpu_stat(content: bytes) -> int:
    """Return usage_usec of v2's cpu.stat, which comes in no fixed order. Raises ValueError."""
    match = _USAGE.search(content)
    if not match:
        raise ValueError(content)
    return int(match[1])


def parse_count(content: bytes) -> int:
    """Return a plain number. Raises ValueError."""
    return int(_matched(_COUNT, content)[1])


@lru_cache  # here and below: a limit hardly ever changes
def parse_cpu_max(content: bytes) -> int | None:
    """Return millicores of `max 100000` or `150000 100000`. Raises ValueError."""
    match = _matched(_CPU_MAX, content)
    return None if match[1] == b"max" else int(match[1]) * 1000 // int(match[2])


@lru_cache
def parse_quota(content: bytes) -> int | None:
    """Return v1's cpu.cfs_quota_us, where -1 means none. Raises ValueError."""
    quota = int(_matched(_QUOTA, content)[1])
    return None if quota < 0 else quota


@lru_cache
def parse_memory_max(content: bytes) -> int | None:
    """Return a limit in bytes; `max` and v1's huge number mean none. Raises ValueError."""
    limit = None if content.strip() == b"max" else parse_count(content)
    return None if limit is None or limit >= _NO_LIMIT_BYTES else limit


def _matched(pattern: re.Pattern[bytes], content: bytes) -> re.Match[bytes]:
    match = pattern.fullmatch(content)
    if not match:
        raise ValueError(content)
    return match


def _value(file: KeptFile | None, parse: Callable[[bytes], T]) -> T | None:
    return None if file is None else file.parsed(parse)


def _opened(wanted: Iterable[tuple[Path | None, str, bool]]) -> list[KeptFile | None]:
    """Open each (directory, name, required); None where an optional one is not there."""
    files: list[KeptFile | None] = []
    try:
        for directory, name, required in wanted:
            files.append(_open(directory, name, required=required))
    except OSError:
        _close(files)
        raise
    return files


def _open(directory: Path | None, name: str, *, required: bool) -> KeptFile | None:
    if directory is None:
        return None
    try:
        return KeptFile(directory / name)
    except FileNotFoundError:
        if required:
            raise
        return None


def _close(files: Iterable[KeptFile | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
