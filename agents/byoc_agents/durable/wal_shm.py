"""The index of SQLite's journal is a file that is mapped into memory (`-shm`).

Where that file has a hole and the disk is full, touching the hole is no error but a signal (SIGBUS)
that ends the process. SQLite writes one byte in 4 KiB, which leaves holes where a block is smaller
than that (ext4 on a small disk). So the file is made here, with all its blocks, before SQLite
opens it.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path

from byoc_agents.errors import SpoolUnavailableError

INDEX_BYTES = 32 * 1024  # its first part, for 4062 pages of journal; SQLite's WAL format, section 2
IN_USE_AT = 128  # SQLite's "dead man's switch": who has no lock on it cuts the file; os_unix.c
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class JournalIndex:
    """The index of one database: made before it is opened, closed after it.

    Closing any descriptor of a file drops all locks that the process has on it (POSIX), SQLite's
    too: so ours stays open as long as the connection.
    """

    def __init__(self, path: Path) -> None:
        """Make it. Raises SpoolUnavailableError where the disk is full.

        Any other trouble (read-only, no right) is SQLite's to tell: there it gets an error.
        """
        self._descriptor = -1
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path.with_name(f"{path.name}-shm"), flags, 0o600)
            self._make()
        except OSError as error:
            self.close()
            if error.errno in NO_ROOM:
                raise SpoolUnavailableError(f"{path.parent}: the disk is full") from error

    def _make(self) -> None:
        if self._lock(fcntl.F_WRLCK):  # nobody has it open: what is in it is of the past
            os.ftruncate(self._descriptor, 0)
        os.posix_fallocate(self._descriptor, 0, INDEX_BYTES)
        self._lock(fcntl.F_RDLCK)  # in use: SQLite does not cut it

    def _lock(self, kind: int) -> bool:
        """Take or change our lock, which is the descriptor's and not the process's."""
        wanted = struct.pack("hhqqi4x", kind, os.SEEK_SET, IN_USE_AT, 1, 0)  # struct flock
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
