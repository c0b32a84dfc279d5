"""The shipper: what each reason leads to, how long it waits, and that it never spins."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from agents.core.errors import Reason, SendError, SpoolUnavailableError
from agents.core.ledger import Ledger
from agents.core.metrics import Metrics
from agents.core.ship import (
    FATES,
    FIRST_WAIT_SECONDS,
    GATHER_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    Fate,
    Shipper,
)
from agents.core.sink import Message, Receipt
from agents.core.spool import Spool
from agents.testing import (
    START_MS,
    FakeClock,
    Hang,
    ListLedger,
    NullLedger,
    Raised,
    ScriptedSink,
    settle,
)

OK = Receipt(Reason.OK, 200)
BUSY = SendError(Reason.SERVER_ERROR, "503")
DENIED = SendError(Reason.FORBIDDEN, "403")
POISON = SendError(Reason.REJECTED, "400")


def message(number: int) -> Message:
    return Message(f"m{number}", "t", b"body %d" % number, created_at_ms=number)


class Dice(random.Random):
    """Always throws the same part of the range."""

    def __init__(self, part: float) -> None:
        super().__init__(0)
        self.part = part

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.part


class World:
    """A spool on disk, a scripted receiver and a shipper between them."""

    def __init__(self, spool: Spool, sink: ScriptedSink, ledger: Ledger, dice: Dice) -> None:
        self.spool, self.sink, self.ledger = spool, sink, ledger
        self.clock, self.metrics, self.dice = FakeClock(), Metrics(), dice
        self.shipper = self.restarted()

    def restarted(self) -> Shipper:
        self.shipper = Shipper(
            "agent",
            spool=self.spool,
            sink=self.sink,
            ledger=self.ledger,
            clock=self.clock,
            metrics=self.metrics,
            rng=self.dice,
        )
        return self.shipper

    def count(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, {"agent": "agent", **labels})
        return value or 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.shipper.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    async def until_idle(self) -> None:
        await asyncio.wait_for(self.shipper._idle.wait(), 30)

    async def queued(self) -> list[str]:
        return [m.id for m in await self.spool.head(1000, 1 << 30)]


@asynccontextmanager
async def world(
    directory: Path,
    *script: object,
    messages: int = 1,
    max_messages: int = 1,
    ledger: Ledger | None = None,
    part: float = 1.0,
) -> AsyncIterator[World]:
    sink = ScriptedSink(script, max_messages=max_messages)  # type: ignore[arg-type]
    async with Spool(directory, max_bytes=1 << 24, clock=FakeClock()) as spool:
        if messages:
            await spool.put(*map(message, range(messages)))
        yield World(spool, sink, ledger or NullLedger(), Dice(part))


def test_every_reason_has_exactly_one_fate() -> None:
    assert FATES.keys() == set(Reason)


@pytest.mark.parametrize("reason", Reason)
async def test_what_a_reason_leads_to(tmp_path: Path, reason: Reason) -> None:
    done = {Reason.OK, Reason.ALREADY_STORED}
    step = Receipt(reason, 200) if reason in done else SendError(reason, "why")
    async with world(tmp_path, step) as it:
        trouble = await it.shipper.attempt()
        fate = FATES[reason]
        kept = fate in {Fate.RETRY, Fate.HOLD}
        assert (trouble is not None) is kept
        assert it.shipper.trouble == trouble
        assert await it.queued() == (["m0"] if kept else [])
        buried = [(d.message.id, d.reason, d.detail) for d in await it.spool.dead_letters()]
        assert buried == ([("m0", reason, "why")] if fate is Fate.BURY else [])
        assert it.count("byoc_attempts_total", reason=reason) == 1
        assert it.count("byoc_sent_total") == (fate is Fate.DONE)
        assert it.count("byoc_sent_bytes_total") == 6 * (fate is Fate.DONE)
        assert it.count("byoc_dead_letters_total", reason=reason) == (fate is Fate.BURY)
        success = START_MS / 1000 if fate is Fate.DONE else 0
        assert it.count("byoc_last_success_timestamp_seconds") == success


async def test_in_a_batch_each_message_has_its_own_outcome(tmp_path: Path) -> None:
    async with world(tmp_path, [OK, BUSY, POISON, DENIED], messages=5, max_messages=4) as it:
        trouble = await it.shipper.attempt()
        assert trouble is not None
        assert trouble.reason is Reason.SERVER_ERROR
        assert await it.queued() == ["m1", "m3", "m4"]
        assert await it.shipper.attempt() is None
        assert it.sink.sent == ["m0", "m1", "m2", "m3", "m1", "m3", "m4"]


async def test_a_poison_head_does_not_block_the_rest(tmp_path: Path) -> None:
    async with world(tmp_path, POISON, messages=3) as it, it.running():
        await it.until_idle()
        assert list(it.sink.stored) == ["m1", "m2"]
        assert it.spool.totals.dead_letters == 1


async def test_the_loop_goes_on_after_the_only_message_was_buried(tmp_path: Path) -> None:
    async with world(tmp_path, POISON) as it, it.running():
        await it.until_idle()
        await it.spool.put(message(1))
        await settle()
        await it.until_idle()
        assert list(it.sink.stored) == ["m1"]


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
async def test_waits_double_up_to_a_minute_with_full_jitter(tmp_path: Path, part: float) -> None:
    async with world(tmp_path, *[BUSY] * 12, part=part) as it, it.running():
        for attempt in range(12):
            ceiling = min(FIRST_WAIT_SECONDS * 2**attempt, 60)
            if part:
                assert await it.clock.parked() == [pytest.approx(ceiling * part, abs=1e-6)]
                await it.clock.advance(ceiling * part)
        await it.until_idle()
        assert len(it.sink.batches) == 13


async def test_what_needs_a_person_is_tried_every_five_minutes_in_the_end(tmp_path: Path) -> None:
    async with world(tmp_path, *[DENIED] * 14) as it, it.running():
        for _ in range(13):
            (wait,) = await it.clock.parked()
            await it.clock.advance(wait)
        assert await it.clock.parked() == [300]


@pytest.mark.parametrize(
    ("asked", "waits"), [(30.0, 30.0), (0.1, 0.5), (1e9, MAX_RETRY_AFTER_SECONDS)]
)
async def test_a_receivers_retry_after_is_honoured(
    tmp_path: Path, asked: float, waits: float
) -> None:
    slow = SendError(Reason.THROTTLED, "429", retry_after_seconds=asked)
    async with world(tmp_path, slow) as it, it.running():
        assert await it.clock.parked() == [waits]


async def test_the_back_off_starts_anew_after_a_success(tmp_path: Path) -> None:
    async with world(tmp_path, BUSY, BUSY, OK, BUSY, messages=2) as it, it.running():
        for wait in (0.5, 1.0, 0.5):
            assert await it.clock.parked() == [wait]
            await it.clock.advance(wait)
        await it.until_idle()


async def test_nothing_is_sent_that_the_ledger_does_not_announce(tmp_path: Path) -> None:
    ledger = ListLedger()
    ledger.refusal = "disk full"
    async with world(tmp_path, ledger=ledger) as it, it.running():
        assert await it.clock.parked() == [0.5]
        assert it.sink.batches == []
        assert it.shipper.trouble is not None
        assert it.shipper.trouble.reason is Reason.LEDGER
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

    async with world(tmp_path, full, ledger=ledger) as it:
        trouble = await it.shipper.attempt()
        assert trouble is not None
        assert trouble.reason is Reason.LEDGER
        assert await it.queued() == ["m0"]


@pytest.mark.parametrize(
    "step", [ZeroDivisionError("secret"), [OK, OK], []], ids=["raises", "too many", "too few"]
)
async def test_a_defect_of_a_sink_holds_the_message(tmp_path: Path, step: object) -> None:
    async with world(tmp_path, step) as it:
        with capture_logs() as logs:
            trouble = await it.shipper.attempt()
        assert trouble is not None
        assert trouble.reason is Reason.INTERNAL
        assert await it.queued() == ["m0"]
        assert [line["event"] for line in logs] == ["ship.defect"]
        assert "secret" not in trouble.detail


async def test_a_raised_send_error_holds_for_the_whole_batch(tmp_path: Path) -> None:
    async with world(tmp_path, Raised(BUSY), messages=3, max_messages=3) as it:
        trouble = await it.shipper.attempt()
        assert trouble is not None
        assert it.count("byoc_attempts_total", reason="server_error") == 3


async def test_a_failing_spool_is_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        refusals = [SpoolUnavailableError("disk")] * 2
        head = it.spool.head

        async def failing(*bounds: int) -> list[Message]:
            if refusals:
                raise refusals.pop()
            return await head(*bounds)

        it.spool.head = failing  # type: ignore[method-assign,assignment]
        async with it.running():
            for wait in (0.5, 1.0):
                assert await it.clock.parked() == [wait]
                await it.clock.advance(wait)
            await it.until_idle()
        assert list(it.sink.stored) == ["m0"]
        assert it.count("byoc_spool_errors_total", reason="SpoolUnavailableError") == 2


async def test_a_lost_spool_file_does_not_end_the_shipper(tmp_path: Path) -> None:
    async with world(tmp_path) as it, it.running():
        await it.until_idle()
        it.spool.path.unlink()
        with suppress(Exception):
            await it.spool.put(message(1))
        await it.spool.put(message(2))
        await settle()
        await it.until_idle()
        assert "m2" in it.sink.stored


async def test_an_idle_shipper_does_nothing_until_something_is_put(tmp_path: Path) -> None:
    async with world(tmp_path, messages=0) as it:
        asked = 0
        head = it.spool.head

        async def counted(*bounds: int) -> list[Message]:
            nonlocal asked
            asked += 1
            return await head(*bounds)

        it.spool.head = counted  # type: ignore[method-assign,assignment]
        async with it.running():
            await it.until_idle()
            await settle(500)
            assert asked == 1
            await it.spool.put(message(1))
            await settle()
            await it.until_idle()
            await settle(500)
            assert asked <= 3
            assert list(it.sink.stored) == ["m1"]


async def test_no_wake_up_is_missed_whenever_the_put_comes(tmp_path: Path) -> None:
    """Puts that fall into every turn of the loop while the shipper goes to sleep."""
    async with world(tmp_path, messages=0) as it, it.running():
        for number in range(60):
            await it.spool.put(message(number))
            await settle(number % 20)
        await it.shipper.drain()
        assert list(it.sink.stored) == [f"m{n}" for n in range(60)]


async def test_the_first_leaves_at_once_and_what_follows_closely_goes_together(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, messages=0, max_messages=3) as it, it.running():
        await it.spool.put(message(1))
        assert await it.clock.parked() == [GATHER_SECONDS]
        await it.spool.put(message(2))
        await it.spool.put(message(3))
        await it.clock.advance(GATHER_SECONDS)
        await it.until_idle()
        assert [[m.id for m in batch] for batch in it.sink.batches] == [["m1"], ["m2", "m3"]]
        await it.clock.advance(GATHER_SECONDS)
        await it.spool.put(message(4))
        assert await it.clock.parked() == [GATHER_SECONDS]
        assert it.sink.sent[-1] == "m4"


@pytest.mark.parametrize("body", [b"small", b"b" * 300])
async def test_a_backlog_is_not_slowed_down(tmp_path: Path, body: bytes) -> None:
    """Neither where the number of messages bounds a batch nor where their bytes do."""
    async with world(tmp_path, messages=0, max_messages=3) as it:
        it.sink.max_bytes = 1000
        await it.spool.put(*(replace(message(n), body=body) for n in range(9)))
        async with it.running():
            await it.until_idle()
        assert len(it.sink.batches) == 3
        assert it.clock.waits == []


async def test_drain_gathers_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, messages=0, max_messages=3) as it, it.running():
        await it.spool.put(message(1))
        assert await it.clock.parked() == [GATHER_SECONDS]
        await it.spool.put(message(2))
        await it.shipper.drain()
        assert list(it.sink.stored) == ["m1", "m2"]


async def test_drain_waits_for_what_was_put_a_moment_ago(tmp_path: Path) -> None:
    async with world(tmp_path, messages=0) as it, it.running():
        await it.until_idle()
        await it.spool.put(message(1))
        await it.shipper.drain()
        assert list(it.sink.stored) == ["m1"]
        assert it.count("byoc_sent_total") == 1


async def test_drain_of_an_empty_spool_ends_at_once(tmp_path: Path) -> None:
    async with world(tmp_path, messages=0) as it, it.running():
        await it.shipper.drain()


async def test_drain_cuts_a_long_wait_short_and_hurries_then(tmp_path: Path) -> None:
    slow = SendError(Reason.THROTTLED, "429", retry_after_seconds=1000)
    async with world(tmp_path, slow, slow) as it, it.running():
        assert await it.clock.parked() == [1000]
        drain = asyncio.create_task(it.shipper.drain())
        await settle()
        assert await it.clock.parked() == [1.0]
        assert len(it.sink.batches) == 2
        await it.clock.advance(1)
        await drain
        assert list(it.sink.stored) == ["m0"]


async def test_drain_never_cancels_an_attempt(tmp_path: Path) -> None:
    async with world(tmp_path, Hang.UNTIL_RELEASED) as it, it.running():
        await it.sink.entered.wait()
        drain = asyncio.create_task(it.shipper.drain())
        await settle(100)
        assert not drain.done()
        it.sink.released.set()
        await drain
        assert it.sink.sent == ["m0"]
        assert list(it.sink.stored) == ["m0"]


async def test_cancelled_at_any_point_nothing_is_lost(tmp_path: Path) -> None:
    """Every turn of the loop up to the end of the work, then a new shipper on the same spool."""
    for turns in range(0, 40, 2):
        directory = tmp_path / str(turns)
        async with world(directory, BUSY, messages=4, max_messages=2, part=0.0) as it:
            async with it.running():
                await settle(turns)
                await it.spool.state()  # as long as the disk takes
            it.restarted()
            async with it.running():
                await it.until_idle()
            assert it.sink.stored == {f"m{n}": b"body %d" % n for n in range(4)}
            assert await it.queued() == []


async def test_status_says_what_holds_the_head_up(tmp_path: Path) -> None:
    async with world(tmp_path, DENIED) as it:
        await it.shipper.attempt()
        assert it.shipper.status() == {
            "destination": "test://sink",
            "last_success": None,
            "trouble": {"reason": "forbidden", "detail": "403", "fate": Fate.HOLD},
            "backlog": {
                "records": 1,
                "bytes": 518,
                "oldest": "1970-01-01T00:00:00.000Z",
                "dead_letters": 0,
            },
        }
        await it.shipper.attempt()
        status = it.shipper.status()
        assert (status["trouble"], status["last_success"]) == (None, "2026-11-23T12:00:00.000Z")


async def test_logs_name_ids_and_reasons_and_never_bodies(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with world(tmp_path, BUSY, DENIED, POISON, messages=2) as it, it.running():
            for wait in (0.5, 1.0):
                assert await it.clock.parked() == [wait]
                await it.clock.advance(wait)
            await it.until_idle()
    events = [(line["event"], line["log_level"]) for line in lines]
    assert events == [
        ("ship.retry", "warning"),
        ("ship.hold", "error"),
        ("ship.dead_letter", "error"),
        ("ship.sent", "info"),
    ]
    assert "body" not in repr(lines)
