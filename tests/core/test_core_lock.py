"""The lock of a state directory, and the numbers that rise with it."""

from pathlib import Path

import pytest

from agents.core.errors import SpoolUnavailableError
from agents.core.lock import DirectoryLock
from agents.core.spool import EPOCH, Spool
from agents.testing import FakeClock


def numbers(directory: Path, *least: int) -> list[int]:
    lock = DirectoryLock(directory)
    lock.hold()
    given = [lock.number(number) for number in least]
    lock.release()
    return given


def test_a_number_is_larger_than_any_before(tmp_path: Path) -> None:
    assert numbers(tmp_path, 5, 5, 9) == [5, 6, 9]
    assert numbers(tmp_path, 2, 30) == [10, 30]


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 20, b"-7\n", b"\xff\xfe"])
def test_what_is_no_number_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert numbers(tmp_path, 3) == [3]


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
