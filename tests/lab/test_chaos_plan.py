"""The plan of a chaos run and the judge of a soak, without any real part."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lab.chaos.aws import Queue, Stored
from lab.chaos.damage import FRAME_HEADER_BYTES, PAGE_BYTES, damage, frames_in_use
from lab.chaos.plan import DAMAGE, LANES, LONG_ONLY, planned
from lab.chaos.plot import plot
from lab.chaos.rounds import rounds
from lab.chaos.slopes import slopes
from lab.chaos.soak import report
from lab.fakes.http import Reply, Request

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


def test_a_run_of_hours_is_rounds_that_can_be_replayed_alone() -> None:
    plans = rounds(7, 2 * 3600 + 60)
    assert [plan.seed for plan in plans] == list(range(7, 20))
    assert {plan.seconds for plan in plans} == {564.0}
    assert plans[3] == planned(10, 60 * float("9.4"))
    assert rounds(7, 180) == [planned(7, 180)]


def frame(salt: bytes) -> bytes:
    return bytes(8) + salt + bytes(FRAME_HEADER_BYTES - 16 + PAGE_BYTES)


def test_only_the_frames_of_the_present_round_of_a_journal_are_hit(tmp_path: Path) -> None:
    new, old = b"new-salt", b"old-salt"
    head = bytes(16) + new + bytes(8)
    journal = tmp_path / "spool.db-wal"
    assert frames_in_use(journal) == 0
    journal.write_bytes(head + 3 * frame(new) + 2 * frame(old))
    assert frames_in_use(journal) == 3
    damage(tmp_path / "spool.db", "journal_cut", random.Random(1))
    assert frames_in_use(journal) < 3


def test_what_a_killed_queue_took_and_never_gave_counts_as_delivered() -> None:
    queue = Queue(client=None)
    entries = [{"Id": str(n), "MessageBody": json.dumps({"id": n})} for n in range(3)]
    request = Request(
        0,
        "POST",
        "/",
        {"x-amz-target": "AmazonSQS.SendMessageBatch"},
        json.dumps({"Entries": entries}).encode(),
    )
    response = {"Successful": [{"Id": "0"}, {"Id": "1"}], "Failed": [{"Id": "2"}]}
    queue.taken(request, Reply(503))
    queue.taken(request, Reply(200, {}, json.dumps(response).encode()))
    queue.got.append({"id": 0})
    queue.record_delivered()
    assert (queue.got, queue.sent) == ([{"id": 0}, {"id": 1}], [])


def test_what_s3_says_is_already_there_was_stored_though_the_response_was_lost() -> None:
    stored = Stored("usage")
    first = Request(0, "PUT", "/usage/v1/key", {}, b"first")
    again = Request(1, "PUT", "/usage/v1/key", {}, b"again")
    stored.given(first)
    stored.given(again)
    stored.taken(again, Reply(503))
    assert (stored.objects, stored.writes) == ({}, {})
    for _ in range(2):
        stored.taken(again, Reply(412))
        assert (stored.objects, stored.writes) == ({"v1/key": b"first"}, {"v1/key": 1})
    stored.taken(Request(2, "PUT", "/usage/v1/other", {}, b"other"), Reply(200))
    stored.taken(Request(3, "GET", "/usage/v1/third", {}, b""), Reply(412))
    assert stored.objects == {"v1/key": b"first", "v1/other": b"other"}


def samples(**growth: float) -> list[dict[str, Any]]:
    """Return an hour of samples; `growth` is what a figure rises in it."""
    flat = dict.fromkeys(
        ("rss_bytes", "fds", "threads", "tasks", "backlog_events", "backlog_bytes", "disk_bytes"),
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
    [("rss_bytes", 5 * 1024**2), ("fds", 4), ("threads", 2), ("tasks", 3), ("backlog_events", 3)],
)
def test_a_leak_is_seen(figure: str, rise: float, tmp_path: Path) -> None:
    grown = slopes(samples(**{figure: rise}))
    assert [one.bound.figure for one in grown if not one.holds] == [figure]
    assert report(samples(**{figure: rise}), tmp_path) == 1
    assert f"{figure} grows" in (tmp_path / "soak.json").read_text()


def test_a_picture_escapes_its_title() -> None:
    assert "&lt;b&gt;" in plot(slopes(samples()), "<b>")
