"""Allocated size over time: size x counted time, exact over every gap of one container."""

from decimal import Decimal

import pytest

from byoc_agents.audit import Audit
from byoc_agents.billing.meter import Meter
from byoc_agents.billing.record import Allocated, GapReason, Resized, Usage
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.window import Period, Sample
from lab.fakes.billing import event, objects
from tests.unit.billing.meter_run import NOON, SECOND, UP, Run, ran, reading, sample
from tests.unit.billing.test_billing_meter_audit import WHO

HOUR = 3600
SIZE = 4096
SERVER = {"source": "clickhouse", "incarnation": "boot", "container_id": ""}


def recorded(periods: list[Period], identity: UsageIdentity = WHO) -> list[Usage]:
    recorder = Recorder(identity=identity, sample_ms=5000)
    return [recorder.record(one, 1, number).data for number, one in enumerate(periods)]


def seconds(usages: list[Usage]) -> Decimal:
    """Return for how long a size counted."""
    return Decimal(sum(one.allocated.counted_milliseconds or 0 for one in usages)) / 1000


def byte_seconds(usages: list[Usage]) -> Decimal:
    sizes = [one.allocated for one in usages]
    return (
        sum(
            (Decimal((s.memory_bytes or 0) * (s.counted_milliseconds or 0)) for s in sizes),
            Decimal(0),
        )
        / 1000
    )


@pytest.mark.parametrize("away", [1, 5, 59, 61, HOUR, 24 * HOUR])
@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "killed"])
def test_the_time_that_the_daemon_was_away_counts(away: int, stopped: bool) -> None:
    run = Run().feed([ran(30)])
    run = run.close() if stopped else run
    run.feed([ran(30 + away), ran(90 + away)]).close()
    assert byte_seconds(recorded(run.periods)) == (90 + away) * SIZE


@pytest.mark.parametrize("reason", ["no_checkpoint", "spool_corrupt"])
def test_a_late_first_start_counts_back_to_the_container_s_birth(reason: GapReason) -> None:
    _, periods = Meter(window_ms=60_000).start(ran(0), reason, since_ms=NOON - 500_000)
    usages = recorded(periods)
    assert [one.gap_reason for one in usages] == [reason, reason]
    assert [one.allocated.counted_milliseconds for one in usages] == [0, 100_000]
    assert byte_seconds(usages) == 100 * SIZE


def test_a_counter_whose_birth_is_not_known_counts_no_time_before_its_first_reading() -> None:
    run = Run(sample(0, reading(5, born_boot_ns=None)))
    assert seconds(recorded(run.start_gap)) == 0


@pytest.mark.parametrize("absent", [True, False], ids=["not visible", "unreadable"])
@pytest.mark.parametrize("blind", [70, 1000, 20 * HOUR])
def test_time_without_a_reading_counts_once_the_same_container_is_read_again(
    absent: bool, blind: int
) -> None:
    run = Run().feed([ran(30), *(sample(s, None, absent=absent) for s in range(35, blind, 35))])
    before = recorded(run.periods)
    assert seconds(before) in {0, 30}  # nothing of the gap yet
    run.feed([ran(blind + 30), ran(blind + 60)]).close()
    assert seconds(recorded(run.periods)) == blind + 60


def test_a_target_that_was_never_read_counts_from_the_daemons_start_if_it_is_older() -> None:
    run = Run(sample(0)).feed([*(sample(s) for s in range(5, 200, 5)), ran(200), ran(240)])
    assert seconds(recorded(run.close().periods)) == 240 + 100  # it is 100 s older


@pytest.mark.parametrize("born_seconds", [-1000, -1, 30])
def test_what_ran_before_a_start_that_could_not_read_it_is_stated_at_the_first_reading(
    born_seconds: int,
) -> None:
    """The container's time counts once, from its start; its past CPU does not count."""
    born = {"born_boot_ns": UP + born_seconds * SECOND}
    run = Run(sample(0)).feed([sample(s) for s in range(5, 200, 5)])
    run.feed([sample(s, reading(s + 7, **born), machine_cpus=64) for s in (200, 260)]).close()
    usages = recorded([*run.start_gap, *run.periods])
    assert seconds(usages) == 260 - born_seconds
    assert [one.gap_reason for one in usages].count("no_checkpoint") == (born_seconds < 0)
    audit = Audit()
    for message in objects([event(one) for one in usages]):
        audit.add(message.id, message.body)
    report = audit.report("")
    assert report.ok, report.findings


@pytest.mark.parametrize("later", ["clickhouse", "cgroup.v2"])
def test_a_change_of_the_source_without_a_common_reading_counts(later: str) -> None:
    sources = [reading(0), reading(9, **SERVER)]
    first, second = sources if later == "clickhouse" else sources[::-1]
    run = Run(sample(0, first)).feed([sample(5, second), sample(60, second)]).close()
    assert "source_changed" in [p.gap_reason for p in run.periods]
    assert byte_seconds(recorded(run.periods)) == 60 * SIZE


@pytest.mark.parametrize("cpu_seconds", [29, 1e9], ids=["counter_fell", "counter_impossible"])
def test_a_counter_that_cannot_be_believed_does_not_end_the_container(cpu_seconds: float) -> None:
    run = Run().feed([ran(30), sample(35, reading(cpu_seconds)), sample(60, reading(cpu_seconds))])
    assert seconds(recorded(run.close().periods)) == 60


def test_a_sleep_of_the_machine_counts_for_the_size_and_for_nothing_else() -> None:
    run = Run(ran(0, asleep_ns=0)).feed([ran(30, asleep_ns=0)])
    run.feed([sample(1000, reading(35), asleep_ns=965 * SECOND)]).close()
    usages = recorded(run.periods)
    assert byte_seconds(usages) == 1000 * SIZE
    assert sum(one.used.memory_byte_seconds for one in usages) == 35 * 1000


def test_the_time_between_two_containers_counts_for_neither() -> None:
    run = Run().feed([ran(30)])
    fresh = {"incarnation": "boot-1-8", "container_id": "d" * 64, "born_boot_ns": UP + 50 * SECOND}
    run.feed([sample(55, reading(1, **fresh)), sample(60, reading(6, **fresh))])
    usages = recorded(run.close().periods)
    assert [(one.gap_reason, one.allocated.counted_milliseconds) for one in usages] == [
        ("", 30_000),
        ("target_restarted", 0),
        ("", 10_000),
    ]


def test_a_process_that_is_restarted_inside_its_container_does_not_end_the_size() -> None:
    tree = {"source": "process", "born_boot_ns": UP - SECOND}
    again = {"source": "process", "incarnation": "boot-9-9", "born_boot_ns": UP + 32 * SECOND}
    run = Run(sample(0, reading(0, **tree))).feed([sample(30, reading(5, **tree))])
    run.feed([sample(35, reading(1, **again)), sample(60, reading(2, **again))]).close()
    assert seconds(recorded(run.periods)) == 60


@pytest.mark.parametrize("step", [600, -600])
def test_a_wall_clock_that_is_set_changes_no_allocated_time(step: int) -> None:
    off = {"wall_off_seconds": step}
    run = Run().feed([ran(30), *(ran(s, **off) for s in range(35, 1205, 5))]).close()
    usages = recorded(run.periods)
    assert seconds(usages) == 1200
    assert {one.allocated.counted_milliseconds for one in usages if one.gap_reason} <= {0}


@pytest.mark.parametrize("sizes", [(4096, 1024), (1024, 4096)], ids=["smaller", "larger"])
@pytest.mark.parametrize("how", ["daemon away", "unreadable", "source changed"])
def test_a_resize_that_nobody_saw_states_both_sizes_and_counts_the_smaller(
    sizes: tuple[int, int], how: str
) -> None:
    before, after = sizes
    run = Run(sample(0, reading(0, memory_limit_bytes=before)))
    run.feed([sample(60, reading(60, memory_limit_bytes=before))])
    if how == "unreadable":
        run.feed([sample(s) for s in range(120, 3600, 60)])
    other = SERVER if how == "source changed" else {}
    for second in (3600, 3660):
        run.feed([sample(second, reading(second, memory_limit_bytes=after, **other))])
    usages = recorded(run.close().periods)
    unseen = [one for one in usages if one.allocated.resized]
    assert {one.allocated.resized for one in unseen} == {
        Resized(
            cpu_millicores_start=2000,
            cpu_millicores_end=2000,
            memory_bytes_start=before,
            memory_bytes_end=after,
        )
    }
    assert {one.allocated.memory_bytes for one in unseen} == {1024}
    assert seconds(unseen) == 3540
    assert byte_seconds(usages) == 60 * before + 3540 * 1024 + 60 * after


def test_a_resize_between_two_samples_ends_the_record_at_the_sample_that_sees_it() -> None:
    run = Run().feed([ran(30), sample(35, reading(35, memory_limit_bytes=8192))])
    run.feed([sample(60, reading(60, memory_limit_bytes=8192))])
    usages = recorded(run.periods)
    assert [one.allocated.memory_bytes for one in usages] == [4096, 8192]
    assert not any(one.allocated.resized for one in usages)


def test_each_figure_of_the_size_falls_back_to_the_downward_api_by_itself() -> None:
    identity = UsageIdentity(
        **{field: getattr(WHO, field) for field in WHO.__struct_fields__}
        | {"cpu_limit_millicores": 8000, "memory_limit_bytes": 1 << 36}
    )
    seen = reading(0, cpu_limit_millicores=None)
    run = Run(sample(0, seen)).feed([sample(60, reading(60, cpu_limit_millicores=None))])
    (usage,) = recorded(run.periods, identity)
    assert usage.allocated == Allocated(
        cpu_millicores=8000,
        memory_bytes=SIZE,
        source="downward_api",
        cpu_source="downward_api",
        memory_source="cgroup",
        counted_milliseconds=60_000,
    )


def test_a_size_that_nobody_knows_is_unknown_and_not_nothing() -> None:
    bare = reading(0, cpu_limit_millicores=None, memory_limit_bytes=None)
    run = Run(sample(0, bare)).feed([sample(60, bare)])
    (usage,) = recorded(run.periods)
    assert (usage.allocated.cpu_millicores, usage.allocated.memory_bytes) == (None, None)
    assert usage.allocated.cpu_source == usage.allocated.memory_source == "unknown"
    assert usage.allocated.counted_milliseconds == 60_000


def test_a_gap_after_a_reboot_counts_for_nobody() -> None:
    fresh = {"incarnation": "new-1-7", "container_id": "d" * 64, "born_boot_ns": 5 * SECOND}
    again = Sample(
        wall_ms=NOON + 90_000, boot_ns=15 * SECOND, boot_id="new", reading=reading(9, **fresh)
    )
    run = Run().feed([ran(30), again]).close()
    assert seconds(recorded(run.periods)) == 30 + 10
