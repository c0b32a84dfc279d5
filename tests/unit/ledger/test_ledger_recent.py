"""What a ledger says was sent last."""

from pathlib import Path

from byoc_agents.delivery.sink import Message, Outcome, Receipt
from byoc_agents.errors import Reason, SendError
from byoc_agents.ledger.recent import recently_sent
from byoc_agents.ledger.writer import FileLedger
from lab.fakes.core import FakeClock


def message(number: int) -> Message:
    return Message(f"m{number}", "t", b"body", created_at_ms=number)


async def test_what_was_announced_is_named_with_whether_it_is_stored(tmp_path: Path) -> None:
    outcomes: list[Outcome] = [Receipt(Reason.OK, 200, ""), SendError(Reason.TIMEOUT, "")]
    async with FileLedger(tmp_path / "ledger", clock=FakeClock(), max_bytes=1 << 20) as ledger:
        batch = [message(1), message(2)]
        await ledger.receipt(await ledger.intent("s3://b", batch), batch, outcomes)
        await ledger.intent("s3://b", [message(1), message(3)])
    assert recently_sent(tmp_path / "ledger") == {"m1": True, "m2": False, "m3": False}


async def test_a_ledger_of_two_files_is_read_over_their_seam(tmp_path: Path) -> None:
    async with FileLedger(tmp_path / "ledger", clock=FakeClock(), max_bytes=64 * 1024) as ledger:
        for number in range(60):
            await ledger.intent("s3://b", [message(number)])
    assert len(list((tmp_path / "ledger").glob("*.jsonl"))) > 1
    assert {"m58", "m59"} <= recently_sent(tmp_path / "ledger").keys()


def test_a_ledger_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert recently_sent(tmp_path / "ledger") == {}
