"""What is read back after a failure is made durable before anything is built on it.

A sync that failed says nothing about the pages it was for: the kernel has marked them clean, so
they can be read, and the next sync, which succeeds, does not write them. (PostgreSQL's people call
it fsyncgate.) So the same bytes are written once more, in place, and synced.
"""

import errno
import os
from pathlib import Path

CHUNK_BYTES = 1 << 20
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def settle(path: Path) -> None:
    """Write a file's own bytes over it, and sync them and its directory. Raises OSError.

    The file may be missing. Nothing is done where it cannot be written: then nobody builds on it.
    The caller is the only one who writes it. A crash meanwhile changes no byte.
    """
    try:
        if path.exists():
            _settle_bytes(path)
        _settle_names(path.parent)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def _settle_bytes(path: Path) -> None:
    file = os.open(path, os.O_RDWR)
    try:
        _rewrite(file)
        os.fdatasync(file)
    finally:
        os.close(file)


def _rewrite(file: int) -> None:
    offset = 0
    while chunk := os.pread(file, CHUNK_BYTES, offset):
        view = memoryview(chunk)
        while view:
            written = some(os.pwrite(file, view, offset))
            view, offset = view[written:], offset + written


def some(written_bytes: int) -> int:
    """Return how much was written. Raises OSError for nothing at all: it would be tried for ever.

    What is missing after a short write is simply written next.
    """
    if not written_bytes:
        raise OSError(errno.ENOSPC, "nothing was written")
    return written_bytes


def _settle_names(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
