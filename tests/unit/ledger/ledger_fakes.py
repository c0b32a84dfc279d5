"""Parts for the ledger's tests: messages, a disk that fails by script, and a ledger on it."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from byoc_agents.durable.files import Disk
from byoc_agents.errors import LedgerError, Reason, SendError
from byoc_agents.ledger.format import LedgerLine, LinePosition, decode
from byoc_agents.ledger.heads import parse_heads
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.verify import LedgerVerdict, verify
from byoc_agents.ledger.writer import FileLedger
from byoc_agents.message import Message, Outcome, Receipt
from lab.fakes.core import FakeClock

SMALL = 64 * 1024


class CrashError(OSError):
    """The process is gone: the disk takes nothing from now on."""


class QuickDisk(Disk):
    """Waits for no disk: for tests that lose no power."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_directory(self, directory: Path) -> None:
        pass


class FaultyDisk(QuickDisk):
    """Counts the writes; fails those of a kind while `errno` is set, or crashes at one of them."""

    def __init__(self, crash_at: int = -1) -> None:
        self.calls: list[str] = []
        self.failing: tuple[str, ...] = ()
        self.errno = errno.ENOSPC
        self._crash_at = crash_at

    def _pass(self, kind: str) -> None:
        self.calls.append(kind)
        if 0 <= self._crash_at < len(self.calls):
            raise CrashError
        if kind in self.failing:
            raise OSError(self.errno, os.strerror(self.errno))

    def crash(self) -> None:
        """Take nothing from now on, not even half of a write."""
        last = len(self.calls) - 1
        self._crash_at = last if self._crash_at < 0 else min(self._crash_at, last)

    def write(self, descriptor: int, content: bytes) -> None:
        try:
            self._pass("write")
        except OSError:
            if self._crash_at in {-1, len(self.calls) - 1}:
                Disk.write(self, descriptor, content[: len(content) // 2])  # a torn write
            raise
        super().write(descriptor, content)

    def sync(self, descriptor: int) -> None:
        self._pass("sync")
        super().sync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._pass("truncate")
        super().truncate(descriptor, size_bytes)

    def place(self, content: bytes, path: Path) -> None:
        self._pass("place")
        super().place(content, path)

    def remove(self, path: Path) -> None:
        self._pass("remove")
        super().remove(path)


def message(number: int = 0, body: bytes = b"", kind: str = "byoc.alert.v1") -> Message:
    return Message(id=f"id-{number}", type=kind, body=body or b"{%d}" % number, created_at_ms=0)


def stored(batch: Sequence[Message]) -> list[Outcome]:
    return [Receipt(Reason.OK, 200, f"etag-{m.id}") for m in batch]


def refused(batch: Sequence[Message], detail: str = "status 503") -> list[Outcome]:
    return [SendError(Reason.SERVER_ERROR, detail) for _ in batch]


def ledger(
    directory: Path, disk: Disk | None = None, *, max_bytes: int = SMALL, keep_bodies: bool = False
) -> FileLedger:
    return FileLedger(
        directory, clock=FakeClock(), max_bytes=max_bytes, keep_bodies=keep_bodies, disk=disk
    )


async def send(to: FileLedger, *batch: Message, destination: str = "https://cp.example") -> int:
    """Do what the shipper does."""
    line = await to.intent(destination, batch)
    await to.receipt(line, batch, stored(batch))
    return line


async def tried(to: FileLedger, *batch: Message) -> bool:
    """Return whether the send would have happened."""
    try:
        await send(to, *batch)
    except LedgerError:
        return False
    return True


async def written(directory: Path, sends: int = 3, *, keep_bodies: bool = False) -> Path:
    """Return the directory with a ledger of so many sends."""
    async with ledger(directory, QuickDisk(), keep_bodies=keep_bodies) as made:
        for number in range(sends):
            await send(made, message(number))
    return directory


def files(directory: Path) -> list[Path]:
    segments = Segments(directory)
    return [segments.path(number) for number in segments.numbers()]


def lines(directory: Path) -> list[LedgerLine]:
    found = [decode(raw) for path in files(directory) for raw in path.read_bytes().splitlines()]
    assert all(found)
    return [line for line in found if line]


def kinds(directory: Path) -> list[str]:
    return [type(line).__name__ for line in lines(directory)]


def checked(
    directory: Path,
    anchors: dict[int, str] | None = None,
    *,
    heads: str = "",
    bounds: Sequence[int] = (),
) -> LedgerVerdict:
    kept = parse_heads(heads)
    given = tuple(LinePosition(*one) for one in (anchors or {}).items())
    kept = kept._replace(anchors=kept.anchors + given)
    return verify(directory, kept, settle=lambda: None, bounds=bounds)


def total_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
