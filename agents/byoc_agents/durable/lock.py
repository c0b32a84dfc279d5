"""One process per directory, and numbers that increase for as long as the directory exists."""

import errno
import fcntl
import os
import zlib
from collections.abc import Callable
from pathlib import Path

from byoc_agents.errors import SpoolUnavailableError, SpoolUnusableError

MAX_LINE_BYTES = 64  # of the line that stores a number

IN_USE = frozenset({errno.EWOULDBLOCK, errno.EAGAIN})  # flock(2): another process holds the lock
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})


def lock_refusal(error: OSError, holder: str = "agent") -> str:
    """Return the cause of a failed flock(2) and the expectation, to follow the directory's name."""
    if error.errno in IN_USE:
        return f"is in use by another {holder}; expected one process per directory"
    refusal = f"cannot be locked ({error.strerror})"
    if error.errno not in NO_LOCKS:
        return refusal
    return (
        f"{refusal}: expected a file system with flock(2) locks, such as ext4, XFS or an emptyDir "
        "volume; NFS without its lock service and some FUSE and CSI drivers have none"
    )


class DirectoryLock:
    """A lock on a directory. The kernel releases it when the process ends for any reason."""

    def __init__(self, directory: Path, *, flock: Callable[[int, int], None] = fcntl.flock) -> None:
        """`flock` is called as flock(2) is, and raises OSError."""
        self._directory = directory
        self._flock = flock
        self._held = -1

    def hold(self) -> None:
        """Create the directory and lock it. If it was removed meanwhile, do both again.

        Raises SpoolUnavailableError, naming the directory, and SpoolUnusableError if another
        process holds it or the file system has no locks.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise SpoolUnavailableError(f"{self._directory}: {error.strerror}") from error
        if self._held >= 0 and os.path.sameopenfile(lock, self._held):
            os.close(lock)
            return
        try:
            self._flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise SpoolUnusableError(f"{self._directory} {lock_refusal(error)}") from error
        self.release()
        self._held = lock

    def number(self, least: int) -> int:
        """Return a number, `least` or more, that is larger than all earlier numbers here.

        It is stored in the lock file, which is kept when a damaged spool is replaced. A damaged
        lock file counts as empty. Blocks. Raises SpoolUnavailableError.
        """
        try:
            number = max(least, _parse_line(os.pread(self._held, MAX_LINE_BYTES, 0)) + 1)
            os.pwrite(self._held, _format_line(number), 0)
            os.fsync(self._held)
        except OSError as error:
            raise SpoolUnavailableError(f"{self._directory}: {error.strerror}") from error
        return number

    def release(self) -> None:
        """Unlock the directory for other processes."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _format_line(number: int) -> bytes:
    """Return the number with its CRC-32: `1795435200000 5d3ac0f1`."""
    digits = b"%d" % number
    return b"%s %08x\n" % (digits, zlib.crc32(digits))


def _parse_line(kept: bytes) -> int:
    line, end, _ = kept.partition(b"\n")
    digits = line.partition(b" ")[0]
    whole = digits.isdigit() and line + end == _format_line(int(digits))
    return int(digits) if whole else 0
