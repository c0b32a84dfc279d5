"""No impossible figure, no counter counted from zero without evidence, no sleep taken for use."""

import pytest
from msgspec.structs import replace

from byoc_agents.billing.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from byoc_agents.billing.record import MAX_CPUS, cpu_bound
from byoc_agents.billing.recorder import Recorder
from byoc_agents.billing.window import Sample, Window
from tests.unit.billing.meter_run import NOON, SECOND, UP, Run, every, ran, reading, sample, used
from tests.unit.billing.test_billing_meter_audit import WHO

SERVER = {"source": "clickhouse", "incarnation": "boot", "container_id": ""}


def billed(run: Run) -> float:
    return sum(used(period) for period in run.periods)


@pytest.mark.parametrize(
    ("cpu_seconds", "reason"),
    [(40.09, None), (40.2, "counter_impossible"), (1e9, "counter_impossible")],
)
def test_more_cpu_than_the_machine_has_is_a_gap_and_the_next_interval_goes_on(
    cpu_seconds: float, reason: str | None
) -> None:
    """Two CPUs for 5 s do 10 core s; 50 ms of slack per CPU are 0.1 more."""
    run = Run(ran(0, machine_cpus=2))
    run.feed([ran(30, machine_cpus=2), sample(35, reading(cpu_seconds), machine_cpus=2)])
    run.feed([sample(60, reading(cpu_seconds + 25), machine_cpus=2)])
    if reason is None:
        assert run.shown() == [(0, 60, cpu_seconds + 25)]
    else:
        assert run.shown() == [(0, 30, 30), (30, 35, reason), (35, 60, 25)]


def test_the_reading_s_own_duration_counts_for_the_counter() -> None:
    """A reading may be of any moment between its begin and its end."""
    slow = {"machine_cpus": 1, "read_ns": 2 * SECOND}
    run = Run(ran(0, **slow)).feed(
        [sample(5, reading(6.9), **slow), sample(60, reading(60), **slow)]
    )
    assert run.shown() == [(0, 60, 60)]


@pytest.mark.parametrize("numbers", [(2, 8), (8, 2)], ids=["added", "removed"])
def test_the_larger_number_of_cpus_counts_when_cpus_are_added_or_removed(
    numbers: tuple[int, int],
) -> None:
    before, after = numbers
    run = Run(ran(0, machine_cpus=before))
    run.feed([sample(60, reading(400), machine_cpus=after)])
    assert run.shown() == [(0, 60, 400)]
    record = Recorder(identity=WHO, sample_ms=60_000).record(run.periods[0], 1, 0)
    assert record.data.machine_cpus == 8


def test_late_cpu_of_a_long_gap_is_possible_and_the_record_says_over_how_long() -> None:
    blind = [sample(s, None, machine_cpus=1) for s in range(35, 150, 5)]
    run = Run(ran(0, machine_cpus=1)).feed([ran(30, machine_cpus=1), *blind])
    run.feed([ran(150, machine_cpus=1), ran(180, machine_cpus=1)])
    record = Recorder(identity=WHO, sample_ms=5000).record(run.periods[-1], 1, 0).data
    assert record.used.cpu_core_seconds == 150
    assert (record.elapsed_milliseconds, record.counter_milliseconds) == (30_000, 150_000)
    bound = cpu_bound(record)
    assert bound
    assert record.used.cpu_core_seconds <= bound.core_seconds


def test_impossible_late_cpu_of_a_long_gap_is_not_billed() -> None:
    blind = [sample(s, None, machine_cpus=1) for s in range(35, 150, 5)]
    run = Run(ran(0, machine_cpus=1)).feed([ran(30, machine_cpus=1), *blind])
    run.feed([sample(150, reading(900), machine_cpus=1), sample(180, reading(930), machine_cpus=1)])
    assert run.shown()[-2:] == [(120, 150, "counter_impossible"), (150, 180, 30)]
    assert billed(run) == 60


def test_a_counter_that_is_busier_than_its_birth_allows_is_a_baseline() -> None:
    """A process started by hand in a session's cgroup: the cgroup is older than it."""
    run = Run(sample(0, None, absent=True, machine_cpus=4))
    busy = {"born_boot_ns": UP + 20 * SECOND}
    run.feed([sample(25, reading(250_000, **busy), machine_cpus=4)])
    run.feed([sample(60, reading(250_035, **busy), machine_cpus=4)])
    assert run.shown() == [(0, 25, "counter_impossible"), (25, 60, 35)]


def test_an_unknown_number_of_cpus_is_bounded_by_the_largest_machine() -> None:
    run = Run().feed([ran(30), sample(35, reading(30 + 6 * MAX_CPUS))])
    assert run.shown() == [(0, 30, 30), (30, 35, "counter_impossible")]


def test_a_reboot_is_detected_by_a_boot_clock_that_falls_with_any_boot_id() -> None:
    for boot_id in ("boot", ""):
        run = Run(ran(0, boot_id=boot_id)).feed([ran(30, boot_id=boot_id)])
        fresh = {"container_id": "d" * 64, "born_boot_ns": 10 * SECOND}
        again = Sample(
            wall_ms=NOON + 400_000,
            boot_ns=300 * SECOND,
            boot_id=boot_id,
            reading=reading(580, **fresh),
        )
        run.feed([again]).close()
        assert billed(run) == 30 + 580


@pytest.mark.parametrize("found_after", [5, 4000], ids=["at once", "after an hour unread"])
def test_a_reboot_under_the_same_boot_id_does_not_continue_a_counter_of_the_same_name(
    found_after: int,
) -> None:
    """The inode of a service's cgroup may be the same after a reboot."""
    unborn = {"born_boot_ns": None, "container_id": ""}
    run = Run(sample(0, reading(100, **unborn))).feed([sample(30, reading(130, **unborn))])
    for boot_seconds in (20, found_after):
        seen = reading(4000, **unborn) if boot_seconds == found_after else None
        run.feed(
            [
                Sample(
                    wall_ms=NOON + (100 + boot_seconds) * 1000,
                    boot_ns=boot_seconds * SECOND,
                    boot_id="boot",
                    reading=seen,
                )
            ]
        )
    assert billed(run.close()) == 30


@pytest.mark.parametrize("step_seconds", [0, 600], ids=["clock kept", "wall clock set, too"])
def test_another_boot_id_is_no_reboot_if_the_boot_clock_went_on(step_seconds: int) -> None:
    """A container of the daemon's own (nspawn) has a boot id of its own."""
    run = Run().feed([ran(30)])
    renamed = {"boot_id": "other-id", "wall_off_seconds": step_seconds}
    for second in (65, 125):
        run.feed([sample(second, reading(second, incarnation="other-id-1-7"), **renamed)])
    assert billed(run.close()) == 125
    assert not any(p.window.restart_observed for p in run.periods if p.window)


@pytest.mark.parametrize("slept", [3, 8, 600, 7200])
@pytest.mark.parametrize("shown", [True, False], ids=["our clock shows it", "only uptime does"])
def test_a_machine_that_sleeps_is_no_restart_and_bills_nothing_twice(
    slept: int, shown: bool
) -> None:
    """ClickHouse's uptime is CLOCK_MONOTONIC: it stands still, so its birth seems to move."""

    def at(second: float, cpu: float, late: float = 0) -> Sample:
        born = UP - 3600 * SECOND + round(late * SECOND)
        seen = reading(cpu, born_boot_ns=born, **SERVER)
        return sample(second, seen, asleep_ns=round(late * SECOND) if shown else None)

    run = Run(at(0, 14_400)).feed([at(second, 14_400 + 4 * second) for second in range(5, 65, 5)])
    run.feed([at(60 + slept + s, 14_640 + 4 * s, slept) for s in range(5, 65, 5)]).close()
    assert billed(run) == 480
    reasons = [p.gap_reason for p in run.periods if p.gap_reason]
    assert reasons == ([] if not shown and slept < 5 else ["suspended"])
    assert not any(p.window.restart_observed for p in run.periods if p.window)
    assert len({p.window.reading.named_born_boot_ns for p in run.periods if p.window} - {None}) < 2
    asleep = sum(p.end_ms - p.start_ms for p in run.periods if p.gap_reason)
    assert asleep in {0, slept * 1000}


def test_a_sleep_is_a_gap_of_its_own_also_with_the_kernel_s_counters() -> None:
    awake, after = {"asleep_ns": SECOND}, {"asleep_ns": 29_001 * SECOND}
    run = Run(ran(0, **awake)).feed([ran(30, **awake), sample(29_035, reading(35), **after)])
    run.feed([sample(29_060, reading(60), **after)])
    assert run.shown()[:2] == [(0, 30, 30), (30, 29_030, "suspended")]
    assert billed(run.close()) == 60


def test_a_restart_of_clickhouse_is_counted_from_zero_if_its_uptime_fell_by_the_right_amount() -> (
    None
):
    first = {**SERVER, "born_boot_ns": UP - 3600 * SECOND}
    second = {**SERVER, "born_boot_ns": UP + 40 * SECOND}
    run = Run(sample(0, reading(1000, **first))).feed([sample(30, reading(1030, **first))])
    run.feed([sample(60, reading(20, **second)), sample(120, reading(80, **second))])
    assert billed(run) == 30 + 80
    assert (30, 40, "target_restarted") in run.shown()


def test_two_servers_that_response_in_turn_are_billed_nothing() -> None:
    older = {**SERVER, "born_boot_ns": UP - 1000 * SECOND}
    younger = {**SERVER, "born_boot_ns": UP - 400 * SECOND}
    samples = []
    for second in range(5, 125, 5):
        one, base = ((older, 100_000), (younger, 50_000))[second // 5 % 2]
        samples.append(sample(second, reading(base + second, **one)))
    run = Run(sample(0, reading(100_000, **older))).feed(samples).close()
    assert billed(run) == 0


@pytest.mark.parametrize("late", [0, 100], ids=["measured", "with late CPU"])
def test_a_checkpoint_of_0_1_0_goes_on_in_the_middle_of_a_window(late: int) -> None:
    run = Run().feed(every(5, 55))
    window = run.state.phase
    assert isinstance(window, Window)
    old = replace(
        window,
        cpu_start_usec=window.cpu_start_usec - late * 1_000_000,
        estimated=late > 0,
        counted_ms=0,
        counter_ns=0,
        machine_cpus=None,
        cpu_size_source=None,
        memory_size_source=None,
    )
    state = replace(run.state, phase=old, machine_cpus=None, asleep_ns=None)
    stored = encode_checkpoint(Checkpoint(epoch=1, sequence=0, state=state))
    found = decode_checkpoint(stored)
    assert found
    run.state = found.state
    run.feed([ran(60, asleep_ns=5 * SECOND, machine_cpus=1)])
    assert run.shown() == [(0, 60, 60 + late)]
    record = Recorder(identity=WHO, sample_ms=5000).record(run.periods[0], 1, 0).data
    assert record.allocated.counted_milliseconds == 60_000
    bound = cpu_bound(record)
    assert bound
    assert record.used.cpu_core_seconds <= bound.core_seconds
