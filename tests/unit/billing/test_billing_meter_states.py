"""The meter's two states: one test per row of the table in `billing/meter.py`."""

import pytest

from byoc_agents.billing.window import OpenGap, Sample, Window
from tests.unit.billing.meter_run import SECOND, UP, Run, ran, reading, sample

RESTARTED = {"incarnation": "boot-2-7", "container_id": "d" * 64}


def in_window() -> Run:
    one_cpu = [ran(second, machine_cpus=1) for second in range(0, 55, 5)]
    run = Run(one_cpu[0]).feed(one_cpu[1:])
    assert isinstance(run.state.phase, Window)
    return run


def in_gap() -> Run:
    run = in_window().feed([sample(70), sample(75)])
    assert isinstance(run.state.phase, OpenGap)
    assert run.state.phase.reason == "target_unreadable"
    run.periods.clear()
    return run


@pytest.mark.parametrize(
    ("one", "state", "closed"),
    [
        (ran(55), Window, []),
        (sample(55), Window, []),
        (sample(60), OpenGap, [(0, 50, 50), (50, 60, "target_unreadable")]),
        (sample(55, absent=True), OpenGap, [(0, 50, 50)]),
        (
            sample(55, reading(2, born_boot_ns=UP + 52 * SECOND, **RESTARTED)),
            Window,
            [(0, 50, 50), (50, 52, "target_restarted")],
        ),
        (
            sample(55, reading(9000), machine_cpus=1),
            Window,
            [(0, 50, 50), (50, 55, "counter_impossible")],
        ),
    ],
    ids=["extended", "missed", "unreadable", "absent", "another counter", "impossible"],
)
def test_from_a_window(one: Sample, state: type[Window | OpenGap], closed: list[object]) -> None:
    run = in_window().feed([one])
    assert isinstance(run.state.phase, state)
    assert run.shown() == closed


@pytest.mark.parametrize(
    ("one", "state", "closed", "used"),
    [
        (sample(80), OpenGap, [], 0),
        (sample(80, absent=True), OpenGap, [(60, 80, "target_unreadable")], 0),
        (ran(80), Window, [(60, 80, "target_unreadable")], 30),
        (
            sample(80, reading(3, born_boot_ns=UP + 77 * SECOND, **RESTARTED)),
            Window,
            [(60, 77, "target_unreadable")],
            3,
        ),
        (
            sample(80, reading(500, born_boot_ns=None, exclusive=False, **RESTARTED)),
            Window,
            [(60, 80, "target_unreadable")],
            0,
        ),
    ],
    ids=["extended", "another reason", "late CPU", "from zero", "baseline"],
)
def test_from_a_gap(
    one: Sample, state: type[Window | OpenGap], closed: list[object], used: float
) -> None:
    run = in_gap().feed([one])
    assert isinstance(run.state.phase, state)
    assert run.shown() == closed
    if isinstance(run.state.phase, Window):
        window = run.state.phase
        assert (window.reading.cpu_usec - window.cpu_start_usec) / 1e6 == used
