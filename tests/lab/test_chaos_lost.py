"""Changes that found no room, counted from a log: the exporter's own count against it."""

import random
from pathlib import Path
from typing import Any

import pytest
import structlog

from lab.chaos.lost import START, lost, miscounted
from lab.fakes.core import FakeClock
from tests.unit.state.exporter_harness import MORE_BYTES, Brittle, Harness, healthy


@pytest.mark.parametrize(
    ("words", "reported", "number"),
    [
        ([], "a", 0),
        (["b", "b"], "b", 0),
        (["b"], "a", 1),
        (["b"], "c", 1),
        (["b", "c"], "c", 1),
        (["b", "a", "b"], "b", 1),
        (["b", "a"], "a", 1),
        (["a", "a"], "a", 0),
        (["b", "c", "b", "c"], "a", 4),
    ],
)
def test_a_change_is_lost_when_another_came_before_it_was_reported(
    words: list[str], reported: str, number: int
) -> None:
    assert lost("a", words, reported) == number


async def run_exporter(place: Path, seed: int) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """Run an exporter through changes, a bad disk and restarts: its log, and its messages."""
    rng, clock = random.Random(seed), FakeClock()
    with structlog.testing.capture_logs() as logs:
        async with Brittle(place, max_bytes=MORE_BYTES, clock=clock) as spool:
            one = Harness(spool, clock, {"r-0": healthy()})
            for _ in range(80):
                spool.full = rng.random() < 0.6
                spool.lose_results = rng.random() < 0.1
                one.server.rows["system.metrics.ReadonlyReplica"] = rng.choice("01")
                delay = "system.asynchronous_metrics.ReplicasMaxAbsoluteDelay"
                one.server.rows[delay] = rng.choice(["0", "900"])
                if rng.random() < 0.05:
                    one.start()
                    logs.append({"event": START})
                await one.poll(rng.choice([10, 70]))
            reported = {data["sequence"]: data["lost_transitions"] for data in await one.unsent()}
    return list(map(dict, logs)), reported


@pytest.mark.parametrize("seed", range(20))
async def test_the_exporters_count_is_that_of_its_log(tmp_path: Path, seed: int) -> None:
    logs, reported = await run_exporter(tmp_path, seed)
    assert sum(reported.values())
    assert list(miscounted(logs, reported)) == []


async def test_another_count_is_noticed(tmp_path: Path) -> None:
    logs, reported = await run_exporter(tmp_path, 1)
    later = max(reported)
    for count in (reported[later] - 1, reported[later] + 1):
        assert list(miscounted(logs, {**reported, later: count}))
