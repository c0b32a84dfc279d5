"""What a poll means: tables from figures to state and reasons, and the passing of time."""

from typing import Any

import msgspec
import pytest

from agents.state.assess import Assessment, End, Memory, State, assess, restored
from agents.state.hysteresis import NS, Now
from agents.state.limits import COUNTED, DEFAULTS, Code, Limit, Limits, parse_limit, parse_limits
from agents.state.observation import Figures, Login, Observation, Ping, Seen, Source

ALL_SEEN = dict.fromkeys(Source, Seen.OK)
FINE: dict[str, Any] = {
    "readonly_replicas": 0,
    "replicated_tables": 3,
    "keeper_sessions": 1,
    "expired_sessions": 0,
    "replication_lag_seconds": 0,
    "replicas_status_ok": True,
    "lost_parts": 0,
    "rejected_inserts": 0,
    "delayed_inserts": 0,
    "server_errors": 0,
    "max_parts_in_partition": 5,
    "pending_mutations": 0,
    "stuck_mutations": 0,
    "detached_parts": 0,
    "disk_free_ratio": 0.5,
    "memory_used_ratio": 0.2,
}
UNREACHABLE = Observation(ping=Ping.REFUSED)
LONG = 10_000.0  # seconds: past every hold


def up(uptime: int = 4000, seen: dict[Source, Seen] | None = None, **figures: Any) -> Observation:
    """Return a server that answers; `figures` go over those of a healthy one."""
    return Observation(
        ping=Ping.OK,
        login=Login.OK,
        seen=ALL_SEEN | (seen or {}),
        figures=Figures(**(FINE | figures)),
        version="24.8.4.13",
        uptime_seconds=uptime,
    )


class Story:
    """Polls one after another on a clock that the test moves."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.memory = Memory()
        self.seconds = 1000.0

    @property
    def now(self) -> Now:
        return Now(round(self.seconds * 1000), round(self.seconds * NS))

    def see(self, seen: Observation, after: float = 0, end: End = End.NONE) -> Assessment:
        self.seconds += after
        found, self.memory = assess(seen, self.memory, self.limits, self.now, end=end)
        return found

    def stays(self, seen: Observation, seconds: float = LONG) -> Assessment:
        """See the same now and after some seconds."""
        self.see(seen)
        return self.see(seen, after=seconds)


def codes(found: Assessment) -> list[str]:
    return [str(reason.code) for reason in found.reasons]


def test_a_server_that_shows_everything_and_has_nothing_is_healthy() -> None:
    found = Story().see(up())
    assert (found.state, found.reasons, found.healthy) == (State.RUNNING, (), True)


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
    ("uptime", "state"), [(0, State.STARTING), (179, State.STARTING), (180, State.RUNNING)]
)
def test_a_server_is_starting_until_three_minutes_of_uptime(uptime: int, state: State) -> None:
    found = Story().see(up(uptime=uptime))
    assert found.state is state
    assert codes(found) == ([Code.STARTING_UP] if state is State.STARTING else [])


def test_troubles_are_named_while_it_starts() -> None:
    found = Story().see(up(uptime=3, readonly_replicas=1))
    assert (found.state, codes(found)) == (State.STARTING, ["READONLY_REPLICA", "STARTING_UP"])


SILENCES = [Ping.REFUSED, Ping.TIMEOUT, Ping.RESET, Ping.UNREACHABLE, Ping.HTTP_ERROR]


@pytest.mark.parametrize("ping", SILENCES)
def test_a_server_that_was_up_and_does_not_answer_has_failed(ping: Ping) -> None:
    story = Story()
    story.see(up(readonly_replicas=1))
    first = story.see(Observation(ping=ping), after=10)
    assert (first.sure, first.hurry, first.state) == (False, True, State.DEGRADED)
    found = story.see(Observation(ping=ping), after=2)
    assert (found.sure, found.state, codes(found)) == (True, State.FAILED, [Code.PING_FAILED])
    assert found.reasons[0].detail is ping


def test_one_lost_ping_changes_nothing() -> None:
    story = Story()
    story.see(up())
    assert not story.see(Observation(ping=Ping.TIMEOUT), after=10).sure
    assert story.see(up(), after=1).healthy
    assert not story.see(Observation(ping=Ping.TIMEOUT), after=10).sure


def test_a_server_that_was_never_up_is_starting_and_after_a_while_failed() -> None:
    story = Story()
    assert not story.see(UNREACHABLE).sure
    assert story.see(UNREACHABLE, after=5).state is State.STARTING
    assert story.see(UNREACHABLE, after=100).state is State.STARTING
    assert story.see(UNREACHABLE, after=100).state is State.FAILED


def test_an_exporter_that_comes_back_to_a_dead_server_does_not_call_it_starting() -> None:
    story = Story()
    story.see(up())
    story.memory = restored(story.memory)
    assert story.stays(UNREACHABLE, 5).state is State.FAILED


def test_after_a_stop_that_was_asked_for_silence_is_a_start() -> None:
    story = Story()
    story.see(up())
    assert story.see(up(), end=End.BOTH).state is State.STOPPING
    story.memory = restored(story.memory)
    assert story.stays(UNREACHABLE, 5).state is State.STARTING


def test_stopping_is_told_apart_from_failing_and_names_its_evidence() -> None:
    found = Story().see(up(), end=End.BOTH)
    assert (found.state, codes(found)) == (State.STOPPING, [Code.AGENT_STOPPING])


def test_an_exporter_elsewhere_that_stops_says_nothing_about_the_server() -> None:
    found = Story().see(up(), end=End.AGENT)
    assert (found.state, codes(found)) == (State.RUNNING, [Code.AGENT_STOPPING])


def test_a_server_that_answers_every_query_with_an_error_is_degraded_not_failed() -> None:
    story = Story()
    story.see(up())
    broken = Observation(ping=Ping.OK, seen={Source.QUERIES: Seen.FAILED})
    found = story.stays(broken, 5)
    assert (found.state, codes(found)) == (
        State.DEGRADED,
        [Code.OBSERVABILITY_PARTIAL, Code.QUERIES_FAILING],
    )


def test_one_poll_without_an_answer_changes_nothing() -> None:
    story = Story()
    story.see(up())
    assert not story.see(Observation(ping=Ping.OK, seen={Source.QUERIES: Seen.FAILED})).sure
    assert story.see(up()).healthy


def test_a_wrong_password_is_blindness_not_failure() -> None:
    locked = Observation(ping=Ping.OK, login=Login.REFUSED, seen={Source.QUERIES: Seen.DENIED})
    found = Story().see(locked)
    assert (found.state, codes(found)) == (
        State.DEGRADED,
        [Code.AUTH_FAILED, Code.OBSERVABILITY_PARTIAL],
    )
    assert found.reasons[1].missing == (Source.QUERIES,)


def test_a_right_password_ends_the_blindness() -> None:
    story = Story()
    story.see(Observation(ping=Ping.OK, login=Login.REFUSED, seen={Source.QUERIES: Seen.DENIED}))
    story.see(up(), after=10)
    assert story.see(up(), after=30).healthy


def test_a_certificate_that_we_do_not_trust_is_our_trouble_not_the_servers() -> None:
    found = Story().stays(Observation(ping=Ping.TLS), LONG)
    assert (found.state, found.reasons[0].detail) == (State.DEGRADED, Ping.TLS)


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


def test_a_wall_clock_that_jumps_raises_and_ends_nothing() -> None:
    story = Story()
    story.see(up(memory_used_ratio=0.95))
    jumped = Now(10**15, story.now.boot_ns + NS)
    found, _ = assess(up(memory_used_ratio=0.95), story.memory, story.limits, jumped)
    assert found.healthy


def test_the_memory_survives_json_and_a_restart_of_the_exporter() -> None:
    story = Story()
    story.see(up(memory_used_ratio=0.95, readonly_replicas=1, rejected_inserts=5))
    kept = msgspec.json.decode(msgspec.json.encode(story.memory), type=Memory)
    assert kept == story.memory
    story.memory = restored(kept)
    found = story.see(up(memory_used_ratio=0.95, readonly_replicas=1, rejected_inserts=6), after=5)
    assert codes(found) == [Code.INSERTS_REJECTED, Code.READONLY_REPLICA]
    assert found.reasons[1].since_ms == 1_000_000


def test_the_state_remembers_since_when_and_what_was_before() -> None:
    story = Story()
    story.see(up())
    story.see(up(readonly_replicas=1), after=10)
    story.see(up(readonly_replicas=1), after=10)
    assert (story.memory.previous, story.memory.state_since_ms) == (State.RUNNING, 1_010_000)


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
