"""One process a directory, and numbers that rise as long as the directory is there."""

import fcntl
import os
from pathlib import Path

from agents.core.errors import SpoolUnavailableError

LONGEST = 15  # digits of a number that is kept: milliseconds since 1970, until the year 33658


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

        It is kept in the lock's file, which outlives a damaged spool. Raises SpoolUnavailableError.
        """
        try:
            kept = os.pread(self._held, LONGEST, 0).strip()
            before = int(kept) if kept.isdigit() else 0
            number = max(least, before + 1)
            os.pwrite(self._held, b"%d\n" % number, 0)
            os.fsync(self._held)
        except OSError as error:
            raise SpoolUnavailableError(f"{self._directory}: {error.strerror}") from error
        return number

    def release(self) -> None:
        """Let another process have the directory."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
