"""Objects are sealed at the pod's own phase: a fleet whose clocks agree does not send at once."""

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from byoc_agents.app.settings import load
from byoc_agents.billing.daemon import Settings
from byoc_agents.billing.scraper import Scraper
from byoc_agents.billing.sealer import Intervals, seal_phase_ms
from byoc_agents.errors import ConfigError
from tests.unit.billing.scraper_harness import SECOND, Harness

FLEET = 100_000
SEAL_MS = 900_000


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    made = Harness(tmp_path / "state")
    await made.spool.__aenter__()
    yield made
    await made.spool.__aexit__()


def pods(kind: str) -> list[str]:
    random = Random(7)
    if kind == "uids":
        return [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(FLEET)]
    return [f"clickhouse-{number % 100}.service-{number // 100}" for number in range(FLEET)]


@pytest.mark.parametrize("kind", ["uids", "names in a row"])
@pytest.mark.parametrize("seal_ms", [SEAL_MS, 300_000, 60_000])
def test_the_puts_of_a_fleet_in_any_second_are_at_most_three_times_the_mean(
    kind: str, seal_ms: int
) -> None:
    seconds = Counter(seal_phase_ms(pod, seal_ms) // 1000 for pod in pods(kind))
    mean = FLEET / (seal_ms / 1000)
    assert max(seconds.values()) <= 2 * mean
    assert len(seconds) == seal_ms // 1000


def test_the_default_seal_interval_is_a_quarter_of_an_hour() -> None:
    assert Settings(bucket="b").seal_seconds == 900


def test_the_phase_is_the_same_after_a_restart_of_the_daemon() -> None:
    assert seal_phase_ms("0b51c2f4", SEAL_MS) == seal_phase_ms("0b51c2f4", SEAL_MS)


async def sealed_at(
    harness: Harness, phase_ms: int, hours: int = 1, seal_ms: int = SEAL_MS
) -> list[int]:
    """Run a scraper; return when its objects were sealed, milliseconds after the hour."""
    harness.sample_seconds = 60
    scraper: Scraper = harness.made(
        Intervals(sample_ms=60_000, window_ms=60_000, seal_ms=seal_ms, seal_phase_ms=phase_ms)
    )
    times: list[int] = []
    run = asyncio.create_task(scraper.run())
    seen, start_ns = 0, harness.clock.wall_ns()
    while harness.clock.wall_ns() - start_ns < hours * 3600 * SECOND:
        (wait,) = await harness.clock.parked()
        await harness.clock.advance(wait)
        await harness.clock.parked()
        objects = len(await harness.spool.peek(1000, 1 << 30))
        if objects > seen:
            times.append((harness.clock.wall_ns() - start_ns) // 1_000_000)
            seen = objects
    run.cancel()
    await asyncio.wait([run])
    return times


@pytest.mark.parametrize("phase_ms", [0, 1, 59_999, 137_411, 899_999])
async def test_a_running_scraper_seals_at_its_phase_and_not_with_a_sample(
    harness: Harness, phase_ms: int
) -> None:
    times = await sealed_at(harness, phase_ms, hours=2)
    assert len(times) >= 7
    assert {(time - phase_ms) % SEAL_MS for time in times} <= {0, 1}  # the clock's ns to ms


async def test_no_scraper_seals_because_an_hour_begins(harness: Harness) -> None:
    times = await sealed_at(harness, 450_000, hours=3)
    assert not any(time % 3_600_000 < 1000 for time in times)


@pytest.mark.parametrize(
    ("seal_ms", "phase_ms", "per_day"),
    [
        (300_000, 150_000, 312),  # 288 seals, and 24 of them have records of two hours
        (900_000, 450_000, 120),  # 96
        (3_600_000, 450_000, 48),  # 24
    ],
)
async def test_the_objects_of_a_day_are_the_seals_and_one_more_per_hour(
    harness: Harness, seal_ms: int, phase_ms: int, per_day: int
) -> None:
    """An object has records of one hour only: the figures of docs/scale.md."""
    hours = 6
    seals = len(await sealed_at(harness, phase_ms, hours=hours, seal_ms=seal_ms))
    objects = await harness.spool.peek(1000, 1 << 30)
    assert seals == hours * 3_600_000 // seal_ms
    assert len(objects) == per_day * hours // 24
    page = " ".join((Path(__file__).parents[3] / "docs" / "scale.md").read_text().split())
    assert f"{per_day} objects" in page


async def test_a_stop_seals_at_once(harness: Harness) -> None:
    harness.scraper = harness.made(
        Intervals(sample_ms=5000, window_ms=60_000, seal_ms=SEAL_MS, seal_phase_ms=450_000)
    )
    await harness.ticks(15)
    assert await harness.spool.peek(10) == []
    await harness.scraper.finish()
    assert len(await harness.spool.peek(10)) == 2  # one for each hour


async def test_the_end_hint_makes_samples_dense_until_the_container_is_gone(
    harness: Harness, tmp_path: Path
) -> None:
    hint = tmp_path / "ending"
    scraper = harness.made(end_hint=hint)
    run = asyncio.create_task(scraper.run())
    (wait,) = await harness.clock.parked()
    assert wait == 1  # the file is looked for every second
    before = len(harness.target.secondary_reads)
    hint.touch()
    os.utime(hint, ns=(harness.clock.wall_ns(), harness.clock.wall_ns()))
    for _ in range(11):
        (wait,) = await harness.clock.parked()
        await harness.clock.advance(wait)
        await harness.clock.parked()
    assert wait == pytest.approx(0.1)
    assert len(harness.target.secondary_reads) - before >= 10
    await harness.clock.advance(600)  # it outlived its hint: a restart of the container
    await harness.clock.parked()
    assert harness.clock.waits != pytest.approx([0.1])
    run.cancel()
    await asyncio.wait([run])


@pytest.mark.parametrize("path", ["ending", "./ending"])
def test_an_end_hint_that_is_not_an_absolute_path_is_a_mistake(path: str) -> None:
    environ = {"BYOC_BILLING_BUCKET": "b", "BYOC_BILLING_END_HINT": path}
    with pytest.raises(ConfigError, match="BYOC_BILLING_END_HINT"):
        load([Settings], environ, {})
