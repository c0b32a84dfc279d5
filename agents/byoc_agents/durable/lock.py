"""One process a directory, and numbers that rise as long as the directory is there."""

import fcntl
import os
import zlib
from pathlib import Path

from byoc_agents.errors import SpoolUnavailableError

LONGEST = 64  # bytes of the line that keeps a number


class DirectoryLock:
    """A lock that ends with the process, however it ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held = -1

    def hold(self) -> None:
        """Make the directory and lock it; again where it was removed meanwhile.

        Raises SpoolUnavailableError, naming the directory.
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
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise SpoolUnavailableError(
                f"{self._directory} is in use by another agent; one process a directory"
            ) from error
        self.release()
        self._held = lock

    def number(self, least: int) -> int:
        """Return a number, `least` or more, that is larger than any this directory has given.

        It is kept in the lock's file, which outlives a damaged spool. A file that is damaged itself
        counts as none. Blocks. Raises SpoolUnavailableError.
        """
        try:
            number = max(least, _number(os.pread(self._held, LONGEST, 0)) + 1)
            os.pwrite(self._held, _line(number), 0)
            os.fsync(self._held)
        except OSError as error:
            raise SpoolUnavailableError(f"{self._directory}: {error.strerror}") from error
        return number

    def release(self) -> None:
        """Let another process have the directory."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _line(number: int) -> bytes:
    """Return the number with its CRC-32: `1795435200000 5d3ac0f1`."""
    digits = b"%d" % number
    return b"%s %08x\n" % (digits, zlib.crc32(digits))


def _number(kept: bytes) -> int:
    line, end, _ = kept.partition(b"\n")
    digits = line.partition(b" ")[0]
    whole = digits.isdigit() and line + end == _line(int(digits))
    return int(digits) if whole else 0
