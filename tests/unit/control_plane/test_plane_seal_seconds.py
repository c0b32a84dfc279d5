"""How many scrapers of a fleet seal in its busiest second: the figures of docs/scale.md."""

import asyncio
import random
import uuid
from collections import Counter
from pathlib import Path

import pytest

from byoc_agents.billing.sealer import Intervals, seal_phase_ms
from byoc_agents.durable.spool import Spool
from tests.unit.billing.scraper_harness import Harness

SEAL_MS = 900_000
PAGE = Path(__file__).parents[3] / "docs" / "scale.md"


@pytest.mark.parametrize(("replicas", "most"), [(1_000, 6), (10_000, 26), (100_000, 146)])
def test_the_busiest_second_is_the_stated_one(replicas: int, most: int) -> None:
    chance = random.Random(1)
    for _ in range({1_000: 0, 10_000: 1_000, 100_000: 11_000}[replicas]):
        chance.getrandbits(128)  # the three fleets are one after the other
    uids = (uuid.UUID(int=chance.getrandbits(128), version=4) for _ in range(replicas))
    seconds = Counter(seal_phase_ms(str(uid), SEAL_MS) // 1000 for uid in uids)
    assert max(seconds.values()) == most
    text = " ".join(PAGE.read_text().split())
    ratio = max(seconds.values()) / (replicas * 1000 / SEAL_MS)
    assert f"{most} " in text
    assert f"{replicas:,} " in text
    assert f"{ratio:.1f} times" in text


async def count_objects(
    directory: Path, seal_ms: int, phase_ms: int, *, hours: int = 6
) -> tuple[int, int]:
    """Run a scraper from noon; return its objects after the first two hours, and those hours."""
    harness = Harness(directory)
    harness.sample_seconds = 60
    async with Spool(directory, max_bytes=1 << 24, clock=harness.clock) as spool:
        harness.spool = spool
        intervals = Intervals(
            sample_ms=60_000, window_ms=60_000, seal_ms=seal_ms, seal_phase_ms=phase_ms
        )
        run = asyncio.create_task(harness.made(intervals).run())
        start_ns = harness.clock.wall_ns()
        counts = []
        for end in (2, hours):
            while harness.clock.wall_ns() - start_ns < end * 3600 * 10**9:
                (wait,) = await harness.clock.parked()
                await harness.clock.advance(wait)
                await harness.clock.parked()
            counts.append(len(await spool.peek(10_000, 1 << 30)))
        run.cancel()
        await asyncio.wait([run])
    return counts[1] - counts[0], hours - 2


@pytest.mark.parametrize(
    ("seal_seconds", "phase_seconds", "per_hour"),
    [(900, 30, 4), (900, 90, 5), (900, 890, 5), (1800, 900, 3), (3600, 1800, 2), (300, 150, 13)],
)
async def test_the_objects_of_a_scraper_are_one_per_seal_and_one_more_per_hour(
    tmp_path: Path, seal_seconds: int, phase_seconds: int, per_hour: int
) -> None:
    """An object's records start in one hour, so a seal over the end of an hour makes two."""
    made, hours = await count_objects(tmp_path, seal_seconds * 1000, phase_seconds * 1000)
    assert made == per_hour * hours
