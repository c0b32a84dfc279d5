"""The files of one cgroup, kept open and parsed: the same four values for v1 and v2."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from byoc_agents.billing.sources.cgroup_paths import Hierarchy, Levels, levels
from byoc_agents.billing.sources.reading import TargetUnreadableError

T = TypeVar("T")

_FILE_BYTES = 4096  # kernfs returns at most a page per read; the longest file has about 500 bytes
_NO_LIMIT_BYTES = 2**62  # v1 shows no limit as PAGE_COUNTER_MAX, 2**63 - 1 cut to a page
_COUNT = re.compile(rb"(\d{1,20})\n?")
_USAGE = re.compile(rb"^usage_usec (\d{1,20})$", re.MULTILINE)
_CPU_MAX = re.compile(rb"(max|\d{1,20}) ([1-9]\d{0,19})\n?")
_QUOTA = re.compile(rb"(-1|\d{1,20})\n?")


class KeptFile:
    """A file that is opened once and read many times."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises OSError."""
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        """Return its content. Raises OSError, ENODEV after the cgroup was removed."""
        return os.pread(self._fd, _FILE_BYTES, 0)

    def parse(self, parse: Callable[[bytes], T]) -> T:
        """Return its value. Raises OSError, or TargetUnreadableError if it cannot be parsed."""
        content = self.read()
        try:
            return parse(content)
        except ValueError:
            raise TargetUnreadableError(f"{self.path}: not in the form of cgroups(7)") from None

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


class Limit(msgspec.Struct, frozen=True):
    """The smallest limit of a container's own cgroups, and of the cgroups above it."""

    own: int | None
    above: int | None

    @property
    def effective(self) -> int | None:
        """Return the smaller one, which applies; None if there is no limit."""
        if self.own is None or self.above is None:
            return self.above if self.own is None else self.own
        return min(self.own, self.above)


class Counters(Protocol):
    """The values of one cgroup. Each method raises OSError or TargetUnreadableError."""

    def cpu_usec(self) -> int:
        """Return the CPU time since the cgroup's creation with children, microseconds."""
        ...

    def memory_bytes(self) -> int | None:
        """Return the charged bytes with page cache; None without the memory controller."""
        ...

    def cpu_limit(self) -> Limit:
        """Return the CPU quota in thousandths of a core."""
        ...

    def memory_limit(self) -> Limit:
        """Return the memory limit in bytes."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


class CountersV2:
    """kernel: Documentation/admin-guide/cgroup-v2.rst. cpu.stat exists in every cgroup."""

    def __init__(self, at: Hierarchy) -> None:
        """Open the files. Raises OSError."""
        self._stat, self._memory = _open_files(
            [(at.cpuacct, "cpu.stat", True), (at.memory, "memory.current", False)]
        )
        self._max = _Limits(at.cpu, at.path, "cpu.max")
        self._limit = _Limits(at.memory, at.path, "memory.max")

    def cpu_usec(self) -> int:
        """See Counters."""
        return _parse_optional(self._stat, parse_cpu_stat) or 0

    def memory_bytes(self) -> int | None:
        """See Counters."""
        return _parse_optional(self._memory, parse_count)

    def cpu_limit(self) -> Limit:
        """See Counters."""
        return self._max.read(parse_cpu_max)

    def memory_limit(self) -> Limit:
        """See Counters."""
        return self._limit.read(parse_memory_max)

    def close(self) -> None:
        """See Counters."""
        _close_files([self._stat, self._memory])
        self._max.close()
        self._limit.close()


class CountersV1:
    """kernel: Documentation/admin-guide/cgroup-v1/cpuacct.rst and memory.rst."""

    def __init__(self, at: Hierarchy) -> None:
        """Open the files. Raises OSError."""
        self._usage, self._memory = _open_files(
            [(at.cpuacct, "cpuacct.usage", True), (at.memory, "memory.usage_in_bytes", False)]
        )
        self._quota = _Limits(at.cpu, at.path, "cpu.cfs_quota_us", "cpu.cfs_period_us")
        self._limit = _Limits(at.memory, at.path, "memory.limit_in_bytes")

    def cpu_usec(self) -> int:
        """See Counters. The file counts nanoseconds."""
        return (_parse_optional(self._usage, parse_count) or 0) // 1000

    def memory_bytes(self) -> int | None:
        """See Counters."""
        return _parse_optional(self._memory, parse_count)

    def cpu_limit(self) -> Limit:
        """See Counters."""
        return self._quota.read(parse_cfs)

    def memory_limit(self) -> Limit:
        """See Counters."""
        return self._limit.read(parse_memory_max)

    def close(self) -> None:
        """See Counters."""
        _close_files([self._usage, self._memory])
        self._quota.close()
        self._limit.close()


class _Limits:
    """The files of one limit, in a cgroup and in those above it."""

    def __init__(self, directory: Path | None, path: str, *names: str) -> None:
        """Open them. A file that is missing or not readable counts as no limit."""
        found = levels(directory, path) if directory else Levels((), ())
        self._own = [files for level in found.own if (files := _open_all(level, names))]
        self._above = [files for level in found.above if (files := _open_all(level, names))]
        self._files = [file for files in self._own + self._above for file in files]
        self._contents: list[bytes] = []  # of `_files`, for which `_limit` is the result
        self._limit = Limit(None, None)

    def read(self, parse: Callable[..., int | None]) -> Limit:
        """Return the limits. `parse` takes the content of each file and raises ValueError.

        It is called only if a content has changed, which happens rarely.
        """
        contents = [file.read() for file in self._files]
        if contents != self._contents:
            read = dict(zip(self._files, contents, strict=True))
            self._limit = Limit(
                _smallest(self._own, read, parse), _smallest(self._above, read, parse)
            )
            self._contents = contents
        return self._limit

    def close(self) -> None:
        _close_files(self._files)


def _smallest(
    groups: list[list[KeptFile]], read: dict[KeptFile, bytes], parse: Callable[..., int | None]
) -> int | None:
    limits = (_parse_limit(files, [read[file] for file in files], parse) for files in groups)
    return min((limit for limit in limits if limit), default=None)  # a limit of 0 is not a size


def _parse_limit(
    files: list[KeptFile], contents: list[bytes], parse: Callable[..., int | None]
) -> int | None:
    try:
        return parse(*contents)
    except ValueError:
        raise TargetUnreadableError(f"{files[0].path}: not in the form of cgroups(7)") from None


def _open_all(directory: Path, names: Iterable[str]) -> list[KeptFile]:
    """Open all of the files, or none."""
    try:
        found = _open_files((directory, name, True) for name in names)
    except OSError:
        return []
    return [file for file in found if file]


def counters_of(at: Hierarchy) -> Counters:
    """Open the files of a cgroup. Raises OSError."""
    return CountersV2(at) if at.version == "cgroup.v2" else CountersV1(at)


def parse_cpu_stat(content: bytes) -> int:
    """Return usage_usec of v2's cpu.stat, whose order may vary. Raises ValueError."""
    match = _USAGE.search(content)
    if not match:
        raise ValueError(content)
    return int(match[1])


def parse_count(content: bytes) -> int:
    """Return a plain number. Raises ValueError."""
    return int(_require_match(_COUNT, content)[1])


def parse_cpu_max(content: bytes) -> int | None:
    """Return millicores of `max 100000` or `150000 100000`. Raises ValueError."""
    match = _require_match(_CPU_MAX, content)
    return None if match[1] == b"max" else int(match[1]) * 1000 // int(match[2])


def parse_quota(content: bytes) -> int | None:
    """Return v1's cpu.cfs_quota_us, microseconds per period; None for -1. Raises ValueError."""
    quota = int(_require_match(_QUOTA, content)[1])
    return None if quota < 0 else quota


def parse_cfs(quota_usec: bytes, period_usec: bytes) -> int | None:
    """Return millicores of v1's cpu.cfs_quota_us and cpu.cfs_period_us. Raises ValueError."""
    quota, period = parse_quota(quota_usec), parse_count(period_usec)
    return quota * 1000 // period if quota is not None and period else None


def parse_memory_max(content: bytes) -> int | None:
    """Return a limit in bytes; `max` and v1's huge number mean none. Raises ValueError."""
    limit = None if content.strip() == b"max" else parse_count(content)
    return None if limit is None or limit >= _NO_LIMIT_BYTES else limit


def _require_match(pattern: re.Pattern[bytes], content: bytes) -> re.Match[bytes]:
    match = pattern.fullmatch(content)
    if not match:
        raise ValueError(content)
    return match


def _parse_optional(file: KeptFile | None, parse: Callable[[bytes], T]) -> T | None:
    return None if file is None else file.parse(parse)


def _open_files(wanted: Iterable[tuple[Path | None, str, bool]]) -> list[KeptFile | None]:
    """Open each (directory, name, required). The result is None for a missing optional file."""
    files: list[KeptFile | None] = []
    try:
        for directory, name, required in wanted:
            files.append(_open_optional(directory, name, required=required))
    except OSError:
        _close_files(files)
        raise
    return files


def _open_optional(directory: Path | None, name: str, *, required: bool) -> KeptFile | None:
    if directory is None:
        return None
    try:
        return KeptFile(directory / name)
    except FileNotFoundError:
        if required:
            raise
        return None


def _close_files(files: Iterable[KeptFile | None]) -> None:
    for file in files:
        if file is not None:
            file.close()
