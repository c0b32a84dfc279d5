"""The store: a file that is damaged, newer, or held by an error."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from byoc_agents.durable.schema import VERSION
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import SpoolCorruptError, SpoolUnavailableError
from tests.unit.durable.store_steps import apply, do, message


@pytest.mark.parametrize(
    ("table", "column", "read"),
    [
        ("message", "body", lambda s: s.peek(1, 1)),
        ("message", "id", lambda s: s.peek(1, 1)),
        ("message", "records", lambda s: s.peek(1, 1)),
        ("message", "stream", lambda s: s.peek(1, 1)),
        ("message", "epoch", lambda s: s.peek(1, 1)),
        ("message", "sequence", lambda s: s.peek(1, 1)),
        ("staged", "line", lambda s: s.staged()),
        ("state", "value", lambda s: s.state("")),
        ("dead_letter", "body", lambda s: do(s, lambda: s.requeue("m2"))),
    ],
)
def test_a_stored_value_that_has_changed_is_not_believed(
    path: Path, table: str, column: str, read: Callable[[SpoolStore], object]
) -> None:
    store = SpoolStore(path, max_bytes=1 << 20)
    apply(store, messages=[message(1), message(2)], stage=[b"l"], state={"k": b"v"})
    do(store, lambda: store.dead_letter(message(2), "rejected", "", 1))
    store.connection.execute(f"UPDATE {table} SET {column} = 5")
    with pytest.raises(SpoolCorruptError):
        read(store)
    store.close()


def test_an_index_that_lost_a_message_is_damage_and_no_endless_resend(path: Path) -> None:
    store = SpoolStore(path, max_bytes=1 << 20)
    apply(store, messages=[message(1)])
    store.close()
    pages = [path.read_bytes()[at : at + 4096] for at in range(0, path.stat().st_size, 4096)]
    index_leaf = b"\x0a"  # SQLite's file format, section 1.6
    pages = [p.replace(b"m1", b"mX") if p.startswith(index_leaf) else p for p in pages]
    path.write_bytes(b"".join(pages))
    store = SpoolStore(path, max_bytes=1 << 20)
    with pytest.raises(SpoolCorruptError, match="index does not find m1"):
        do(store, lambda: store.remove(["m1"]))
    store.close()


def test_a_closed_file_is_free_although_an_error_is_still_held(path: Path) -> None:
    """An open cursor would keep SQLite's handle, which later deletes the next file's journal."""
    store = SpoolStore(path, max_bytes=1 << 20)
    apply(store, messages=[message(1), message(2)])
    store.connection.execute("UPDATE message SET body = x'00' WHERE id = 'm2'")
    with pytest.raises(SpoolCorruptError) as held:
        store.peek(9, 999)
    store.close()
    assert not path.with_name("spool.db-wal").exists()
    assert str(held.value)


def test_a_newer_format_is_refused_by_name_and_not_touched(path: Path) -> None:
    SpoolStore(path, max_bytes=1).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SpoolUnavailableError, match=r"newer version \(format 3, .* up to 2\)"):
        SpoolStore(path, max_bytes=1)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["spool.db"]
