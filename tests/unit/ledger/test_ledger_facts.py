"""Facts: the lines of the access broker, in files of a format of their own."""

from pathlib import Path

import pytest

from byoc_agents.errors import LedgerError, LedgerNewerError
from byoc_agents.ledger.format import FactLine, SegmentLine
from byoc_agents.ledger.writer import FileLedger
from lab.fakes.core import FakeClock
from tests.unit.ledger.ledger_fakes import (
    SMALL,
    FaultyDisk,
    QuickDisk,
    checked,
    kinds,
    ledger,
    lines,
    message,
    send,
)

FACT = FactLine(
    fact="opening", subject="0190", reason="approved", detail={"role": "r"}, sha256={"policy": "f"}
)


def with_facts(directory: Path, disk: QuickDisk | None = None) -> FileLedger:
    return FileLedger(
        directory, clock=FakeClock(), max_bytes=SMALL, disk=disk or QuickDisk(), facts=True
    )


async def test_a_fact_is_a_line_of_the_chain_between_the_sends(tmp_path: Path) -> None:
    async with with_facts(tmp_path) as made:
        number = await made.fact(FACT)
        await send(made, message())
        assert await made.fact(FACT) == number + 3
    assert kinds(tmp_path) == ["SegmentLine", "FactLine", "IntentLine", "ReceiptLine", "FactLine"]
    found = lines(tmp_path)[1]
    assert isinstance(found, FactLine)
    assert (found.fact, found.subject, found.reason) == ("opening", "0190", "approved")
    assert (found.detail, found.sha256) == ({"role": "r"}, {"policy": "f"})
    assert checked(tmp_path).problems == []


async def test_a_fact_is_durable_when_the_call_returns(tmp_path: Path) -> None:
    disk = FaultyDisk()
    async with with_facts(tmp_path, disk) as made:
        disk.calls.clear()
        await made.fact(FACT)
        assert disk.calls == ["write", "sync"]


async def test_a_fact_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    disk = FaultyDisk()
    async with with_facts(tmp_path, disk) as made:
        disk.failing = ("sync",)
        with pytest.raises(LedgerError, match="No space left"):
            await made.fact(FACT)
        disk.failing = ()
        await made.fact(FACT)
    assert kinds(tmp_path).count("FactLine") == 1
    assert checked(tmp_path).problems == []


async def test_only_a_ledger_with_facts_is_in_format_2(tmp_path: Path) -> None:
    async with with_facts(tmp_path / "access-broker"), ledger(tmp_path / "other", QuickDisk()):
        pass
    formats = []
    for name in ("access-broker", "other"):
        first = lines(tmp_path / name)[0]
        assert isinstance(first, SegmentLine)
        formats.append(first.format)
    assert formats == [2, 1]


async def test_a_ledger_without_facts_does_not_open_files_of_format_2(tmp_path: Path) -> None:
    async with with_facts(tmp_path):
        pass
    with pytest.raises(LedgerNewerError, match="format 2, this one reads up to 1"):
        await ledger(tmp_path, QuickDisk()).__aenter__()


async def test_a_fact_in_a_file_of_format_1_is_a_problem(tmp_path: Path) -> None:
    async with ledger(tmp_path, QuickDisk()) as made:
        await made.fact(FACT)
    assert [str(problem) for problem in checked(tmp_path).problems] == [
        "ledger-000001.jsonl:2: is a fact in a file of format 1"
    ]
