"""The least-privileged user of the shipped SQL at a modern engine: what it may, what it costs."""

import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.billing.sources import clickhouse
from byoc_agents.clickhouse import ClickHouse
from byoc_agents.state import queries
from byoc_agents.state.assess import Assessment, Memory, ServiceState, assess
from byoc_agents.state.observation import ProbeSource, SourceResult, StateObservation
from byoc_agents.state.probes import Prober
from byoc_agents.state.thresholds import PollTime, ReasonCode, Thresholds
from lab.real.chdb_front import Engine, front
from lab.real.restricted_user import (
    GRANTS,
    SETTINGS,
    TABLE,
    VIEWS,
    OverViews,
    all_columns,
    granted_columns,
    prepare,
    restricted_user,
)

SELECTS = [
    *queries.FAST.values(),
    *(variant for variants in queries.SLOW.values() for variant in variants),
]
PATIENCE_SECONDS = 20.0
POLLS = 21
MOST_ROWS = 5000  # of one poll: it reads what the server counts, not what the customer stores
UP_SECONDS = 4000  # an engine of this moment would be `starting`


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("restricted_user")
    prepare(made)
    return made


async def look(engine: Engine, polls: int = 1) -> tuple[StateObservation, list[int]]:
    """Poll through HTTP; return the last observation, and how many queries each poll took."""
    async with front(OverViews(engine)) as server, ClickHouse(server.http.url) as client:
        prober, counts = Prober(client, clock=SystemClock()), []
        for _ in range(polls):
            before = len(server.asked)
            observation = await prober.observe()
            counts.append(len(server.asked) - before)
    return observation, counts


def judged(observation: StateObservation) -> Assessment:
    observation = msgspec.structs.replace(observation, uptime_seconds=UP_SECONDS)
    return assess(observation, Memory(), Thresholds(), PollTime(0, 0))[0]


def rows(engine: Engine, sql: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in str(engine.query(sql, "JSONEachRow")).splitlines()]


def logged(engine: Engine, count: int) -> list[dict[str, Any]]:
    """Return the ends of the first `count` queries, once they have been written."""
    sql = (
        "SELECT toString(type) AS type, log_comment, query, Settings, user,"
        " toUInt32(read_rows) AS read_rows, toUInt32(query_duration_ms) AS milliseconds,"
        " toUInt32(memory_usage) AS memory, toUInt32(result_rows) AS result_rows,"
        " toUInt32(result_bytes) AS result_bytes, (ProfileEvents['UserTimeMicroseconds']"
        " + ProfileEvents['SystemTimeMicroseconds']) / 1000 AS cpu_milliseconds"
        " FROM system.query_log WHERE type != 'QueryStart' AND query NOT LIKE '%query_log%'"
        " ORDER BY event_time_microseconds"
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            found = rows(engine, sql)
        except RuntimeError as error:
            if "Code: 60" not in str(error):
                raise
            found = []  # not one of them has been written yet
        if len(found) >= count or time.monotonic() > deadline:
            return found


def test_every_query_ends_well_in_the_log_under_our_comment_and_within_the_profile(
    place: Path,
) -> None:
    real = [select for select in SELECTS if ProbeSource.ASYNCHRONOUS_METRICS not in select]
    asked = [queries.combine_selects([select]) for select in real]
    with restricted_user(place) as engine:
        for sql in asked:
            engine.query(sql)
        found = logged(engine, len(asked))
    assert [row["query"] for row in found] == asked
    assert {row["type"] for row in found} == {"QueryFinish"}
    assert {row["log_comment"] for row in found} == {queries.COMMENT}
    for row in found:
        assert {name: row["Settings"].get(name) for name in SETTINGS} == SETTINGS
        assert row["milliseconds"] < int(SETTINGS["max_execution_time"]) * 1000
        assert row["memory"] < int(SETTINGS["max_memory_usage"])
        assert row["result_rows"] <= int(SETTINGS["max_result_rows"])
        assert row["result_bytes"] <= int(SETTINGS["max_result_bytes"])


async def test_the_cost_of_a_poll_is_what_the_log_says(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with restricted_user(place) as engine:
        _, counts = await look(engine, polls=POLLS)
        found = logged(engine, sum(counts))
    assert counts == [5] + [1] * (POLLS - 1), "four of the first are asked once a minute"
    assert len(found) == sum(counts), "and nothing else was asked"
    assert {row["log_comment"] for row in found} == {queries.COMMENT}
    assert {row["type"] for row in found} == {"QueryFinish"}
    polls, minute = found[5:], found[1:5]
    assert all(0 < row["read_rows"] < MOST_ROWS for row in polls)
    with capsys.disabled():
        print(f"\na poll, the mean of {len(polls)}: one query, {cost(polls, len(polls))}")
        print(f"once a minute four more queries: {cost(minute, 1)}")


def cost(found: list[dict[str, Any]], count: int) -> str:
    """Return what `count` polls cost, for one."""
    names = ("read_rows", "milliseconds", "cpu_milliseconds")
    total, wall, cpu = (sum(row[name] for row in found) / count for name in names)
    peak = max(row["memory"] for row in found) / 1e6
    return f"{total:.0f} rows read, {wall:.0f} ms, {cpu:.1f} ms of CPU, {peak:.1f} MB at most"


async def test_with_exactly_the_shipped_grants_all_is_seen_and_healthy(place: Path) -> None:
    with restricted_user(place) as engine:
        observation, _ = await look(engine)
    assert set(observation.sources.values()) == {SourceResult.OK}
    # The customer's 3; the parts of query_log, which is flushed meanwhile, are counted as well.
    assert observation.figures.active_parts is not None
    assert observation.figures.active_parts >= 3
    assert observation.figures.max_parts_in_partition in range(1, observation.figures.active_parts)
    assert judged(observation).healthy


FORBIDDEN = {
    "a customer's table": (f"SELECT * FROM {TABLE}", 497),
    "a column of it": (f"SELECT count() FROM {TABLE} WHERE x = 1", 497),
    "users": ("SELECT * FROM system.users", 497),
    "a setting": ("SET max_threads = 2", 164),
    "a setting of one query": ("SELECT 1 SETTINGS max_execution_time = 3600", 164),
    "another comment": ("SELECT 1 SETTINGS log_comment = ''", 164),
    "to write": (f"INSERT INTO {TABLE} VALUES (9)", 497),
    "to create": ("CREATE TABLE t (x UInt8) ENGINE = Memory", 497),
    "to drop": (f"DROP TABLE {TABLE}", 497),
    "to stop merges": (f"SYSTEM STOP MERGES {TABLE}", 497),
    "a file": ("SELECT * FROM file('/etc/passwd', 'LineAsString', 'line String')", 497),
    "a URL": ("SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString', 'line String')", 497),
    "more memory than the profile's": (
        "SELECT count() FROM (SELECT number FROM numbers(100000000) GROUP BY number)",
        241,
    ),
    "more rows than the profile's": ("SELECT number FROM numbers(1000)", 396),
}


@pytest.mark.parametrize(("sql", "code"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_user_is_refused(place: Path, sql: str, code: int) -> None:
    with restricted_user(place) as engine, pytest.raises(RuntimeError, match=rf"Code: {code}\b"):
        engine.query(sql)


FILTERED = {
    ProbeSource.PARTS,
    ProbeSource.REPLICAS,
    ProbeSource.MUTATIONS,
    ProbeSource.DETACHED_PARTS,
}
"""A server that omits the rows of tables that the user may not see."""


@pytest.mark.parametrize("source", sorted(queries.TABLES))
async def test_without_one_grant_that_source_is_named_and_hides_no_other(
    place: Path, source: ProbeSource
) -> None:
    table = source.removeprefix("system.")
    with restricted_user(place, without=f" ON {source}") as engine:
        with pytest.raises(RuntimeError, match=r"Code: 497\b"):
            engine.query(f"SELECT * FROM {VIEWS}.{table}")
        observation, _ = await look(engine)
    missing = {name for name, how in observation.sources.items() if how is not SourceResult.OK}
    assert observation.sources[source] is SourceResult.DENIED
    # without the parts nothing proves that the other empty responses are the truth
    assert missing == (FILTERED if source is ProbeSource.PARTS else {source})
    found = judged(observation)
    assert found.state is ServiceState.DEGRADED
    assert [(reason.code, reason.missing) for reason in found.reasons] == [
        (ReasonCode.OBSERVABILITY_PARTIAL, tuple(sorted(missing)))
    ]


async def test_without_show_tables_empty_rows_are_no_health(place: Path) -> None:
    with restricted_user(place, without="SHOW TABLES") as engine:
        assert rows(engine, f"SELECT active FROM {VIEWS}.parts") == [], "empty, not an error"
        observation, _ = await look(engine)
    hidden = {name for name, how in observation.sources.items() if how is SourceResult.HIDDEN}
    assert hidden == FILTERED
    assert observation.figures.active_parts is None
    found = judged(observation)
    assert (found.state, found.healthy) == (ServiceState.DEGRADED, False)
    assert set(found.reasons[0].missing) == hidden


COLUMNS = sorted(
    f"{grant.rpartition(' ')[2]}.{column}" for grant in GRANTS for column in granted_columns(grant)
)


@pytest.mark.parametrize("column", COLUMNS)
async def test_without_one_column_its_source_is_denied(place: Path, column: str) -> None:
    """No granted column is one that the queries could do without."""
    source = ProbeSource(column.rpartition(".")[0])
    with restricted_user(place, column=column) as engine:
        observation, _ = await look(engine)
    assert observation.sources[source] is SourceResult.DENIED


def test_every_other_column_of_these_tables_is_refused(place: Path) -> None:
    others = all_columns(place) - set(COLUMNS)
    assert len(others) > 80
    with restricted_user(place) as engine:
        for one in sorted(others):
            table, _, name = one.replace("system.", f"{VIEWS}.").rpartition(".")
            with pytest.raises(RuntimeError, match=r"Code: 497\b"):
                engine.query(f"SELECT `{name}` FROM {table} LIMIT 1")


def test_the_billing_scraper_needs_no_other_column(place: Path) -> None:
    """Its query as it is sent, under the same grants; a server of before serverUUID() too."""
    with restricted_user(place) as engine:
        for sql in (clickhouse.SQL, clickhouse.OLD_SQL):
            text = str(OverViews(engine).query(sql, "JSONEachRow"))
            assert '"machine_cpus"' in text
    for column in ("events.event", "events.value", "metrics.value", "asynchronous_metrics.metric"):
        with (
            restricted_user(place, column=f"system.{column}") as engine,
            pytest.raises(RuntimeError, match=r"Code: 497\b"),
        ):
            OverViews(engine).query(clickhouse.OLD_SQL)


def test_the_sql_was_read_whole() -> None:
    assert len(GRANTS) == 1 + len(queries.TABLES)
    assert len(SETTINGS) == 10
    assert re.fullmatch(r"[1-9]\d*", SETTINGS["max_memory_usage"])
