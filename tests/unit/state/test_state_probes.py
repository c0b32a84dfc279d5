"""What the probes see of scripted servers, and how each of them can fail."""

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
from byoc_agents.state.observation import Login, Observation, Ping, Seen, Source
from byoc_agents.state.probes import RELEARN_SECONDS, Bounds, Prober
from lab.fakes.core import FakeClock
from lab.fakes.state import ScriptedServer


def prober(server: ScriptedServer, clock: FakeClock | None = None) -> Prober:
    return Prober(server, clock=clock or FakeClock())


async def look(server: ScriptedServer) -> Observation:
    return await prober(server).observe()


async def test_a_modern_server_is_seen_whole_in_four_queries() -> None:
    server = ScriptedServer()
    seen = await look(server)
    assert (seen.ping, seen.login, seen.version) == (Ping.OK, Login.OK, "24.8.4.13")
    assert seen.uptime_seconds == 4000
    assert set(seen.seen.values()) == {Seen.OK}
    assert {s for s in Source} - seen.seen.keys() == {Source.DETACHED_PARTS}  # noqa: C416
    figures = seen.figures
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


async def test_every_query_carries_the_comment() -> None:
    server = ScriptedServer(broken={Source.DISKS: ClickHouseServerError("", 60)})
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


async def test_a_restarted_server_is_looked_at_anew_at_once() -> None:
    server, clock = ScriptedServer(), FakeClock()
    watcher = prober(server, clock)
    await watcher.observe()
    server.rows |= {"uptime": "3", "system.mutations.pending": "0"}
    await clock.advance(10)
    assert (await watcher.observe()).figures.pending_mutations == 0


ERRORS = [
    (ClickHouseServerError("", 60), Seen.ABSENT),
    (ClickHouseServerError("", 47), Seen.ABSENT),
    (ClickHouseServerError("", 46), Seen.ABSENT),
    (ClickHouseServerError("", 497), Seen.DENIED),
    (ClickHouseServerError("", 159), Seen.OVER_BOUND),
    (ClickHouseServerError("", 241), Seen.OVER_BOUND),
    (ClickHouseTimeoutError(""), Seen.OVER_BOUND),
    (ClickHouseTooLargeError(""), Seen.OVER_BOUND),
    (ClickHouseServerError("", 999), Seen.FAILED),
    (ClickHouseResponseError(""), Seen.FAILED),
    (ClickHouseUnreachableError(""), Seen.FAILED),
]


@pytest.mark.parametrize("source", [*queries.FAST, *queries.SLOW])
@pytest.mark.parametrize(("error", "how"), ERRORS, ids=lambda x: str(x))  # noqa: PLW0108
async def test_a_source_that_fails_is_named_and_hides_no_other(
    source: Source, error: Exception, how: Seen
) -> None:
    server = ScriptedServer(broken={source: error})
    del server.rows["system.asynchronous_metrics.NumberOfDetachedParts"]  # so the table is asked
    seen = await look(server)
    assert seen.login is Login.OK
    assert seen.seen[source] is how
    assert {s for s, h in seen.seen.items() if h is not Seen.OK} == {source}
    assert seen.figures.readonly_replicas == 0


async def test_a_missing_table_is_asked_for_again_only_after_a_while() -> None:
    server, clock = (
        ScriptedServer(broken={Source.DISKS: ClickHouseServerError("", 60)}),
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
    assert first.seen[Source.DISKS] is second.seen[Source.DISKS] is Seen.ABSENT
    await clock.advance(RELEARN_SECONDS)
    assert (await watcher.observe()).seen[Source.DISKS] is Seen.OK


async def test_a_missing_column_leads_to_the_query_for_older_servers() -> None:
    server, clock = ScriptedServer(unknown_columns=("is_killed",)), FakeClock()
    watcher = prober(server, clock)
    seen = await watcher.observe()
    assert seen.seen[Source.MUTATIONS] is Seen.OK
    assert seen.figures.stuck_mutations == 1
    server.queries.clear()
    await clock.advance(60)
    await watcher.observe()
    assert not any("is_killed" in sql for sql in server.queries), "it remembers which one works"


async def test_a_server_in_its_first_minute_has_no_asynchronous_metrics() -> None:
    server = ScriptedServer()
    server.rows = {n: v for n, v in server.rows.items() if "asynchronous" not in n}
    seen = await look(server)
    assert seen.seen[Source.ASYNCHRONOUS_METRICS] is Seen.EMPTY
    assert seen.figures.replication_lag_seconds == 99, "the table stands in"
    assert seen.figures.max_parts_in_partition == 8
    assert seen.figures.detached_parts == 2
    assert seen.figures.memory_used_ratio is None


async def test_replicas_status_is_false_where_the_server_lags() -> None:
    assert (await look(ScriptedServer(lags=True))).figures.replicas_status_ok is False


async def test_a_refused_login_is_told_from_a_missing_grant() -> None:
    seen = await look(ScriptedServer(query_error=ClickHouseAuthError("", 516)))
    assert (seen.ping, seen.login) == (Ping.OK, Login.REFUSED)
    assert seen.seen == {Source.QUERIES: Seen.DENIED}


async def test_a_server_whose_every_query_fails_is_not_asked_for_each_source() -> None:
    server = ScriptedServer(query_error=ClickHouseServerError("", 202))
    seen = await look(server)
    assert seen.seen == {Source.QUERIES: Seen.FAILED}
    assert len(server.queries) == 2


async def test_a_server_that_goes_away_after_its_ping_is_silent_not_broken() -> None:
    class Leaving(ScriptedServer):
        async def query(self, sql: str) -> list[dict[str, str]]:
            self.ping_error = self.query_error = ClickHouseUnreachableError("")
            return await super().query(sql)

    assert (await look(Leaving())).ping is Ping.UNREACHABLE


@pytest.mark.parametrize("version", ["customer-build", "x'; DROP", "", "1"])
async def test_a_version_that_is_no_number_does_not_leave(version: str) -> None:
    server = ScriptedServer()
    server.rows["version"] = version
    assert (await look(server)).version == ""


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "secret", ""])
async def test_a_value_that_is_no_number_is_not_seen(value: str) -> None:
    server = ScriptedServer()
    server.rows["system.disks.free_ratio"] = value
    assert (await look(server)).figures.disk_free_ratio is None


async def test_a_probe_that_hangs_is_given_up() -> None:
    server = ScriptedServer(hanging=frozenset({Source.MUTATIONS}))
    bounds = Bounds(slow_seconds=0.01)
    seen = await Prober(server, clock=FakeClock(), bounds=bounds).observe()
    assert seen.seen[Source.MUTATIONS] is Seen.OVER_BOUND
    assert seen.seen[Source.PARTS] is Seen.OK


@pytest.mark.parametrize("uptime", [None, "", "-1", "1e3", "٣", "9" * 30])
async def test_an_answer_without_a_servers_uptime_is_no_servers_answer(uptime: str | None) -> None:
    """A proxy on the server's port may answer anything; found by `make fuzz`."""
    server = ScriptedServer()
    del server.rows["uptime"]
    server.rows |= {} if uptime is None else {"uptime": uptime}
    seen = await look(server)
    assert (seen.ping, seen.seen[Source.QUERIES]) == (Ping.OK, Seen.FAILED)
    assert seen.uptime_seconds is None


async def test_a_value_of_a_hidden_source_that_is_no_number_is_not_counted() -> None:
    """Found by `make fuzz`."""
    server = ScriptedServer()
    server.rows |= {"system.parts.sum": "0", "system.mutations.pending": "4x"}
    server.rows |= {"system.mutations.stuck": "nan"}
    seen = await look(server)
    assert seen.seen[Source.MUTATIONS] is Seen.HIDDEN
