"""What a poll means: from what is seen to a state, and the passing of time."""

import msgspec
import pytest

from byoc_agents.state.assess import End, Memory, State, assess, restored
from byoc_agents.state.hysteresis import NS, Now
from byoc_agents.state.observation import Login, Observation, Ping, Seen, Source
from byoc_agents.state.thresholds import Code
from tests.unit.state.assess_story import LONG, UNREACHABLE, Story, codes, up


def test_a_server_that_shows_everything_and_has_nothing_is_healthy() -> None:
    found = Story().see(up())
    assert (found.state, found.reasons, found.healthy) == (State.RUNNING, (), True)


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
