"""A spool that has become older than what has left, as by a damaged journal: no number twice."""

import shutil
from pathlib import Path

from tests.state.test_state_exporter import bench


async def test_a_number_that_has_left_is_not_given_again(tmp_path: Path) -> None:
    state, earlier, kept = tmp_path / "state", tmp_path / "earlier", 1 << 30
    async with bench(state) as one:
        await one.poll()
    shutil.copytree(state, earlier)
    async with bench(state) as one:
        for _ in range(30):
            await one.poll()
        sent = {message.id: True for message in await one.spool.head(1000, kept)}
        before = await one.unsent()
    shutil.rmtree(state)
    earlier.rename(state)
    async with bench(state) as one:
        one.sent |= sent
        await one.clock.advance(1000)
        await one.poll()
        fresh = [m.id for m in await one.spool.head(1000, kept) if m.id not in sent]
        last = (await one.unsent())[-1]
    assert len(fresh) == 1
    assert last["epoch"] > before[-1]["epoch"]
    assert (last["kind"], last["sequence"], last["transition"]) == ("transition", 0, 1)


async def test_numbers_go_on_where_nothing_later_has_left(tmp_path: Path) -> None:
    async with bench(tmp_path / "state") as one:
        await one.poll()
        sent = {message.id: True for message in await one.spool.head(1000, 1 << 30)}
    async with bench(tmp_path / "state") as one:
        one.sent |= sent
        await one.poll(70)
        assert [told["sequence"] for told in await one.unsent()] == [0, 1]
