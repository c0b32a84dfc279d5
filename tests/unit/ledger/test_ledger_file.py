"""The shipper's view of the ledger: lines, syncs, errors, and no waiting for a slow disk."""

import asyncio
import errno
import hashlib
import threading
from pathlib import Path

import pytest

from byoc_agents.durable.files import Disk
from byoc_agents.errors import LedgerError
from byoc_agents.ledger import Ledger
from byoc_agents.ledger.format import IntentLine, ReceiptLine, SegmentLine, UnknownLine
from byoc_agents.ledger.writer import FileLedger
from lab.fakes.core import FakeClock
from tests.unit.ledger.ledger_fakes import (
    SMALL,
    FaultyDisk,
    checked,
    files,
    kinds,
    ledger,
    lines,
    message,
    refused,
    send,
    stored,
    tried,
    written,
)


async def test_one_line_before_and_one_after_each_send(tmp_path: Path) -> None:
    async with ledger(tmp_path) as made:
        batch = [message(1, b"one"), message(2, b"three")]
        line = await made.intent("s3://bucket", batch)
        await made.receipt(line, batch, [stored(batch)[0], refused(batch, "status 503")[1]])
    first, intent, receipt = lines(tmp_path)
    assert isinstance(first, SegmentLine)
    assert isinstance(intent, IntentLine)
    assert isinstance(receipt, ReceiptLine)
    assert (intent.sequence, intent.destination, receipt.intent) == (line, "s3://bucket", line)
    assert [(m.id, m.bytes) for m in intent.messages] == [("id-1", 3), ("id-2", 5)]
    assert intent.messages[0].sha256 == hashlib.sha256(b"one").hexdigest()
    assert [(o.reason, o.status, o.reference, o.detail) for o in receipt.outcomes] == [
        ("ok", 200, "etag-id-1", ""),
        ("server_error", 0, "", "status 503"),
    ]


async def test_each_line_holds_the_hash_of_the_line_before(tmp_path: Path) -> None:
    await written(tmp_path, sends=2)
    raw = files(tmp_path)[0].read_bytes().splitlines()
    found = lines(tmp_path)
    assert [line.sequence for line in found] == list(range(5))
    assert found[0].previous == "0" * 64
    assert [line.previous for line in found[1:]] == [hashlib.sha256(r).hexdigest() for r in raw[:4]]


async def test_an_intent_waits_for_the_fsync_and_a_receipt_for_the_next(tmp_path: Path) -> None:
    disk, clock = FaultyDisk(), FakeClock()
    async with FileLedger(tmp_path, clock=clock, max_bytes=SMALL, disk=disk) as made:
        batch = [message()]
        line = await made.intent("d", batch)
        assert disk.calls[-2:] == ["write", "sync"]
        await made.receipt(line, batch, stored(batch))
        assert disk.calls[-1] == "write"
        line = await made.intent("d", batch)
        await clock.advance(1.0)
        await made.receipt(line, batch, stored(batch))
        assert disk.calls[-2:] == ["write", "sync"]


async def test_the_head_in_the_status_is_durable_and_never_goes_back(tmp_path: Path) -> None:
    async with ledger(tmp_path) as made:
        line = await made.intent("d", [message()])
        pinned = made.status()["head"]
        await made.receipt(line, [message()], stored([message()]))
        assert made.status()["head"] == pinned  # the receipt is written, but not yet durable
        await send(made, message(2))
    sequence, sha256 = pinned.split(":")
    assert checked(tmp_path, {int(sequence): sha256}).ok
    assert not checked(tmp_path, {int(sequence): "0" * 64}).ok
    assert not checked(tmp_path, {99: sha256}).ok


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("failing", [("write",), ("sync",), ("write", "truncate", "sync")])
async def test_what_the_disk_refuses_is_not_sent_and_it_recovers_with_the_disk(
    failing: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    disk = FaultyDisk()
    async with ledger(tmp_path, disk) as made:
        assert await tried(made, message(1))
        disk.failing, disk.errno = failing, code
        assert [await tried(made, message(2)) for _ in range(3)] == [False] * 3
        assert made.status()["last_error"]
        disk.failing = ()
        assert await tried(made, message(3))
        assert made.status()["last_error"] is None
    assert checked(tmp_path).problems == []
    assert [line.messages[0].id for line in lines(tmp_path) if isinstance(line, IntentLine)] == [
        "id-1",
        "id-3",
    ]


async def test_a_receipt_that_finds_no_room_leaves_a_stated_unknown(tmp_path: Path) -> None:
    disk = FaultyDisk()
    async with ledger(tmp_path, disk) as made:
        line = await made.intent("d", [message(1)])
        disk.failing = ("write",)
        with pytest.raises(LedgerError, match="No space left"):
            await made.receipt(line, [message(1)], stored([message(1)]))
        disk.failing = ()
        await send(made, message(1))
    assert kinds(tmp_path) == [
        "SegmentLine",
        "IntentLine",
        "UnknownLine",
        "IntentLine",
        "ReceiptLine",
    ]
    assert [(u.intent, u.why) for u in lines(tmp_path) if isinstance(u, UnknownLine)] == [
        (line, "receipt_lost")
    ]
    assert checked(tmp_path).ok


async def test_it_starts_on_a_disk_that_refuses_and_works_when_it_does_not(tmp_path: Path) -> None:
    disk = FaultyDisk()
    disk.failing = ("place",)
    async with ledger(tmp_path / "new", disk) as made:
        assert made.status()["head"] is None
        assert not await tried(made, message())
        disk.failing = ()
        assert await tried(made, message())
    assert checked(tmp_path / "new").ok


async def test_a_directory_that_cannot_be_made_is_a_ledger_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with ledger(tmp_path / "file" / "ledger") as made:
        with pytest.raises(LedgerError, match="Not a directory"):
            await made.intent("d", [message()])


async def test_a_directory_has_one_writer(tmp_path: Path) -> None:
    async with ledger(tmp_path) as first, ledger(tmp_path) as second:
        assert await tried(first, message())
        with pytest.raises(LedgerError, match="in use by another process"):
            await second.intent("d", [message()])
    assert checked(tmp_path).ok


class GatedDisk(Disk):
    """Holds every sync until the test opens the gate; `waiting` says that one is there."""

    def __init__(self) -> None:
        self.syncs = 0
        self.waiting = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        self.waiting.set()
        assert self.gate.wait(10)
        super().sync(descriptor)


async def test_a_slow_disk_stops_neither_the_loop_nor_the_group(tmp_path: Path) -> None:
    """Ten intents that wait behind a slow fsync share the next one."""
    disk = GatedDisk()
    async with ledger(tmp_path, disk) as made:
        disk.gate.clear()
        disk.waiting.clear()
        disk.syncs = 0
        first = asyncio.create_task(made.intent("d", [message()]))
        await asyncio.to_thread(disk.waiting.wait, 10)
        others = [asyncio.create_task(made.intent("d", [message(n)])) for n in range(1, 11)]
        await asyncio.sleep(0)  # the loop turns while the disk is stuck
        disk.gate.set()
        assert await asyncio.gather(first, *others) == list(range(1, 12))
        assert disk.syncs == 2
    assert checked(tmp_path).ok


async def test_a_cancelled_send_is_stated_as_unknown_at_the_end(tmp_path: Path) -> None:
    async with ledger(tmp_path) as made:
        await made.intent("d", [message()])
    last = lines(tmp_path)[-1]
    assert isinstance(last, UnknownLine)
    assert last.why == "stopped"
    assert checked(tmp_path).ok


async def test_what_is_cancelled_before_it_is_written_is_not_written(tmp_path: Path) -> None:
    disk = GatedDisk()
    async with ledger(tmp_path, disk) as made:
        disk.gate.clear()
        disk.waiting.clear()
        first = asyncio.create_task(made.intent("d", [message(1)]))
        await asyncio.to_thread(disk.waiting.wait, 10)
        second = asyncio.create_task(made.intent("d", [message(2)]))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        disk.gate.set()
        await first
    assert kinds(tmp_path) == ["SegmentLine", "IntentLine", "UnknownLine"]


async def test_a_defect_inside_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    async with ledger(tmp_path) as made:
        with pytest.raises(LedgerError, match="ValueError"):
            await made.receipt(1, [message()], [])
        assert await tried(made, message())


def test_it_is_what_the_shipper_takes(tmp_path: Path) -> None:
    ready: Ledger = ledger(tmp_path)
    assert repr(ready) == f"FileLedger({tmp_path})"
