"""The format of the spool file, how it is opened, and what SQLite's errors mean for us.

WAL with synchronous=FULL: a commit that returned survives kill -9 and a power cut.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from byoc_agents.durable.wal_shm import JournalIndex
from byoc_agents.errors import (
    SpoolCorruptError,
    SpoolNewerError,
    SpoolUnavailableError,
    SpoolUnusableError,
)

VERSION = 1  # raised by whatever an older version must not touch; tests/upgrade holds each format
NEWEST_VERSION = 1000  # a larger number in the header is damage, not a newer format
JOURNAL_BYTES = 4 * 1024**2  # the journal is cut down to this after a checkpoint
MAGIC = b"SQLite format 3\0"
VERSION_AT = slice(60, 64)  # of the header, big-endian; SQLite's file format, section 1.3

_MESSAGE = """position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL,
  type TEXT NOT NULL, body BLOB NOT NULL, created_at_ms INTEGER NOT NULL, records INTEGER NOT NULL,
  content_type TEXT NOT NULL, content_encoding TEXT NOT NULL, grouped TEXT NOT NULL,
  replaces TEXT NOT NULL, sha256 BLOB NOT NULL"""
_SCHEMA = f"""
PRAGMA auto_vacuum=INCREMENTAL;
BEGIN IMMEDIATE;
CREATE TABLE message ({_MESSAGE});
CREATE INDEX message_replaces ON message (replaces) WHERE replaces <> '';
CREATE TABLE staged (position INTEGER PRIMARY KEY AUTOINCREMENT, line BLOB NOT NULL,
  sha256 BLOB NOT NULL);
CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL, sha256 BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE dead_letter ({_MESSAGE}, reason TEXT NOT NULL, detail TEXT NOT NULL,
  died_at_ms INTEGER NOT NULL);
PRAGMA user_version={VERSION};
COMMIT;
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, or make it where there is none. A file that is not ours is not touched.

    Raises SpoolCorruptError, SpoolNewerError, and SpoolUnavailableError for a failing disk.
    """
    with translated():
        fresh = not path.exists()
        if not fresh:
            _check_header(path)
            _check_journal(path)
        connection = _connection(path, "rwc" if fresh else "rw")
        try:
            if fresh:
                connection.executescript(_SCHEMA)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA journal_size_limit={JOURNAL_BYTES}")
        except BaseException:
            connection.close()
            raise
    return connection


def connect_damaged(path: Path) -> sqlite3.Connection:
    """Open a file as it is, to read what can be read. Raises sqlite3.Error."""
    connection = _connection(path, "rw")
    connection.execute("PRAGMA writable_schema=ON")  # else a file cut short is not read at all
    return connection


def _connection(path: Path, mode: str) -> sqlite3.Connection:
    index = JournalIndex(path)
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
    except BaseException:
        index.close()
        raise
    connection.index = index
    connection.execute("PRAGMA temp_store=MEMORY")  # else SQLite writes bodies into /var/tmp
    return connection


class _Connection(sqlite3.Connection):
    """A connection that lets go of the journal's index at the end."""

    index: JournalIndex

    def close(self) -> None:
        """Close the file, then the index."""
        super().close()
        self.index.close()


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(VERSION_AT.stop)
    version = int.from_bytes(header[VERSION_AT])
    if not header.startswith(MAGIC) or not 0 < version <= NEWEST_VERSION:
        raise SpoolCorruptError(f"{path} is not a spool")
    _check_version(path, version)


def _check_journal(path: Path) -> None:
    """Read the number that a killed newer version has left in the journal only."""
    journal = path.with_name(f"{path.name}-wal")
    if journal.exists() and journal.stat().st_size:
        with closing(_connection(path, "ro")) as connection:  # which leaves both as they are
            _check_version(path, connection.execute("PRAGMA user_version").fetchone()[0])


def _check_version(path: Path, version: int) -> None:
    if version > VERSION:
        raise SpoolNewerError(
            f"{path} was written by a newer version (format {version}, this one reads up to "
            f"{VERSION}): run the newer version, or move its directory away"
        )


def place(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from its successor (device, inode); None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


class translated:  # noqa: N801  reads as a word in `with translated():`
    """Turn the errors of sqlite3 and of the disk into ours; a wrong call stays what it is."""

    CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
    DAMAGED = ("no such table", "no such column", "Could not decode", "malformed database")
    # SQLite calls these "disk I/O error"; what failed is not the disk (os_unix.c, extended codes)
    UNUSABLE: ClassVar = {
        sqlite3.SQLITE_IOERR_SHMMAP: "cannot map a file into shared memory",
        sqlite3.SQLITE_IOERR_SHMLOCK: "cannot lock a file",
        sqlite3.SQLITE_IOERR_LOCK: "cannot lock a file",
        sqlite3.SQLITE_IOERR_RDLOCK: "cannot lock a file",
        sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK: "cannot lock a file",
    }
    DEFECTS = (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.IntegrityError)

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise our error from theirs."""
        if isinstance(error, OSError):
            raise SpoolUnavailableError(str(error)) from error
        if isinstance(error, sqlite3.Error) and not isinstance(error, self.DEFECTS):
            code = getattr(error, "sqlite_errorcode", 0)
            if what := self.UNUSABLE.get(code):
                raise SpoolUnusableError(
                    f"the file system {what} ({error}): expected a local file system such as ext4, "
                    "XFS or an emptyDir volume, not 9p, virtiofs, NFS or FUSE"
                ) from error
            broken = code & 0xFF in self.CORRUPT or str(error).startswith(self.DAMAGED)
            raise (SpoolCorruptError if broken else SpoolUnavailableError)(str(error)) from error
