"""The store: what one change does, and that counting never drifts."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agents.core.change import Change, DeadLetter, Totals
from agents.core.errors import (
    SpoolCorruptError,
    SpoolError,
    SpoolFullError,
    SpoolUnavailableError,
)
from agents.core.rows import count
from agents.core.sink import Message
from agents.core.store import ROW_OVERHEAD_BYTES, VACUUM_PAGES, Store


def message(number: int, body: bytes = b"body", *, replaces: str = "") -> Message:
    return Message(f"m{number}", "t", body, created_at_ms=number, records=2, replaces=replaces)


def do(store: Store, work: Callable[[], object]) -> None:
    """One transaction."""
    store.begin()
    try:
        work()
        store.commit()
    except BaseException:
        store.roll_back()
        raise


def apply(store: Store, **change: object) -> None:
    do(store, lambda: store.apply(Change(**change)))  # type: ignore[arg-type]


def ids(store: Store) -> list[str]:
    return [m.id for m in store.head(1000, 1 << 30)]


def seen(store: Store) -> object:
    return store.head(1000, 1 << 30), store.staged(), store.state(""), store.dead_letters()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path, max_bytes=1 << 20)
    yield store
    assert store.totals() == count(store.connection)
    store.close()


def test_every_field_of_a_message_comes_back_as_it_went_in(store: Store) -> None:
    whole = Message("i/d", "ty", b"\x00\xff", 7, 3, "c/t", "zstd", "group", "key")
    apply(store, messages=[whole])
    assert store.head(1, 1) == [whole]


def test_one_commit_holds_messages_lines_and_checkpoints(store: Store, path: Path) -> None:
    apply(store, stage=[b"a", b"b", b"c"], state={"k": b"1", "gone": b"x"})
    apply(store, messages=[message(1)], unstage=2, stage=[b"d"], state={"k": b"2", "gone": None})
    with closing(Store(path, max_bytes=1 << 20)) as again:
        assert seen(again) == ([message(1)], [b"c", b"d"], {"k": b"2"}, [])
        assert again.totals() == Totals(4, 4 + 1 + 1 + 3 * ROW_OVERHEAD_BYTES, 1, 0)


def test_an_error_half_way_leaves_nothing_of_the_change(store: Store) -> None:
    apply(store, stage=[b"a"], state={"k": b"1"})
    before = seen(store), store.totals()
    with pytest.raises(SpoolError, match="1 lines are staged, not 2"):
        apply(store, messages=[message(1)], stage=[b"b"], unstage=2, state={"k": b"2"})
    with pytest.raises(sqlite3.Error):
        apply(store, messages=[message(1)], state={"k": object()})
    assert (seen(store), store.totals()) == before


def test_the_first_bytes_of_an_id_stay_and_so_does_its_place(store: Store) -> None:
    apply(store, messages=[message(1, replaces="r"), message(2)])
    apply(store, messages=[message(1, b"other", replaces="r")])
    assert store.head(9, 99) == [message(1, replaces="r"), message(2)]


def test_a_newer_message_replaces_the_unsent_ones_of_its_key_only(store: Store) -> None:
    apply(store, messages=[message(1, replaces="a"), message(2, replaces="b"), message(3)])
    apply(store, messages=[message(4, replaces="a"), message(5, replaces="a")])
    assert ids(store) == ["m2", "m3", "m5"]


@pytest.mark.parametrize(
    ("max_messages", "max_bytes", "expected"),
    [(1, 1, 1), (9, 0, 1), (9, 19, 1), (9, 20, 2), (2, 999, 2), (9, 30, 3), (9, 999, 3)],
)
def test_the_head_is_the_oldest_within_both_bounds(
    store: Store, max_messages: int, max_bytes: int, expected: int
) -> None:
    apply(store, messages=[message(n, b"x" * 10) for n in (3, 1, 2)])
    assert [m.id for m in store.head(max_messages, max_bytes)] == ["m3", "m1", "m2"][:expected]


def test_over_the_bound_nothing_grows_and_everything_else_goes_on(path: Path) -> None:
    store = Store(path, max_bytes=3 * (ROW_OVERHEAD_BYTES + 10))
    apply(store, messages=[message(n, b"x" * 10) for n in range(3)])
    before = seen(store)
    with pytest.raises(SpoolFullError):
        apply(store, messages=[message(3)], state={"k": b"1"})
    assert seen(store) == before
    apply(store, state={"k": b"1"})
    apply(store, messages=[message(0)])  # known already
    store._max_bytes = 1  # the setting was lowered: a change that shrinks is still taken
    do(store, lambda: store.remove(["m0"]))
    assert ids(store) == ["m1", "m2"]
    store.close()


def test_a_batch_may_take_the_place_of_its_lines_in_a_full_spool(path: Path) -> None:
    store = Store(path, max_bytes=2 * (ROW_OVERHEAD_BYTES + 10))
    apply(store, stage=[b"x" * 10, b"y" * 10])
    apply(store, messages=[message(1, b"z" * 15)], unstage=2)
    assert ids(store) == ["m1"]
    store.close()


def test_a_dead_letter_is_kept_with_its_reason_and_can_be_revived_to_the_end(store: Store) -> None:
    apply(store, messages=[message(1), message(2)])
    size = store.totals().bytes
    do(store, lambda: store.bury(message(1), "rejected", "400", 5))
    do(store, lambda: store.bury(message(7), "rejected", "not there", 5))
    assert store.dead_letters() == [DeadLetter(message(1), "rejected", "400", 5)]
    assert (ids(store), store.totals().bytes, store.totals().dead_letters) == (["m2"], size, 1)
    do(store, lambda: store.revive("m1"))
    assert (ids(store), store.dead_letters(), store.totals().bytes) == (["m2", "m1"], [], size)


def test_what_a_command_beside_us_revives_is_counted(store: Store, path: Path) -> None:
    apply(store, messages=[message(1)])
    size = store.totals().bytes
    do(store, lambda: store.bury(message(1), "rejected", "400", 5))
    with closing(Store(path, max_bytes=1 << 20)) as beside:
        do(beside, lambda: beside.revive("m1"))
    apply(store, messages=[message(2)])
    now = store.totals()
    assert (now.records, now.bytes, now.dead_letters) == (4, 2 * size, 0)
    do(store, lambda: store.remove(["m1", "m2"]))
    assert store.totals() == Totals()


def test_a_message_that_dies_twice_is_one_dead_letter(store: Store) -> None:
    for detail in ("first", "second"):
        apply(store, messages=[message(1)])
        do(store, lambda detail=detail: store.bury(message(1), "rejected", detail, 1))  # type: ignore[misc]
    assert [letter.detail for letter in store.dead_letters()] == ["second"]
    assert store.totals().dead_letters == 1


def test_of_latest_only_messages_the_latest_dead_letter_is_kept(store: Store) -> None:
    for number in (1, 2):
        apply(store, messages=[message(number, replaces="beat")])
        do(store, lambda n=number: store.bury(message(n, replaces="beat"), "rejected", "", n))  # type: ignore[misc]
    assert [letter.message.id for letter in store.dead_letters()] == ["m2"]


def test_a_dead_letter_taken_over_leaves_the_queue_alone(store: Store) -> None:
    letter = DeadLetter(message(1, replaces="a"), "rejected", "400", 5)
    apply(store, messages=[message(1), message(2, replaces="a")])
    apply(store, dead_letters=[letter])
    assert (ids(store), store.dead_letters()) == (["m1", "m2"], [letter])


def test_a_revived_message_does_not_replace_what_came_later(store: Store) -> None:
    apply(store, messages=[message(1, replaces="a")])
    do(store, lambda: store.bury(message(1), "rejected", "", 1))
    apply(store, messages=[message(2, replaces="a")])
    do(store, lambda: store.revive("m1"))
    assert ids(store) == ["m2", "m1"]


def test_checkpoints_are_found_by_the_start_of_their_key(store: Store) -> None:
    apply(store, state={"a/1": b"1", "a/2": b"2", "a%": b"3", "b": b"4"})
    assert store.state("a/") == {"a/1": b"1", "a/2": b"2"}
    assert store.state("a%") == {"a%": b"3"}


def test_free_pages_go_back_to_the_file_system(store: Store, path: Path) -> None:
    store._max_bytes = 1 << 30
    apply(store, messages=[message(1, b"x" * 3 * VACUUM_PAGES * 4096), message(2)])
    do(store, lambda: store.remove(["m1"]))
    for _ in range(3):
        store.give_back()
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size < 1.1 * VACUUM_PAGES * 4096


@pytest.mark.parametrize(
    ("table", "column", "read"),
    [
        ("message", "body", lambda s: s.head(1, 1)),
        ("message", "id", lambda s: s.head(1, 1)),
        ("message", "records", lambda s: s.head(1, 1)),
        ("staged", "line", lambda s: s.staged()),
        ("state", "value", lambda s: s.state("")),
        ("dead_letter", "body", lambda s: do(s, lambda: s.revive("m2"))),
    ],
)
def test_a_stored_value_that_has_changed_is_not_believed(
    store: Store, table: str, column: str, read: Callable[[Store], object]
) -> None:
    apply(store, messages=[message(1), message(2)], stage=[b"l"], state={"k": b"v"})
    do(store, lambda: store.bury(message(2), "rejected", "", 1))
    store.connection.execute(f"UPDATE {table} SET {column} = 5")
    with pytest.raises(SpoolCorruptError):
        read(store)
    store._totals = count(store.connection)


def test_an_index_that_lost_a_message_is_damage_and_no_endless_resend(path: Path) -> None:
    store = Store(path, max_bytes=1 << 20)
    apply(store, messages=[message(1)])
    store.close()
    pages = [path.read_bytes()[at : at + 4096] for at in range(0, path.stat().st_size, 4096)]
    index_leaf = b"\x0a"  # SQLite's file format, section 1.6
    pages = [p.replace(b"m1", b"mX") if p.startswith(index_leaf) else p for p in pages]
    path.write_bytes(b"".join(pages))
    store = Store(path, max_bytes=1 << 20)
    with pytest.raises(SpoolCorruptError, match="index does not find m1"):
        do(store, lambda: store.remove(["m1"]))
    store.close()


def test_a_closed_file_is_free_although_an_error_is_still_held(path: Path) -> None:
    """An open cursor would keep SQLite's handle, which later deletes the next file's journal."""
    store = Store(path, max_bytes=1 << 20)
    apply(store, messages=[message(1), message(2)])
    store.connection.execute("UPDATE message SET body = x'00' WHERE id = 'm2'")
    with pytest.raises(SpoolCorruptError) as held:
        store.head(9, 999)
    store.close()
    assert not path.with_name("spool.db-wal").exists()
    assert str(held.value)


def test_a_newer_format_is_refused_by_name_and_not_touched(path: Path) -> None:
    Store(path, max_bytes=1).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SpoolUnavailableError, match=r"newer version \(format 2, .* up to 1\)"):
        Store(path, max_bytes=1)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["spool.db"]


def test_many_messages_in_one_change_are_counted_once_each(store: Store) -> None:
    """Some are there already, one stands twice in the change, and 40 do not fit one statement."""
    apply(store, messages=[message(number, b"12345") for number in (3, 38)])
    change = [message(number, b"b" * number) for number in range(40)]
    apply(store, messages=[*change, message(7, b"other")])
    assert ids(store) == ["m3", "m38", *(f"m{n}" for n in range(40) if n not in {3, 38})]
    assert store.totals().records == 2 * 40
    wanted = sum(range(40)) - 3 - 38 + 2 * 5 + 40 * ROW_OVERHEAD_BYTES
    assert store.totals().bytes == wanted


def test_the_newest_of_one_change_replaces_the_others(store: Store) -> None:
    apply(store, messages=[message(0), message(1, replaces="beat"), message(2, replaces="dog")])
    same = [message(3, replaces="beat"), message(4), message(5, replaces="beat")]
    apply(store, messages=same)
    assert ids(store) == ["m0", "m2", "m4", "m5"]


def test_what_replaces_another_finds_it_without_reading_the_backlog(store: Store) -> None:
    """A heartbeat every minute must not read a gibibyte."""
    statements: list[str] = []
    store.connection.set_trace_callback(statements.append)
    apply(store, messages=[message(1, replaces="beat")])
    store.connection.set_trace_callback(None)
    (delete,) = [text for text in statements if text.startswith("DELETE FROM message")]
    plan = store.connection.execute(f"EXPLAIN QUERY PLAN {delete}").fetchall()
    assert all("message_replaces" in step[-1] for step in plan if "message" in step[-1])
    assert not [step for step in plan if "SCAN" in step[-1]]


def test_a_large_removal_writes_nothing_outside_the_directory(store: Store) -> None:
    """A container has no writable place but the state directory, and bodies belong nowhere else."""
    apply(store, messages=[message(number, b"b" * 2000) for number in range(100)])
    before = open_files()

    def remove() -> None:
        with store.whole():
            store.remove(ids(store))
            assert open_files() == before

    do(store, remove)
    assert ids(store) == []


def open_files() -> list[str]:
    """Return where the descriptors of this process lead, the directory's own left out."""
    return sorted(str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists())
