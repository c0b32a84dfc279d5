"""Rows of the spool file: made from messages, proven by their hash, counted."""

import hashlib
import sqlite3
from typing import Any

from agents.core.change import Totals
from agents.core.errors import SpoolCorruptError
from agents.core.sink import Message

ROW_OVERHEAD_BYTES = 512  # keys, hash and index entries of one row, rounded up

COLUMNS = (
    "id, type, body, created_at_ms, records, content_type, content_encoding, grouped, replaces"
)


def row_of(message: Message) -> tuple[object, ...]:
    """Return the values of COLUMNS."""
    return (
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


def digest(*columns: object) -> bytes:
    """Return the SHA-256 that stands beside stored columns and proves them."""
    plain = [len(column) if isinstance(column, bytes) else column for column in columns]
    found = hashlib.sha256(repr(plain).encode())
    for column in columns:
        if isinstance(column, bytes):
            found.update(column)
    return found.digest()


def checked(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the row without its last column, which proves it. Raises SpoolCorruptError."""
    *columns, sha256 = row
    if digest(*columns) != sha256:
        raise SpoolCorruptError("stored bytes have changed on disk")
    return tuple(columns)


def message_of(row: tuple[Any, ...]) -> Message:
    """Return the message of COLUMNS and its hash. Raises SpoolCorruptError."""
    return Message(*checked(row))


def count(connection: sqlite3.Connection) -> Totals:
    """Return what lies in the file, without the age of the oldest. Raises sqlite3.Error."""

    def sums(table: str, body: str, records: str) -> tuple[int, int, int]:
        query = f"SELECT count(*), coalesce(sum(length({body})), 0), {records} FROM {table}"  # noqa: S608
        row: tuple[int, int, int] = connection.execute(query).fetchone()
        return row

    messages, message_bytes, records = sums("message", "body", "coalesce(sum(records), 0)")
    lines, line_bytes, _ = sums("staged", "line", "0")
    dead, dead_bytes, _ = sums("dead_letter", "body", "0")
    rows = messages + lines + dead
    size = message_bytes + line_bytes + dead_bytes + rows * ROW_OVERHEAD_BYTES
    return Totals(records=records + lines, bytes=size, dead_letters=dead)
