"""The plan of a chaos run and the judge of a soak, without any real part."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.plan import DAMAGE, LANES, LONG_ONLY, planned
from tests.chaos.plot import plot
from tests.chaos.slopes import slopes
from tests.chaos.soak import report

SEEDS = range(50)


def test_a_plan_is_a_pure_function_of_its_seed_and_length() -> None:
    assert all(planned(seed, 120) == planned(seed, 120) for seed in SEEDS)
    assert len({str(planned(seed, 120)) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seconds", [18, 180])
def test_no_fault_begins_before_the_last_one_of_its_lane_is_over(seconds: float) -> None:
    for seed in SEEDS:
        for lane in LANES:
            own = [one for one in planned(seed, seconds).faults if one.lane == lane]
            assert all(a.at_seconds + a.seconds <= b.at_seconds for a, b in pairwise(own))
            assert all(one.at_seconds + one.seconds <= seconds + 0.1 for one in own)


def test_all_kinds_are_dealt_and_only_some_seeds_damage_files() -> None:
    plans = [planned(seed, 180) for seed in SEEDS]
    dealt = Counter(fault.kind for plan in plans for fault in plan.faults)
    wanted = {kind for kinds in LANES.values() for kind in kinds}
    assert dealt.keys() == {*wanted, *DAMAGE, *LONG_ONLY, "read_only"}
    assert 5 < sum(plan.damage for plan in plans) < 45
    assert 5 < sum(plan.apart for plan in plans) < 45
    assert 5 < sum(plan.tight for plan in plans) < 45


def samples(**growth: float) -> list[dict[str, Any]]:
    """Return an hour of samples; `growth` is what a figure rises in it."""
    flat = dict.fromkeys(
        ("rss_bytes", "fds", "threads", "tasks", "backlog_records", "backlog_bytes", "disk_bytes"),
        50.0,
    )
    return [
        {
            "seconds": second,
            "pid": 1,
            "dead_letters": 0,
            "cpu_seconds": second * 0.01,
            **{name: value + growth.get(name, 0) * second / 3600 for name, value in flat.items()},
        }
        for second in range(0, 3605, 5)
    ]


def test_a_flat_hour_holds_and_is_drawn(tmp_path: Path) -> None:
    assert report(samples(), tmp_path) == 0
    assert (tmp_path / "soak.svg").read_text().count("<path") == len(slopes(samples()))


@pytest.mark.parametrize(
    ("figure", "rise"),
    [("rss_bytes", 5 * 1024**2), ("fds", 4), ("threads", 2), ("tasks", 3), ("backlog_records", 3)],
)
def test_a_leak_is_seen(figure: str, rise: float, tmp_path: Path) -> None:
    grown = slopes(samples(**{figure: rise}))
    assert [one.bound.figure for one in grown if not one.holds] == [figure]
    assert report(samples(**{figure: rise}), tmp_path) == 1
    assert f"{figure} grows" in (tmp_path / "soak.json").read_text()


def test_a_picture_escapes_its_title() -> None:
    assert "&lt;b&gt;" in plot(slopes(samples()), "<b>")
