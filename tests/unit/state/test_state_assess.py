"""From observations to states, over time."""

import msgspec
import pytest

from byoc_agents.state.assess import Memory, ServiceState, ShutdownScope, assess, restore_memory
from byoc_agents.state.observation import Login, Ping, ProbeSource, SourceResult, StateObservation
from byoc_agents.state.thresholds import NS, PollTime, ReasonCode
from tests.unit.state.assess_harness import LONG, UNREACHABLE, Polls, codes, up


def test_a_server_that_shows_everything_and_has_nothing_is_healthy() -> None:
    found = Polls().see(up())
    assert (found.state, found.reasons, found.healthy) == (ServiceState.RUNNING, (), True)


@pytest.mark.parametrize(
    ("uptime", "state"),
    [(0, ServiceState.STARTING), (179, ServiceState.STARTING), (180, ServiceState.RUNNING)],
)
def test_a_server_is_starting_until_three_minutes_of_uptime(
    uptime: int, state: ServiceState
) -> None:
    found = Polls().see(up(uptime=uptime))
    assert found.state is state
    assert codes(found) == ([ReasonCode.STARTING_UP] if state is ServiceState.STARTING else [])


def test_troubles_are_named_while_it_starts() -> None:
    found = Polls().see(up(uptime=3, readonly_replicas=1))
    assert (found.state, codes(found)) == (
        ServiceState.STARTING,
        ["READONLY_REPLICA", "STARTING_UP"],
    )


SILENCES = [Ping.REFUSED, Ping.TIMEOUT, Ping.RESET, Ping.UNREACHABLE, Ping.HTTP_ERROR]


@pytest.mark.parametrize("ping", SILENCES)
def test_a_server_that_was_up_and_does_not_respond_has_failed(ping: Ping) -> None:
    polls = Polls()
    polls.see(up(readonly_replicas=1))
    first = polls.see(StateObservation(ping=ping), after=10)
    assert (first.confirmed, first.poll_soon, first.state) == (False, True, ServiceState.DEGRADED)
    found = polls.see(StateObservation(ping=ping), after=2)
    assert (found.confirmed, found.state, codes(found)) == (
        True,
        ServiceState.FAILED,
        [ReasonCode.PING_FAILED],
    )
    assert found.reasons[0].detail is ping


def test_one_lost_ping_changes_nothing() -> None:
    polls = Polls()
    polls.see(up())
    assert not polls.see(StateObservation(ping=Ping.TIMEOUT), after=10).confirmed
    assert polls.see(up(), after=1).healthy
    assert not polls.see(StateObservation(ping=Ping.TIMEOUT), after=10).confirmed


def test_a_server_that_was_never_up_is_starting_and_after_a_while_failed() -> None:
    polls = Polls()
    assert not polls.see(UNREACHABLE).confirmed
    assert polls.see(UNREACHABLE, after=5).state is ServiceState.STARTING
    assert polls.see(UNREACHABLE, after=100).state is ServiceState.STARTING
    assert polls.see(UNREACHABLE, after=100).state is ServiceState.FAILED


def test_an_exporter_that_comes_back_to_a_dead_server_does_not_call_it_starting() -> None:
    polls = Polls()
    polls.see(up())
    polls.memory = restore_memory(polls.memory)
    assert polls.stays(UNREACHABLE, 5).state is ServiceState.FAILED


def test_after_a_stop_that_was_asked_for_silence_is_a_start() -> None:
    polls = Polls()
    polls.see(up())
    assert polls.see(up(), shutdown=ShutdownScope.POD).state is ServiceState.STOPPING
    polls.memory = restore_memory(polls.memory)
    assert polls.stays(UNREACHABLE, 5).state is ServiceState.STARTING


def test_stopping_differs_from_failing_and_names_its_evidence() -> None:
    found = Polls().see(up(), shutdown=ShutdownScope.POD)
    assert (found.state, codes(found)) == (ServiceState.STOPPING, [ReasonCode.AGENT_STOPPING])


def test_an_exporter_outside_the_pod_that_stops_leaves_the_servers_state() -> None:
    found = Polls().see(up(), shutdown=ShutdownScope.DAEMON)
    assert (found.state, codes(found)) == (ServiceState.RUNNING, [ReasonCode.AGENT_STOPPING])


def test_a_server_that_responses_every_query_with_an_error_is_degraded_not_failed() -> None:
    polls = Polls()
    polls.see(up())
    broken = StateObservation(ping=Ping.OK, sources={ProbeSource.QUERIES: SourceResult.FAILED})
    found = polls.stays(broken, 5)
    assert (found.state, codes(found)) == (
        ServiceState.DEGRADED,
        [ReasonCode.OBSERVABILITY_PARTIAL, ReasonCode.QUERIES_FAILING],
    )


def test_one_poll_without_a_response_changes_nothing() -> None:
    polls = Polls()
    polls.see(up())
    assert not polls.see(
        StateObservation(ping=Ping.OK, sources={ProbeSource.QUERIES: SourceResult.FAILED})
    ).confirmed
    assert polls.see(up()).healthy


def test_a_wrong_password_is_blindness_not_failure() -> None:
    locked = StateObservation(
        ping=Ping.OK, login=Login.REFUSED, sources={ProbeSource.QUERIES: SourceResult.DENIED}
    )
    found = Polls().see(locked)
    assert (found.state, codes(found)) == (
        ServiceState.DEGRADED,
        [ReasonCode.AUTH_FAILED, ReasonCode.OBSERVABILITY_PARTIAL],
    )
    assert found.reasons[1].missing == (ProbeSource.QUERIES,)


def test_a_right_password_ends_the_blindness() -> None:
    polls = Polls()
    polls.see(
        StateObservation(
            ping=Ping.OK, login=Login.REFUSED, sources={ProbeSource.QUERIES: SourceResult.DENIED}
        )
    )
    polls.see(up(), after=10)
    assert polls.see(up(), after=30).healthy


def test_a_certificate_that_we_do_not_trust_is_our_trouble_not_the_servers() -> None:
    found = Polls().stays(StateObservation(ping=Ping.TLS), LONG)
    assert (found.state, found.reasons[0].detail) == (ServiceState.DEGRADED, Ping.TLS)


def test_a_wall_clock_that_jumps_raises_and_ends_nothing() -> None:
    polls = Polls()
    polls.see(up(memory_used_ratio=0.95))
    jumped = PollTime(10**15, polls.now.boot_ns + NS)
    found, _ = assess(up(memory_used_ratio=0.95), polls.memory, polls.thresholds, jumped)
    assert found.healthy


def test_the_memory_survives_json_and_a_restart_of_the_exporter() -> None:
    polls = Polls()
    polls.see(up(memory_used_ratio=0.95, readonly_replicas=1, rejected_inserts=5))
    kept = msgspec.json.decode(msgspec.json.encode(polls.memory), type=Memory)
    assert kept == polls.memory
    polls.memory = restore_memory(kept)
    found = polls.see(up(memory_used_ratio=0.95, readonly_replicas=1, rejected_inserts=6), after=5)
    assert codes(found) == [ReasonCode.INSERTS_REJECTED, ReasonCode.READONLY_REPLICA]
    assert found.reasons[1].since_ms == 1_000_000


def test_the_memory_keeps_the_previous_state_and_the_time_of_the_change() -> None:
    polls = Polls()
    polls.see(up())
    polls.see(up(readonly_replicas=1), after=10)
    polls.see(up(readonly_replicas=1), after=10)
    assert (polls.memory.previous, polls.memory.state_since_ms) == (
        ServiceState.RUNNING,
        1_010_000,
    )
