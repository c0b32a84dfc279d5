"""The format of the spool file, how it is opened, and the translation of SQLite's errors.

WAL with synchronous=FULL: a commit that returned survives kill -9 and a power cut.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from byoc_agents.durable.wal_shm import WalIndex
from byoc_agents.errors import (
    SpoolCorruptError,
    SpoolNewerError,
    SpoolUnavailableError,
    SpoolUnusableError,
)

VERSION = 2  # increased if older versions cannot handle a change; see tests/upgrade
NEWEST_VERSION = 1000  # a larger number in the header is damage, not a newer format
JOURNAL_BYTES = 4 * 1024**2  # the journal is cut down to this after a checkpoint
MAGIC = b"SQLite format 3\0"
VERSION_AT = slice(60, 64)  # of the header, big-endian; SQLite's file format, section 1.3

_MESSAGE = """position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL,
  type TEXT NOT NULL, body BLOB NOT NULL, created_at_ms INTEGER NOT NULL, records INTEGER NOT NULL,
  content_type TEXT NOT NULL, content_encoding TEXT NOT NULL, grouped TEXT NOT NULL,
  replaces TEXT NOT NULL, stream TEXT NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,
  sha256 BLOB NOT NULL"""
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
_FROM_1 = tuple(  # the messages of format 1 have no position in a stream
    f"ALTER TABLE {table} ADD COLUMN {column}"
    for table in ("message", "dead_letter")
    for column in (
        "stream TEXT NOT NULL DEFAULT ''",
        "epoch INTEGER NOT NULL DEFAULT 0",
        "sequence INTEGER NOT NULL DEFAULT 0",
    )
)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, or create it if it does not exist.

    A file of an earlier format is changed to this one, a file of a later format is not touched.

    Blocks. Raises SpoolCorruptError, SpoolNewerError, and SpoolUnavailableError if the disk fails.
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
            if _read_version(connection) < VERSION:
                _migrate(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def connect_damaged(path: Path) -> sqlite3.Connection:
    """Open a damaged file as it is, to read its intact rows. Blocks. Raises sqlite3.Error."""
    connection = _connection(path, "rw")
    connection.execute(
        "PRAGMA writable_schema=ON"
    )  # without it, SQLite reads nothing from a truncated file
    return connection


def _read_version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _migrate(connection: sqlite3.Connection) -> None:
    """Change a file of format 1 to this format, all or nothing. Rewrites no row."""
    connection.execute("BEGIN IMMEDIATE")
    if _read_version(connection) < VERSION:  # `dead-letters` may have done it meanwhile
        for statement in _FROM_1:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute("COMMIT")


def _connection(path: Path, mode: str) -> sqlite3.Connection:
    index = WalIndex(path)
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
    connection.execute("PRAGMA temp_store=MEMORY")  # without it, SQLite writes bodies to /var/tmp
    return connection


class _Connection(sqlite3.Connection):
    """A connection that also closes the journal's index."""

    index: WalIndex

    def close(self) -> None:
        """Close the file, then the index."""
        self.index.release()
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
    """Check the version that a killed newer version has written to the journal only."""
    journal = path.with_name(f"{path.name}-wal")
    if journal.exists() and journal.stat().st_size:
        with closing(_connection(path, "ro")) as connection:  # read-only: changes neither file
            _check_version(path, _read_version(connection))


def _check_version(path: Path, version: int) -> None:
    if version > VERSION:
        raise SpoolNewerError(
            f"{path} was written by a newer version (format {version}, this one reads up to "
            f"{VERSION}): run the newer version, or move its directory away"
        )


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return (device, inode), which differ after a replacement, or None if there is no file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


class translated:  # noqa: N801  used as a function: `with translated():`
    """Translate the errors of sqlite3 and of the disk to SpoolErrors. Defects of calls stay."""

    CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
    DAMAGED = ("no such table", "no such column", "Could not decode", "malformed database")
    # SQLite calls these "disk I/O error"; the disk did not fail (os_unix.c, extended codes)
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
        """Raise the translated error."""
        if isinstance(error, OSError):
            raise SpoolUnavailableError(str(error)) from error
        if isinstance(error, sqlite3.Error) and not isinstance(error, self.DEFECTS):
            code = getattr(error, "sqlite_errorcode", 0)
            if cause := self.UNUSABLE.get(code):
                raise SpoolUnusableError(
                    f"the file system {cause} ({error}): expected a local file system such as "
                    "ext4, XFS or an emptyDir volume, not 9p, virtiofs, NFS or FUSE"
                ) from error
            broken = code & 0xFF in self.CORRUPT or str(error).startswith(self.DAMAGED)
            raise (SpoolCorruptError if broken else SpoolUnavailableError)(str(error)) from error
