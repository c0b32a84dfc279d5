"""The shipper at its end: drained in a hurry, or cancelled at any point."""

import asyncio
from pathlib import Path

from byoc_agents.delivery.shipper import BATCH_WAIT_SECONDS
from byoc_agents.errors import Reason, SendError
from lab.fakes.core import Hang, settle
from tests.unit.delivery.shipper_harness import BUSY, harness, message


async def test_drain_does_not_wait_to_fill_a_batch(tmp_path: Path) -> None:
    async with harness(tmp_path, messages=0, max_messages=3) as it, it.running():
        await it.spool.put(message(1))
        assert await it.clock.parked() == [BATCH_WAIT_SECONDS]
        await it.spool.put(message(2))
        await it.shipper.drain()
        assert list(it.sink.stored) == ["m1", "m2"]


async def test_drain_waits_for_what_was_put_a_moment_ago(tmp_path: Path) -> None:
    async with harness(tmp_path, messages=0) as it, it.running():
        await it.until_idle()
        await it.spool.put(message(1))
        await it.shipper.drain()
        assert list(it.sink.stored) == ["m1"]
        assert it.count("byoc_messages_sent_total") == 1


async def test_drain_of_an_empty_spool_ends_at_once(tmp_path: Path) -> None:
    async with harness(tmp_path, messages=0) as it, it.running():
        await it.shipper.drain()


async def test_drain_cuts_a_long_wait_short_and_hurries_then(tmp_path: Path) -> None:
    slow = SendError(Reason.THROTTLED, "429", retry_after_seconds=1000)
    async with harness(tmp_path, slow, slow) as it, it.running():
        assert await it.clock.parked() == [1000]
        drain = asyncio.create_task(it.shipper.drain())
        await settle()
        assert await it.clock.parked() == [1.0]
        assert len(it.sink.batches) == 2
        await it.clock.advance(1)
        await drain
        assert list(it.sink.stored) == ["m0"]


async def test_drain_never_cancels_an_attempt(tmp_path: Path) -> None:
    async with harness(tmp_path, Hang.UNTIL_RELEASED) as it, it.running():
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
        async with harness(directory, BUSY, messages=4, max_messages=2, part=0.0) as it:
            async with it.running():
                await settle(turns)
                await it.spool.state()  # as long as the disk takes
            it.restarted()
            async with it.running():
                await it.until_idle()
            assert it.sink.stored == {f"m{n}": b"body %d" % n for n in range(4)}
            assert await it.queued() == []
