"""Heartbeats of the exporter: each comes within the time that the message before it states."""

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.fakes.core import FakeClock
from tests.unit.state.exporter_harness import MORE_BYTES, Brittle, Harness, harness, healthy

POLL_SECONDS = 10
READONLY = "system.metrics.ReadonlyReplica"


class Seen(NamedTuple):
    """A message, and when it was published."""

    second: int
    kind: str
    stated_seconds: float


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness(tmp_path) as made:
        yield made


async def watch(one: Harness, seconds: int) -> list[Seen]:
    """Let time pass, and return the messages of that time."""
    seen, known = [], {data["sequence"] for data in await one.unsent()}
    for second in range(POLL_SECONDS, seconds + 1, POLL_SECONDS):
        await one.poll(POLL_SECONDS)
        for data in await one.unsent():
            if data["sequence"] not in known:
                known.add(data["sequence"])
                seen.append(Seen(second, data["kind"], data["heartbeat_seconds"]))
    return seen


def seconds(seen: list[Seen]) -> list[int]:
    return [message.second for message in seen]


async def test_heartbeats_slow_down_ten_minutes_after_the_start(one: Harness) -> None:
    seen = await watch(one, 3600)
    assert seconds(seen) == [*range(10, 611, 60), *range(910, 3600, 300)]
    assert [message.stated_seconds for message in seen] == [60] * 10 + [300] * 10
    for message, following in pairwise(seen):
        assert following.second - message.second == message.stated_seconds


async def test_a_change_makes_them_frequent_again_at_once(one: Harness) -> None:
    await watch(one, 1500)
    one.server.rows[READONLY] = "1"
    seen = await watch(one, 1200)
    assert [message.kind for message in seen] == ["transition"] + ["heartbeat"] * (len(seen) - 1)
    assert seconds(seen) == [*range(10, 611, 60), 910]
    assert [message.stated_seconds for message in seen] == [60] * 10 + [300] * 2


async def test_a_restart_makes_them_frequent_again_and_keeps_the_numbers(one: Harness) -> None:
    before = await watch(one, 1500)
    one.start()
    seen = await watch(one, 660)
    assert {message.kind for message in seen} == {"heartbeat"}, "nothing changed at the server"
    assert [message.stated_seconds for message in seen] == [60] * 10 + [300]
    last = (await one.unsent())[-1]
    assert (last["sequence"], last["transition"]) == (len(before) + len(seen) - 1, 1)


async def test_a_service_of_several_replicas_slows_down_too(tmp_path: Path) -> None:
    async with harness(tmp_path, "r-0", "r-1") as several:
        for _ in range(70):
            await several.poll(POLL_SECONDS)
        unsent = await several.unsent()
        heartbeats = [data for data in unsent if data["kind"] == "heartbeat"]
        assert [data.get("replica") for data in heartbeats] == ["r-0", "r-1", None]
        assert {data["heartbeat_seconds"] for data in heartbeats} == {300}
        several.server.rows[READONLY] = "1"
        await several.poll(POLL_SECONDS)
        changed = (await several.unsent())[len(unsent) :]
        assert [data.get("replica") for data in changed] == ["r-0", None]
        assert {data["heartbeat_seconds"] for data in changed} == {60}


@pytest.fixture
async def brittle(tmp_path: Path) -> AsyncIterator[tuple[Harness, Brittle]]:
    clock = FakeClock()
    async with Brittle(tmp_path, max_bytes=MORE_BYTES, clock=clock) as spool:
        yield Harness(spool, clock, {"r-0": healthy()}), spool


async def test_a_change_that_was_lost_without_room_makes_them_frequent_again(
    brittle: tuple[Harness, Brittle],
) -> None:
    one, spool = brittle
    await watch(one, 1500)
    spool.full = True
    one.server.rows[READONLY] = "1"
    await watch(one, 10)
    one.server.rows[READONLY] = "0"
    await watch(one, 300)
    spool.full = False
    (first, *_) = await watch(one, 120)
    assert first.kind == "heartbeat", "the state is the one that was published last"
    assert first.stated_seconds == 60


async def test_a_heartbeat_for_which_there_was_no_room_comes_with_the_next_poll(
    brittle: tuple[Harness, Brittle],
) -> None:
    one, spool = brittle
    await watch(one, 1510)  # the next one is due in 300 s
    spool.full = True
    assert await watch(one, 400) == []
    spool.full = False
    assert await watch(one, 20) == [Seen(10, "heartbeat", 300)]


async def test_after_a_commit_whose_answer_is_lost_the_stated_time_counts(
    brittle: tuple[Harness, Brittle],
) -> None:
    one, spool = brittle
    await watch(one, 1510)
    spool.lose_results = True
    one.server.rows[READONLY] = "1"
    (change,) = await watch(one, 10)
    spool.lose_results = False
    assert change == Seen(10, "transition", 60)
    assert seconds(await watch(one, 120)) == [60, 120]
