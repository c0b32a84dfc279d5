"""A foreign file in the place of a ledger file: bounded reads, and a line that records it."""

import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from byoc_agents.ledger.chain import Chain
from byoc_agents.ledger.format import RecoveredLine
from byoc_agents.ledger.query import Filter, events
from byoc_agents.ledger.reader import MAX_LINE_BYTES, raw_lines
from byoc_agents.ledger.recent import recently_sent, unknown_batch
from lab.fakes.core import FakeClock
from tests.unit.ledger.ledger_fakes import (
    SMALL,
    QuickDisk,
    checked,
    files,
    ledger,
    lines,
    message,
    send,
    written,
)

GIB = 1 << 30
PEAK_BYTES = 8 * MAX_LINE_BYTES


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < PEAK_BYTES


def start(directory: Path) -> None:
    chain = Chain(directory, clock=FakeClock(), max_bytes=SMALL, disk=QuickDisk())
    chain.open()
    chain.close()


def zeros(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 3 * GIB)  # sparse


def one_long_line(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x" * (MAX_LINE_BYTES + 1) + b"\n")


def many_lines_of_zeros(path: Path) -> None:
    with path.open("ab") as file:
        file.write((bytes(65_535) + b"\n") * (MAX_LINE_BYTES // 65_536 + 1))


FOREIGN = [zeros, one_long_line, many_lines_of_zeros]


@pytest.mark.parametrize("spoil", FOREIGN[:2])
async def test_verify_and_show_stop_at_a_line_that_is_too_long(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    await written(tmp_path / "l", sends=2)
    spoil(files(tmp_path / "l")[0])
    verdict = checked(tmp_path / "l")
    assert any("not a ledger line" in problem for problem in verdict.problems)
    assert len(list(events({"a": tmp_path / "l"}, Filter()))) == 2
    assert unknown_batch(tmp_path / "l") == () or recently_sent(tmp_path / "l")


@pytest.mark.parametrize("spoil", FOREIGN)
async def test_a_start_renames_what_is_not_ours_and_goes_on_with_the_chain(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    directory = await written(tmp_path / "l", sends=2)
    (path,) = files(directory)
    ours = path.read_bytes()
    spoil(path)
    spoiled_bytes = path.stat().st_size
    start(directory)
    (stated,) = [line for line in lines(directory) if isinstance(line, RecoveredLine)]
    assert (directory / stated.aside).stat().st_size == spoiled_bytes == stated.bytes
    assert path.read_bytes().startswith(ours)
    assert checked(directory).problems == []
    start(directory)  # and it is stated once
    assert len([line for line in lines(directory) if isinstance(line, RecoveredLine)]) == 1


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_a_fifo_or_directory_in_the_place_of_a_file_is_named_and_renamed(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    directory = await written(tmp_path / "l", sends=2)
    make(directory / "ledger-000002.jsonl")
    (problem,) = checked(directory).problems
    assert "ledger-000002.jsonl: is a" in problem
    assert "expected a regular file" in problem
    start(directory)
    assert checked(directory).problems == []
    assert (directory / "foreign-000002-0").exists()
    async with ledger(directory) as one:
        await send(one, message(7))
    assert checked(directory).problems == []


async def test_the_whole_file_may_be_foreign(tmp_path: Path) -> None:
    directory = tmp_path / "l"
    directory.mkdir()
    path = directory / "ledger-000001.jsonl"
    path.touch()
    zeros(path)
    start(directory)
    assert checked(directory).problems == []
    assert (directory / "foreign-000001-0").stat().st_size == 3 * GIB


def test_a_line_of_any_length_is_yielded_up_to_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\n" + b"y" * (MAX_LINE_BYTES + 100) + b"\nb\n")
    first, second = raw_lines(path)
    assert (first.content, first.whole) == (b"a", True)
    assert (len(second.content), second.whole) == (MAX_LINE_BYTES + 1, False)
