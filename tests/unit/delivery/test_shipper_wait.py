"""The shipper: how long it waits, that it misses no wake-up and never spins."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from byoc_agents.delivery.shipper import (
    BATCH_WAIT_SECONDS,
    FIRST_WAIT_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
)
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message
from lab.fakes.core import settle
from tests.unit.delivery.shipper_harness import BUSY, DENIED, OK, harness, message


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
async def test_waits_double_up_to_a_minute_with_full_jitter(tmp_path: Path, part: float) -> None:
    async with harness(tmp_path, *[BUSY] * 12, part=part) as it, it.running():
        for attempt in range(12):
            ceiling = min(FIRST_WAIT_SECONDS * 2**attempt, 60)
            if part:
                assert await it.clock.parked() == [pytest.approx(ceiling * part, abs=1e-6)]
                await it.clock.advance(ceiling * part)
        await it.until_idle()
        assert len(it.sink.batches) == 13


async def test_what_needs_a_person_is_tried_every_five_minutes_in_the_end(tmp_path: Path) -> None:
    async with harness(tmp_path, *[DENIED] * 14) as it, it.running():
        for _ in range(13):
            (wait,) = await it.clock.parked()
            await it.clock.advance(wait)
        assert await it.clock.parked() == [300]


@pytest.mark.parametrize(
    ("asked", "waits"), [(30.0, 30.0), (0.1, 0.5), (1e9, MAX_RETRY_AFTER_SECONDS)]
)
async def test_a_receivers_retry_after_is_honored(
    tmp_path: Path, asked: float, waits: float
) -> None:
    slow = SendError(Reason.THROTTLED, "429", retry_after_seconds=asked)
    async with harness(tmp_path, slow) as it, it.running():
        assert await it.clock.parked() == [waits]


async def test_the_back_off_starts_anew_after_a_success(tmp_path: Path) -> None:
    async with harness(tmp_path, BUSY, BUSY, OK, BUSY, messages=2) as it, it.running():
        for wait in (0.5, 1.0, 0.5):
            assert await it.clock.parked() == [wait]
            await it.clock.advance(wait)
        await it.until_idle()


async def test_an_idle_shipper_does_nothing_until_something_is_put(tmp_path: Path) -> None:
    async with harness(tmp_path, messages=0) as it:
        asked = 0
        peek = it.spool.peek

        async def counted(*bounds: int, pin: bool = False) -> list[Message]:
            nonlocal asked
            asked += 1
            return await peek(*bounds, pin=pin)

        it.spool.peek = counted  # type: ignore[method-assign,assignment]
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
    async with harness(tmp_path, messages=0) as it, it.running():
        for number in range(60):
            await it.spool.put(message(number))
            await settle(number % 20)
        await it.shipper.drain()
        assert list(it.sink.stored) == [f"m{n}" for n in range(60)]


async def test_the_first_leaves_at_once_and_what_follows_closely_goes_together(
    tmp_path: Path,
) -> None:
    async with harness(tmp_path, messages=0, max_messages=3) as it, it.running():
        await it.spool.put(message(1))
        assert await it.clock.parked() == [BATCH_WAIT_SECONDS]
        await it.spool.put(message(2))
        await it.spool.put(message(3))
        await it.clock.advance(BATCH_WAIT_SECONDS)
        await it.until_idle()
        assert [[m.id for m in batch] for batch in it.sink.batches] == [["m1"], ["m2", "m3"]]
        assert await it.clock.parked() == [BATCH_WAIT_SECONDS]
        await it.clock.advance(BATCH_WAIT_SECONDS)
        await it.spool.put(message(4))
        assert await it.clock.parked() == [BATCH_WAIT_SECONDS]
        assert it.sink.sent[-1] == "m4"


@pytest.mark.parametrize("body", [b"small", b"b" * 300])
async def test_a_backlog_is_not_slowed_down(tmp_path: Path, body: bytes) -> None:
    """Neither where the number of messages bounds a batch nor where their bytes do."""
    async with harness(tmp_path, messages=0, max_messages=3) as it:
        it.sink.max_bytes = 1000
        await it.spool.put(*(replace(message(n), body=body) for n in range(9)))
        async with it.running():
            await it.until_idle()
        assert len(it.sink.batches) == 3
        assert it.clock.waits == []
