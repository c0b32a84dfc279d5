"""The probes against scripted servers, and the ways in which each can fail."""

import pytest

from byoc_agents.clickhouse import (
    ClickHouseAuthError,
    ClickHouseResponseError,
    ClickHouseServerError,
    ClickHouseTimeoutError,
    ClickHouseTooLargeError,
    ClickHouseUnreachableError,
)
from byoc_agents.state import queries
from byoc_agents.state.observation import Login, Ping, ProbeSource, SourceResult, StateObservation
from byoc_agents.state.probes import (
    NO_LAG,
    RELEARN_SECONDS,
    SLOW_EVERY_SECONDS,
    PollBounds,
    Prober,
)
from lab.fakes.core import FakeClock
from lab.fakes.state import ScriptedServer


def prober(server: ScriptedServer, clock: FakeClock | None = None) -> Prober:
    return Prober(server, clock=clock or FakeClock())


async def look(server: ScriptedServer) -> StateObservation:
    return await prober(server).observe()


async def test_a_modern_server_is_seen_whole_in_four_queries() -> None:
    server = ScriptedServer()
    observation = await look(server)
    assert (observation.ping, observation.login, observation.version) == (
        Ping.OK,
        Login.OK,
        "24.8.4.13",
    )
    assert observation.uptime_seconds == 4000
    assert set(observation.sources.values()) == {SourceResult.OK}
    assert {s for s in ProbeSource} - observation.sources.keys() == {ProbeSource.DETACHED_PARTS}  # noqa: C416
    figures = observation.figures
    assert figures.readonly_replicas == 0
    assert figures.keeper_sessions == 1
    assert figures.expired_sessions == 1
    assert figures.replication_lag_seconds == 4, "of the fresher source"
    assert figures.replication_queue == 6
    assert figures.rejected_inserts == 7
    assert figures.lost_parts == 0, "an event that never happened has no row"
    assert figures.delayed_inserts == 2
    assert figures.server_errors == 1
    assert figures.max_parts_in_partition == 9
    assert (figures.pending_mutations, figures.stuck_mutations) == (4, 1)
    assert figures.detached_parts == 2, "without those that a user detached"
    assert figures.disk_free_ratio == 0.25
    assert figures.memory_used_ratio == 0.4
    assert figures.replicas_status_ok is True
    assert len(server.queries) == 4


async def test_a_poll_of_an_idle_server_is_one_request() -> None:
    server, clock = ScriptedServer(), FakeClock()
    server.rows |= dict.fromkeys(NO_LAG, "0")
    watcher = prober(server, clock)
    first = await watcher.observe()
    assert (server.pings, server.status_requests, len(server.queries)) == (1, 1, 4)
    await clock.advance(10)
    second = await watcher.observe()
    assert (server.pings, server.status_requests, len(server.queries)) == (1, 1, 5)
    assert second == first
    await clock.advance(SLOW_EVERY_SECONDS)
    await watcher.observe()
    assert (server.pings, server.status_requests, len(server.queries)) == (1, 2, 9)


@pytest.mark.parametrize("name", NO_LAG)
@pytest.mark.parametrize("value", ["1", None], ids=["not 0", "not known"])
async def test_a_server_that_may_lag_is_asked_for_its_replicas_at_every_poll(
    name: str, value: str | None
) -> None:
    server, clock = ScriptedServer(lags=True), FakeClock()
    server.rows |= dict.fromkeys(NO_LAG, "0") | ({} if value is None else {name: value})
    if value is None:
        del server.rows[name]
    watcher = prober(server, clock)
    for asked in (1, 2, 3):
        assert (await watcher.observe()).figures.replicas_status_ok is False
        assert server.status_requests == asked
        await clock.advance(10)


async def test_a_server_that_says_it_lags_is_asked_again_at_the_next_poll() -> None:
    server, clock = ScriptedServer(lags=True), FakeClock()
    server.rows |= dict.fromkeys(NO_LAG, "0")
    watcher = prober(server, clock)
    assert (await watcher.observe()).figures.replicas_status_ok is False
    server.lags = False
    assert (await watcher.observe()).figures.replicas_status_ok is True


async def test_after_a_query_that_fails_a_ping_decides_and_comes_first_at_the_next_poll() -> None:
    server, clock = ScriptedServer(), FakeClock()
    watcher = prober(server, clock)
    await watcher.observe()
    server.ping_error = ClickHouseUnreachableError("")
    asked = len(server.queries)
    assert (await watcher.observe()).ping is Ping.UNREACHABLE
    assert (server.pings, len(server.queries)) == (2, asked + 1)
    assert (await watcher.observe()).ping is Ping.UNREACHABLE
    assert (server.pings, len(server.queries)) == (3, asked + 1)
    server.ping_error = None
    assert (await watcher.observe()).ping is Ping.OK
    assert (await watcher.observe()).ping is Ping.OK
    assert server.pings == 4


async def test_every_query_carries_the_comment() -> None:
    server = ScriptedServer(broken={ProbeSource.DISKS: ClickHouseServerError("", 60)})
    await look(server)
    assert all(sql.startswith(f"/* {queries.COMMENT} */ SELECT ") for sql in server.queries)


async def test_slow_probes_run_once_a_minute_and_are_remembered_in_between() -> None:
    server, clock = ScriptedServer(), FakeClock()
    watcher = prober(server, clock)
    await watcher.observe()
    server.queries.clear()
    server.rows["system.mutations.pending"] = "50"
    await clock.advance(59)
    assert (await watcher.observe()).figures.pending_mutations == 4
    assert len(server.queries) == 1
    await clock.advance(1)
    assert (await watcher.observe()).figures.pending_mutations == 50


async def test_a_restarted_server_is_queried_again_at_once() -> None:
    server, clock = ScriptedServer(), FakeClock()
    watcher = prober(server, clock)
    await watcher.observe()
    server.rows |= {"uptime": "3", "system.mutations.pending": "0"}
    await clock.advance(10)
    assert (await watcher.observe()).figures.pending_mutations == 0


ERRORS = [
    (ClickHouseServerError("", 60), SourceResult.ABSENT),
    (ClickHouseServerError("", 47), SourceResult.ABSENT),
    (ClickHouseServerError("", 46), SourceResult.ABSENT),
    (ClickHouseServerError("", 497), SourceResult.DENIED),
    (ClickHouseServerError("", 159), SourceResult.OVER_BOUND),
    (ClickHouseServerError("", 241), SourceResult.OVER_BOUND),
    (ClickHouseTimeoutError(""), SourceResult.OVER_BOUND),
    (ClickHouseTooLargeError(""), SourceResult.OVER_BOUND),
    (ClickHouseServerError("", 999), SourceResult.FAILED),
    (ClickHouseResponseError(""), SourceResult.FAILED),
    (ClickHouseUnreachableError(""), SourceResult.FAILED),
]


@pytest.mark.parametrize("source", [*queries.FAST, *queries.SLOW])
@pytest.mark.parametrize(("error", "how"), ERRORS, ids=lambda x: str(x))  # noqa: PLW0108
async def test_a_source_that_fails_is_named_and_hides_no_other(
    source: ProbeSource, error: Exception, how: SourceResult
) -> None:
    server = ScriptedServer(broken={source: error})
    del server.rows["system.asynchronous_metrics.NumberOfDetachedParts"]  # so the table is asked
    clock = FakeClock()
    watcher = prober(server, clock)
    await watcher.observe()
    await clock.advance(10)
    observation = await watcher.observe()
    assert observation.login is Login.OK
    assert observation.sources[source] is how
    assert {s for s, h in observation.sources.items() if h is not SourceResult.OK} == {source}
    assert observation.figures.readonly_replicas == 0


async def test_a_missing_table_is_asked_for_again_only_after_a_while() -> None:
    server, clock = (
        ScriptedServer(broken={ProbeSource.DISKS: ClickHouseServerError("", 60)}),
        FakeClock(),
    )
    watcher = prober(server, clock)
    first = await watcher.observe()
    assert len(server.queries) == 1 + 1 + len(queries.FAST) + 3, "all in one, then one by one"
    server.queries.clear()
    server.broken.clear()
    await clock.advance(10)
    second = await watcher.observe()
    assert len(server.queries) == 1
    assert (
        first.sources[ProbeSource.DISKS] is second.sources[ProbeSource.DISKS] is SourceResult.ABSENT
    )
    await clock.advance(RELEARN_SECONDS)
    assert (await watcher.observe()).sources[ProbeSource.DISKS] is SourceResult.OK


async def test_a_missing_column_leads_to_the_query_for_older_servers() -> None:
    server, clock = ScriptedServer(unknown_columns=("is_killed",)), FakeClock()
    watcher = prober(server, clock)
    observation = await watcher.observe()
    assert observation.sources[ProbeSource.MUTATIONS] is SourceResult.OK
    assert observation.figures.stuck_mutations == 1
    server.queries.clear()
    await clock.advance(60)
    await watcher.observe()
    assert not any("is_killed" in sql for sql in server.queries), "it remembers which one works"


async def test_a_server_in_its_first_minute_has_no_asynchronous_metrics() -> None:
    server = ScriptedServer()
    server.rows = {n: v for n, v in server.rows.items() if "asynchronous" not in n}
    observation = await look(server)
    assert observation.sources[ProbeSource.ASYNCHRONOUS_METRICS] is SourceResult.EMPTY
    assert observation.figures.replication_lag_seconds == 99, "the table is the fallback"
    assert observation.figures.max_parts_in_partition == 8
    assert observation.figures.detached_parts == 2
    assert observation.figures.memory_used_ratio is None


async def test_replicas_status_is_false_if_the_server_lags() -> None:
    assert (await look(ScriptedServer(lags=True))).figures.replicas_status_ok is False


async def test_a_refused_login_differs_from_a_missing_grant() -> None:
    observation = await look(ScriptedServer(query_error=ClickHouseAuthError("", 516)))
    assert (observation.ping, observation.login) == (Ping.OK, Login.REFUSED)
    assert observation.sources == {ProbeSource.QUERIES: SourceResult.DENIED}


async def test_a_server_whose_every_query_fails_is_not_asked_for_each_source() -> None:
    server = ScriptedServer(query_error=ClickHouseServerError("", 202))
    observation = await look(server)
    assert observation.sources == {ProbeSource.QUERIES: SourceResult.FAILED}
    assert len(server.queries) == 2


async def test_a_server_that_goes_away_after_its_ping_is_silent_not_broken() -> None:
    class Leaving(ScriptedServer):
        async def query(self, sql: str) -> list[dict[str, str]]:
            self.ping_error = self.query_error = ClickHouseUnreachableError("")
            return await super().query(sql)

    assert (await look(Leaving())).ping is Ping.UNREACHABLE


@pytest.mark.parametrize("version", ["customer-build", "x'; DROP", "", "1"])
async def test_a_version_that_is_not_a_number_is_not_published(version: str) -> None:
    server = ScriptedServer()
    server.rows["version"] = version
    assert (await look(server)).version == ""


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "secret", ""])
async def test_a_value_that_is_not_a_number_is_not_seen(value: str) -> None:
    server = ScriptedServer()
    server.rows["system.disks.free_ratio"] = value
    assert (await look(server)).figures.disk_free_ratio is None


async def test_a_probe_that_hangs_is_given_up() -> None:
    server = ScriptedServer(hanging=frozenset({ProbeSource.MUTATIONS}))
    bounds = PollBounds(slow_seconds=0.01)
    watcher = Prober(server, clock=FakeClock(), bounds=bounds)
    assert (await watcher.observe()).sources[ProbeSource.MUTATIONS] is SourceResult.PENDING
    observation = await watcher.observe()
    assert observation.sources[ProbeSource.MUTATIONS] is SourceResult.OVER_BOUND
    assert observation.sources[ProbeSource.PARTS] is SourceResult.OK


@pytest.mark.parametrize("uptime", [None, "", "-1", "1e3", "٣", "9" * 30])
async def test_a_response_without_an_uptime_is_not_that_of_a_server(uptime: str | None) -> None:
    """A proxy on the server's port may answer anything; found by `make fuzz`."""
    server = ScriptedServer()
    del server.rows["uptime"]
    server.rows |= {} if uptime is None else {"uptime": uptime}
    observation = await look(server)
    assert (observation.ping, observation.sources[ProbeSource.QUERIES]) == (
        Ping.OK,
        SourceResult.FAILED,
    )
    assert observation.uptime_seconds is None


async def test_a_value_of_a_hidden_source_that_is_not_a_number_is_not_counted() -> None:
    """Found by `make fuzz`."""
    server = ScriptedServer()
    server.rows |= {"system.parts.sum": "0", "system.mutations.pending": "4x"}
    server.rows |= {"system.mutations.stuck": "nan"}
    observation = await look(server)
    assert observation.sources[ProbeSource.MUTATIONS] is SourceResult.HIDDEN
