"""What a poll means: tables from figures to reasons, and the limits between them."""

from typing import Any

import pytest

from byoc_agents.state.assess import Memory, State
from byoc_agents.state.observation import Observation, Seen, Source
from byoc_agents.state.thresholds import COUNTED, DEFAULTS, Code, Limit, parse_limit, parse_limits
from tests.unit.state.assess_story import Story, codes, up

TROUBLES = [
    (Code.READONLY_REPLICA, {"readonly_replicas": 2}),
    (Code.KEEPER_SESSION_EXPIRED, {"expired_sessions": 1}),
    (Code.KEEPER_SESSION_EXPIRED, {"keeper_sessions": 0}),
    (Code.REPLICATION_LAG, {"replication_lag_seconds": 300}),
    (Code.REPLICAS_STATUS_FAILED, {"replicas_status_ok": False}),
    (Code.TOO_MANY_PARTS, {"max_parts_in_partition": 100}),
    (Code.STUCK_MUTATION, {"stuck_mutations": 1}),
    (Code.MUTATIONS_PENDING, {"pending_mutations": 100}),
    (Code.DISK_LOW, {"disk_free_ratio": 0.1}),
    (Code.MEMORY_PRESSURE, {"memory_used_ratio": 0.9}),
    (Code.DETACHED_PARTS, {"detached_parts": 1}),
    (Code.INSERTS_DELAYED, {"delayed_inserts": 1}),
]


@pytest.mark.parametrize(("code", "figures"), TROUBLES, ids=str)
def test_each_trouble_alone_degrades_a_running_server(code: Code, figures: dict[str, Any]) -> None:
    found = Story().stays(up(**figures))
    assert (found.state, codes(found), found.healthy) == (State.DEGRADED, [code], False)


@pytest.mark.parametrize("figures", [figures for _, figures in TROUBLES], ids=str)
def test_each_trouble_ends_when_its_figure_is_fine_for_long_enough(
    figures: dict[str, Any],
) -> None:
    story = Story()
    story.stays(up(**figures))
    found = story.stays(up())
    assert (found.state, found.reasons) == (State.RUNNING, ())


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
    assert Story().stays(up(**figures)).healthy


@pytest.mark.parametrize("code", sorted(COUNTED))
def test_a_counter_counts_when_it_grows_and_not_by_what_it_is(code: Code) -> None:
    name = {
        Code.DATA_LOSS: "lost_parts",
        Code.SERVER_ERRORS: "server_errors",
        Code.INSERTS_REJECTED: "rejected_inserts",
    }[code]

    def counted(count: int) -> Observation:
        figures: dict[str, Any] = {name: count}
        return up(**figures)

    story = Story()
    story.memory = Memory(counters={code: 7})
    assert story.see(counted(7)).healthy
    found = story.see(counted(9), after=10)
    assert (codes(found), found.reasons[0].value) == ([code], 2)
    found = story.see(counted(12), after=10)
    assert found.reasons[0].value == 5, "what was lost adds up while the reason stands"
    assert story.see(counted(12), after=10).reasons[0].value == 5
    assert story.stays(counted(12)).healthy


def test_lost_data_counts_at_first_sight_and_old_rejections_do_not() -> None:
    found = Story().see(up(lost_parts=3, rejected_inserts=3, server_errors=3))
    assert codes(found) == [Code.DATA_LOSS]


def test_a_restarted_server_counts_from_zero_and_forgets_its_troubles() -> None:
    story = Story()
    story.see(up(rejected_inserts=50, readonly_replicas=1))
    found = story.see(up(uptime=5, rejected_inserts=2), after=60)
    assert codes(found) == [Code.INSERTS_REJECTED, Code.STARTING_UP]


def test_a_reason_is_held_before_it_is_raised_and_says_since_when() -> None:
    story = Story()
    assert story.see(up(memory_used_ratio=0.95)).healthy
    assert story.see(up(memory_used_ratio=0.95), after=599).healthy
    found = story.see(up(memory_used_ratio=0.93), after=1)
    reason = found.reasons[0]
    assert (reason.code, reason.value, reason.threshold) == (Code.MEMORY_PRESSURE, 0.93, 0.9)
    assert reason.since_ms == 1_000_000, "since it passed the limit, not since it was raised"


def test_a_dip_below_the_limit_starts_the_hold_anew() -> None:
    story = Story()
    story.see(up(memory_used_ratio=0.95))
    story.see(up(memory_used_ratio=0.5), after=599)
    assert story.see(up(memory_used_ratio=0.95), after=1).healthy
    assert not story.see(up(memory_used_ratio=0.95), after=600).healthy


def test_between_leave_and_enter_nothing_changes() -> None:
    story = Story()
    assert story.see(up(replication_lag_seconds=200)).healthy
    story.see(up(replication_lag_seconds=301))
    assert codes(story.stays(up(replication_lag_seconds=200))) == [Code.REPLICATION_LAG]
    assert story.stays(up(replication_lag_seconds=60)).healthy


def test_a_figure_that_is_not_seen_neither_raises_nor_ends_a_reason() -> None:
    story = Story()
    story.see(up(replication_lag_seconds=900))
    assert codes(story.stays(up(replication_lag_seconds=None))) == [Code.REPLICATION_LAG]
    assert Story().stays(up(replication_lag_seconds=None)).healthy


@pytest.mark.parametrize(
    ("how", "state"),
    [
        (Seen.ABSENT, State.RUNNING),
        (Seen.EMPTY, State.RUNNING),
        (Seen.DENIED, State.DEGRADED),
        (Seen.HIDDEN, State.DEGRADED),
        (Seen.OVER_BOUND, State.DEGRADED),
        (Seen.FAILED, State.DEGRADED),
    ],
)
def test_what_cannot_be_seen_is_named_and_is_never_healthy(how: Seen, state: State) -> None:
    found = Story().see(up(seen={Source.REPLICAS: how, Source.DISKS: how}))
    assert (found.state, found.healthy) == (state, False)
    assert codes(found) == [Code.OBSERVABILITY_PARTIAL]
    assert found.reasons[0].missing == (Source.DISKS, Source.REPLICAS)
    assert found.reasons[0].value == 2


def test_every_code_with_a_limit_is_one_that_a_figure_can_raise() -> None:
    without = {Code.STARTING_UP, Code.AGENT_STOPPING}
    assert set(DEFAULTS) == set(Code) - without


@pytest.mark.parametrize(
    ("text", "limit"),
    [("300/60", Limit(300, 60)), ("0.1/0.15/60/30", Limit(0.1, 0.15, 60, 30))],
)
def test_a_limit_is_read_from_a_setting(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit
    assert parse_limits(f"DISK_LOW={text}")[Code.DISK_LOW] == limit


@pytest.mark.parametrize("text", ["", "1", "1/1", "a/b", "1/0/-1", "1/0/1/1/1", "nan/0", "inf/0"])
def test_a_limit_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="enter/leave/hold_seconds"):
        parse_limit(text)


def test_a_limit_for_no_code_is_refused() -> None:
    with pytest.raises(ValueError, match="NO_SUCH: no such code"):
        parse_limits("NO_SUCH=1/0")
