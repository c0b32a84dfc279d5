"""A spool that has become older than what has left, as by a damaged journal: no number twice."""

import shutil
from pathlib import Path

from tests.unit.state.exporter_bench import bench

KEPT = 1 << 30


async def outrun(place: Path) -> dict[str, bool]:
    """Leave a state directory that is older than what has left; return the ids that have."""
    state, earlier = place / "state", place / "earlier"
    async with bench(state) as one:
        await one.poll()
    shutil.copytree(state, earlier)
    async with bench(state) as one:
        for _ in range(30):
            await one.poll()
        sent = {message.id: True for message in await one.spool.head(1000, KEPT)}
    shutil.rmtree(state)
    earlier.rename(state)
    return sent


async def test_a_number_that_has_left_is_not_given_again(tmp_path: Path) -> None:
    sent = await outrun(tmp_path)
    async with bench(tmp_path / "state") as one:
        before = await one.unsent()
        one.sent |= sent
        await one.clock.advance(1000)
        await one.poll()
        fresh = [m.id for m in await one.spool.head(1000, KEPT) if m.id not in sent]
        last = (await one.unsent())[-1]
    assert len(fresh) == 1
    assert last["epoch"] > before[-1]["epoch"]
    assert (last["kind"], last["sequence"], last["transition"]) == ("transition", 0, 1)


async def test_the_epoch_begun_then_is_earlier_than_any_to_come(tmp_path: Path) -> None:
    """Also where the clock was set back and the spool lost."""
    sent = await outrun(tmp_path)
    async with bench(tmp_path / "state") as one:
        one.sent |= sent
        await one.clock.advance(1000)
        await one.poll()
        begun = (await one.unsent())[-1]["epoch"]
    (tmp_path / "state" / "spool.db").unlink()
    async with bench(tmp_path / "state") as one:  # its clock begins where the first one did
        assert one.clock.wall_ns() // 1_000_000 < begun
        await one.poll()
        assert (await one.unsent())[-1]["epoch"] > begun


async def test_numbers_go_on_where_nothing_later_has_left(tmp_path: Path) -> None:
    async with bench(tmp_path / "state") as one:
        await one.poll()
        sent = {message.id: True for message in await one.spool.head(1000, KEPT)}
    async with bench(tmp_path / "state") as one:
        one.sent |= sent
        await one.poll(70)
        assert [told["sequence"] for told in await one.unsent()] == [0, 1]
