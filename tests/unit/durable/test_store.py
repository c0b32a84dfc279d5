"""The store: what one change does, and that counting never drifts."""

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from byoc_agents.durable.model import Totals
from byoc_agents.durable.store import ROW_OVERHEAD_BYTES, VACUUM_PAGES, SpoolStore
from byoc_agents.errors import SpoolError, SpoolFullError
from byoc_agents.message import Message
from tests.unit.durable.store_steps import apply, do, ids, message, seen


def test_every_field_of_a_message_comes_back_as_it_went_in(store: SpoolStore) -> None:
    whole = Message("i/d", "ty", b"\x00\xff", 7, 3, "c/t", "zstd", "group", "key", "s", 8, 9)
    apply(store, messages=[whole])
    assert store.peek(1, 1) == [whole]
    assert set(msgspec.structs.astuple(whole)).isdisjoint({"", 0})


def test_one_commit_holds_messages_lines_and_checkpoints(store: SpoolStore, path: Path) -> None:
    apply(store, stage=[b"a", b"b", b"c"], state={"k": b"1", "gone": b"x"})
    apply(store, messages=[message(1)], unstage=2, stage=[b"d"], state={"k": b"2", "gone": None})
    with closing(SpoolStore(path, max_bytes=1 << 20)) as again:
        assert seen(again) == ([message(1)], [b"c", b"d"], {"k": b"2"}, [])
        assert again.totals() == Totals(4, 4 + 1 + 1 + 3 * ROW_OVERHEAD_BYTES, 1, 0)


def test_an_error_half_way_leaves_nothing_of_the_change(store: SpoolStore) -> None:
    apply(store, stage=[b"a"], state={"k": b"1"})
    before = seen(store), store.totals()
    with pytest.raises(SpoolError, match="1 lines are staged, not 2"):
        apply(store, messages=[message(1)], stage=[b"b"], unstage=2, state={"k": b"2"})
    with pytest.raises(sqlite3.Error):
        apply(store, messages=[message(1)], state={"k": object()})
    assert (seen(store), store.totals()) == before


def test_the_first_bytes_of_an_id_stay_and_so_does_its_place(store: SpoolStore) -> None:
    apply(store, messages=[message(1, replaces="r"), message(2)])
    apply(store, messages=[message(1, b"other", replaces="r")])
    assert store.peek(9, 99) == [message(1, replaces="r"), message(2)]


def test_a_newer_message_replaces_the_unsent_ones_of_its_key_only(store: SpoolStore) -> None:
    apply(store, messages=[message(1, replaces="a"), message(2, replaces="b"), message(3)])
    apply(store, messages=[message(4, replaces="a"), message(5, replaces="a")])
    assert ids(store) == ["m2", "m3", "m5"]


@pytest.mark.parametrize(
    ("max_messages", "max_bytes", "expected"),
    [(1, 1, 1), (9, 0, 1), (9, 19, 1), (9, 20, 2), (2, 999, 2), (9, 30, 3), (9, 999, 3)],
)
def test_the_head_is_the_oldest_within_both_bounds(
    store: SpoolStore, max_messages: int, max_bytes: int, expected: int
) -> None:
    apply(store, messages=[message(n, b"x" * 10) for n in (3, 1, 2)])
    assert [m.id for m in store.peek(max_messages, max_bytes)] == ["m3", "m1", "m2"][:expected]


def test_over_the_bound_nothing_grows_and_everything_else_goes_on(path: Path) -> None:
    store = SpoolStore(path, max_bytes=3 * (ROW_OVERHEAD_BYTES + 10))
    apply(store, messages=[message(n, b"x" * 10) for n in range(3)])
    before = seen(store)
    with pytest.raises(SpoolFullError):
        apply(store, messages=[message(3)], state={"k": b"1"})
    assert seen(store) == before
    apply(store, state={"k": b"1"})
    apply(store, messages=[message(0)])  # known already
    store.max_bytes = 1  # the setting was lowered: a change that shrinks is still taken
    do(store, lambda: store.remove(["m0"]))
    assert ids(store) == ["m1", "m2"]
    store.close()


def test_a_batch_may_take_the_place_of_its_lines_in_a_full_spool(path: Path) -> None:
    store = SpoolStore(path, max_bytes=2 * (ROW_OVERHEAD_BYTES + 10))
    apply(store, stage=[b"x" * 10, b"y" * 10])
    apply(store, messages=[message(1, b"z" * 15)], unstage=2)
    assert ids(store) == ["m1"]
    store.close()


def test_checkpoints_are_found_by_the_start_of_their_key(store: SpoolStore) -> None:
    apply(store, state={"a/1": b"1", "a/2": b"2", "a%": b"3", "b": b"4"})
    assert store.state("a/") == {"a/1": b"1", "a/2": b"2"}
    assert store.state("a%") == {"a%": b"3"}


def test_free_pages_go_back_to_the_file_system(store: SpoolStore, path: Path) -> None:
    store.max_bytes = 1 << 30
    apply(store, messages=[message(1, b"x" * 3 * VACUUM_PAGES * 4096), message(2)])
    do(store, lambda: store.remove(["m1"]))
    for _ in range(3):
        store.vacuum()
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size < 1.1 * VACUUM_PAGES * 4096


def test_many_messages_in_one_change_are_counted_once_each(store: SpoolStore) -> None:
    """Some are there already, one stands twice in the change, and 40 do not fit one statement."""
    apply(store, messages=[message(number, b"12345") for number in (3, 38)])
    change = [message(number, b"b" * number) for number in range(40)]
    apply(store, messages=[*change, message(7, b"other")])
    assert ids(store) == ["m3", "m38", *(f"m{n}" for n in range(40) if n not in {3, 38})]
    assert store.totals().events == 2 * 40
    wanted = sum(range(40)) - 3 - 38 + 2 * 5 + 40 * ROW_OVERHEAD_BYTES
    assert store.totals().bytes == wanted


def test_the_newest_of_one_change_replaces_the_others(store: SpoolStore) -> None:
    apply(store, messages=[message(0), message(1, replaces="beat"), message(2, replaces="dog")])
    same = [message(3, replaces="beat"), message(4), message(5, replaces="beat")]
    apply(store, messages=same)
    assert ids(store) == ["m0", "m2", "m4", "m5"]


def test_what_replaces_another_finds_it_without_reading_the_backlog(store: SpoolStore) -> None:
    """A heartbeat every minute must not read a gibibyte."""
    statements: list[str] = []
    store.connection.set_trace_callback(statements.append)
    apply(store, messages=[message(1, replaces="beat")])
    store.connection.set_trace_callback(None)
    (delete,) = [text for text in statements if text.startswith("DELETE FROM message")]
    plan = store.connection.execute(f"EXPLAIN QUERY PLAN {delete}").fetchall()
    assert all("message_replaces" in step[-1] for step in plan if "message" in step[-1])
    assert not [step for step in plan if "SCAN" in step[-1]]


def test_a_large_removal_writes_nothing_outside_the_directory(store: SpoolStore) -> None:
    """A container has no writable place but the state directory, and bodies belong nowhere else."""
    apply(store, messages=[message(number, b"b" * 2000) for number in range(100)])
    before = open_files()

    def remove() -> None:
        with store.savepoint():
            store.remove(ids(store))
            assert open_files() == before

    do(store, remove)
    assert ids(store) == []


def open_files() -> list[str]:
    """Return where the descriptors of this process lead, the directory's own left out."""
    return sorted(str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists())
