"""Durable files: atomic writes, content that survives a failed sync, reserved space, and locks.

After a failed sync the state of its pages is unknown. The kernel has marked them clean, so they
can be read, but the next successful sync does not write them (PostgreSQL calls this "fsyncgate").
So before anything depends on bytes that were read back after a failure, `rewrite_and_sync` writes
the same bytes again, in place, and syncs them.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from byoc_agents.errors import SpoolUnavailableError, SpoolUnusableError

CHUNK_BYTES = 1 << 20
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
MAX_LINE_BYTES = 64  # of the line in the lock file that stores a number
IN_USE = frozenset({errno.EWOULDBLOCK, errno.EAGAIN})  # flock(2): another process holds the lock
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
RESERVE_BYTES = 8 * 1024**2  # a journal of 4 MiB, and the same for the database file


def rewrite_and_sync(path: Path) -> None:
    """Write a file's own bytes over it, and sync them and its directory. Blocks. Raises OSError.

    The file may be missing. Nothing is done if the file system is read-only, because then nothing
    can depend on the file. The caller must be the only writer. A crash meanwhile changes no byte.
    """
    try:
        if path.exists():
            _sync_content(path)
        sync_directory(path.parent)
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


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable. Blocks. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def create_file(path: Path, content: bytes, *, prefix: str) -> None:
    """Create a file, complete or not at all, with durable content. Blocks. Raises OSError.

    Raises FileExistsError if the name exists: unlike a rename, a link never replaces a file. The
    name is durable after `sync_directory`. A killed process may leave a file with the prefix.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=prefix, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


class Disk:
    """All writes of a ledger, so that a test can make each fail. Methods block, raise OSError."""

    def write(self, descriptor: int, content: bytes) -> None:
        """Append all of it. Raises OSError; a part may have been written."""
        view = memoryview(content)
        while view:
            view = view[require_progress(os.write(descriptor, view)) :]

    def sync(self, descriptor: int) -> None:
        """Wait until all written bytes survive a power cut."""
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cut the file to this length in bytes."""
        os.ftruncate(descriptor, size_bytes)

    def place(self, content: bytes, path: Path) -> None:
        """Create or replace a file atomically and durably."""
        partial = path.with_name(f"{path.name}.partial")
        descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        try:
            self.write(descriptor, content)
            self.sync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)  # noqa: PTH105  its name states that it replaces
        self.sync_directory(path.parent)

    def remove(self, path: Path) -> None:
        """Delete a file; it may be gone already."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        """Make the entries of a directory durable."""
        sync_directory(directory)


def size_bytes(path: Path) -> int:
    """Return the length of a file in bytes, or 0 if it does not exist. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def unavailable_error(place: Path, error: OSError) -> SpoolUnavailableError:
    """Return the error to raise. A disk without room has one text, whatever call met it first."""
    why = "the disk is full" if error.errno in NO_ROOM else error.strerror
    return SpoolUnavailableError(f"{place}: {why}")


class DiskReserve:
    """A file of zeros: disk space reserved for acknowledgments. Methods block.

    SQLite needs free space even to delete. Without a reserve, nothing could be acknowledged on a
    full disk: the same messages would be sent again and again, and no space would ever be freed.
    New data is accepted only while the file exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = False

    def allocate(self) -> None:
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
            raise unavailable_error(self._path, error) from error
        self._held = True

    def release(self) -> bool:
        """Return the space to the disk. Return whether some was reserved."""
        self._held = False
        try:
            self._path.unlink()
        except OSError:  # the file does not exist, or the disk is read-only
            return False
        return True


def lock_refusal(error: OSError, holder: str = "daemon") -> str:
    """Return the cause of a failed flock(2) and the expectation, to follow the directory's name."""
    if error.errno in IN_USE:
        return f"is in use by another {holder}; expected one process per directory"
    refusal = f"cannot be locked ({error.strerror})"
    if error.errno not in NO_LOCKS:
        return refusal
    return (
        f"{refusal}: expected a file system with flock(2) locks, such as ext4, XFS or an emptyDir "
        "volume; NFS without its lock service and some FUSE and CSI drivers have none"
    )


class DirectoryLock:
    """A lock on a directory. The kernel releases it when the process ends for any reason."""

    def __init__(self, directory: Path, *, flock: Callable[[int, int], None] = fcntl.flock) -> None:
        """`flock` is called as flock(2) is, and raises OSError."""
        self._directory = directory
        self._flock = flock
        self._held = -1

    def hold(self) -> None:
        """Create the directory and lock it. If it was removed meanwhile, do both again.

        Raises SpoolUnavailableError, naming the directory, and SpoolUnusableError if another
        process holds it or the file system has no locks.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise unavailable_error(self._directory, error) from error
        if self._held >= 0 and os.path.sameopenfile(lock, self._held):
            os.close(lock)
            return
        try:
            self._flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise SpoolUnusableError(f"{self._directory} {lock_refusal(error)}") from error
        self.release()
        self._held = lock

    def next_epoch(self, least: int) -> int:
        """Return an epoch, `least` or more, that is larger than all earlier epochs here.

        It is stored in the lock file, which is kept when a damaged spool is replaced. A damaged
        lock file counts as empty. Blocks. Raises SpoolUnavailableError.
        """
        try:
            number = max(least, _parse_line(os.pread(self._held, MAX_LINE_BYTES, 0)) + 1)
            os.pwrite(self._held, _format_line(number), 0)
            os.fsync(self._held)
        except OSError as error:
            raise unavailable_error(self._directory, error) from error
        return number

    def release(self) -> None:
        """Unlock the directory for other processes."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _format_line(number: int) -> bytes:
    """Return the number with its CRC-32: `1795435200000 5d3ac0f1`."""
    digits = b"%d" % number
    return b"%s %08x\n" % (digits, zlib.crc32(digits))


def _parse_line(kept: bytes) -> int:
    line, end, _ = kept.partition(b"\n")
    digits = line.partition(b" ")[0]
    whole = digits.isdigit() and line + end == _format_line(int(digits))
    return int(digits) if whole else 0
