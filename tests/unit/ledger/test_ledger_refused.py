"""The ledger records the gate's refusals, bounded in rate and all of them counted."""

import asyncio
from pathlib import Path

from byoc_agents.ledger.format import RefusedLine
from byoc_agents.ledger.removal import REFUSED_BURST
from byoc_agents.ledger.writer import FileLedger
from lab.fakes.core import FakeClock
from tests.unit.ledger.ledger_fakes import SMALL, FaultyDisk, checked, ledger, lines, message, tried


async def test_refusals_are_bounded_in_rate_and_none_goes_uncounted(tmp_path: Path) -> None:
    clock = FakeClock()
    async with FileLedger(tmp_path, clock=clock, max_bytes=SMALL) as made:
        for number in range(1000):
            made.record_refusal("host", f"evil-{number}.example")
        await clock.advance(3.0)
        made.record_refusal("port", "late")
        for _ in range(500):
            made.record_refusal("host", "again")
    found = [line for line in lines(tmp_path) if isinstance(line, RefusedLine)]
    assert len(found) == REFUSED_BURST + 2
    assert sum(line.count() for line in found) == 1501
    assert checked(tmp_path).refused == 1501


async def test_refusals_that_find_no_room_are_counted(tmp_path: Path) -> None:
    disk = FaultyDisk()
    async with ledger(tmp_path, disk) as made:
        disk.failing = ("write",)
        made.record_refusal("host", "evil.example")
        assert not await tried(made, message())
        disk.failing = ()
    (line,) = [line for line in lines(tmp_path) if isinstance(line, RefusedLine)]
    assert (line.reason, line.count()) == ("suppressed", 1)


async def test_a_refusal_from_any_thread_and_after_the_end_is_harmless(tmp_path: Path) -> None:
    async with ledger(tmp_path) as made:
        await asyncio.to_thread(made.record_refusal, "host", "from a thread \ud800 \n" + "x" * 9999)
    made.record_refusal("host", "too late")
    (line,) = [line for line in lines(tmp_path) if isinstance(line, RefusedLine)]
    assert line.detail.startswith("from a thread ? \n")
    assert len(line.detail) == 300
