"""The SQL of the spool: plain, blocking, one thread.

Data that must stay consistent (a message, the checkpoint that it was made from, the staged lines
that it contains) changes in one transaction. Each row has a hash of its values, to detect damage.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from itertools import chain, groupby
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from byoc_agents.durable.model import UNKNOWN_MS, DeadLetter, Totals, WriteBatch
from byoc_agents.durable.schema import connect, file_identity, translated
from byoc_agents.errors import (
    SpoolCorruptError,
    SpoolError,
    SpoolFullError,
    SpoolUnavailableError,
)
from byoc_agents.message import Message

ROW_OVERHEAD_BYTES = 512  # keys, hash and index entries of one row, rounded up
ROWS_PER_STATEMENT = 16  # each statement releases the interpreter lock and waits for it again
VACUUM_PAGES = 1024  # 4 MiB: return free pages to the file system in this amount

COLUMNS = (  # of the fields of Message; its `events` are in `records`
    "id, type, body, created_at_ms, records, content_type, content_encoding, grouped, replaces, "
    "stream, epoch, sequence"
)
UNNUMBERED = 9  # the columns up to `replaces`: all that the hash of an unnumbered message covers

T = TypeVar("T")


class SpoolStore:
    """One open file. Every method may block and is called from one thread.

    Methods that change the file are called inside a `transaction`, which undoes a failed one.
    Raises SpoolFullError (size limit reached), SpoolUnavailableError (the disk fails) and
    SpoolCorruptError (the file must be replaced).
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.connection = connect(path)
        self._path = path
        self._journal_path = path.with_name(f"{path.name}-wal")
        self.max_bytes = max_bytes
        self.pinned: frozenset[str] = frozenset()  # ids of messages that must not be replaced
        try:
            with translated():
                self._identity = file_identity(path)
                self._journal_identity = file_identity(self._journal_path)
                self._totals = count(self.connection)
                self._others = others_commits(self.connection)
        except BaseException:
            self.close()
            raise

    def was_replaced(self) -> bool:
        """Return whether another file, or none, is at the path. Raises SpoolUnavailableError."""
        with translated():
            return file_identity(self._path) != self._identity

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the body and make its changes durable. After any error nothing of it is kept.

        Begins with a check that the file is still at its path. After SpoolCorruptError and
        SpoolUnavailableError the store must be closed: the transaction may have been committed.
        """
        self._begin()
        before = self._totals
        try:
            yield
            with translated():
                self.connection.execute("COMMIT")
        except BaseException:
            self._totals = before
            with suppress(SpoolError), translated():
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            raise

    def check_location(self) -> None:
        """Raise SpoolCorruptError if another file, or none, is at the path."""
        if self.was_replaced():
            raise SpoolCorruptError(f"{self._path} was removed or replaced")

    def _begin(self) -> None:
        self.check_location()
        with translated():
            there = file_identity(self._journal_path)
            if self._journal_identity not in {None, there}:  # closing moves it to the file
                raise SpoolUnavailableError(f"{self._journal_path} was removed or replaced")
            self._journal_identity = there
            self.connection.execute("BEGIN IMMEDIATE")
            if self._others != (now := others_commits(self.connection)):  # `dead-letters resend`
                self._totals, self._others = count(self.connection), now

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Run the body inside a transaction. After any error nothing of the body is kept."""
        before = self._totals
        with translated():
            self.connection.execute("SAVEPOINT body")
        try:
            yield
        except BaseException:
            self._totals = before
            if self.connection.in_transaction:  # SQLite rolls back on some I/O errors
                with translated():
                    self.connection.execute("ROLLBACK TO body")
                    self.connection.execute("RELEASE body")
            raise
        with translated():
            self.connection.execute("RELEASE body")

    def apply(self, change: WriteBatch, *, bounded: bool = True) -> None:
        """Apply the change. Raises SpoolFullError if `bounded` and the size limit is exceeded."""
        before = self._totals.bytes
        with translated():
            self._apply(change)
        if bounded and self._totals.bytes > max(self.max_bytes, before):
            raise SpoolFullError(f"{self._totals.bytes} bytes are over {self.max_bytes}")

    def _apply(self, change: WriteBatch) -> None:
        if change.unstage:
            size = unstage(self.connection, change.unstage)
            self._tally(-size, rows=-change.unstage, events=-change.unstage)
        if change.stage:
            stage(self.connection, lines := change.stage)
            self._tally(sum(map(len, lines)), rows=len(lines), events=len(lines))
        if change.messages:
            self._insert(change.messages)
        for letter in change.dead_letters:
            put_dead(self.connection, letter)
            self._tally(len(letter.message.body), rows=1, dead=1)
        if change.state:
            write_state(self.connection, change.state)

    def _insert(self, messages: Sequence[Message]) -> None:
        for replaces, some in groupby(messages, lambda message: message.replaces):
            if not replaces:
                self._put(list(some))
                continue
            for message in some:  # the second condition lets SQLite use the index
                if self._put([message]):
                    kept = {message.id, *self.pinned}
                    places = ",".join("?" * len(kept))
                    same = f"replaces = ? AND replaces <> '' AND id NOT IN ({places})"
                    self._delete(same, replaces, *kept)

    def _put(self, messages: Sequence[Message]) -> int:
        new, size, events = put(self.connection, messages)
        self._tally(size, rows=new, events=events)
        return new

    def _delete(self, where: str, *values: str) -> None:
        """Delete rows in two statements: RETURNING would release the interpreter for each row."""
        sums = "SELECT count(*), total(length(body)), total(records) FROM message WHERE "
        rows, size, events = self.connection.execute(sums + where, values).fetchone()
        self.connection.execute(f"DELETE FROM message WHERE {where}", values)  # noqa: S608
        self._tally(-int(size), rows=-rows, events=-int(events))

    def _tally(self, size: int, *, rows: int, events: int = 0, dead: int = 0) -> None:
        self._totals = apply_delta(self._totals, size, rows=rows, events=events, dead=dead)

    def remove(self, ids: Sequence[str]) -> None:
        """Delete messages that the receiver has stored."""
        with translated():
            self._delete(f"id IN ({','.join('?' * len(ids))})", *ids)
            oldest = "SELECT id FROM message ORDER BY position LIMIT 1"
            first = self.connection.execute(oldest).fetchone()
        if first and first[0] in ids:  # it would be sent again and again
            raise SpoolCorruptError(f"the index does not find {first[0]}")

    def dead_letter(self, message: Message, reason: str, detail: str, died_at_ms: int) -> None:
        """Move a message to the dead letters, if it is still there. Its bytes stay the same."""
        with translated():
            self._dead_letter(DeadLetter(message, reason, detail, died_at_ms))

    def _dead_letter(self, letter: DeadLetter) -> None:
        run, message_id = self.connection.execute, letter.message.id
        found = run("SELECT records FROM message WHERE id = ?", (message_id,)).fetchone()
        if found is None:
            return
        self._pop_dead_letter(message_id)  # an earlier dead letter with the same id
        same = "SELECT id FROM dead_letter WHERE replaces = ? AND replaces <> ''"
        for (older_id,) in run(same, (letter.message.replaces,)).fetchall():
            self._pop_dead_letter(older_id)  # only the latest message of `replaces` is kept
        run(
            f"INSERT INTO dead_letter ({COLUMNS}, sha256, reason, detail, died_at_ms)"  # noqa: S608
            f" SELECT {COLUMNS}, sha256, ?, ?, ? FROM message WHERE id = ?",
            (letter.reason, letter.detail, letter.died_at_ms, message_id),
        )
        run("DELETE FROM message WHERE id = ?", (message_id,))
        self._tally(0, rows=0, events=-found[0], dead=1)

    def _pop_dead_letter(self, message_id: str) -> Message | None:
        row = self.connection.execute(
            f"DELETE FROM dead_letter WHERE id = ? RETURNING {COLUMNS}, sha256",  # noqa: S608
            (message_id,),
        ).fetchone()
        if row is None:
            return None
        message = message_of(row)
        self._tally(-len(message.body), rows=-1, dead=-1)
        return message

    def requeue(self, message_id: str) -> bool:
        """Move a dead letter to the end of the queue. Return whether it existed.

        Its `replaces` is cleared, because the messages queued meanwhile are newer.
        """
        with translated():
            message = self._pop_dead_letter(message_id)
            if message:
                self._insert([msgspec.structs.replace(message, replaces="")])
        return message is not None

    def peek(self, max_messages: int, max_bytes: int) -> list[Message]:
        """Return the oldest messages within both bounds, but at least one if any is queued.

        Reads no other messages. Raises SpoolCorruptError if stored bytes have changed.
        """
        found: list[Message] = []
        total = 0
        query = f"SELECT {COLUMNS}, sha256 FROM message ORDER BY position LIMIT ?"  # noqa: S608
        # A cursor left open would keep the file open after `close`.
        with translated(), closing(self.connection.execute(query, (max_messages,))) as rows:
            for row in rows:
                message = message_of(row)
                total += len(message.body)
                if found and total > max_bytes:
                    break
                found.append(message)
        return found

    def waiting(self) -> list[tuple[str, int]]:
        """Return the id and the bytes of each queued message, oldest first. Reads no body."""
        query = "SELECT id, length(body) FROM message ORDER BY position"
        with translated():
            return [(message_id, size) for message_id, size in self.connection.execute(query)]

    def read(self, ids: Sequence[str]) -> list[Message]:
        """Return those of the messages that are queued, oldest first. Raises as `peek`."""
        found = []
        for few in _chunk(ids):
            places = ",".join("?" * len(few))
            query = (
                f"SELECT {COLUMNS}, sha256 FROM message WHERE id IN ({places}) ORDER BY position"  # noqa: S608
            )
            with translated(), closing(self.connection.execute(query, few)) as rows:
                found += [message_of(row) for row in rows]
        return found

    def staged(self) -> list[bytes]:
        """Return the staged lines, oldest first."""
        query = "SELECT line, sha256 FROM staged ORDER BY position"
        return [line for (line,) in self._select_checked(query)]

    def state(self, prefix: str) -> dict[str, bytes]:
        """Return the checkpoints whose key starts with `prefix`."""
        query = "SELECT key, value, sha256 FROM state WHERE substr(key, 1, ?) = ?"
        return dict(self._select_checked(query, len(prefix), prefix))

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters, oldest first."""
        query = f"SELECT {COLUMNS}, reason, detail, died_at_ms FROM dead_letter ORDER BY position"  # noqa: S608
        with translated():
            rows = self.connection.execute(query).fetchall()
        return [
            DeadLetter(Message(*columns), reason, detail, at_ms)
            for *columns, reason, detail, at_ms in rows
        ]

    def _select_checked(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with translated():
            rows = self.connection.execute(query, values).fetchall()
        return [check_row(row) for row in rows]

    def totals(self) -> Totals:
        """Return the totals of the file."""
        if self._totals.oldest_created_at_ms == UNKNOWN_MS:
            with translated():
                at_ms = oldest_ms(self.connection)
            self._totals = msgspec.structs.replace(self._totals, oldest_created_at_ms=at_ms)
        return self._totals

    def vacuum(self) -> None:
        """Return free pages to the file system if there are many. Not inside a transaction."""
        with suppress(SpoolUnavailableError), translated():
            (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
            if free > VACUUM_PAGES:  # as a script: `execute` stops after the first page
                self.connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")

    def flush_journal(self) -> None:
        """Move all of the journal to the file. Not inside a transaction. Blocks.

        Raises SpoolUnavailableError if something remains, because the disk is full or another
        connection reads.
        """
        with translated():
            (busy, *_) = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise SpoolUnavailableError(f"{self._journal_path} could not be emptied: it is in use")

    def close(self) -> None:
        """Close the file. May block for a last checkpoint of the journal."""
        self.connection.close()


def row_of(message: Message) -> tuple[object, ...]:
    """Return the values of COLUMNS, which are the fields of a message in order, and their hash."""
    row = msgspec.structs.astuple(message)
    return *row, message_digest(row)


def put(connection: sqlite3.Connection, messages: Sequence[Message]) -> tuple[int, int, int]:
    """Queue new messages. Return their number, bytes and events; ids that exist are ignored.

    Raises sqlite3.Error.
    """
    verb = f"INSERT OR IGNORE INTO message ({COLUMNS}, sha256)"
    added = _write(connection, verb, [row_of(message) for message in messages])
    if added == len(messages):
        return added, sum(len(m.body) for m in messages), sum(m.events for m in messages)
    last = "SELECT body, records FROM message ORDER BY position DESC LIMIT ?"
    sums = f"SELECT total(length(body)), total(records) FROM ({last})"  # noqa: S608
    size, events = connection.execute(sums, (added,)).fetchone()
    return added, int(size), int(events)


def stage(connection: sqlite3.Connection, lines: Sequence[bytes]) -> None:
    """Store lines that wait for their batch. Raises sqlite3.Error."""
    _write(connection, "INSERT INTO staged (line, sha256)", [(x, row_digest(x)) for x in lines])


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
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
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


def write_state(connection: sqlite3.Connection, state: Mapping[str, bytes | None]) -> None:
    """Write checkpoints; None removes one. Raises sqlite3.Error."""
    for few in _chunk([key for key, value in state.items() if value is None]):
        places = ",".join("?" * len(few))
        connection.execute(f"DELETE FROM state WHERE key IN ({places})", few)  # noqa: S608
    kept = [(k, v, row_digest(k, v)) for k, v in state.items() if v is not None]
    _write(connection, "INSERT OR REPLACE INTO state", kept)


def _chunk(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the rows in chunks for one statement each."""
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        yield rows[start : start + ROWS_PER_STATEMENT]


def row_digest(*columns: object) -> bytes:
    """Return the SHA-256 that is stored with the columns, to detect damage.

    At most one column is bytes: it is hashed after the others, which contain its length.
    """
    plain, content = list(columns), b""
    for at, column in enumerate(columns):
        if type(column) is bytes:
            plain[at], content = len(column), column
    found = hashlib.sha256(repr(plain).encode())
    found.update(content)
    return found.digest()


def message_digest(columns: Sequence[Any]) -> bytes:
    """Return the hash of COLUMNS. Without a stream it is that of format 1."""
    return row_digest(*(columns if any(columns[UNNUMBERED:]) else columns[:UNNUMBERED]))


def check_row(
    row: tuple[Any, ...], digest_of: Callable[[Sequence[Any]], bytes] = lambda row: row_digest(*row)
) -> tuple[Any, ...]:
    """Return the row without its hash, the last column. Raises SpoolCorruptError."""
    *columns, sha256 = row
    if digest_of(columns) != sha256:
        raise SpoolCorruptError("stored bytes have changed on disk")
    return tuple(columns)


def message_of(row: tuple[Any, ...]) -> Message:
    """Return the message of COLUMNS and its hash. Raises SpoolCorruptError."""
    return Message(*check_row(row, message_digest))


def count(connection: sqlite3.Connection) -> Totals:
    """Return the totals of the file. Raises sqlite3.Error."""

    def sums(table: str, body: str, events: str) -> tuple[int, int, int]:
        query = f"SELECT count(*), coalesce(sum(length({body})), 0), {events} FROM {table}"  # noqa: S608
        row: tuple[int, int, int] = connection.execute(query).fetchone()
        return row

    messages, message_bytes, events = sums("message", "body", "coalesce(sum(records), 0)")
    lines, line_bytes, _ = sums("staged", "line", "0")
    dead, dead_bytes, _ = sums("dead_letter", "body", "0")
    rows = messages + lines + dead
    size = message_bytes + line_bytes + dead_bytes + rows * ROW_OVERHEAD_BYTES
    return Totals(events + lines, size, oldest_ms(connection), dead)


def oldest_ms(connection: sqlite3.Connection) -> int | None:
    """Return when the oldest message was sealed, None if there is none. Raises sqlite3.Error."""
    query = "SELECT created_at_ms FROM message ORDER BY position LIMIT 1"
    (at_ms,) = connection.execute(query).fetchone() or (None,)
    return at_ms


def apply_delta(totals: Totals, size: int, *, rows: int, events: int, dead: int) -> Totals:
    """Return the totals plus these numbers, which may be negative. `size` is in bytes.

    If messages are added behind a queued one, the oldest message stays the same.
    """
    oldest = totals.oldest_created_at_ms
    behind = rows > 0 and oldest is not None
    return Totals(
        events=totals.events + events,
        bytes=totals.bytes + size + rows * ROW_OVERHEAD_BYTES,
        oldest_created_at_ms=oldest if behind else UNKNOWN_MS,
        dead_letters=totals.dead_letters + dead,
    )


def others_commits(connection: sqlite3.Connection) -> int:
    """Return a number that changes with every commit that another connection has made."""
    (number,) = connection.execute("PRAGMA data_version").fetchone()
    return int(number)
