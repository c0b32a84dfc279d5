"""The shipper: what each reason leads to, and what it says of it."""

from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from byoc_agents.delivery.shipper import ACTIONS, Action
from byoc_agents.errors import Reason, SendError, SpoolUnavailableError
from byoc_agents.message import Message, Receipt
from lab.fakes.core import START_MS, ListLedger, Raised, settle
from tests.unit.delivery.shipper_harness import BUSY, DENIED, OK, POISON, harness, message


def test_every_reason_has_exactly_one_action() -> None:
    assert ACTIONS.keys() == set(Reason)


@pytest.mark.parametrize("reason", Reason)
async def test_what_a_reason_leads_to(tmp_path: Path, reason: Reason) -> None:
    done = {Reason.OK, Reason.ALREADY_STORED}
    step = Receipt(reason, 200) if reason in done else SendError(reason, "why")
    async with harness(tmp_path, step) as it:
        trouble = await it.shipper.attempt()
        action = ACTIONS[reason]
        kept = action in {Action.RETRY, Action.HOLD}
        assert (trouble is not None) is kept
        assert it.shipper.last_error == trouble
        assert await it.queued() == (["m0"] if kept else [])
        dead = [(d.message.id, d.reason, d.detail) for d in await it.spool.dead_letters()]
        assert dead == ([("m0", reason, "why")] if action is Action.DEAD_LETTER else [])
        assert it.count("byoc_send_attempts_total", result=reason) == 1
        assert it.count("byoc_messages_sent_total") == (action is Action.DONE)
        assert it.count("byoc_messages_sent_bytes_total") == 6 * (action is Action.DONE)
        assert it.count("byoc_dead_letters_total", reason=reason) == (action is Action.DEAD_LETTER)
        success = START_MS / 1000 if action is Action.DONE else 0
        assert it.count("byoc_last_send_success_timestamp_seconds") == success


async def test_in_a_batch_each_message_has_its_own_outcome(tmp_path: Path) -> None:
    async with harness(tmp_path, [OK, BUSY, POISON, DENIED], messages=5, max_messages=4) as it:
        trouble = await it.shipper.attempt()
        assert trouble is not None
        assert trouble.reason is Reason.SERVER_ERROR
        assert await it.queued() == ["m1", "m3", "m4"]
        assert await it.shipper.attempt() is None
        assert it.sink.sent == ["m0", "m1", "m2", "m3", "m1", "m3", "m4"]


async def test_a_poison_head_does_not_block_the_rest(tmp_path: Path) -> None:
    async with harness(tmp_path, POISON, messages=3) as it, it.running():
        await it.until_idle()
        assert list(it.sink.stored) == ["m1", "m2"]
        assert it.spool.totals.dead_letters == 1


async def test_the_loop_goes_on_after_the_only_message_was_dead_lettered(tmp_path: Path) -> None:
    async with harness(tmp_path, POISON) as it, it.running():
        await it.until_idle()
        await it.spool.put(message(1))
        await settle()
        await it.until_idle()
        assert list(it.sink.stored) == ["m1"]


async def test_nothing_is_sent_that_the_ledger_does_not_announce(tmp_path: Path) -> None:
    ledger = ListLedger()
    ledger.refusal = "disk full"
    async with harness(tmp_path, ledger=ledger) as it, it.running():
        assert await it.clock.parked() == [0.5]
        assert it.sink.batches == []
        assert it.shipper.last_error is not None
        assert it.shipper.last_error.reason is Reason.LEDGER
        ledger.refusal = ""
        await it.clock.advance(1)
        await it.until_idle()
        assert ledger.intents == [("test://sink", ["m0"])]
        assert ledger.receipts == [(0, ["m0"], [Reason.OK])]


async def test_a_send_whose_receipt_cannot_be_written_counts_as_not_sent(tmp_path: Path) -> None:
    ledger = ListLedger()

    def full(_: object) -> Receipt:
        ledger.refusal = "disk full"
        return OK

    async with harness(tmp_path, full, ledger=ledger) as it:
        trouble = await it.shipper.attempt()
        assert trouble is not None
        assert trouble.reason is Reason.LEDGER
        assert await it.queued() == ["m0"]


@pytest.mark.parametrize(
    "step", [ZeroDivisionError("secret"), [OK, OK], []], ids=["raises", "too many", "too few"]
)
async def test_a_defect_of_a_sink_holds_the_message(tmp_path: Path, step: object) -> None:
    async with harness(tmp_path, step) as it:
        with capture_logs() as logs:
            trouble = await it.shipper.attempt()
        assert trouble is not None
        assert trouble.reason is Reason.INTERNAL
        assert await it.queued() == ["m0"]
        assert [line["event"] for line in logs] == ["sink.unexpected_error"]
        assert "secret" not in trouble.detail


async def test_a_raised_send_error_holds_for_the_whole_batch(tmp_path: Path) -> None:
    async with harness(tmp_path, Raised(BUSY), messages=3, max_messages=3) as it:
        trouble = await it.shipper.attempt()
        assert trouble is not None
        assert it.count("byoc_send_attempts_total", result="server_error") == 3


async def test_a_failing_spool_is_waited_for(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        refusals = [SpoolUnavailableError("disk")] * 2
        peek = it.spool.peek

        async def failing(*bounds: int, pin: bool = False) -> list[Message]:
            if refusals:
                raise refusals.pop()
            return await peek(*bounds, pin=pin)

        it.spool.peek = failing  # type: ignore[method-assign,assignment]
        async with it.running():
            for wait in (0.5, 1.0):
                assert await it.clock.parked() == [wait]
                await it.clock.advance(wait)
            await it.until_idle()
        assert list(it.sink.stored) == ["m0"]
        assert it.count("byoc_spool_errors_total", reason="unavailable") == 2


async def test_a_lost_spool_file_does_not_end_the_shipper(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, it.running():
        await it.until_idle()
        it.spool.path.unlink()
        with suppress(Exception):
            await it.spool.put(message(1))
        await it.spool.put(message(2))
        await settle()
        await it.until_idle()
        assert "m2" in it.sink.stored


async def test_status_says_what_holds_the_head_up(tmp_path: Path) -> None:
    async with harness(tmp_path, DENIED) as it:
        await it.shipper.attempt()
        assert it.shipper.status() == {
            "destination": "test://sink",
            "last_success": None,
            "last_error": {"reason": "forbidden", "detail": "403", "action": Action.HOLD},
            "backlog": {
                "events": 1,
                "bytes": 518,
                "oldest": "1970-01-01T00:00:00.000Z",
                "dead_letters": 0,
            },
        }
        await it.shipper.attempt()
        status = it.shipper.status()
        assert (status["last_error"], status["last_success"]) == (None, "2026-11-23T12:00:00.000Z")


async def test_logs_name_ids_and_reasons_and_never_bodies(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with harness(tmp_path, BUSY, DENIED, POISON, messages=2) as it, it.running():
            for wait in (0.5, 1.0):
                assert await it.clock.parked() == [wait]
                await it.clock.advance(wait)
            await it.until_idle()
    events = [(line["event"], line["log_level"]) for line in lines]
    assert events == [
        ("message.retrying", "warning"),
        ("message.held", "error"),
        ("message.dead_lettered", "error"),
        ("message.sent", "info"),
    ]
    assert "body" not in repr(lines)
