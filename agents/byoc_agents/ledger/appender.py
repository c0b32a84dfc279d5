"""The file that is being written: its accepted bytes, and how many of them are durable.

After a failure the file is closed, opened again and cut to its durable bytes, and the other
accepted bytes are written again: after a failed fsync the state of its pages is unknown.
"""

import contextlib
import os
from pathlib import Path

from byoc_agents.app.clock import Clock
from byoc_agents.ledger.files import Disk
from byoc_agents.ledger.format import RecoveredWhy

MAX_UNSYNCED_BYTES = 256 * 1024  # kept in memory until the next sync
SYNC_NS = 1_000_000_000  # longest wait of other lines for a sync, if lines follow


class Tail:
    """One open file. Methods block and raise OSError: then call `drop`; `ready` opens it again."""

    def __init__(self, disk: Disk, clock: Clock) -> None:
        self.unsynced = b""  # the end of the file, accepted and not yet durable
        self._disk = disk
        self._clock = clock
        self._path = Path()
        self._file = -1
        self._inode = 0
        self._length = 0  # bytes that are accepted
        self._synced_boot_ns = 0

    def take(self, path: Path, length: int) -> None:
        """Write this file from now on, after its first `length` bytes, which are durable."""
        self.drop()
        self._path, self._length, self.unsynced = path, length, b""

    def ready(self) -> RecoveredWhy | None:
        """Open the file if it is closed. Return how another process changed it, or None."""
        try:
            if self._file < 0:
                return self._open()
            seen = self._path.stat()
        except FileNotFoundError:
            return "gone"
        if seen.st_ino != self._inode:
            return "gone"
        return None if seen.st_size == self._length else "damaged"

    def _open(self) -> RecoveredWhy | None:
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND)
        seen = os.fstat(self._file)
        self._inode = seen.st_ino
        durable_bytes = self._length - len(self.unsynced)
        if seen.st_size < durable_bytes:
            return "damaged"
        self._disk.truncate(self._file, durable_bytes)
        self._disk.write(self._file, self.unsynced)
        return None

    def write(self, content: bytes, *, durable: bool) -> None:
        """Append. Sync if it must be durable, or if enough bytes or time have accumulated."""
        self._disk.write(self._file, content)
        late = self._clock.boot_ns() - self._synced_boot_ns >= SYNC_NS
        if durable or late or len(self.unsynced) + len(content) > MAX_UNSYNCED_BYTES:
            self.sync()
        else:
            self.unsynced += content
        self._length += len(content)

    def sync(self) -> None:
        """Make all accepted bytes durable."""
        self._disk.sync(self._file)
        self._synced_boot_ns = self._clock.boot_ns()
        self.unsynced = b""

    def drop(self) -> None:
        """Close the file."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1
