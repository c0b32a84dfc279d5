"""Wherever a crash falls, the next start has an unbroken chain and says what it found."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from byoc_agents.errors import LedgerError
from byoc_agents.ledger.chain import Chain
from byoc_agents.ledger.format import IntentLine, RecoveredLine, UnknownLine
from lab.fakes.core import FakeClock
from tests.unit.ledger.ledger_fakes import (
    SMALL,
    FaultyDisk,
    QuickDisk,
    checked,
    files,
    kinds,
    ledger,
    lines,
    message,
    send,
    tried,
    written,
)


def started(directory: Path) -> None:
    chain = Chain(directory, clock=FakeClock(), max_bytes=SMALL, disk=QuickDisk())
    chain.open()
    chain.close()


async def test_a_file_cut_at_any_byte_of_its_last_lines_is_closed_out(tmp_path: Path) -> None:
    """A clean cut between two lines adds no line; a torn line is kept in a file and recorded."""
    whole = await written(tmp_path / "whole", sends=2)
    content = files(whole)[0].read_bytes()
    ends = {n + 1 for n, byte in enumerate(content) if byte == ord("\n")}
    last_two = sorted(ends)[-3]
    for cut in range(last_two, len(content)):
        directory = tmp_path / str(cut)
        shutil.copytree(whole, directory)
        os.truncate(files(directory)[0], cut)
        assert checked(directory).ok == (cut in ends)
        started(directory)
        assert checked(directory).problems == []
        stated = [line for line in lines(directory) if isinstance(line, RecoveredLine)]
        torn = cut - max(end for end in ends if end <= cut)
        assert [line.bytes for line in stated] == ([torn] if torn else [])
        if torn:
            assert (directory / stated[0].aside).read_bytes() == content[cut - torn : cut]
        shutil.rmtree(directory)


async def test_a_first_line_cut_at_any_byte_falls_back_to_the_file_before(tmp_path: Path) -> None:
    whole = await written(tmp_path / "whole", sends=20)
    os.truncate(files(whole)[-1], len(files(whole)[-1].read_bytes().splitlines(keepends=True)[0]))
    content = files(whole)[-1].read_bytes()
    for cut in range(0, len(content), 7):
        directory = tmp_path / str(cut)
        shutil.copytree(whole, directory)
        os.truncate(files(directory)[-1], cut)
        started(directory)
        assert checked(directory).problems == []
        assert (await written(directory, sends=3)) == directory
        assert checked(directory).problems == []


@pytest.mark.parametrize("keep_bodies", [False, True], ids=["lines", "bodies"])
async def test_a_crash_at_any_write_leaves_a_chain(tmp_path: Path, *, keep_bodies: bool) -> None:
    """Through the first start, sends, a rotation and a removal; every step is where it may end."""
    probe = FaultyDisk()
    await _busy(tmp_path / "probe", probe, keep_bodies=keep_bodies)
    assert {"write", "sync", "place", "remove", "truncate"} <= set(probe.calls)
    steps = len(probe.calls)
    chosen = {*range(1, 12), *_around(probe.calls, "place"), *_around(probe.calls, "remove")}
    for step in sorted(chosen | set(range(12, steps, max(1, steps // 12)))):
        directory = tmp_path / str(step)
        acknowledged = await _busy(directory, FaultyDisk(step), keep_bodies=keep_bodies)
        started(directory)
        verdict = checked(directory)
        assert verdict.problems == [], f"crash at step {step}"
        intents = {line.sequence for line in lines(directory) if isinstance(line, IntentLine)}
        assert set(acknowledged[-2:]) <= intents
        shutil.rmtree(directory)


def _around(calls: list[str], kind: str) -> list[int]:
    places = [n for n, call in enumerate(calls, start=1) if call == kind]
    return [n + offset for n in places[:5] for offset in (-1, 0, 1) if n + offset > 0]


async def _busy(directory: Path, disk: FaultyDisk, *, keep_bodies: bool) -> list[int]:
    """Send until the disk crashes; return the lines whose send went ahead."""
    acknowledged: list[int] = []
    made = ledger(directory, disk, keep_bodies=keep_bodies)
    with suppress(LedgerError):
        await made.__aenter__()
        for number in range(11):
            batch = [message(1000 * number + n, b"%d" % number * 300) for n in range(30)]
            acknowledged.append(await send(made, *batch))
    disk.crash()  # nothing is written at the end
    await made.__aexit__()
    return acknowledged


async def test_an_intent_without_a_receipt_is_stated_as_unknown_after_a_crash(
    tmp_path: Path,
) -> None:
    await written(tmp_path, sends=2)
    content = files(tmp_path)[0].read_bytes().splitlines(keepends=True)
    files(tmp_path)[0].write_bytes(b"".join(content[:-1]))  # the last receipt never came
    started(tmp_path)
    last = lines(tmp_path)[-1]
    assert isinstance(last, UnknownLine)
    assert (last.intent, last.why) == (3, "crash")
    started(tmp_path)
    assert kinds(tmp_path).count("UnknownLine") == 1


async def test_an_open_intent_is_carried_over_into_the_next_file(tmp_path: Path) -> None:
    async with ledger(tmp_path) as made:
        line = await made.intent("d", [message(1)])
        for number in range(30):
            await send(made, message(number))
        assert len(files(tmp_path)) > 1
    unknown = lines(tmp_path)[-1]
    assert isinstance(unknown, UnknownLine)
    assert unknown.intent == line
    assert checked(tmp_path).ok


async def test_a_hole_that_a_power_cut_left_is_closed_out(tmp_path: Path) -> None:
    """Pages of lines that were not synced may come back as zeros."""
    await written(tmp_path, sends=2)
    path = files(tmp_path)[0]
    raw = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(raw[:-1]) + b"\0" * (len(raw[-1]) - 1) + b"\n")
    started(tmp_path)
    assert checked(tmp_path).problems == []
    assert kinds(tmp_path)[-2:] == ["RecoveredLine", "UnknownLine"]


@pytest.mark.parametrize("position", [1, 2, 3], ids=["intent", "receipt", "intent before last"])
async def test_a_changed_line_is_never_cut_off_as_torn(position: int, tmp_path: Path) -> None:
    """A restart does not launder: the chain goes on in a new file, the evidence stays."""
    await written(tmp_path, sends=2)
    path = files(tmp_path)[0]
    raw = path.read_bytes().splitlines(keepends=True)
    raw[position] = raw[position].replace(b"id-", b"ID-")
    path.write_bytes(b"".join(raw))
    await written(tmp_path, sends=1)
    assert path.read_bytes() == b"".join(raw)
    assert len(files(tmp_path)) == 2
    verdict = checked(tmp_path)
    places = {problem.split(" ")[0] for problem in verdict.problems}
    assert f"{path.name}:{position + 1}:" in places
    assert all(place.startswith(path.name) for place in places)
    assert any("damaged" in note for note in verdict.notes)


async def test_a_file_taken_away_under_the_daemon_stays_visible_as_missing(tmp_path: Path) -> None:
    async with ledger(tmp_path) as made:
        assert await tried(made, message(1))
        files(tmp_path)[0].unlink()
        assert await tried(made, message(2))
    verdict = checked(tmp_path)
    assert "lines 0 to 2 are missing" in verdict.problems[0]
    assert kinds(tmp_path) == ["SegmentLine", "RecoveredLine", "IntentLine", "ReceiptLine"]


async def test_bytes_added_to_the_file_under_the_daemon_stay_visible(tmp_path: Path) -> None:
    async with ledger(tmp_path) as made:
        assert await tried(made, message(1))
        with files(tmp_path)[0].open("ab") as file:
            file.write(b"x")
        assert await tried(made, message(2))
    assert [p.split(" ")[0] for p in checked(tmp_path).problems] == ["ledger-000001.jsonl:4:"]


async def test_a_directory_taken_away_under_the_daemon_does_not_stop_it(tmp_path: Path) -> None:
    async with ledger(tmp_path / "ledger") as made:
        assert await tried(made, message(1))
        shutil.rmtree(tmp_path / "ledger")
        assert await tried(made, message(2))
    assert not checked(tmp_path / "ledger").ok


ENDLESS = """
import asyncio, sys
from pathlib import Path
from byoc_agents.app.clock import SystemClock
from byoc_agents.ledger import FileLedger
from lab.fakes.core import FakeClock
from tests.unit.ledger.ledger_fakes import message, stored

async def main():
    async with FileLedger(Path(sys.argv[1]), clock=SystemClock(), max_bytes=1 << 20) as made:
        for number in range(1_000_000):
            line = await made.intent("d", [message(number)])
            print(line, flush=True)
            await made.receipt(line, [message(number)], stored([message(number)]))

asyncio.run(main())
"""


@pytest.mark.parametrize("sends", [1, 40])
async def test_nothing_that_was_announced_is_lost_by_kill_9(sends: int, tmp_path: Path) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", ENDLESS, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout
    printed = []
    with process:
        for _ in range(sends):
            line = await asyncio.to_thread(process.stdout.readline)
            printed += [int(line)] if line.strip().isdigit() else []
        process.send_signal(signal.SIGKILL)
    started(tmp_path)
    assert checked(tmp_path).problems == []
    intents = {line.sequence for line in lines(tmp_path) if isinstance(line, IntentLine)}
    assert set(printed) <= intents
    assert json.loads(files(tmp_path)[0].read_bytes().splitlines()[0])["kind"] == "segment"
