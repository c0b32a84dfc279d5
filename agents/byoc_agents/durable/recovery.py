"""Replace a damaged spool file: keep it under another name, copy rows whose hash is correct.

The new file is created under a name of its own, and gets the spool's name when it is complete.
After a kill before the damaged file was renamed, the next start finds the damage again. After a
kill between the two renames, it finds no file at the path but the complete new one, and uses it.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from byoc_agents.durable.files import sync_directory
from byoc_agents.durable.model import DeadLetter, WriteBatch
from byoc_agents.durable.schema import connect_damaged, translated
from byoc_agents.durable.store import COLUMNS, SpoolStore, message_digest, row_digest
from byoc_agents.errors import SpoolCorruptError
from byoc_agents.message import Message

INDEX = "-shm"
JOURNALS = ("-wal", INDEX, "-journal")
KEPT_DAMAGED = 3  # damaged files kept for inspection: the newest ones
READ_BYTES = 1 << 20
EPOCH = "spool/epoch"  # creation of this file, milliseconds since 1970; later than all earlier ones
ORIGIN = "spool/origin"  # reason for its creation: "created" or "corrupt"
COLUMNS_1 = COLUMNS.replace("stream, epoch, sequence", "'', 0, 0")  # of a file of format 1
PROBED = 100_000  # newest positions that are tried if the first position cannot be read


def finish_replacement(path: Path) -> bool:
    """Rename the complete new file of a replacement that was interrupted. Return if there was one.

    For a start that finds no file at the path. Blocks. Raises SpoolError.
    """
    fresh = _new_path(path)
    with translated():
        if not fresh.exists():
            return False
        try:
            with closing(SpoolStore(fresh, max_bytes=0)) as store:
                complete = bool(store.state(ORIGIN))  # written in one transaction with the rows
                store.flush_journal()
        except SpoolCorruptError:
            return False
        if complete:
            _replace_file(path)
        return complete


def discard_unfinished(path: Path) -> None:
    """Remove a new file that did not replace the one at the path. Raises SpoolError."""
    with translated():
        _unlink(_new_path(path))


def create_spool_file(path: Path, metadata: Mapping[str, bytes]) -> None:
    """Create an empty spool file with these metadata, all or nothing. Blocks. Raises SpoolError."""
    with translated():
        _fill(_choose_unused_path(path), metadata, ())
        _replace_file(path)


def read_through(path: Path) -> None:
    """Read a spool file and its journal once. Blocks. Raises OSError if the disk fails."""
    for name in (path, path.with_name(f"{path.name}-wal")):
        if name.exists():
            with name.open("rb") as file:
                while file.read(READ_BYTES):
                    pass


def rebuild(path: Path, lost: SpoolStore | None, metadata: Mapping[str, bytes]) -> tuple[int, str]:
    """Replace a damaged file with a new one. Return (rows copied, location of the damaged file).

    `lost` is the open store of a file that was removed. It can still be read, and is closed at the
    end. Blocks. Raises SpoolError: then nothing has changed.
    """
    with translated():
        if lost:
            rows = _fill(_choose_unused_path(path), metadata, salvage(lost.connection))
            lost.close()  # before the new file exists: SQLite deletes the journal by its name
        else:
            rows = _fill_from(path, metadata)
        aside = set_aside(path)
        _replace_file(path)
        return rows, f"set aside as {aside.name}" if aside.exists() else "nothing to set aside"


def set_aside(path: Path) -> Path:
    """Rename a damaged file and its journal, and return the new path. Raises OSError.

    The file goes first: without its journal it would be an older state.
    """
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    for suffix in ("", *JOURNALS):
        source = path.with_name(path.name + suffix)
        if suffix == INDEX:
            source.unlink(missing_ok=True)  # SQLite creates it again
        elif source.exists():
            source.rename(aside.with_name(aside.name + suffix))
    for old in sorted(path.parent.glob(f"{path.name}.corrupt-*[0-9]"))[:-KEPT_DAMAGED]:
        _unlink(old)
    return aside


def _new_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _choose_unused_path(path: Path) -> Path:
    fresh = _new_path(path)
    _unlink(fresh)
    return fresh


def _fill_from(damaged: Path, metadata: Mapping[str, bytes]) -> int:
    try:
        with closing(connect_damaged(damaged)) as connection:
            return _fill(_choose_unused_path(damaged), metadata, salvage(connection))
    except sqlite3.Error:  # nothing can be read
        return _fill(_choose_unused_path(damaged), metadata, ())


def _fill(fresh: Path, metadata: Mapping[str, bytes], changes: Iterable[WriteBatch]) -> int:
    rows = 0
    try:
        with closing(SpoolStore(fresh, max_bytes=0)) as store:
            with store.transaction():
                for change in changes:
                    store.apply(change, bounded=False)
                    rows += 1
                store.apply(WriteBatch(state=metadata), bounded=False)
            store.flush_journal()  # the file is renamed without its journal
    except BaseException:
        with suppress(OSError):
            _unlink(fresh)  # an incomplete file is useless
        raise
    return rows


def _replace_file(path: Path) -> None:
    for suffix in JOURNALS:  # of the old file: SQLite would apply them to the new one
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    _new_path(path).replace(path)
    sync_directory(path.parent)


def _unlink(path: Path) -> None:
    for suffix in ("", *JOURNALS):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def salvage(connection: sqlite3.Connection) -> Iterator[WriteBatch]:
    """Yield each readable message, staged line and dead letter, one change per row. Blocks.

    It is safe to send one of them again, because its id is the same. Checkpoints are not salvaged:
    with an older checkpoint, usage would be counted twice.
    """
    names = _message_columns(connection, "message") + ", sha256"
    for *columns, sha256 in _rows(connection, "message", names):
        if sha256 == message_digest(columns):
            yield WriteBatch(messages=[Message(*columns)])
    for line, sha256 in _rows(connection, "staged", "line, sha256"):
        if sha256 == row_digest(line):
            yield WriteBatch(stage=[line])
    names = _message_columns(connection, "dead_letter") + ", sha256, reason, detail, died_at_ms"
    for *columns, sha256, reason, detail, at_ms in _rows(connection, "dead_letter", names):
        if sha256 == message_digest(columns):
            letter = DeadLetter(Message(*columns), reason, detail, at_ms)
            yield WriteBatch(dead_letters=[letter])


def _message_columns(connection: sqlite3.Connection, table: str) -> str:
    """Return what to select for COLUMNS. A file may still be of format 1, without positions."""
    try:
        connection.execute(f"SELECT stream, epoch, sequence FROM {table} LIMIT 0")  # noqa: S608
    except sqlite3.Error:
        return COLUMNS_1
    return COLUMNS


def _rows(connection: sqlite3.Connection, table: str, columns: str) -> Iterator[Any]:
    one = f"SELECT {columns} FROM {table} WHERE position = ?"  # noqa: S608  constants
    for position in _positions(connection, table):
        try:
            yield from connection.execute(one, (position,)).fetchall()
        except sqlite3.Error:  # this row is lost; the next may not be
            continue


def _positions(connection: sqlite3.Connection, table: str) -> range:
    last = _number(connection, f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'")  # noqa: S608
    if last is None:
        last = _number(connection, f"SELECT max(position) FROM {table}") or 0  # noqa: S608
    first = _number(connection, f"SELECT min(position) FROM {table}")  # noqa: S608
    return range(max(1, last - PROBED + 1) if first is None else first, last + 1)


def _number(connection: sqlite3.Connection, query: str) -> int | None:
    try:
        row = connection.execute(query).fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row and isinstance(row[0], int) else None
