"""From figures to reasons, and the thresholds between them."""

from typing import Any

import pytest

from byoc_agents.state.assess import Memory, ServiceState
from byoc_agents.state.observation import ProbeSource, SourceResult, StateObservation
from byoc_agents.state.thresholds import (
    COUNTED,
    DEFAULTS,
    ReasonCode,
    Threshold,
    parse_threshold,
    parse_thresholds,
)
from tests.unit.state.assess_harness import Polls, codes, up

TROUBLES = [
    (ReasonCode.READONLY_REPLICA, {"readonly_replicas": 2}),
    (ReasonCode.KEEPER_SESSION_EXPIRED, {"expired_sessions": 1}),
    (ReasonCode.KEEPER_SESSION_EXPIRED, {"keeper_sessions": 0}),
    (ReasonCode.REPLICATION_LAG, {"replication_lag_seconds": 300}),
    (ReasonCode.REPLICAS_STATUS_FAILED, {"replicas_status_ok": False}),
    (ReasonCode.TOO_MANY_PARTS, {"max_parts_in_partition": 100}),
    (ReasonCode.STUCK_MUTATION, {"stuck_mutations": 1}),
    (ReasonCode.MUTATIONS_PENDING, {"pending_mutations": 100}),
    (ReasonCode.DISK_LOW, {"disk_free_ratio": 0.1}),
    (ReasonCode.MEMORY_PRESSURE, {"memory_used_ratio": 0.9}),
    (ReasonCode.DETACHED_PARTS, {"detached_parts": 1}),
    (ReasonCode.INSERTS_DELAYED, {"delayed_inserts": 1}),
]


@pytest.mark.parametrize(("code", "figures"), TROUBLES, ids=str)
def test_each_trouble_alone_degrades_a_running_server(
    code: ReasonCode, figures: dict[str, Any]
) -> None:
    found = Polls().stays(up(**figures))
    assert (found.state, codes(found), found.healthy) == (ServiceState.DEGRADED, [code], False)


@pytest.mark.parametrize("figures", [figures for _, figures in TROUBLES], ids=str)
def test_each_trouble_ends_when_its_figure_is_fine_for_long_enough(
    figures: dict[str, Any],
) -> None:
    polls = Polls()
    polls.stays(up(**figures))
    found = polls.stays(up())
    assert (found.state, found.reasons) == (ServiceState.RUNNING, ())


@pytest.mark.parametrize(
    "figures",
    [
        {"readonly_replicas": 0, "replication_lag_seconds": 299},
        {"max_parts_in_partition": 99, "pending_mutations": 99},
        {"disk_free_ratio": 0.11, "memory_used_ratio": 0.89},
        {"keeper_sessions": 0, "replicated_tables": 0},
    ],
    ids=str,
)
def test_just_below_a_limit_is_healthy(figures: dict[str, Any]) -> None:
    assert Polls().stays(up(**figures)).healthy


@pytest.mark.parametrize("code", sorted(COUNTED))
def test_a_counter_counts_by_its_growth_not_by_its_value(code: ReasonCode) -> None:
    name = {
        ReasonCode.DATA_LOSS: "lost_parts",
        ReasonCode.SERVER_ERRORS: "server_errors",
        ReasonCode.INSERTS_REJECTED: "rejected_inserts",
    }[code]

    def counted(count: int) -> StateObservation:
        figures: dict[str, Any] = {name: count}
        return up(**figures)

    polls = Polls()
    polls.memory = Memory(counters={code: 7})
    assert polls.see(counted(7)).healthy
    found = polls.see(counted(9), after=10)
    assert (codes(found), found.reasons[0].value) == ([code], 2)
    found = polls.see(counted(12), after=10)
    assert found.reasons[0].value == 5, "losses add up while the reason is active"
    assert polls.see(counted(12), after=10).reasons[0].value == 5
    assert polls.stays(counted(12)).healthy


def test_lost_data_counts_at_first_sight_and_old_rejections_do_not() -> None:
    found = Polls().see(up(lost_parts=3, rejected_inserts=3, server_errors=3))
    assert codes(found) == [ReasonCode.DATA_LOSS]


def test_a_restarted_server_counts_from_zero_and_forgets_its_troubles() -> None:
    polls = Polls()
    polls.see(up(rejected_inserts=50, readonly_replicas=1))
    found = polls.see(up(uptime=5, rejected_inserts=2), after=60)
    assert codes(found) == [ReasonCode.INSERTS_REJECTED, ReasonCode.STARTING_UP]


def test_a_reason_is_held_before_it_is_raised_and_has_its_start() -> None:
    polls = Polls()
    assert polls.see(up(memory_used_ratio=0.95)).healthy
    assert polls.see(up(memory_used_ratio=0.95), after=599).healthy
    found = polls.see(up(memory_used_ratio=0.93), after=1)
    reason = found.reasons[0]
    assert (reason.code, reason.value, reason.threshold) == (ReasonCode.MEMORY_PRESSURE, 0.93, 0.9)
    assert reason.since_ms == 1_000_000, "since it passed the limit, not since it was raised"


def test_a_dip_below_the_threshold_restarts_the_hold() -> None:
    polls = Polls()
    polls.see(up(memory_used_ratio=0.95))
    polls.see(up(memory_used_ratio=0.5), after=599)
    assert polls.see(up(memory_used_ratio=0.95), after=1).healthy
    assert not polls.see(up(memory_used_ratio=0.95), after=600).healthy


def test_between_leave_and_enter_nothing_changes() -> None:
    polls = Polls()
    assert polls.see(up(replication_lag_seconds=200)).healthy
    polls.stays(up(replication_lag_seconds=301))
    assert codes(polls.stays(up(replication_lag_seconds=200))) == [ReasonCode.REPLICATION_LAG]
    assert polls.stays(up(replication_lag_seconds=60)).healthy


def test_a_figure_that_is_not_seen_neither_raises_nor_ends_a_reason() -> None:
    polls = Polls()
    polls.stays(up(replication_lag_seconds=900))
    assert codes(polls.stays(up(replication_lag_seconds=None))) == [ReasonCode.REPLICATION_LAG]
    assert Polls().stays(up(replication_lag_seconds=None)).healthy


@pytest.mark.parametrize(
    ("how", "state"),
    [
        (SourceResult.ABSENT, ServiceState.RUNNING),
        (SourceResult.EMPTY, ServiceState.RUNNING),
        (SourceResult.DENIED, ServiceState.DEGRADED),
        (SourceResult.HIDDEN, ServiceState.DEGRADED),
        (SourceResult.OVER_BOUND, ServiceState.DEGRADED),
        (SourceResult.FAILED, ServiceState.DEGRADED),
    ],
)
def test_a_source_that_cannot_be_read_is_named_and_never_healthy(
    how: SourceResult, state: ServiceState
) -> None:
    found = Polls().see(up(sources={ProbeSource.REPLICAS: how, ProbeSource.DISKS: how}))
    assert (found.state, found.healthy) == (state, False)
    assert codes(found) == [ReasonCode.OBSERVABILITY_PARTIAL]
    assert found.reasons[0].missing == (ProbeSource.DISKS, ProbeSource.REPLICAS)
    assert found.reasons[0].value == 2


def test_every_code_with_a_limit_is_one_that_a_figure_can_raise() -> None:
    without = {ReasonCode.STARTING_UP, ReasonCode.AGENT_STOPPING}
    assert set(DEFAULTS) == set(ReasonCode) - without


@pytest.mark.parametrize(
    ("text", "limit"),
    [("300/60", Threshold(300, 60)), ("0.1/0.15/60/30", Threshold(0.1, 0.15, 60, 30))],
)
def test_a_limit_is_read_from_a_setting(text: str, limit: Threshold) -> None:
    assert parse_threshold(text) == limit
    assert parse_thresholds(f"DISK_LOW={text}")[ReasonCode.DISK_LOW] == limit


@pytest.mark.parametrize("text", ["", "1", "1/1", "a/b", "1/0/-1", "1/0/1/1/1", "nan/0", "inf/0"])
def test_an_impossible_threshold_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="enter/leave/hold_seconds"):
        parse_threshold(text)


def test_a_limit_for_no_code_is_refused() -> None:
    with pytest.raises(ValueError, match="NO_SUCH: no such code"):
        parse_thresholds("NO_SUCH=1/0")
