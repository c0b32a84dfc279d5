"""The index of SQLite's journal is not locked while the database is closed."""

import fcntl
import os
import struct
from pathlib import Path

from byoc_agents.durable.wal_shm import IN_USE_AT, WalIndex


def is_locked(path: Path) -> bool:
    """Return whether a lock would conflict, which SQLite 3.51 and later ask of the kernel."""
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, IN_USE_AT, 1, 0)  # struct flock
    file = os.open(path, os.O_RDWR)
    try:
        (kind, *_) = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
    finally:
        os.close(file)
    return bool(kind != fcntl.F_UNLCK)


def test_it_is_locked_until_it_is_released(tmp_path: Path) -> None:
    """SQLite would take the lock for another process, and leave the last commits in the journal."""
    path = tmp_path / "spool.db"
    index = WalIndex(path)
    assert is_locked(tmp_path / "spool.db-shm")
    index.release()
    assert not is_locked(tmp_path / "spool.db-shm")
    index.close()
    index.release()  # without effect
