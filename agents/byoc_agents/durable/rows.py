"""Rows of the spool file: create them from messages, check their hashes, count them."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, TypeVar

from byoc_agents.delivery.sink import Message
from byoc_agents.durable.write_batch import UNKNOWN_MS, DeadLetter, Totals
from byoc_agents.errors import SpoolCorruptError, SpoolError

ROW_OVERHEAD_BYTES = 512  # keys, hash and index entries of one row, rounded up
ROWS_PER_STATEMENT = 16  # each statement releases the interpreter lock and waits for it again

COLUMNS = (
    "id, type, body, created_at_ms, records, content_type, content_encoding, grouped, replaces"
)

T = TypeVar("T")


def row_of(message: Message) -> tuple[object, ...]:
    """Return the values of COLUMNS and their hash."""
    row = (
        message.id,
        message.type,
        message.body,
        message.created_at_ms,
        message.records,
        message.content_type,
        message.content_encoding,
        message.group,
        message.replaces,
    )
    return *row, digest(*row)


def put(connection: sqlite3.Connection, messages: Sequence[Message]) -> tuple[int, int, int]:
    """Queue new messages. Return their number, bytes and records; ids that exist are ignored.

    Raises sqlite3.Error.
    """
    verb = f"INSERT OR IGNORE INTO message ({COLUMNS}, sha256)"
    added = _write(connection, verb, [row_of(message) for message in messages])
    if added == len(messages):
        return added, sum(len(m.body) for m in messages), sum(m.records for m in messages)
    last = "SELECT body, records FROM message ORDER BY position DESC LIMIT ?"
    sums = f"SELECT total(length(body)), total(records) FROM ({last})"  # noqa: S608
    size, records = connection.execute(sums, (added,)).fetchone()
    return added, int(size), int(records)


def stage(connection: sqlite3.Connection, lines: Sequence[bytes]) -> None:
    """Store lines that wait for their batch. Raises sqlite3.Error."""
    _write(connection, "INSERT INTO staged (line, sha256)", [(x, digest(x)) for x in lines])


def unstage(connection: sqlite3.Connection, lines: int) -> int:
    """Delete the oldest staged lines. Return their bytes. Raises sqlite3.Error, SpoolError."""
    oldest = "SELECT position, length(line) FROM staged ORDER BY position LIMIT ?"
    rows = connection.execute(oldest, (lines,)).fetchall()
    if len(rows) < lines:  # the caller remembers lines of a file that has been replaced
        raise SpoolError(f"{len(rows)} lines are staged, not {lines}: read them again")
    connection.execute("DELETE FROM staged WHERE position <= ?", (rows[-1][0],))
    return sum(size for _, size in rows)


def put_dead(connection: sqlite3.Connection, letter: DeadLetter) -> None:
    """Store a dead letter. Raises sqlite3.Error."""
    connection.execute(
        f"INSERT INTO dead_letter ({COLUMNS}, sha256, reason, detail, died_at_ms)"  # noqa: S608
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        (*row_of(letter.message), letter.reason, letter.detail, letter.died_at_ms),
    )


def _write(connection: sqlite3.Connection, verb: str, rows: Sequence[Sequence[object]]) -> int:
    """Insert rows with few statements. Return how many were new. Raises sqlite3.Error.

    `verb` is the statement up to VALUES.
    """
    added = 0
    for few in _chunk(rows):
        statement = _statement(verb, len(few), len(few[0]))
        added += connection.execute(statement, [*chain.from_iterable(few)]).rowcount
    return added


@cache
def _statement(verb: str, rows: int, columns: int) -> str:
    places = f"({','.join('?' * columns)})"
    return f"{verb} VALUES {','.join([places] * rows)}"


def keep(connection: sqlite3.Connection, state: Mapping[str, bytes | None]) -> None:
    """Write checkpoints; None removes one. Raises sqlite3.Error."""
    for few in _chunk([key for key, value in state.items() if value is None]):
        places = ",".join("?" * len(few))
        connection.execute(f"DELETE FROM state WHERE key IN ({places})", few)  # noqa: S608
    kept = [(k, v, digest(k, v)) for k, v in state.items() if v is not None]
    _write(connection, "INSERT OR REPLACE INTO state", kept)


def _chunk(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the rows in chunks for one statement each."""
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        yield rows[start : start + ROWS_PER_STATEMENT]


def digest(*columns: object) -> bytes:
    """Return the SHA-256 that is stored with the columns, to detect damage."""
    plain = [len(column) if isinstance(column, bytes) else column for column in columns]
    found = hashlib.sha256(repr(plain).encode())
    for column in columns:
        if isinstance(column, bytes):
            found.update(column)
    return found.digest()


def checked(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the row without its hash, the last column. Raises SpoolCorruptError."""
    *columns, sha256 = row
    if digest(*columns) != sha256:
        raise SpoolCorruptError("stored bytes have changed on disk")
    return tuple(columns)


def message_of(row: tuple[Any, ...]) -> Message:
    """Return the message of COLUMNS and its hash. Raises SpoolCorruptError."""
    return Message(*checked(row))


def count(connection: sqlite3.Connection) -> Totals:
    """Return the totals of the file. Raises sqlite3.Error."""

    def sums(table: str, body: str, records: str) -> tuple[int, int, int]:
        query = f"SELECT count(*), coalesce(sum(length({body})), 0), {records} FROM {table}"  # noqa: S608
        row: tuple[int, int, int] = connection.execute(query).fetchone()
        return row

    messages, message_bytes, records = sums("message", "body", "coalesce(sum(records), 0)")
    lines, line_bytes, _ = sums("staged", "line", "0")
    dead, dead_bytes, _ = sums("dead_letter", "body", "0")
    rows = messages + lines + dead
    size = message_bytes + line_bytes + dead_bytes + rows * ROW_OVERHEAD_BYTES
    return Totals(records + lines, size, oldest_ms(connection), dead)


def oldest_ms(connection: sqlite3.Connection) -> int | None:
    """Return when the oldest message was sealed, None if there is none. Raises sqlite3.Error."""
    query = "SELECT created_at_ms FROM message ORDER BY position LIMIT 1"
    (at_ms,) = connection.execute(query).fetchone() or (None,)
    return at_ms


def apply_delta(totals: Totals, size: int, *, rows: int, records: int, dead: int) -> Totals:
    """Return the totals plus these numbers, which may be negative. `size` is in bytes.

    If messages are added behind a queued one, the oldest message stays the same.
    """
    oldest = totals.oldest_created_at_ms
    behind = rows > 0 and oldest is not None
    return Totals(
        records=totals.records + records,
        bytes=totals.bytes + size + rows * ROW_OVERHEAD_BYTES,
        oldest_created_at_ms=oldest if behind else UNKNOWN_MS,
        dead_letters=totals.dead_letters + dead,
    )


def others_commits(connection: sqlite3.Connection) -> int:
    """Return a number that changes with every commit that another connection has made."""
    (number,) = connection.execute("PRAGMA data_version").fetchone()
    return int(number)
