"""Make bytes that were read back after a failure durable before anything depends on them.

After a failed sync the state of its pages is unknown. The kernel has marked them clean, so they
can be read, but the next successful sync does not write them (PostgreSQL calls this "fsyncgate").
So the same bytes are written again, in place, and synced.
"""

import errno
import os
from pathlib import Path

CHUNK_BYTES = 1 << 20
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def settle(path: Path) -> None:
    """Write a file's own bytes over it, and sync them and its directory. Blocks. Raises OSError.

    The file may be missing. Nothing is done if the file system is read-only, because then nothing
    can depend on the file. The caller must be the only writer. A crash meanwhile changes no byte.
    """
    try:
        if path.exists():
            _sync_content(path)
        _sync_directory(path.parent)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise


def _sync_content(path: Path) -> None:
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
            written = require_progress(os.pwrite(file, view, offset))
            view, offset = view[written:], offset + written


def require_progress(written_bytes: int) -> int:
    """Return the number of bytes written. Raises OSError for 0, because the caller would loop.

    After a short write the caller writes the remaining bytes next.
    """
    if not written_bytes:
        raise OSError(errno.ENOSPC, "nothing was written")
    return written_bytes


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
