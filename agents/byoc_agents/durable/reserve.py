"""Disk space that is kept for acknowledgements.

SQLite needs room even to delete. On a full disk nothing could be acknowledged, so the same messages
would be sent for ever and the disk would never get room again.
"""

import os
from pathlib import Path

from byoc_agents.errors import SpoolUnavailableError

RESERVE_BYTES = 8 * 1024**2  # a journal of 4 MiB, and as much for the file it is written into


class Reserve:
    """A file of nothing. New data is taken only while it stands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = False

    def take(self) -> None:
        """Have the space. Raises SpoolUnavailableError when the disk has not that much."""
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
        """Give the space away. Return whether there was some, and the disk has it back."""
        self._held = False
        try:
            self._path.unlink()
        except OSError:  # there was none, or the disk is read-only
            return False
        return True
