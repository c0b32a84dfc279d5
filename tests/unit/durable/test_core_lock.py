"""The lock of a state directory, and the numbers that rise with it."""

from pathlib import Path

import pytest

from byoc_agents.durable.lock import DirectoryLock
from byoc_agents.durable.spool import EPOCH, Spool
from byoc_agents.durable.write_batch import Change
from byoc_agents.errors import SpoolUnavailableError
from lab.fakes.core import FakeClock


def numbers(directory: Path, *least: int) -> list[int]:
    lock = DirectoryLock(directory)
    lock.hold()
    given = [lock.number(number) for number in least]
    lock.release()
    return given


def test_a_number_is_larger_than_any_before(tmp_path: Path) -> None:
    assert numbers(tmp_path, 5, 5, 9) == [5, 6, 9]
    assert numbers(tmp_path, 2, 30) == [10, 30]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"x" * 99, b"-7 0\n", b"\xff\xfe", b"999999999999999\n", b" 00000000\n"]
)
def test_what_is_no_number_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert numbers(tmp_path, 3, 3) == [3, 4]
    assert numbers(tmp_path, 3) == [5]


def test_one_changed_byte_makes_it_none_and_never_another_number(tmp_path: Path) -> None:
    numbers(tmp_path, 1_795_435_200_000)
    whole = (tmp_path / "lock").read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            (tmp_path / "lock").write_bytes(damaged)
            assert numbers(tmp_path, 3) == [3]


def test_a_torn_write_leaves_the_old_number_or_the_new_one_or_none(tmp_path: Path) -> None:
    numbers(tmp_path, 999)
    old = (tmp_path / "lock").read_bytes()
    numbers(tmp_path, 1000)
    new = (tmp_path / "lock").read_bytes()
    for written in range(len(new) + 1):
        (tmp_path / "lock").write_bytes(new[:written] + old[written:])
        assert numbers(tmp_path, 3)[0] in {3, 1000, 1001}


def test_a_number_that_cannot_be_kept_is_not_given(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)  # holds nothing, so there is no file to write to
    with pytest.raises(SpoolUnavailableError, match=r": Bad file descriptor"):
        lock.number(1)


async def test_a_new_spool_is_of_a_later_epoch_also_where_the_clock_was_set_back(
    tmp_path: Path,
) -> None:
    clock, epochs = FakeClock(), []
    for _ in range(3):
        async with Spool(tmp_path, max_bytes=1 << 20, clock=clock) as spool:
            epochs.append(int((await spool.state(EPOCH))[EPOCH]))
        (tmp_path / "spool.db").unlink()
        clock.step_wall(-3600)
    assert epochs == [epochs[0], epochs[0] + 1, epochs[0] + 2]


async def test_an_epoch_that_cannot_be_kept_is_not_given_and_the_spool_goes_on(
    tmp_path: Path,
) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20, clock=FakeClock()) as spool:
        first = await spool.later_epoch(0)
        spool._lock.release()  # a write to the lock's file fails from here
        with pytest.raises(SpoolUnavailableError, match=r": Bad file descriptor"):
            await spool.later_epoch(0)
        await spool.commit(Change(state={"key": b"value"}))
        spool._lock.hold()
        assert await spool.later_epoch(0) == first + 1
        assert await spool.state("key") == {"key": b"value"}
