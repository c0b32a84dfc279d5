"""Files that others write (settings, secrets, certificates), read within limits.

A path may name a FIFO, a device, or a file on a mount that no longer responds. Opening or reading
these can block without end. Therefore only regular files are read, only up to a size limit, and in
a thread that is waited for only up to a time limit.
"""

import errno
import os
import stat
import threading
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

START_SECONDS = 5.0  # for one file at the start of the process
MAX_SECRET_BYTES = 64 * 1024
MAX_CONFIG_BYTES = 1 << 20
MAX_CERTIFICATES_BYTES = 4 << 20  # a distribution's bundle of CAs has about 250 KiB

KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


class NotReadableError(ValueError):
    """A path that is not a regular file within the limit, or that did not respond in time."""


class Version(NamedTuple):
    """A file's version. It changes with the content: Kubernetes replaces a symlink."""

    mtime_ns: int
    size: int
    inode: int


class Content(NamedTuple):
    """A file's bytes and its version."""

    content: bytes
    version: Version


def read_regular(path: str, max_bytes: int, known: Version | None = None) -> Content | None:
    """Return a regular file's bytes, or None if it is still the `known` version.

    A symlink to a regular file is followed. May block: see `FileContent`. Raises OSError and
    NotReadableError.
    """
    found = os.stat(path)  # noqa: PTH116  before opening: opening a device can have effects
    _check(path, found, max_bytes)
    if known is not None and _version(found) == known:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)  # it may be another file by now
        _check(path, found, max_bytes)
        content = b""
        while len(content) <= max_bytes:
            chunk = os.read(descriptor, max_bytes + 1 - len(content))
            if not chunk:
                return Content(content, _version(found))
            content += chunk
    finally:
        os.close(descriptor)
    raise NotReadableError(f"{path} is too large; {_describe_limit(max_bytes)}")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading, without blocking on a FIFO or a device.

    Raises OSError, with errno EINVAL for anything but a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{_kind(mode)}; expected a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def _kind(mode: int) -> str:
    return next((name for test, name in KINDS if test(mode)), "not a regular file")


def _check(path: str, found: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotReadableError(f"{path} is {_kind(found.st_mode)}; {_describe_limit(max_bytes)}")
    if found.st_size > max_bytes:
        raise NotReadableError(f"{path} has {found.st_size} bytes; {_describe_limit(max_bytes)}")


def _version(found: os.stat_result) -> Version:
    return Version(found.st_mtime_ns, found.st_size, found.st_ino)


def _describe_limit(max_bytes: int) -> str:
    return f"expected a regular file of at most {max_bytes} bytes"


class FileContent:
    """One `read_regular` in a daemon thread, so that a hung mount blocks only that thread."""

    def __init__(self, path: str, max_bytes: int, known: Version | None = None) -> None:
        """Start reading."""
        self._path = path
        self._max_bytes = max_bytes
        self._known = known
        self._content: Content | None = None
        self._error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, name="file", daemon=True).start()

    def _run(self) -> None:
        try:
            self._content = read_regular(self._path, self._max_bytes, self._known)
        except (OSError, ValueError) as error:  # ValueError: also a path with a NUL
            self._error = error
        finally:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        """Wait at most so many seconds; return whether the reading has ended."""
        return self._done.wait(seconds)

    def result(self) -> Content | None:
        """Return the result of `read_regular`, or raise its error.

        Raises NotReadableError if it has not ended.
        """
        if not self._done.is_set():
            raise NotReadableError(
                f"{self._path} does not respond (a hung mount?); {_describe_limit(self._max_bytes)}"
            )
        if self._error:
            raise self._error
        return self._content


def read_within(path: str, max_bytes: int, seconds: float = START_SECONDS) -> bytes:
    """Return a regular file's bytes within a time. Raises OSError and NotReadableError."""
    reading = FileContent(path, max_bytes)
    reading.wait(seconds)
    content = reading.result()
    assert content is not None  # noqa: S101  no version was given
    return content.content
