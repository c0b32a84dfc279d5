"""Disk space reserved for acknowledgements.

SQLite needs free space even to delete. Without a reserve, nothing could be acknowledged on a full
disk: the same messages would be sent again and again, and no space would ever be freed.
"""

import os
from pathlib import Path

from byoc_agents.errors import SpoolUnavailableError

RESERVE_BYTES = 8 * 1024**2  # a journal of 4 MiB, and the same for the database file


class Reserve:
    """A file of zeros. New data is accepted only while it exists. Methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = False

    def take(self) -> None:
        """Allocate the space. Raises SpoolUnavailableError if the disk does not have it."""
        if self._held:
            return
        try:
            file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(file, 0, RESERVE_BYTES)
            finally:
                os.close(file)
        except OSError as error:
            self.release()
            raise SpoolUnavailableError(f"{self._path}: {error.strerror}") from error
        self._held = True

    def release(self) -> bool:
        """Return the space to the disk. Return whether some was reserved."""
        self._held = False
        try:
            self._path.unlink()
        except OSError:  # the file does not exist, or the disk is read-only
            return False
        return True
