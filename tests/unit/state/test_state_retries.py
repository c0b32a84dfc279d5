"""A query without a response is asked again before it counts; a false delay is not a lag."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.clickhouse import (
    ClickHouseError,
    ClickHouseServerError,
    ClickHouseTimeoutError,
    ClickHouseTooLargeError,
)
from byoc_agents.state import queries
from byoc_agents.state.assess import Memory, ServiceState
from byoc_agents.state.observation import ProbeSource, SourceResult
from byoc_agents.state.probes import REUSE_SECONDS, Prober
from byoc_agents.state.thresholds import DEFAULTS, ReasonCode
from lab.fakes.core import FakeClock
from lab.fakes.state import HEALTHY, ScriptedServer
from tests.unit.state.assess_harness import Polls, codes, up
from tests.unit.state.exporter_harness import Harness, harness

TOO_MANY_QUERIES = ClickHouseServerError("status 500", 202)
UNIX_TIME = "1795460814"
DELAY = "system.asynchronous_metrics.ReplicasMaxAbsoluteDelay"
SOURCES = [*queries.FAST, *queries.SLOW, ProbeSource.REPLICAS_STATUS]
NO_RESPONSES: list[ClickHouseError] = [
    TOO_MANY_QUERIES,
    ClickHouseServerError("status 500", 159),
    ClickHouseServerError("status 500", 241),
    ClickHouseTimeoutError("none in 3 s"),
    ClickHouseTooLargeError("more than 1 byte"),
]


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness(tmp_path) as made:
        # an older server, whose detached parts are a query of their own
        del made.server.rows["system.asynchronous_metrics.NumberOfDetachedParts"]
        made.server.rows["system.detached_parts.detached"] = "0"
        yield made


async def poll_until_slow(one: Harness) -> None:
    """Poll until the slow queries are due at the next poll."""
    for _ in range(6):
        await one.poll()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("error", NO_RESPONSES, ids=str)
async def test_one_query_without_a_response_changes_nothing(
    one: Harness, source: ProbeSource, error: ClickHouseError
) -> None:
    await poll_until_slow(one)
    one.server.broken = {source: error}
    await one.poll()
    assert one.status["sources"][source] == "retrying"
    assert (one.status["state"], one.status["healthy"]) == ("running", True)
    one.server.broken = {}
    await one.poll()
    assert one.status["sources"][source] == "ok"
    assert {kind for kind, _ in (await one.said())[1:]} <= {"heartbeat"}


@pytest.mark.parametrize("source", SOURCES)
async def test_two_queries_in_a_row_without_a_response_count_and_one_answer_clears_them(
    one: Harness, source: ProbeSource
) -> None:
    await poll_until_slow(one)
    one.server.broken = {source: TOO_MANY_QUERIES}
    await one.poll()
    await one.poll()
    assert one.status["state"] == "degraded"
    (reason,) = one.status["reasons"]
    # without the parts nothing proves that no detached part is hidden
    missing = {source} | ({ProbeSource.DETACHED_PARTS} if source is ProbeSource.PARTS else set())
    assert (reason["code"], set(reason["missing"])) == ("OBSERVABILITY_PARTIAL", missing)
    one.server.broken = {}
    await one.poll()
    assert (one.status["state"], one.status["healthy"]) == ("running", True)


@pytest.mark.parametrize("source", queries.SLOW)
async def test_a_slow_query_over_its_limit_is_asked_once_more_and_then_every_minute(
    one: Harness, source: ProbeSource
) -> None:
    await poll_until_slow(one)
    one.server.broken = {source: ClickHouseTimeoutError("none in 5 s")}
    one.server.queries.clear()
    for _ in range(7):
        await one.poll()
    assert sum(f"FROM {source}" in sql for sql in one.server.queries) == 2, "0 s and 10 s"
    await one.poll()
    assert sum(f"FROM {source}" in sql for sql in one.server.queries) == 3, "70 s"


async def test_figures_of_a_query_without_a_response_stay_for_one_poll_only() -> None:
    server, clock = ScriptedServer(), FakeClock()
    prober = Prober(server, clock=clock)
    await prober.observe()
    server.broken = {ProbeSource.DISKS: TOO_MANY_QUERIES, ProbeSource.EVENTS: TOO_MANY_QUERIES}
    server.rows["system.disks.free_ratio"] = "0.5"
    await clock.advance(10)
    first = await prober.observe()
    assert (first.figures.disk_free_ratio, first.figures.rejected_inserts) == (0.25, 7)
    await clock.advance(10)
    second = await prober.observe()
    assert (second.figures.disk_free_ratio, second.figures.rejected_inserts) == (None, None)
    assert second.sources[ProbeSource.DISKS] is SourceResult.FAILED


async def test_an_old_answer_is_not_used_and_the_poll_decides_nothing(one: Harness) -> None:
    await one.poll()
    one.stop_server()
    await one.poll()
    await one.poll(REUSE_SECONDS + 1)
    one.start_server()
    one.server.broken = {ProbeSource.DISKS: TOO_MANY_QUERIES}
    await one.poll()
    assert one.status["sources"][ProbeSource.DISKS] == "pending"
    one.server.broken = {}
    await one.poll()
    assert [state for _, state in await one.said()] == ["running", "failed", "running"]


async def test_the_counters_of_a_server_before_its_restart_are_not_used(one: Harness) -> None:
    one.server.rows["system.events.RejectedInserts"] = "50"
    await one.poll()
    one.server.rows |= {"uptime": "200", "system.events.RejectedInserts": "0"}
    one.server.broken = {ProbeSource.EVENTS: TOO_MANY_QUERIES}
    await one.poll()
    assert one.status["figures"]["rejected_inserts"] is None
    assert one.status["reasons"] == []


@pytest.mark.parametrize("source", [*queries.FAST, *queries.SLOW])
async def test_a_first_poll_with_an_unanswered_query_is_published_with_the_second(
    tmp_path: Path, source: ProbeSource
) -> None:
    async with harness(tmp_path) as one:
        del one.server.rows["system.asynchronous_metrics.NumberOfDetachedParts"]
        one.server.rows["system.detached_parts.detached"] = "0"
        one.server.broken = {source: TOO_MANY_QUERIES}
        await one.poll()
        assert await one.said() == [], "neither healthy without having seen it, nor degraded"
        one.server.broken = {}
        await one.poll()
        assert await one.said() == [("transition", "running")]


async def test_a_missing_grant_counts_at_once(one: Harness) -> None:
    await one.poll()
    one.server.broken = {ProbeSource.ERRORS: ClickHouseServerError("status 403", 497)}
    await one.poll()
    assert one.status["state"] == "degraded"


async def test_a_server_that_refuses_every_query_is_still_failing_after_five_seconds(
    one: Harness,
) -> None:
    await one.poll()
    one.server.query_error = TOO_MANY_QUERIES
    assert await one.poll(), "poll again soon"
    assert await one.said() == [("transition", "running")]
    await one.poll(5)
    codes_ = [reason["code"] for reason in one.status["reasons"]]
    assert (one.status["state"], codes_) == (
        "degraded",
        ["OBSERVABILITY_PARTIAL", "QUERIES_FAILING"],
    )


@pytest.mark.parametrize("delay", [UNIX_TIME, "315360000", str(2**64 - 1), str(2**63), "-1"])
@pytest.mark.parametrize("polls", [1, 60])
async def test_a_delay_that_is_not_possible_is_not_a_lag(
    one: Harness, delay: str, polls: int
) -> None:
    await one.poll()
    one.server.rows |= {
        DELAY: delay,
        "system.replicas.lag": "0",
        "system.replicas.lag_unknown": "2",
    }
    for _ in range(polls):
        await one.poll()
    one.server.rows |= HEALTHY
    await one.poll()
    assert {state for _, state in await one.said()} == {"running"}
    assert one.status["reasons"] == []


async def test_the_delay_of_a_table_that_is_not_possible_hides_no_other_tables_lag() -> None:
    server = ScriptedServer()
    server.rows |= {"system.replicas.lag": "900", "system.replicas.lag_unknown": "1"}
    del server.rows[DELAY]
    figures = (await Prober(server, clock=FakeClock()).observe()).figures
    assert (figures.replication_lag_seconds, figures.replication_lag_unknown) == (900, True)
    found = Polls().stays(up(replication_lag_seconds=900, replication_lag_unknown=True))
    assert codes(found) == [ReasonCode.REPLICATION_LAG]


def test_an_unknown_lag_of_a_table_does_not_end_the_reason() -> None:
    polls = Polls()
    polls.stays(up(replication_lag_seconds=900))
    unknown = up(replication_lag_seconds=0, replication_lag_unknown=True)
    assert codes(polls.stays(unknown)) == [ReasonCode.REPLICATION_LAG]
    assert polls.stays(up()).healthy


@pytest.mark.parametrize(
    ("code", "figures"),
    [
        (ReasonCode.REPLICATION_LAG, {"replication_lag_seconds": 301}),
        (ReasonCode.REPLICAS_STATUS_FAILED, {"replicas_status_ok": False}),
    ],
)
def test_a_lag_is_held_for_a_minute_as_in_the_charts_rule(
    code: ReasonCode, figures: dict[str, Any]
) -> None:
    assert DEFAULTS[code].hold_seconds == 60
    polls = Polls()
    assert polls.see(up(**figures)).healthy
    assert polls.see(up(**figures), after=59).healthy
    assert codes(polls.see(up(**figures), after=1)) == [code]


def test_a_pending_source_leaves_the_state_as_it_was() -> None:
    polls = Polls()
    polls.memory = Memory(state=ServiceState.DEGRADED)
    found = polls.see(up(sources={ProbeSource.DISKS: SourceResult.PENDING}))
    assert (found.state, found.confirmed) == (ServiceState.DEGRADED, False)
