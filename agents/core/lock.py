"""One process a directory."""

import fcntl
import os
from pathlib import Path

from agents.core.errors import SpoolUnavailableError


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

    def release(self) -> None:
        """Let another process have the directory."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
