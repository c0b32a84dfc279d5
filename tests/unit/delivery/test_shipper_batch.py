"""Which messages share a request: after trouble, after a lost response and after a restart."""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from byoc_agents.delivery import shipper
from byoc_agents.delivery.shipper import TRANSITIONS, BatchResult, NextBatch
from byoc_agents.errors import Reason, SendError
from byoc_agents.ledger import FileLedger
from byoc_agents.message import Message, Receipt
from lab.fakes.core import FakeClock, ListLedger
from tests.unit.delivery.shipper_harness import OK, Harness, harness, message

RESET = SendError(Reason.CONNECTION, "ClientOSError")
LATE = SendError(Reason.TIMEOUT, "no response in 30 s")
GATEWAY = SendError(Reason.SERVER_ERROR, "status 502")
THROTTLED = SendError(Reason.THROTTLED, "status 429")
KILLED = SendError(Reason.INTERNAL, "no receipt is written")
DENIED = SendError(Reason.FORBIDDEN, "status 403")


def sent(it: Harness) -> list[list[str]]:
    return [[one.id for one in batch] for batch in it.sink.batches]


@pytest.mark.parametrize("error", [RESET, LATE, GATEWAY, ZeroDivisionError("defect")])
async def test_a_batch_whose_end_is_unknown_is_sent_again_as_it_was(
    tmp_path: Path, error: Exception
) -> None:
    async with harness(tmp_path, error, LATE, messages=3, max_messages=10) as it:
        for number in range(3):
            await it.shipper.attempt()
            await it.spool.put(message(10 + number))
        assert sent(it) == [["m0", "m1", "m2"]] * 3
        first, *again = it.sink.batches
        assert again == [first, first]


@pytest.mark.parametrize("refusal", [THROTTLED, DENIED])
async def test_a_refusal_after_an_unknown_end_does_not_split_the_batch(
    tmp_path: Path, refusal: SendError
) -> None:
    async with harness(tmp_path, RESET, refusal, messages=3, max_messages=10) as it:
        for _ in range(3):
            await it.shipper.attempt()
        assert sent(it) == [["m0", "m1", "m2"]] * 3


@pytest.mark.parametrize("refusal", [THROTTLED, DENIED])
async def test_after_a_known_refusal_the_next_batch_is_one_message(
    tmp_path: Path, refusal: SendError
) -> None:
    async with harness(tmp_path, refusal, messages=3, max_messages=10) as it:
        for _ in range(2):
            await it.shipper.attempt()
        assert sent(it) == [["m0", "m1", "m2"], ["m0"]]


async def test_a_rejected_message_alone_is_sent_with_another_one_next(tmp_path: Path) -> None:
    """Only another accepted message proves that the rejection is its own fault."""
    rejects = SendError(Reason.REJECTS_ALL, "status 422")
    async with harness(tmp_path, LATE, LATE, rejects, messages=5, max_messages=1) as it:
        it.sink.max_messages = 10
        for _ in range(4):
            await it.shipper.attempt()
        assert sent(it) == [["m0"], ["m0"], ["m0"], ["m0", "m1"]]


async def test_after_trouble_the_batches_grow_from_one_to_the_sinks_bound(tmp_path: Path) -> None:
    async with harness(tmp_path, DENIED, messages=60, max_messages=7) as it:
        for _ in range(13):
            await it.shipper.attempt()
        sizes = [len(batch) for batch in it.sink.batches]
        assert sizes == [7, 1, 1, 1, 2, 2, 2, 4, 4, 4, 7, 7, 7]
        assert it.sink.sent[7:] == [f"m{n}" for n in range(42)]


async def test_growth_begins_again_with_each_trouble(tmp_path: Path) -> None:
    script = [DENIED, OK, OK, OK, RESET, OK]
    async with harness(tmp_path, *script, messages=30, max_messages=7) as it:
        for _ in range(9):
            await it.shipper.attempt()
        assert [len(batch) for batch in it.sink.batches] == [7, 1, 1, 1, 2, 2, 1, 1, 2]


async def test_a_later_message_does_not_replace_one_of_an_unknown_batch(tmp_path: Path) -> None:
    def beat(number: int) -> Message:
        return Message(f"h{number}", "t", b"beat", created_at_ms=number, replaces="heartbeat")

    async with harness(tmp_path, RESET, RESET, messages=1, max_messages=10) as it:
        await it.spool.put(beat(1))
        for number in (2, 3, 4):
            await it.shipper.attempt()
            await it.spool.put(beat(number))
        assert sent(it) == [["m0", "h1"]] * 3
        assert await it.queued() == ["h4"]


async def test_a_batch_that_was_partly_taken_is_not_sent_again_whole(tmp_path: Path) -> None:
    async with harness(tmp_path, [OK, RESET, RESET], messages=3, max_messages=3) as it:
        for _ in range(3):
            await it.shipper.attempt()
        assert sent(it) == [["m0", "m1", "m2"], ["m1"], ["m2"]]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], ["m0", "m1", "m2"]),  # killed before the receipt
        ([RESET], ["m0", "m1", "m2"]),
        ([GATEWAY, THROTTLED], ["m0", "m1", "m2"]),  # an earlier attempt may have been stored
        ([OK], ["m0", "m1", "m2"]),  # killed before it was removed from the spool
        ([THROTTLED], ["m0", "m1", "m2", "m3"]),
        ([DENIED, DENIED], ["m0", "m1", "m2", "m3"]),
    ],
)
async def test_a_start_repeats_the_batch_that_was_in_flight(
    tmp_path: Path, outcomes: Sequence[SendError | Receipt], expected: list[str]
) -> None:
    batch = [message(number) for number in range(3)]
    for outcome in outcomes or (KILLED,):
        ledger = FileLedger(tmp_path / "ledger", clock=FakeClock(), max_bytes=1 << 20)
        async with ledger:
            line = await ledger.intent("test://sink", batch)
            if outcome is not KILLED:
                await ledger.receipt(line, batch, [outcome] * 3)
    ledger = FileLedger(tmp_path / "ledger", clock=FakeClock(), max_bytes=1 << 20)
    async with (
        ledger,
        harness(
            tmp_path / "spool",
            messages=4,
            max_messages=10,
            ledger=ledger,
            unknown_batch=ledger.unknown_batch,
        ) as it,
    ):
        await it.shipper.attempt()
        assert sent(it) == [expected]


async def test_a_start_with_a_smaller_bound_sends_no_batch_above_it(tmp_path: Path) -> None:
    async with harness(
        tmp_path, messages=4, max_messages=2, unknown_batch=("m0", "m1", "m2")
    ) as it:
        await it.shipper.attempt()
        assert sent(it) == [["m0"]]


async def test_a_start_whose_spool_lost_the_batch_sends_what_is_there(tmp_path: Path) -> None:
    async with harness(tmp_path, messages=4, max_messages=9, unknown_batch=("x", "m0")) as it:
        await it.shipper.attempt()
        assert sent(it) == [["m0"]]


def test_the_table_of_the_docstring_is_the_table_of_the_code() -> None:
    row = r"^\| (new|unknown) +\| (\w+)[: ].*\| (new|unknown) +\|$"
    rows = re.findall(row, shipper.__doc__ or "", re.MULTILINE)
    written = {(NextBatch(now), BatchResult(end)): NextBatch(then) for now, end, then in rows}
    assert written == TRANSITIONS
    assert TRANSITIONS.keys() == set(product(NextBatch, BatchResult))


REJECTS_ALL = SendError(Reason.REJECTS_ALL, "status 422")


@pytest.mark.parametrize(("now", "end"), TRANSITIONS)
async def test_each_row_of_the_table(tmp_path: Path, now: NextBatch, end: BatchResult) -> None:
    """A new batch has fewer or more messages than the last one, or others."""
    scripts: dict[BatchResult, list[Receipt | SendError]] = {
        BatchResult.DONE: [OK],
        BatchResult.FAILED: [DENIED],
        BatchResult.REJECTS_ALL: [REJECTS_ALL],
        BatchResult.UNKNOWN: [RESET],
        BatchResult.NOT_SENT: [],
    }
    script = scripts[end]
    unknown = ("m0", "m1") if now is NextBatch.UNKNOWN else ()
    ledger = ListLedger()
    ledger.refusal = "" if script else "the disk is full"
    async with harness(
        tmp_path, *script, messages=2, max_messages=9, ledger=ledger, unknown_batch=unknown
    ) as it:
        await it.shipper.attempt()
        ledger.refusal = ""
        await it.spool.put(*map(message, range(10, 13)))
        await it.shipper.attempt()
        again = sent(it)[-1] == ["m0", "m1"]
    assert again == (TRANSITIONS[now, end] is NextBatch.UNKNOWN)
