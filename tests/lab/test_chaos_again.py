"""Tests of the oracle after the clock was set back and the spool was lost."""

import pytest

from byoc_agents.audit import Report
from byoc_agents.billing.record import UsageRecord
from lab.chaos.again import KINDS, STEP_MS, is_recorded_twice, spans
from lab.fakes.billing import ReplicaHistory, objects
from tests.unit.billing.buckets import audit

SECOND_MS = 1000


def reported(
    back_ms: int, *, lose: bool = True, absent_ms: int = 0
) -> tuple[Report, dict[str, bytes]]:
    """Set the clock back after thirty seconds, lose the spool or not, go on for thirty."""
    history = ReplicaHistory()
    seconds: list[UsageRecord] = [history.measured(period_ms=SECOND_MS) for _ in range(30)]
    if absent_ms:
        seconds.append(history.gap("target_absent", period_ms=absent_ms))
        history.restart()
    history.now_ms -= back_ms
    if lose:
        seconds.append(history.lose_state("spool_corrupt", period_ms=0))
    seconds += [history.measured(period_ms=SECOND_MS) for _ in range(30)]
    messages = objects(seconds, size=2)
    return audit(messages), {one.id: one.body for one in messages}


@pytest.mark.parametrize("back_ms", [2000, 2500, STEP_MS])
def test_what_two_epochs_recorded_is_reported_and_let_pass(back_ms: int) -> None:
    report, stored = reported(back_ms)
    assert set(report.counts) & KINDS
    assert all(is_recorded_twice(one, stored) for one in report.findings if not one.detail)
    assert len(list(spans(stored))) == 1


def test_so_is_a_gap_that_the_new_epoch_measures() -> None:
    report, stored = reported(4000, absent_ms=5000)
    assert report.counts["overlap"]
    assert all(is_recorded_twice(one, stored) for one in report.findings if not one.detail)


@pytest.mark.parametrize(("back_ms", "lose"), [(STEP_MS + SECOND_MS, True), (2000, False)])
def test_more_than_a_step_and_what_lies_in_one_epoch_is_a_difference(
    back_ms: int, *, lose: bool
) -> None:
    report, stored = reported(back_ms, lose=lose)
    assert report.counts
    assert not any(is_recorded_twice(one, stored) for one in report.findings)
