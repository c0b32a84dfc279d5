"""Tests of the meter, case by case: one core busy, 1000 bytes, a sample every 5 s."""

from itertools import pairwise

import pytest

from byoc_agents.billing.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from byoc_agents.billing.window import Period, Sample
from tests.unit.billing.meter_run import NOON, SECOND, UP, Run, every, ran, reading, sample, used


def test_a_minute_is_closed_by_the_sample_on_its_end() -> None:
    run = Run().feed(every(5, 125))
    assert run.shown() == [(0, 60, 60), (60, 120, 60)]
    first = run.periods[0].window
    assert first
    assert (first.samples, first.elapsed_ns, first.memory_byte_ns) == (
        12,
        60 * SECOND,
        1000 * 60 * SECOND,
    )


def test_a_late_sample_is_shared_between_the_windows_it_spans() -> None:
    run = Run().feed([ran(55), ran(75), ran(121)])
    assert run.shown() == [(0, 60, 60), (60, 120, 60)]


def test_windows_without_a_sample_become_one_long_record_cut_at_hours() -> None:
    run = Run().feed([ran(30), ran(7290)])
    assert run.shown() == [(0, 60, 60), (60, 3600, 3540), (3600, 7200, 3600), (7200, 7260, 60)]
    assert all(p.window and p.window.longest_ns == 7260 * SECOND for p in run.periods)


def test_a_first_start_states_what_came_before_and_bills_none_of_it() -> None:
    run = Run(sample(0, reading(500)))
    (gap,) = run.start_gap
    assert (gap.gap_reason, gap.end_ms, gap.start_ms) == ("no_checkpoint", NOON, NOON - 100_000)
    assert gap.until
    assert gap.until.cpu_usec == 500_000_000
    run.feed([sample(60, reading(560))])
    assert run.shown() == [(0, 60, 60)]


def test_an_unknown_birth_is_bounded_by_the_machine_s_boot() -> None:
    run = Run(sample(0, reading(5, born_boot_ns=None)))
    assert run.start_gap[0].start_ms == NOON - UP // 1_000_000


def test_a_target_born_under_our_watch_is_billed_from_its_birth() -> None:
    run = Run(sample(0, None, absent=True))
    born = reading(7, born_boot_ns=UP + 20 * SECOND)
    run.feed(
        [
            sample(5, None, absent=True),
            sample(25, born),
            sample(60, reading(40, born_boot_ns=UP + 20 * SECOND)),
        ]
    )
    assert run.shown() == [(0, 20, "target_absent"), (20, 60, 40)]


@pytest.mark.parametrize("absent", [True, False], ids=["surely absent", "unreadable"])
@pytest.mark.parametrize("exclusive", [True, False], ids=["the target itself", "of a process"])
def test_an_unknown_birth_counts_from_zero_only_if_the_counter_itself_was_surely_absent(
    absent: bool, exclusive: bool
) -> None:
    run = Run(sample(0, None, absent=absent))
    unborn = {"born_boot_ns": None, "exclusive": exclusive}
    run.feed([sample(25, reading(7, **unborn)), sample(60, reading(40, **unborn))]).close()
    billed = 40.0 if absent and exclusive else 33.0
    assert sum(used(p) for p in run.periods) == billed


def test_a_restart_ends_one_record_states_the_hole_and_begins_another_from_zero() -> None:
    run = Run().feed(every(5, 35))
    fresh = {"incarnation": "boot-1-8", "container_id": "d" * 64, "born_boot_ns": UP + 33 * SECOND}
    run.feed([sample(35, reading(1, **fresh)), sample(60, reading(26, **fresh))])
    assert run.shown() == [(0, 30, 30), (30, 33, "target_restarted"), (33, 60, 26)]
    assert run.periods[2].window
    assert run.periods[2].window.restart_observed


@pytest.mark.parametrize("source", ["cgroup.v2", "cgroup.v1", "process", "clickhouse"])
@pytest.mark.parametrize("now_seconds", [2, 29.999999], ids=["to near 0", "by a microsecond"])
def test_a_fall_is_no_restart_and_the_meter_goes_on_from_the_value_read(
    source: str, now_seconds: float
) -> None:
    same = {"source": source}
    run = Run(sample(0, reading(0, **same)))
    run.feed([sample(30, reading(30, **same)), sample(35, reading(now_seconds, **same))])
    run.feed([sample(60, reading(now_seconds + 25, **same))])
    assert run.shown() == [(0, 30, 30), (30, 35, "counter_fell"), (35, 60, 25)]
    assert not run.periods[2].window.restart_observed  # type: ignore[union-attr]


def test_a_process_tree_that_lost_a_child_states_the_span_and_invents_nothing() -> None:
    tree = {"source": "process", "resets_to_zero": False}
    run = Run(sample(0, reading(100, **tree)))
    run.feed([sample(30, reading(130, **tree)), sample(35, reading(90, **tree))])
    run.feed([sample(60, reading(115, **tree))])
    assert run.shown() == [(0, 30, 30), (30, 35, "counter_fell"), (35, 60, 25)]


def test_a_missed_reading_inside_a_window_costs_nothing() -> None:
    run = Run().feed([ran(30), sample(35), sample(40), ran(45), ran(60)])
    assert run.shown() == [(0, 60, 60)]
    assert run.periods[0].window
    assert run.periods[0].window.elapsed_ns == 60 * SECOND


def test_a_target_that_cannot_be_read_for_long_is_a_gap_and_its_cpu_comes_late() -> None:
    run = Run().feed([ran(30), *(sample(s) for s in range(35, 150, 5)), ran(150), ran(180)])
    assert run.shown() == [
        (0, 30, 30),
        (30, 60, "target_unreadable"),
        (60, 120, "target_unreadable"),
        (120, 150, "target_unreadable"),
        (150, 180, 150),
    ]
    assert run.periods[-1].window
    assert run.periods[-1].window.estimated


def test_a_target_that_is_gone_ends_its_record_at_its_last_sample() -> None:
    run = Run().feed([ran(30), *(sample(s, None, absent=True) for s in range(35, 125, 5))])
    assert run.shown() == [(0, 30, 30), (30, 60, "target_absent"), (60, 120, "target_absent")]


def test_an_older_target_of_the_same_name_is_not_billed_for_its_past() -> None:
    run = Run().feed([ran(30)])
    older = {"incarnation": "boot-1-2", "born_boot_ns": UP - 5000 * SECOND}
    run.feed([sample(35, reading(900, **older)), sample(60, reading(925, **older))])
    assert run.shown() == [(0, 30, 30), (30, 35, "target_restarted"), (35, 60, 25)]


def test_a_source_with_a_common_reading_takes_over_without_loss() -> None:
    server = {"source": "clickhouse", "incarnation": "boot"}
    run = Run(sample(0, reading(100), secondary=(reading(7, **server),)))
    run.feed([sample(30, reading(130)), sample(35, reading(42, **server))])
    run.feed([sample(60, reading(67, **server)), sample(120, reading(127, **server))])
    assert run.shown() == [(0, 35, 35), (35, 60, 25), (60, 120, 60)]
    flags = [p.window.source_changed for p in run.periods if p.window]
    assert flags == [False, True, False]
    sources = [p.window.reading.source for p in run.periods if p.window]
    assert sources == ["cgroup.v2", "clickhouse", "clickhouse"]


def test_a_source_without_a_common_reading_states_the_span_between() -> None:
    server = {"source": "clickhouse", "incarnation": "boot"}
    run = Run().feed([ran(30), sample(35, reading(9, **server)), sample(60, reading(34, **server))])
    assert run.shown() == [(0, 30, 30), (30, 35, "source_changed"), (35, 60, 25)]


def test_a_clock_set_forward_is_a_gap_and_no_usage() -> None:
    ahead = {"wall_off_seconds": 600}
    run = Run().feed([ran(30), ran(35, **ahead), ran(60, **ahead)])
    assert run.shown() == [(0, 35, 35), (35, 635, "clock_step"), (635, 660, 25)]


def test_a_clock_set_back_holds_the_window_until_it_has_caught_up() -> None:
    behind = {"wall_off_seconds": -600}
    run = Run().feed([ran(30), *(ran(s, **behind) for s in range(35, 665, 5))])
    assert run.shown() == [(0, 60, 660)]
    window = run.periods[0].window
    assert window
    assert (window.clock_step_ms, window.elapsed_ns) == (-600_000, 660 * SECOND)


def test_a_restart_while_the_clock_is_held_loses_nothing() -> None:
    behind = {"wall_off_seconds": -600}
    run = Run().feed([ran(30), ran(60), ran(65, **behind), ran(70, **behind)])
    fresh = {"incarnation": "boot-1-8", "born_boot_ns": UP + 71 * SECOND}
    run.feed([sample(75, reading(4, **fresh), **behind), sample(80, reading(9, **fresh), **behind)])
    run.feed([sample(700, reading(629, **fresh), **behind)]).close()
    assert sum(used(p) for p in run.periods) == 70 + 629
    assert_contiguous(run.periods)


def test_a_paused_machine_is_a_missed_sample() -> None:
    run = Run().feed([ran(30), sample(1830, reading(31)), sample(1860, reading(61))])
    assert [p[:2] for p in run.shown()] == [(0, 60), (60, 1800), (1800, 1860)]
    assert sum(used(p) for p in run.periods) == 61


def test_another_size_begins_another_record() -> None:
    run = Run().feed([ran(30), sample(35, reading(35, cpu_limit_millicores=4000))])
    run.feed([sample(60, reading(60, cpu_limit_millicores=4000))])
    assert run.shown() == [(0, 35, 35), (35, 60, 25)]
    sizes = [p.window.cpu_limit_millicores for p in run.periods if p.window]
    assert sizes == [2000, 4000]


def test_a_full_spool_makes_longer_windows() -> None:
    run = Run().feed(every(5, 200), hold=True)
    assert run.periods == []
    run.feed(every(200, 245))
    assert run.shown() == [(0, 240, 240)]


def test_a_full_spool_still_ends_windows_at_utc_hours() -> None:
    run = Run().feed(every(5, 7300), hold=True)
    assert [p[:2] for p in run.shown()] == [(0, 3600), (3600, 7200)]


def test_a_shutdown_closes_the_open_window_and_a_start_goes_on_from_there() -> None:
    run = Run().feed(every(5, 40)).close().feed([ran(50), ran(60)])
    assert run.shown() == [(0, 35, 35), (35, 60, 25)]


def test_a_kill_loses_no_cpu_second() -> None:
    run = Run().feed(every(5, 65))
    stored = run.state  # the checkpoint that was written with the first record
    run.feed(every(65, 100))
    run.state = stored
    run.feed([ran(110), ran(120)])
    assert run.shown() == [(0, 60, 60), (60, 120, 60)]


def test_a_reboot_is_detected_by_the_boot_id() -> None:
    run = Run().feed([ran(30)])
    fresh = {"incarnation": "new-1-7", "born_boot_ns": 5 * SECOND}
    again = Sample(
        wall_ms=NOON + 90_000, boot_ns=15 * SECOND, boot_id="new", reading=reading(9, **fresh)
    )
    run.feed([again]).close()
    assert run.shown() == [(0, 30, 30), (30, 80, "target_restarted"), (80, 90, 9)]


def test_the_checkpoint_is_plain_json() -> None:
    state = Run().feed(every(5, 40)).state
    checkpoint = Checkpoint(epoch=1, sequence=2, state=state)
    assert decode_checkpoint(encode_checkpoint(checkpoint)) == checkpoint


def assert_contiguous(periods: list[Period]) -> None:
    for before, after in pairwise(periods):
        assert before.end_ms == after.start_ms, (before, after)
        assert before.start_ms < before.end_ms


def test_a_quick_restart_of_a_process_is_metered_from_its_birth() -> None:
    """Births 3 s apart, within the tolerance, and a lower counter: another incarnation."""
    tree = {"source": "process", "resets_to_zero": False}
    first = {"incarnation": "boot-1-10", "born_boot_ns": UP + 10 * SECOND}
    second = {"incarnation": "boot-2-13", "born_boot_ns": UP + 13 * SECOND}
    run = Run(sample(0, None, absent=True))
    run.feed([sample(12, reading(2, **first, **tree)), sample(13, None, absent=True)])
    run.feed([sample(14, reading(1, **second, **tree)), sample(60, reading(47, **second, **tree))])
    assert sum(used(p) for p in run.periods) == 2 + 47
