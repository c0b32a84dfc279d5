"""The latest sends of a ledger, with their positions in their streams."""

from pathlib import Path

from byoc_agents.errors import Reason, SendError
from byoc_agents.ledger.recent import (
    TAIL_BYTES,
    RecentSend,
    StreamPosition,
    newest_sent,
    recently_sent,
)
from byoc_agents.ledger.writer import FileLedger
from byoc_agents.message import Message, Outcome, Receipt
from lab.fakes.core import FakeClock

OK = Receipt(Reason.OK, 200, "")


def message(number: int, stream: str = "s") -> Message:
    return Message(
        f"m{number}", "t", b"body", created_at_ms=1, stream=stream, epoch=7, sequence=number
    )


def send(number: int, *, stored: bool = False) -> RecentSend:
    return RecentSend(f"m{number}", "s", StreamPosition(7, number), 1, stored)


async def test_announced_messages_are_named_with_whether_they_are_stored(tmp_path: Path) -> None:
    outcomes: list[Outcome] = [OK, SendError(Reason.TIMEOUT, "")]
    async with FileLedger(tmp_path / "ledger", clock=FakeClock(), max_bytes=1 << 20) as ledger:
        batch = [message(1), message(2)]
        await ledger.receipt(await ledger.intent("s3://b", batch), batch, outcomes)
        await ledger.intent("s3://b", [message(1), message(3), message(9, stream="")])
    assert recently_sent(tmp_path / "ledger") == [send(1, stored=True), send(2), send(3)]


async def test_a_ledger_of_two_files_is_read_over_their_seam(tmp_path: Path) -> None:
    async with FileLedger(tmp_path / "ledger", clock=FakeClock(), max_bytes=64 * 1024) as ledger:
        for number in range(60):
            await ledger.intent("s3://b", [message(number)])
    assert len(list((tmp_path / "ledger").glob("*.jsonl"))) > 1
    assert recently_sent(tmp_path / "ledger")[-2:] == [send(58), send(59)]


def test_a_ledger_that_does_not_exist_has_no_sends(tmp_path: Path) -> None:
    assert recently_sent(tmp_path / "ledger") == []


async def test_ids_that_contain_the_position_are_read_where_no_line_states_it(
    tmp_path: Path,
) -> None:
    """As in the lines of 0.1.0, and for a receipt whose intent is too old to be read."""

    def read_id(text: str) -> RecentSend | None:
        return send(int(text[1:])) if text.startswith("m") else None

    other = Message("other", "t", b"body", created_at_ms=1)
    large = [Message(f"other-{n:0300}", "t", b"", created_at_ms=1) for n in range(10)]
    async with FileLedger(tmp_path / "ledger", clock=FakeClock(), max_bytes=1 << 25) as ledger:
        old = await ledger.intent("s3://b", [message(1, stream="")])
        for _ in range(TAIL_BYTES // 4000):
            await ledger.intent("s3://b", large)
        assert recently_sent(tmp_path / "ledger", read_id) == []
        await ledger.receipt(old, [message(1)], [OK])
        await ledger.intent("s3://b", [message(2, stream=""), other])
    assert recently_sent(tmp_path / "ledger", read_id) == [send(1, stored=True), send(2)]


def test_the_newest_position_is_that_of_the_latest_epoch() -> None:
    places = [("s", 7, 900), ("s", 8, 3), ("s", 8, 2), ("other", 9, 9)]
    sends = [RecentSend("", stream, StreamPosition(e, n), 1) for stream, e, n in places]
    assert newest_sent(sends, "s") == (8, 3)
    assert newest_sent(sends, "another") is None


def test_the_first_position_of_an_object_follows_from_its_records() -> None:
    assert RecentSend("", "s", StreamPosition(7, 12), events=5).first == (7, 8)
