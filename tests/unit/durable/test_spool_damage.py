"""A damaged or lost file: renamed, counted, reported; rows with a correct hash are kept."""

import asyncio
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.recovery import EPOCH, KEPT_DAMAGED, ORIGIN, rebuild
from byoc_agents.durable.schema import VERSION_AT, connect
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.spool_file import OperationKind
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import SpoolCorruptError, SpoolUnavailableError
from byoc_agents.message import Message
from lab.fakes.core import START_MS, FakeClock

PAGE = 4096


def message(number: int) -> Message:
    return Message(f"m{number}", "t", b"body %d " % number * 300, created_at_ms=number)


def spool_at(directory: Path) -> Spool:
    return Spool(directory, max_bytes=1 << 24, clock=FakeClock())


async def fill(directory: Path, messages: int = 20) -> dict[str, Message]:
    """Leave a closed file with messages, lines, a checkpoint and a dead letter."""
    async with spool_at(directory) as spool:
        await spool.put(*map(message, range(messages)))
        await spool.commit(WriteBatch(stage=[b"line 1", b"line 2"], state={"k": b"v"}))
        await spool.put(message(99))
        await spool.dead_letter(message(99), "rejected", "400")
    return {m.id: m for m in map(message, range(messages))}


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path, at: int, size: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    for position in range(at, at + size):
        raw[position] ^= 0xFF
    path.write_bytes(raw)


def set_aside(directory: Path) -> list[Path]:
    return list(directory.glob("spool.db.corrupt-*"))


def flip_body(path: Path) -> None:
    flip(path, path.read_bytes().index(b"body 7 body 7") + 100)


WHOLE = {f"m{n}" for n in range(20)}
AT_START: dict[str, Callable[[Path], object]] = {
    "garbage instead of a file": lambda p: p.write_bytes(b"garbage" * 9999),
    "garbage in the header": lambda p: flip(p, 0, 100),
    "cut to nothing": lambda p: cut(p, 0),
    "cut inside the header": lambda p: cut(p, 50),
}


@pytest.mark.parametrize("damage", AT_START.values(), ids=AT_START)
async def test_damage_seen_at_the_start_is_set_aside(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    await fill(tmp_path)
    damage(tmp_path / "spool.db")
    raw = (tmp_path / "spool.db").read_bytes()
    async with spool_at(tmp_path) as spool:
        assert spool.corruptions == 1
        assert (await spool.state())[ORIGIN] == b"corrupt"
        await spool.put(message(100))
        assert [m.id for m in await spool.peek(99)] == ["m100"]
    (aside,) = set_aside(tmp_path)
    assert aside.read_bytes() == raw


async def test_a_file_cut_short_gives_what_is_left(tmp_path: Path) -> None:
    put = await fill(tmp_path)
    path = tmp_path / "spool.db"
    cut(path, path.stat().st_size * 2 // 3)
    async with spool_at(tmp_path) as spool:
        try:
            found = await spool.peek(99)
        except SpoolCorruptError:
            found = await spool.peek(99)
        assert spool.corruptions == 1
        assert 0 < len(found) < 20
        assert all(put[m.id] == m for m in found)


async def test_a_changed_body_is_found_when_it_is_read_and_only_it_is_lost(tmp_path: Path) -> None:
    await fill(tmp_path)
    flip_body(tmp_path / "spool.db")
    async with spool_at(tmp_path) as spool:
        before = await spool.state()
        assert [m.id for m in await spool.peek(7)] == [f"m{n}" for n in range(7)]
        with pytest.raises(SpoolCorruptError, match=r"set aside as .*, 22 rows"):
            await spool.peek(20)
        assert {m.id for m in await spool.peek(99)} == WHOLE - {"m7"}
        assert await spool.staged() == [b"line 1", b"line 2"]
        assert [letter.message for letter in await spool.dead_letters()] == [message(99)]
        after = await spool.state()
        assert after.keys() == {EPOCH, ORIGIN}  # no old checkpoint
        assert int(after[EPOCH]) > int(before[EPOCH])  # although the clock stands still
        assert (spool.corruptions, spool.salvaged) == (1, 22)
        await spool.put(message(50))
    async with spool_at(tmp_path) as spool:
        assert spool.corruptions == 0
        assert {m.id for m in await spool.peek(99)} == (WHOLE | {"m50"}) - {"m7"}


@pytest.mark.parametrize("seed", range(12))
async def test_any_flipped_byte_loses_no_more_than_its_page_and_changes_nothing_silently(
    tmp_path: Path, seed: int
) -> None:
    put = await fill(tmp_path)
    path = tmp_path / "spool.db"
    flip(path, random.Random(seed).randrange(PAGE, path.stat().st_size))
    got: dict[str, Message] = {}
    async with spool_at(tmp_path) as spool:
        for _ in range(200):
            try:
                batch = await spool.peek(3)
                if not batch:
                    break
                await spool.remove([m.id for m in batch])
            except SpoolCorruptError:
                continue
            got |= {m.id: m for m in batch}
        assert spool.totals.oldest_created_at_ms is None
        assert spool.corruptions <= 3
    assert all(put.get(name) == found for name, found in got.items() if name != "m99")
    assert len(got) >= 14


LOSSES = {"file": Path.unlink, "directory": lambda path: shutil.rmtree(path.parent)}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
async def test_a_file_deleted_while_running_is_still_read_and_written_again(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    directory = tmp_path / "daemon"
    async with spool_at(directory) as spool:
        await spool.put(message(1))
        lose(spool.path)
        with pytest.raises(SpoolCorruptError, match="was removed or replaced; nothing to set"):
            await spool.put(message(2))
        assert (spool.corruptions, spool.salvaged) == (1, 1)
        assert (await spool.state("spool/"))[ORIGIN] == b"corrupt"
        await spool.put(message(3))
        assert [m.id for m in await spool.peek(9)] == ["m1", "m3"]
        with pytest.raises(SpoolUnavailableError, match="in use"):
            await spool_at(directory).__aenter__()
        files = {path.name: path.read_bytes() for path in directory.glob("spool.db*")}
    killed = tmp_path / "killed"  # what a kill would have left
    killed.mkdir()
    for name, raw in files.items():
        (killed / name).write_bytes(raw)
    (killed / "spool.db-shm").unlink()
    async with spool_at(killed) as spool:
        assert [m.id for m in await spool.peek(9)] == ["m1", "m3"]


async def test_a_file_replaced_while_running_is_not_written_to(tmp_path: Path) -> None:
    await fill(tmp_path / "other", messages=1)
    async with spool_at(tmp_path / "daemon") as spool:
        await spool.put(message(5))
        (tmp_path / "other" / "spool.db").replace(spool.path)
        with pytest.raises(SpoolCorruptError, match="set aside as"):
            await spool.put(message(6))
        assert [m.id for m in await spool.peek(9)] == ["m5"]


async def test_an_empty_journal_is_an_older_state_and_no_damage(tmp_path: Path) -> None:
    async with spool_at(tmp_path) as spool:
        await spool.put(message(1))
        raw = spool.path.read_bytes()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "spool.db").write_bytes(raw)
    (copy / "spool.db-wal").write_bytes(b"")
    async with spool_at(copy) as spool:
        assert spool.corruptions == 0
        await spool.put(message(2))


async def test_a_stale_journal_is_never_read_into_a_new_file(tmp_path: Path) -> None:
    async with spool_at(tmp_path) as spool:
        await spool.put(message(1))
        journal = (tmp_path / "spool.db-wal").read_bytes()
    (tmp_path / "spool.db").unlink()
    (tmp_path / "spool.db-wal").write_bytes(journal)
    (tmp_path / "spool.db.new").write_bytes(b"half made")
    async with spool_at(tmp_path) as spool:
        assert (spool.corruptions, await spool.peek(9)) == (0, [])
        assert (await spool.state("spool/"))[ORIGIN] == b"created"


def test_a_new_file_whose_journal_cannot_be_emptied_does_not_replace_the_damaged_one(
    tmp_path: Path,
) -> None:
    """Only the file itself is renamed: what remained in its journal would be lost."""
    lost, path = SpoolStore(tmp_path / "lost.db", max_bytes=1 << 20), tmp_path / "spool.db"
    with lost.transaction():
        lost.apply(WriteBatch(messages=[message(1)]))
    path.write_bytes(b"damaged")
    readers = []

    def read_the_new_file(statement: str) -> None:
        if "sqlite_sequence WHERE name = 'dead_letter'" in statement:  # after the message's copy
            readers.append(connect(tmp_path / "spool.db.new"))
            readers[0].execute("BEGIN")
            readers[0].execute("SELECT count(*) FROM message").fetchone()

    lost.connection.set_trace_callback(read_the_new_file)
    with pytest.raises(SpoolUnavailableError, match="could not be emptied"):
        rebuild(path, lost, {})
    readers.pop().close()
    assert path.read_bytes() == b"damaged"
    assert not set_aside(tmp_path)
    lost.connection.set_trace_callback(None)
    assert rebuild(path, lost, {})[0] == 1


KILLED_BETWEEN_RENAMES = """
import os, sys
from pathlib import Path
from byoc_agents.durable.recovery import EPOCH, ORIGIN, rebuild

left = int(sys.argv[2])

def kill_before_the_change(event, arguments):
    global left
    if event in {"os.rename", "os.remove"}:
        left -= 1
        if left < 0:
            os._exit(9)

sys.addaudithook(kill_before_the_change)
rebuild(Path(sys.argv[1]), None, {EPOCH: b"1", ORIGIN: b"corrupt"})
"""


def replace_and_kill(path: Path, changes: int) -> int:
    """Replace the file in a process that ends before this change of the directory."""
    command = [sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(path), str(changes)]
    return subprocess.run(command, check=False).returncode


async def test_a_kill_at_any_change_of_a_replacement_loses_no_row(tmp_path: Path) -> None:
    changes = 0
    while True:
        directory = tmp_path / str(changes)
        messages = await fill(directory)
        flip(directory / "spool.db", VERSION_AT.start, 4)  # all rows can still be read
        killed = replace_and_kill(directory / "spool.db", changes)
        async with spool_at(directory) as spool:
            found = {m.id: m for m in await spool.peek(99)}
            assert (await spool.state(ORIGIN))[ORIGIN] == b"corrupt"
            assert (await spool.staged()) == [b"line 1", b"line 2"]
            assert not list(directory.glob("*.new*"))
            assert spool.corruptions == (1 if killed else 0)
        assert found == messages
        if not killed:
            break
        assert killed == 9
        changes += 1
    assert changes > 4


async def test_a_new_file_that_was_never_needed_does_not_come_back(tmp_path: Path) -> None:
    await fill(tmp_path / "other", messages=1)
    (tmp_path / "other" / "spool.db").rename(tmp_path / "spool.db.new")
    async with spool_at(tmp_path / "daemon"):
        pass
    (tmp_path / "spool.db.new").rename(tmp_path / "daemon" / "spool.db.new")
    async with spool_at(tmp_path / "daemon"):
        pass
    assert not (tmp_path / "daemon" / "spool.db.new").exists()


async def test_only_the_newest_damaged_files_are_kept(tmp_path: Path) -> None:
    for _ in range(KEPT_DAMAGED + 2):
        (tmp_path / "spool.db").write_bytes(b"garbage")
        async with spool_at(tmp_path) as spool:
            assert spool.corruptions == 1
    assert len(set_aside(tmp_path)) == KEPT_DAMAGED


async def test_everybody_in_the_group_gets_the_error_and_nobody_hangs(tmp_path: Path) -> None:
    async with spool_at(tmp_path) as spool:
        await spool.put(message(1))
        spool.path.unlink()
        answers = await asyncio.gather(
            *(spool.put(message(n)) for n in range(2, 9)), spool.peek(), return_exceptions=True
        )
        errors = [a for a in answers if isinstance(a, SpoolCorruptError)]
        assert errors
        assert len(set(map(id, errors))) == len(errors)
        kept = {m.id for m in await spool.peek(99)}
        stored = {f"m{n}" for n, a in zip(range(2, 9), answers, strict=False) if a is None}
        assert kept == {"m1"} | stored


async def test_no_place_for_a_new_file_is_unavailable_until_there_is_one(tmp_path: Path) -> None:
    directory = tmp_path / "daemon"
    async with spool_at(directory) as spool:
        await spool.put(message(1))
        shutil.rmtree(directory)
        directory.write_text("a file in its place")
        with pytest.raises(SpoolUnavailableError, match="no new file could be made"):
            await spool.put(message(2))
        with pytest.raises(SpoolUnavailableError):
            await spool.probe()
        directory.unlink()
        with pytest.raises(SpoolCorruptError, match="1 rows copied"):
            await spool.probe()
        await spool.probe()
        await spool.put(message(3))
        assert [m.id for m in await spool.peek(9)] == ["m1", "m3"]


def failing_read(_: SpoolStore) -> None:
    raise SpoolUnavailableError("disk")


async def test_a_file_that_went_while_it_was_closed_is_reported_as_lost(tmp_path: Path) -> None:
    async with spool_at(tmp_path) as spool:
        await spool.put(message(1))
        with pytest.raises(SpoolUnavailableError, match="disk"):
            await spool.run(failing_read, OperationKind.READ)  # an error closes the file
        spool.path.unlink()
        with pytest.raises(SpoolCorruptError):
            await spool.put(message(2))
        assert spool.corruptions == 1
        assert (await spool.state(ORIGIN))[ORIGIN] == b"corrupt"


async def test_the_epoch_is_later_than_the_last_one_although_the_clock_went_back(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    async with Spool(tmp_path, max_bytes=1 << 20, clock=clock) as spool:
        clock.step_wall(-3600)
        spool.path.unlink()
        with pytest.raises(SpoolCorruptError):
            await spool.put(message(1))
        assert int((await spool.state(EPOCH))[EPOCH]) == START_MS + 1


async def test_a_reserve_that_cannot_be_removed_is_no_room_for_an_acknowledgment(
    tmp_path: Path,
) -> None:
    """As on a disk that the kernel made read-only: it is reported, not tried again and again."""
    async with spool_at(tmp_path) as spool:
        await spool.put(message(1))
        for name in ("reserve", "spool.db-wal"):  # a directory can be neither removed nor opened
            (tmp_path / name).unlink()
            (tmp_path / name).mkdir()
        with pytest.raises(SpoolUnavailableError):
            await spool.remove(["m1"])
        for name in ("reserve", "spool.db-wal"):
            (tmp_path / name).rmdir()
        await spool.remove(["m1"])
        assert spool.totals.events == 0
