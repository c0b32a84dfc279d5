"""The index of SQLite's journal is a file that is mapped into memory (`-shm`).

Where that file has a hole and the disk is full, touching the hole is no error but a signal (SIGBUS)
that ends the process. SQLite writes one byte in 4 KiB, which leaves holes where a block is smaller
than that. So: nothing is opened without room for the index, and then its holes are filled.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from agents.core.errors import SpoolUnavailableError

INDEX_BYTES = 32 * 1024  # its first part, for 4062 pages of journal; SQLite's WAL format, section 2
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def check_room(path: Path) -> None:
    """Raise SpoolUnavailableError where the disk has no room for the index of `path`.

    Any other trouble (read-only, no right) is SQLite's to tell: there it gets an error.
    """
    probe = path.with_name(f"{path.name}-room")
    try:
        os.close(_allocated(probe, os.O_CREAT | os.O_RDWR))
    except OSError as error:
        if error.errno in NO_ROOM:
            raise SpoolUnavailableError(f"{path.parent}: the disk is full") from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


class JournalIndex:
    """The index of one open database; to be closed after it.

    Closing any descriptor of a file drops all locks that the process has on it (POSIX), SQLite's
    too: so the one that was needed to fill the holes stays open as long as the connection.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.with_name(f"{path.name}-shm")
        self._descriptor = -1

    def fill(self) -> None:
        """Give the file all its blocks. Raises OSError where the disk is full."""
        try:
            self._descriptor = _allocated(self._file, os.O_RDWR)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _allocated(file: Path, flags: int) -> int:
    descriptor = os.open(file, flags | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, INDEX_BYTES)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
