"""The spool seen by those who wait for it: grouping, cancellation, defects, one owner."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.recovery import EPOCH, ORIGIN
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.spool_file import OperationKind
from byoc_agents.durable.store import ROW_OVERHEAD_BYTES, SpoolStore
from byoc_agents.errors import SpoolFullError, SpoolUnavailableError
from byoc_agents.message import Message
from lab.fakes.core import START_MS, FakeClock, settle


def message(number: int, body: bytes = b"body", *, replaces: str = "") -> Message:
    return Message(f"m{number}", "t", body, created_at_ms=number, replaces=replaces)


def spool_at(directory: Path, max_bytes: int = 1 << 24) -> Spool:
    return Spool(directory, max_bytes=max_bytes, clock=FakeClock())


async def ids(spool: Spool) -> list[str]:
    return [m.id for m in await spool.peek(10_000, 1 << 30)]


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    async with spool_at(tmp_path) as spool:
        yield spool


class Held:
    """Keeps the writer thread busy until it is released, so that a test decides the order."""

    def __init__(self, spool: Spool) -> None:
        self._begun, self._gate = threading.Event(), threading.Event()
        self.task = asyncio.ensure_future(spool.run(self._wait, OperationKind.READ))

    def _wait(self, _: SpoolStore) -> None:
        self._begun.set()
        self._gate.wait(30)

    async def begin(self) -> None:
        """Wait until the thread is busy: later operations are in the next group."""
        await asyncio.to_thread(self._begun.wait, 30)

    async def close_file(self) -> None:
        await settle()  # what has been asked for waits in the queue by now
        self._gate.set()
        await self.task


async def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    async with spool_at(tmp_path / "new" / "directory") as spool:
        await spool.put(message(1), message(2))
        await spool.commit(WriteBatch(stage=[b"line"], state={"k": b"v"}))
        marks = await spool.state("spool/")
    assert marks == {EPOCH: str(START_MS).encode(), ORIGIN: b"created"}
    async with spool_at(tmp_path / "new" / "directory") as spool:
        assert spool.totals.events == 3
        assert spool.totals.oldest_created_at_ms == 1
        assert await spool.peek(9) == [message(1), message(2)]
        assert await spool.staged() == [b"line"]
        assert await spool.state() == {"k": b"v"} | marks


async def test_a_full_spool_refuses_one_and_takes_the_others_of_the_group(tmp_path: Path) -> None:
    async with spool_at(tmp_path, max_bytes=2 * (ROW_OVERHEAD_BYTES + 10)) as spool:
        held = Held(spool)
        puts = [spool.put(message(n, b"x" * size)) for n, size in enumerate((10, 99, 10))]
        gathered = asyncio.gather(*puts, return_exceptions=True)
        await held.close_file()
        small, large, other = await gathered
        assert (small, other) == (None, None)
        assert isinstance(large, SpoolFullError)
        assert await ids(spool) == ["m0", "m2"]
        await spool.probe()  # a reached limit is not a failing disk


async def test_64_producers_share_few_transactions(spool: Spool) -> None:
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    await spool.run(lambda s: s.connection.set_trace_callback(count), OperationKind.READ)
    held = Held(spool)
    puts = asyncio.gather(*(spool.put(message(n)) for n in range(64)))
    await held.close_file()
    await puts
    assert commits == 1
    assert len(await ids(spool)) == 64


async def test_a_group_is_done_in_the_order_of_asking(spool: Spool) -> None:
    """Plain changes on both sides of others become two changes, not one that comes too early."""
    await spool.put(message(0))
    held = Held(spool)
    asked = [
        spool.commit(WriteBatch(messages=[message(1)], state={"k": b"1", "gone": b"x"})),
        spool.commit(WriteBatch(messages=[message(2, replaces="beat")], state={"k": b"2"})),
        spool.commit(WriteBatch(stage=[b"line"], messages=[message(3)])),
        spool.remove(["m0", "m1"]),
        spool.commit(WriteBatch(messages=[message(1)], state={"gone": None})),
        spool.commit(WriteBatch(messages=[message(4, replaces="beat")], unstage=1)),
    ]
    gathered = asyncio.gather(*asked)
    await held.close_file()
    await gathered
    assert await ids(spool) == ["m3", "m1", "m4"]
    assert (await spool.state("k"), await spool.state("gone")) == ({"k": b"2"}, {})
    assert await spool.staged() == []


async def test_a_second_process_is_shown_which_directory_is_taken(
    spool: Spool, tmp_path: Path
) -> None:
    with pytest.raises(SpoolUnavailableError, match=f"{tmp_path} is in use by another daemon"):
        await spool_at(tmp_path).__aenter__()
    await spool.put(message(1))


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolUnavailableError, match=f"{tmp_path}/file/daemon: Not a directory"):
        await spool_at(tmp_path / "file" / "daemon").__aenter__()


async def test_a_directory_in_the_place_of_the_file_is_an_error_and_frees_the_lock(
    tmp_path: Path,
) -> None:
    (tmp_path / "spool.db").mkdir()
    with pytest.raises(SpoolUnavailableError):
        await spool_at(tmp_path).__aenter__()
    (tmp_path / "spool.db").rmdir()
    async with spool_at(tmp_path) as spool:
        await spool.put(message(1))


async def test_a_newer_format_is_refused_at_the_start(tmp_path: Path) -> None:
    async with spool_at(tmp_path) as spool:
        await spool.put(message(1))
    connection = sqlite3.connect(tmp_path / "spool.db")
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    before = (tmp_path / "spool.db").read_bytes()
    with pytest.raises(SpoolUnavailableError, match="newer version"):
        await spool_at(tmp_path).__aenter__()
    assert (tmp_path / "spool.db").read_bytes() == before


async def test_a_defect_reaches_its_caller_only_and_the_thread_runs_on(spool: Spool) -> None:
    def defect(store: SpoolStore) -> None:
        store.remove(["m0"])
        raise StopIteration

    await spool.put(message(0))
    held = Held(spool)
    group = [
        spool.put(message(1)),
        spool.run(defect, OperationKind.SHRINK),
        spool.put(message(2)),
    ]
    gathered = asyncio.gather(*group, return_exceptions=True)
    await held.close_file()
    first, broken, last = await gathered
    assert (first, last) == (None, None)
    assert isinstance(broken, RuntimeError)
    assert await ids(spool) == ["m0", "m1", "m2"]
    assert spool.alive


async def test_a_defect_of_the_writer_itself_answers_everybody(spool: Spool) -> None:
    def break_store(store: SpoolStore) -> None:
        store.transaction = defect  # type: ignore[method-assign, assignment]

    def defect() -> AbstractContextManager[None]:
        raise ZeroDivisionError

    await spool.run(break_store, OperationKind.READ)
    held = Held(spool)
    await held.begin()
    group = [spool.put(message(1)), spool.peek(), spool.remove(["x"])]
    gathered = asyncio.gather(*group, return_exceptions=True)
    await held.close_file()
    assert [type(answer) for answer in await gathered] == [RuntimeError] * 3
    await spool.put(message(2))
    assert await ids(spool) == ["m2"]


async def test_a_cancelled_put_is_stored_or_not_and_wakes_the_shipper_all_the_same(
    spool: Spool,
) -> None:
    held = Held(spool)
    put = asyncio.ensure_future(spool.put(message(1)))
    await asyncio.sleep(0)
    put.cancel()
    await held.close_file()
    await asyncio.wait([put])
    assert put.cancelled()
    assert await ids(spool) == ["m1"]
    assert spool.changed.is_set()


async def test_the_shipper_is_not_woken_by_a_change_that_leaves_nothing_to_send(
    spool: Spool,
) -> None:
    await spool.commit(WriteBatch(stage=[b"line"], state={"k": b"v"}))
    assert not spool.changed.is_set()
    await spool.put(message(1))
    assert spool.changed.is_set()


async def test_what_was_asked_before_the_end_is_done_and_later_questions_are_refused(
    tmp_path: Path,
) -> None:
    spool = spool_at(tmp_path)
    async with spool:
        puts = [asyncio.ensure_future(spool.put(message(n))) for n in range(3)]
        await asyncio.sleep(0)
    await asyncio.gather(*puts)
    assert not spool.alive
    with pytest.raises(SpoolUnavailableError, match="not open"):
        await spool.peek()
    async with spool_at(tmp_path) as again:
        assert await ids(again) == ["m0", "m1", "m2"]


async def test_revive_wakes_the_shipper(spool: Spool) -> None:
    await spool.put(message(1))
    await spool.dead_letter(message(1), "rejected", "400")
    spool.changed.clear()
    assert not await spool.requeue("m2")
    assert await spool.requeue("m1")
    assert spool.changed.is_set()
    assert await spool.dead_letters() == []


async def test_a_removed_journal_is_noticed_and_loses_nothing(spool: Spool, tmp_path: Path) -> None:
    await spool.put(message(1))
    (tmp_path / "spool.db-wal").unlink()
    with pytest.raises(SpoolUnavailableError, match=r"spool\.db-wal was removed"):
        await spool.put(message(2))
    await spool.put(message(3))
    assert await ids(spool) == ["m1", "m3"]
    assert spool.corruptions == 0
