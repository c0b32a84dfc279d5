"""The lock of a state directory, and the numbers that rise with it."""

import errno
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.durable.files import DirectoryLock
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.recovery import EPOCH, create_spool_file
from byoc_agents.durable.schema import translated
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolUnavailableError, SpoolUnusableError
from lab.fakes.core import FakeClock


def numbers(directory: Path, *least: int) -> list[int]:
    lock = DirectoryLock(directory)
    lock.hold()
    given = [lock.next_epoch(number) for number in least]
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
        lock.next_epoch(1)


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
        spool.lock.release()  # a write to the lock's file fails from here
        with pytest.raises(SpoolUnavailableError, match=r": Bad file descriptor"):
            await spool.later_epoch(0)
        await spool.commit(WriteBatch(state={"key": b"value"}))
        spool.lock.hold()
        assert await spool.later_epoch(0) == first + 1
        assert await spool.state("key") == {"key": b"value"}


UNSTORABLE: Any = object()


def refusing(number: int) -> DirectoryLock:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return DirectoryLock(Path("somewhere"), flock=flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_not_another_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpoolUnusableError, match="expected a file system with flock") as found:
        refusing(number).hold()
    assert str(found.value).startswith(f"somewhere cannot be locked ({os.strerror(number)})")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_is_not_another_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpoolUnavailableError) as found:
        refusing(number).hold()
    assert str(found.value) == f"somewhere cannot be locked ({os.strerror(number)})"


def test_another_process_that_holds_the_lock_is_named_as_such(tmp_path: Path) -> None:
    holder = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(SpoolUnusableError, match="in use by another daemon; expected one process"):
        DirectoryLock(tmp_path).hold()
    os.close(holder)
    DirectoryLock(tmp_path).hold()


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (sqlite3.SQLITE_IOERR_SHMMAP, "cannot map a file into shared memory"),
        (sqlite3.SQLITE_IOERR_SHMLOCK, "cannot lock a file"),
        (sqlite3.SQLITE_IOERR_LOCK, "cannot lock a file"),
    ],
)
def test_what_a_file_system_cannot_do_is_named_and_is_no_disk_error(code: int, cause: str) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    expected = rf"{cause} .*expected a local file system"
    with pytest.raises(SpoolUnusableError, match=expected), translated():
        raise error


def test_a_disk_error_stays_one() -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
    with pytest.raises(SpoolUnavailableError, match=r"^disk I/O error$"), translated():
        raise error


def test_a_file_that_could_not_be_finished_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with pytest.raises((sqlite3.Error, TypeError)):
        create_spool_file(path, {"mark": UNSTORABLE})
    assert not list(tmp_path.iterdir())
