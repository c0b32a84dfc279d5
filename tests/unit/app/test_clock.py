"""The clocks: the machine's own, and the one that tests move."""

import asyncio

from byoc_agents.app.clock import Clock, SystemClock
from lab.fakes.core import START_MS, FakeClock, settle


def test_the_machines_clock_runs_on_under_one_boot() -> None:
    clock: Clock = SystemClock()
    first, wall = clock.boot_ns(), clock.wall_ns()
    assert clock.boot_ns() >= first > 0
    assert wall > START_MS * 1_000_000 // 2
    assert clock.boot_id == SystemClock().boot_id


async def test_no_wait_is_negative() -> None:
    await SystemClock().sleep(-5)
    await FakeClock().sleep(-5)


async def test_a_fake_second_passes_only_when_the_test_says_so() -> None:
    clock: FakeClock = FakeClock()
    sleeper = asyncio.create_task(clock.sleep(1))
    assert await clock.parked() == [1]
    await clock.advance(0.999)
    assert not sleeper.done()
    await clock.advance(0.001)
    assert sleeper.done()
    assert clock.wall_ns() == (START_MS + 1000) * 1_000_000


async def test_each_sleeper_wakes_at_its_own_moment_also_again() -> None:
    clock, seen = FakeClock(), list[tuple[str, float]]()
    began = clock.boot_ns()

    async def ticks(name: str, seconds: float) -> None:
        while True:
            await clock.sleep(seconds)
            seen.append((name, (clock.boot_ns() - began) / 1e9))

    tasks = [asyncio.create_task(ticks("two", 2)), asyncio.create_task(ticks("three", 3))]
    await clock.parked(2)
    await clock.advance(6)
    assert seen == [("two", 2), ("three", 3), ("two", 4), ("three", 6), ("two", 6)]
    for task in tasks:
        task.cancel()
    await settle()
    assert clock.waits == []


async def test_a_step_of_the_wall_clock_wakes_nobody() -> None:
    clock = FakeClock()
    sleeper = asyncio.create_task(clock.sleep(10))
    await clock.parked()
    clock.step_wall(-3600)
    await settle()
    assert clock.waits == [10]
    assert clock.wall_ns() == (START_MS - 3_600_000) * 1_000_000
    sleeper.cancel()
