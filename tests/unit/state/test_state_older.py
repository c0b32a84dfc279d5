"""A spool that was rolled back, as by a damaged journal: no number is used twice."""

import shutil
from pathlib import Path

import msgspec

from byoc_agents.message import Message
from tests.unit.state.exporter_harness import harness

KEPT = 1 << 30


async def roll_back(place: Path) -> list[Message]:
    """Leave a state directory that is older than the sent messages; return these."""
    state, earlier = place / "state", place / "earlier"
    async with harness(state) as one:
        await one.poll()
    shutil.copytree(state, earlier)
    async with harness(state) as one:
        for _ in range(30):
            await one.poll()
        sent = await one.spool.peek(1000, KEPT)
    shutil.rmtree(state)
    earlier.rename(state)
    return sent


async def test_a_number_that_was_sent_is_not_used_again(tmp_path: Path) -> None:
    sent = await roll_back(tmp_path)
    async with harness(tmp_path / "state") as one:
        before = await one.unsent()
        one.sent += sent
        await one.clock.advance(1000)
        await one.poll()
        known = {message.id for message in sent}
        fresh = [m for m in await one.spool.peek(1000, KEPT) if m.id not in known]
        last = (await one.unsent())[-1]
    assert len(fresh) == 1
    assert last["epoch"] > before[-1]["epoch"]
    assert (last["kind"], last["sequence"], last["transition"]) == ("transition", 0, 1)


async def test_an_epoch_started_after_a_rollback_is_earlier_than_later_ones(tmp_path: Path) -> None:
    """Also if the clock was set back and the spool lost."""
    sent = await roll_back(tmp_path)
    async with harness(tmp_path / "state") as one:
        one.sent += sent
        await one.clock.advance(1000)
        await one.poll()
        begun = (await one.unsent())[-1]["epoch"]
    (tmp_path / "state" / "spool.db").unlink()
    async with harness(tmp_path / "state") as one:  # its clock begins where the first one did
        assert one.clock.wall_ns() // 1_000_000 < begun
        await one.poll()
        assert (await one.unsent())[-1]["epoch"] > begun


async def test_numbers_continue_if_nothing_later_was_sent(tmp_path: Path) -> None:
    async with harness(tmp_path / "state") as one:
        await one.poll()
        sent = await one.spool.peek(1000, KEPT)
    async with harness(tmp_path / "state") as one:
        one.sent += sent
        await one.poll(70)
        assert [data["sequence"] for data in await one.unsent()] == [0, 1]


async def test_a_rollback_is_detected_however_far_it_reaches(tmp_path: Path) -> None:
    (last, *_) = reversed(await roll_back(tmp_path))
    async with harness(tmp_path / "state") as one:
        one.sent.append(msgspec.structs.replace(last, sequence=last.sequence + 100_000))
        await one.poll()
        assert (await one.unsent())[-1]["epoch"] > last.epoch


async def test_a_rollback_to_before_an_epoch_began_is_detected(tmp_path: Path) -> None:
    (last, *_) = reversed(await roll_back(tmp_path))
    async with harness(tmp_path / "state") as one:
        one.sent.append(msgspec.structs.replace(last, epoch=last.epoch + 9_000_000, sequence=0))
        await one.poll()
        assert (await one.unsent())[-1]["epoch"] > last.epoch + 9_000_000


async def test_the_numbers_of_another_stream_do_not_count(tmp_path: Path) -> None:
    sent = await roll_back(tmp_path)
    async with harness(tmp_path / "state") as one:
        one.sent += [msgspec.structs.replace(m, stream="state/replica/r-1") for m in sent]
        await one.poll(70)
        assert [data["sequence"] for data in await one.unsent()] == [0, 1]
