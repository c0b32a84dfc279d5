"""Allocate the index of SQLite's journal, a file that is mapped into memory (`-shm`).

If that file has a hole and the disk is full, an access to the hole does not return an error: a
signal (SIGBUS) ends the process. SQLite writes one byte per 4 KiB, which leaves holes if a block is
smaller than that (ext4 on a small disk). So the file is created here, with all its blocks, before
SQLite opens it.
"""

import fcntl
import os
import struct
from pathlib import Path

from byoc_agents.durable.files import NO_ROOM, unavailable_error

INDEX_BYTES = 32 * 1024  # its first part, for 4062 pages of journal; SQLite's WAL format, section 2
IN_USE_AT = 128  # SQLite's "dead man's switch": without this lock it truncates the file


class WalIndex:
    """The index of one database: created before the database is opened, closed after it.

    Closing any descriptor of a file drops all locks that the process has on it (POSIX), including
    those of SQLite. So this descriptor stays open as long as the connection.
    """

    def __init__(self, path: Path) -> None:
        """Create the file. Raises SpoolUnavailableError if the disk is full.

        Other errors (read-only, no permission) are ignored here, because SQLite reports them.
        """
        self._descriptor = -1
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path.with_name(f"{path.name}-shm"), flags, 0o600)
            self._allocate()
        except OSError as error:
            self.close()
            if error.errno in NO_ROOM:
                raise unavailable_error(path.parent, error) from error

    def _allocate(self) -> None:
        if self._lock(fcntl.F_WRLCK):  # no process has it open: its content is obsolete
            os.ftruncate(self._descriptor, 0)
        os.posix_fallocate(self._descriptor, 0, INDEX_BYTES)
        self._lock(fcntl.F_RDLCK)  # in use: SQLite does not truncate it

    def _lock(self, kind: int) -> bool:
        """Take or change the lock, which belongs to the descriptor, not to the process."""
        wanted = struct.pack("hhqqi4x", kind, os.SEEK_SET, IN_USE_AT, 1, 0)  # struct flock
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Drop the lock, before SQLite closes the database.

        SQLite 3.51 and later take it for another process that uses the database, and then leave
        the journal as it is instead of writing it into the database.
        """
        if self._descriptor >= 0:
            self._lock(fcntl.F_UNLCK)

    def close(self) -> None:
        """Close the file. May be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
