"""The SQLite file behind the spool: plain, blocking, one thread.

Data that must stay consistent (a message, the checkpoint that it was made from, the staged lines
that it contains) changes in one transaction.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from byoc_agents.delivery.sink import Message
from byoc_agents.durable.rows import (
    COLUMNS,
    ROW_OVERHEAD_BYTES,
    apply_delta,
    checked,
    count,
    keep,
    message_of,
    oldest_ms,
    others_commits,
    put,
    put_dead,
    stage,
    unstage,
)
from byoc_agents.durable.schema import connect, file_identity, translated
from byoc_agents.durable.write_batch import UNKNOWN_MS, Change, DeadLetter, Totals
from byoc_agents.errors import SpoolCorruptError, SpoolFullError, SpoolUnavailableError

__all__ = ["ROW_OVERHEAD_BYTES", "Change", "DeadLetter", "Store", "Totals"]

VACUUM_PAGES = 1024  # 4 MiB: return free pages to the file system in this amount


class Store:
    """One open file. Every method may block and is called from one thread.

    Raises SpoolFullError (size limit reached), SpoolUnavailableError (the disk fails) and
    SpoolCorruptError (the file must be replaced).
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.connection = connect(path)
        self._path = path
        self._journal_path = path.with_name(f"{path.name}-wal")
        self._max_bytes = max_bytes
        self._begun = Totals()  # when the transaction began
        self._inside = False  # of `savepoint` or `transaction`
        self.held: frozenset[str] = frozenset()  # ids of messages that must not be replaced
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

    def begin(self) -> None:
        """Open a transaction, after a check that the file is still at its path."""
        if self.was_replaced():
            raise SpoolCorruptError(f"{self._path} was removed or replaced")
        with translated():
            there = file_identity(self._journal_path)
            if self._journal_identity not in {None, there}:  # closing moves it to the file
                raise SpoolUnavailableError(f"{self._journal_path} was removed or replaced")
            self._journal_identity = there
            self.connection.execute("BEGIN IMMEDIATE")
            if self._others != (now := others_commits(self.connection)):  # `dead-letters resend`
                self._totals, self._others = count(self.connection), now
            self._begun = self._totals

    def commit(self) -> None:
        """Make the transaction durable."""
        with translated():
            self.connection.execute("COMMIT")

    def roll_back(self) -> None:
        """Undo the open transaction, if there is one."""
        with translated():
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self._totals = count(self.connection)  # the transaction may have been committed

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the body. After an error, begin a new transaction; cheaper than a savepoint."""
        self._inside = True
        try:
            yield
        except (SpoolCorruptError, SpoolUnavailableError):
            raise  # the transaction is lost
        except Exception:
            with translated():
                self.connection.execute("ROLLBACK")
            self._totals = self._begun
            self.begin()
            raise
        finally:
            self._inside = False

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Run the body; after an error nothing of it is kept. Nested calls join the outer one."""
        if self._inside:
            yield
            return
        self._inside = True
        try:
            with self._open_savepoint():
                yield
        finally:
            self._inside = False

    @contextmanager
    def _open_savepoint(self) -> Iterator[None]:
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

    def apply(self, change: Change, *, bounded: bool = True) -> None:
        """Apply the change in the open transaction. After an error nothing of it is kept."""
        before = self._totals.bytes
        with self.savepoint():
            with translated():
                self._apply(change)
            if bounded and self._totals.bytes > max(self._max_bytes, before):
                raise SpoolFullError(f"{self._totals.bytes} bytes are over {self._max_bytes}")

    def _apply(self, change: Change) -> None:
        if change.unstage:
            size = unstage(self.connection, change.unstage)
            self._tally(-size, rows=-change.unstage, records=-change.unstage)
        if change.stage:
            stage(self.connection, lines := change.stage)
            self._tally(sum(map(len, lines)), rows=len(lines), records=len(lines))
        if change.messages:
            self._insert(change.messages)
        for letter in change.dead_letters:
            put_dead(self.connection, letter)
            self._tally(len(letter.message.body), rows=1, dead=1)
        if change.state:
            keep(self.connection, change.state)

    def _insert(self, messages: Sequence[Message]) -> None:
        for replaces, some in groupby(messages, lambda message: message.replaces):
            if not replaces:
                self._put(list(some))
                continue
            for message in some:  # the second condition lets SQLite use the index
                if self._put([message]):
                    kept = {message.id, *self.held}
                    places = ",".join("?" * len(kept))
                    same = f"replaces = ? AND replaces <> '' AND id NOT IN ({places})"
                    self._delete(same, replaces, *kept)

    def _put(self, messages: Sequence[Message]) -> int:
        new, size, records = put(self.connection, messages)
        self._tally(size, rows=new, records=records)
        return new

    def _delete(self, where: str, *values: str) -> None:
        """Delete rows in two statements: RETURNING would release the interpreter for each row."""
        sums = "SELECT count(*), total(length(body)), total(records) FROM message WHERE "
        rows, size, records = self.connection.execute(sums + where, values).fetchone()
        self.connection.execute(f"DELETE FROM message WHERE {where}", values)  # noqa: S608
        self._tally(-int(size), rows=-rows, records=-int(records))

    def _tally(self, size: int, *, rows: int, records: int = 0, dead: int = 0) -> None:
        self._totals = apply_delta(self._totals, size, rows=rows, records=records, dead=dead)

    def remove(self, ids: Sequence[str]) -> None:
        """Delete messages that the receiver has stored."""
        with self.savepoint(), translated():
            self._delete(f"id IN ({','.join('?' * len(ids))})", *ids)
            oldest = "SELECT id FROM message ORDER BY position LIMIT 1"
            head = self.connection.execute(oldest).fetchone()
        if head and head[0] in ids:  # it would be sent again and again
            raise SpoolCorruptError(f"the index does not find {head[0]}")

    def dead_letter(self, message: Message, reason: str, detail: str, died_at_ms: int) -> None:
        """Move a message to the dead letters, if it is still there. Its bytes stay the same."""
        with self.savepoint(), translated():
            self._dead_letter(DeadLetter(message, reason, detail, died_at_ms))

    def _dead_letter(self, letter: DeadLetter) -> None:
        run, message_id = self.connection.execute, letter.message.id
        found = run("SELECT records FROM message WHERE id = ?", (message_id,)).fetchone()
        if found is None:
            return
        self._take_dead_letter(message_id)  # an earlier dead letter with the same id
        same = "SELECT id FROM dead_letter WHERE replaces = ? AND replaces <> ''"
        for (older_id,) in run(same, (letter.message.replaces,)).fetchall():
            self._take_dead_letter(older_id)  # only the latest message of `replaces` is kept
        run(
            f"INSERT INTO dead_letter ({COLUMNS}, sha256, reason, detail, died_at_ms)"  # noqa: S608
            f" SELECT {COLUMNS}, sha256, ?, ?, ? FROM message WHERE id = ?",
            (letter.reason, letter.detail, letter.died_at_ms, message_id),
        )
        run("DELETE FROM message WHERE id = ?", (message_id,))
        self._tally(0, rows=0, records=-found[0], dead=1)

    def _take_dead_letter(self, message_id: str) -> Message | None:
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
        with self.savepoint(), translated():
            message = self._take_dead_letter(message_id)
            if message:
                self._insert([msgspec.structs.replace(message, replaces="")])
        return message is not None

    def head(self, max_messages: int, max_bytes: int) -> list[Message]:
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
        return [DeadLetter(Message(*row[:9]), *row[9:]) for row in rows]

    def _select_checked(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with translated():
            rows = self.connection.execute(query, values).fetchall()
        return [checked(row) for row in rows]

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

    def close(self) -> None:
        """Close the file. May block for a last checkpoint of the journal."""
        self.connection.close()
