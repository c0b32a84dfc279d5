"""A power cut at any system call, after syncs that failed: every acknowledged write is kept.

A program writes spool and ledger under strace, which records each write and each sync and lets some
of them fail. The record is played to a disk that keeps only synced data, and forgets for good
what a failed sync was for. Wherever it is stopped, the next start has every acknowledged message,
none of those that are gone, and a ledger that verifies.
"""

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.durable.spool import Spool
from byoc_agents.ledger import FileLedger
from byoc_agents.ledger.format import IntentLine, decode
from byoc_agents.ledger.reader import raw_lines
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.verify import verify
from lab.real.syscalls import record
from lab.real.syscalls.disk import Disk
from lab.real.syscalls.strace import broken, traced
from lab.real.syscalls.writer import message

MESSAGES = 40
CUTS = 8  # places where the power goes, all over a run, and
AFTER = range(2, 50, 6)  # so many calls after the first that failed
# `when` counts the calls of each thread: the spool's and the ledger's alike.
FAULTS = {
    "nothing fails": [],
    "one sync": ["fdatasync:error=EIO:when=40"],
    **{
        f"the sync of a commit, and of the close after it: {nth}": [
            f"fdatasync:error=EIO:when={nth}..{nth + 1}"
        ]
        for nth in (31, 32, 33)  # one of them is that pair
    },
    "every fifth sync": ["fdatasync:error=EIO:when=26+5"],
    "ten syncs in a row": ["fdatasync:error=EIO:when=44..53"],
    "writes of the database": ["pwrite64:error=EIO:when=150..160"],
    "writes of the database, for want of space": ["pwrite64:error=ENOSPC:when=200..260"],
    "writes of the ledger": ["write:error=EIO:when=5+3"],
    "syncs of a directory, where the file is reopened": [
        "fdatasync:error=EIO:when=30+9",
        "fsync:error=EIO:when=4+2",  # the first three make the file, with the number of its epoch
    ],
    "reads": ["pread64:error=EIO:when=60+9"],
}


BROKEN = {fault.partition(":")[0] for faults in FAULTS.values() for fault in faults}


@dataclass
class DedupIndex:
    """The results that the program had by then."""

    put: set[int] = field(default_factory=set)
    sent: dict[int, int] = field(default_factory=dict)  # line of the ledger -> message
    gone: set[int] = field(default_factory=set)
    refused: int = 0

    def take(self, lines: bytes) -> None:
        for line in lines.decode().splitlines():
            match line.split():
                case ["put", number]:
                    self.put.add(int(number))
                case ["sent", number, place]:
                    self.sent[int(place)] = int(number)
                case ["gone", number]:
                    self.gone.add(int(number))
                case ["not", *_]:
                    self.refused += 1


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
async def test_what_was_acknowledged_is_there_wherever_the_power_goes(
    tmp_path: Path, faults: list[str]
) -> None:
    calls = list(recorded(tmp_path, faults))
    rng, index = random.Random(7), DedupIndex()
    disk = Disk(tmp_path / "state")
    cuts = chosen(calls, rng)
    for at, call in enumerate(calls):
        disk.do(call)
        if call.name == "writev" and call.path == str(tmp_path / "said"):
            index.take(call.data)
        if at in cuts:
            await assert_all_there(laid_out(tmp_path / f"cut-{at}", disk, rng), index)
    broke = (tmp_path / "log").read_text(errors="replace").count("(INJECTED)")
    print(f"{len(calls)} calls, {broke} broken; {len(index.put)} put, {index.refused} refused")
    assert len(index.put) + index.refused >= MESSAGES
    assert bool(broke) == bool(faults)


def chosen(calls: list[record.Call], rng: random.Random) -> set[int]:
    """Return where the power goes, the end among them."""
    last = len(calls) - 1
    failed = next(
        (at for at, call in enumerate(calls) if call.name in BROKEN and call.result < 0), last
    )
    return {last, *rng.sample(range(last), CUTS), *(min(last, failed + more) for more in AFTER)}


def recorded(place: Path, faults: list[str]) -> Iterator[record.Call]:
    """Run the writer and return what it did."""
    names = ",".join([record.CALLS, *(fault.partition(":")[0] for fault in faults)])
    command = traced(names, place / "log", *broken(*faults))
    writer = ["-m", "lab.real.syscalls.writer", str(place / "state"), str(MESSAGES)]
    with (place / "said").open("wb") as said:
        subprocess.run([*command, sys.executable, *writer], stdout=said, check=True, timeout=120)
    return record.calls(place / "log")


def laid_out(place: Path, disk: Disk, rng: random.Random) -> Path:
    """Write what the disk holds after the power cut."""
    for name, content in disk.after_power_cut(rng).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


async def assert_all_there(state: Path, index: DedupIndex) -> None:
    async with Spool(state, max_bytes=1 << 30, clock=SystemClock()) as spool:
        assert spool.corruptions == 0, "a crash does not leave damage"
        found = {int(m.id[1:]): m for m in await spool.peek(10_000, 1 << 30)}
    assert found == {number: message(number) for number in found}
    assert index.put - found.keys() <= set(index.sent.values())
    assert not index.gone & found.keys()
    await assert_verifies(state / "ledger", index)


async def assert_verifies(directory: Path, index: DedupIndex) -> None:
    """Start once more, as a daemon does, and read all of it."""
    async with FileLedger(directory, clock=SystemClock(), max_bytes=1 << 16) as ledger:
        assert ledger.last_error == ""
    assert verify(directory).problems == []
    segments = Segments(directory)
    raws = [raw for number in segments.numbers() for raw in raw_lines(segments.path(number))]
    intents = [line for raw in raws if isinstance(line := decode(raw.content), IntentLine)]
    written = {line.sequence: int(line.messages[0].id[1:]) for line in intents}
    assert index.sent.items() <= written.items()
