"""The exporter with a spool that is full or whose response is lost: no change goes uncounted."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab.fakes.core import FakeClock
from tests.unit.state.exporter_harness import MORE_BYTES, Brittle, Harness, healthy


@pytest.fixture
async def brittle(tmp_path: Path) -> AsyncIterator[tuple[Harness, Brittle]]:
    clock = FakeClock()
    async with Brittle(tmp_path, max_bytes=MORE_BYTES, clock=clock) as spool:
        yield Harness(spool, clock, {"r-0": healthy()}), spool


async def test_without_room_the_latest_state_is_published_later_with_the_lost_changes(
    brittle: tuple[Harness, Brittle],
) -> None:
    one, spool = brittle
    await one.poll()
    spool.full = True
    one.server.rows["system.metrics.ReadonlyReplica"] = "1"
    await one.poll()
    one.server.rows["system.metrics.ZooKeeperSession"] = "0"
    await one.poll()
    one.stop_server()
    await one.poll()
    await one.poll(2)
    await one.poll()
    spool.full = False
    await one.poll(1)
    unsent = await one.unsent()
    assert [(d["state"], d["sequence"]) for d in unsent] == [("running", 0), ("failed", 1)]
    assert [d["transition"] for d in unsent] == [1, 2]
    assert unsent[1]["lost_transitions"] == 2


async def test_changes_that_went_back_while_there_was_no_room_are_counted(
    brittle: tuple[Harness, Brittle],
) -> None:
    one, spool = brittle
    await one.poll()
    spool.full = True
    one.server.rows["system.metrics.ReadonlyReplica"] = "1"
    await one.poll()
    one.server.rows["system.metrics.ReadonlyReplica"] = "0"
    await one.poll(60)
    await one.poll(31)
    spool.full = False
    await one.poll(60)
    last = (await one.unsent())[-1]
    assert (last["kind"], last["state"], last["lost_transitions"]) == ("heartbeat", "running", 1)


async def test_a_commit_whose_answer_is_lost_is_published_once(
    brittle: tuple[Harness, Brittle],
) -> None:
    one, spool = brittle
    spool.lose_results = True
    await one.poll()
    spool.lose_results = False
    await one.poll()
    unsent = await one.unsent()
    assert [(d["kind"], d["sequence"]) for d in unsent] == [("transition", 0), ("heartbeat", 1)]
    assert unsent[1]["lost_transitions"] == 0
