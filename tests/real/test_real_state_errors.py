"""Statements that any customer can run, against a modern engine: none of them degrades the replica.

The exporter's probes poll the engine over HTTP before and after the statements. The list covers the
ways in which a statement fails: damaged or cut input, missing Keeper, limits of the query, other
servers that do not respond, files, and tables or settings that cannot work. A damaged compressed
block and KILL QUERY need a whole server; the engine in a process takes neither.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import chdb.session
import msgspec
import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.clickhouse import ClickHouse
from byoc_agents.state import queries
from byoc_agents.state.assess import ServiceState
from byoc_agents.state.observation import UNCONFIRMED, ProbeSource, SourceResult, StateObservation
from byoc_agents.state.probes import Prober
from lab.real.chart import render
from lab.real.chdb_front import front
from tests.unit.state.assess_harness import Polls

PREPARED = (
    "CREATE DATABASE d",
    "CREATE TABLE d.t (x UInt64, s String) ENGINE = MergeTree ORDER BY x",
    "INSERT INTO d.t VALUES (1, 'a')",
    (
        "CREATE TABLE d.no_space (x UInt64) ENGINE = MergeTree ORDER BY x"
        " SETTINGS min_free_disk_bytes_to_perform_insert = 9000000000000000000"
    ),
    "CREATE TABLE d.mutated (x UInt64) ENGINE = MergeTree ORDER BY tuple()",
    "INSERT INTO d.mutated VALUES (1)",
)
# Statement -> the error names of system.errors that it raises at least.
STATEMENTS: dict[str, set[str]] = {
    # damaged or cut input
    "INSERT INTO d.t FORMAT Native garbage": {"CANNOT_READ_ALL_DATA"},
    'INSERT INTO d.t FORMAT JSONEachRow {"x":': {"ATTEMPT_TO_READ_AFTER_EOF"},
    "INSERT INTO d.t FORMAT RowBinary a": {"CANNOT_READ_ALL_DATA"},  # a client that leaves
    "INSERT INTO d.t VALUES ('x',": {"SYNTAX_ERROR"},
    "SELECT * FROM format(JSONEachRow, 'nope')": {"CANNOT_PARSE_INPUT_ASSERTION_FAILED"},
    "SELECT * FROM format(Parquet, 'nope')": {"INCORRECT_DATA"},
    "SELECT * FROM format(Arrow, 'nope')": {"CANNOT_READ_ALL_DATA"},
    "SELECT * FROM format(ORC, 'nope')": {"INCORRECT_DATA"},
    "SELECT * FROM format(Avro, 'nope')": {"CANNOT_EXTRACT_TABLE_STRUCTURE"},
    "SELECT * FROM format(BSONEachRow, 'abc')": {"CANNOT_READ_ALL_DATA"},
    "SELECT * FROM format(RowBinary, 'x UInt64', 'abc')": {"CANNOT_READ_ALL_DATA"},
    "SELECT * FROM format(RowBinary, 'x AggregateFunction(uniqHLL12, UInt64)', unhex('ff01'))": {
        "CANNOT_READ_ALL_DATA"
    },
    "SELECT * FROM format(TSV, 'x UInt8', 'abc')": {"CANNOT_PARSE_INPUT_ASSERTION_FAILED"},
    "SELECT finalizeAggregation(CAST('abc' AS AggregateFunction(uniq, UInt64)))": {
        "INCORRECT_DATA"
    },
    "SELECT CAST('x' AS UInt8)": {"CANNOT_PARSE_TEXT"},
    "SELECT parseDateTimeBestEffort('zzz')": {"CANNOT_PARSE_DATETIME"},
    # Keeper, clusters, replicas
    "CREATE TABLE d.r (x UInt8) ENGINE = ReplicatedMergeTree('/t', 'r') ORDER BY x": {
        "NO_ZOOKEEPER"
    },
    "CREATE DATABASE rep ENGINE = Replicated('/d', 's', 'r')": {"NO_ZOOKEEPER"},
    "CREATE TABLE d.c ON CLUSTER nope (x UInt8) ENGINE = Memory": {"CLUSTER_DOESNT_EXIST"},
    "SELECT * FROM system.zookeeper WHERE path = '/'": set(),
    "SYSTEM SYNC REPLICA d.t": {"BAD_ARGUMENTS"},
    # other servers
    "SELECT * FROM remote('127.0.0.1:1', system.one)": {"NETWORK_ERROR"},
    "INSERT INTO FUNCTION remote('127.0.0.1:1', d.t) VALUES (1, 'a')": {"NETWORK_ERROR"},
    "SELECT * FROM url('http://127.0.0.1:1/', CSV, 'x UInt8') SETTINGS http_max_tries = 1": set(),
    "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')": set(),
    "SELECT * FROM postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')": set(),
    # limits of the query
    "SELECT sum(number) FROM numbers(1e12) SETTINGS max_execution_time = 0.2": {"TIMEOUT_EXCEEDED"},
    "SELECT number FROM numbers(1e8) GROUP BY number SETTINGS max_memory_usage = 1000000": {
        "MEMORY_LIMIT_EXCEEDED"
    },
    "SELECT * FROM numbers(1000) SETTINGS max_rows_to_read = 10": {"TOO_MANY_ROWS"},
    "SELECT * FROM numbers(1000) SETTINGS max_result_rows = 10": {"TOO_MANY_ROWS_OR_BYTES"},
    "SELECT repeat('x', 1000000000000)": {"TOO_LARGE_STRING_SIZE"},
    "SELECT sleep(4)": {"TOO_SLOW"},
    # files
    "SELECT * FROM file('nope.csv')": {"CANNOT_STAT"},
    "SELECT * FROM file('/proc/self/mem', CSV, 'x UInt8')": {"CANNOT_READ_FROM_FILE_DESCRIPTOR"},
    # tables and settings that cannot work
    "INSERT INTO d.no_space VALUES (1)": {"NOT_ENOUGH_SPACE"},
    "CREATE TABLE d.k (x UInt8) ENGINE = Kafka('127.0.0.1:1', 't', 'g', 'CSV')": {"LOGICAL_ERROR"},
    "CREATE TABLE d.p (x UInt8) ENGINE = MergeTree ORDER BY x SETTINGS storage_policy = 'nope'": {
        "UNKNOWN_POLICY"
    },
    "ALTER TABLE d.t ATTACH PART 'all_9_9_0'": {"BAD_DATA_PART_NAME"},
    "ALTER TABLE d.t MOVE PARTITION tuple() TO DISK 'nope'": {"UNKNOWN_DISK"},
    "ALTER TABLE d.mutated UPDATE x = throwIf(x = 1) WHERE 1 SETTINGS mutations_sync = 1": {
        "UNFINISHED"
    },
    "RESTORE TABLE d.t FROM File('nope')": set(),
    "KILL MUTATION WHERE database = 'd'": set(),
    "SELECT throwIf(1)": {"FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"},
    "SELECT * FROM d.nope": {"UNKNOWN_TABLE"},
    "SELEC 1": {"SYNTAX_ERROR"},
    "SELECT match('a', '(')": {"CANNOT_COMPILE_REGEXP"},
}
RULES = render.CHART / "rules" / "clickhouse.yaml"
UP_SECONDS = 4000  # the engine has just started and would be `starting`


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    session: Any = chdb.session.Session(str(tmp_path_factory.mktemp("engine")))
    for statement in PREPARED:
        session.query(statement)
    yield session
    session.close()


def count_errors(engine: Any) -> dict[str, int]:
    response = str(engine.query("SELECT name, value FROM system.errors", "JSONEachRow"))
    return {row["name"]: int(row["value"]) for row in map(json.loads, response.splitlines())}


def count_events(engine: Any) -> str:
    """Return the events that the chart's rules count, with their values."""
    names = set(re.findall(r"ClickHouseProfileEvents_(\w+)", RULES.read_text()))
    assert names == {"ZooKeeperHardwareExceptions", "RejectedInserts", "ReplicatedDataLoss"}
    sql = f"SELECT event, value FROM system.events WHERE event IN {tuple(names)} ORDER BY event"
    return str(engine.query(sql, "JSONEachRow"))


async def observe(engine: Any) -> StateObservation:
    """Poll through HTTP, until every query has a response: the machine of a test can be slow."""
    async with front(engine) as server, ClickHouse(server.http.url) as client:
        prober = Prober(client, clock=SystemClock())
        while True:
            observation = await prober.observe()
            if not UNCONFIRMED & set(observation.sources.values()):
                return observation


def assert_running(polls: Polls, observation: StateObservation) -> None:
    """Assess as of a server that started an hour ago."""
    found = polls.see(msgspec.structs.replace(observation, uptime_seconds=UP_SECONDS), after=10)
    assert (found.state, [str(reason.code) for reason in found.reasons]) == (
        ServiceState.RUNNING,
        ["OBSERVABILITY_PARTIAL"],  # this engine has no asynchronous_metrics
    )
    assert observation.sources[ProbeSource.ERRORS] is SourceResult.OK


def run(engine: Any, statement: str) -> set[str]:
    """Run a statement, and return the names of the errors that were counted meanwhile."""
    before = count_errors(engine)
    with contextlib.suppress(RuntimeError):
        engine.query(statement)
    after = count_errors(engine)
    return {name for name, count in after.items() if count != before.get(name, 0)}


async def test_no_failing_statement_degrades_the_replica(engine: Any) -> None:
    polls = Polls()
    assert_running(polls, await observe(engine))
    events = count_events(engine)
    raised = {statement: run(engine, statement) for statement in STATEMENTS}
    missing = {
        sql: (names, raised[sql]) for sql, names in STATEMENTS.items() if names - raised[sql]
    }
    assert missing == {}, "each statement has to fail in the way that it is here for"
    assert not set().union(*raised.values()) & set(queries.SERVER_ERRORS)
    assert count_events(engine) == events, "the chart's rules would fire"
    assert_running(polls, await observe(engine))


def test_every_counted_name_is_one_of_the_engines_own(engine: Any) -> None:
    """A misspelled name would count nothing. `errorCodeToName` is the engine's own table."""
    names = str(engine.query("SELECT errorCodeToName(number) FROM numbers(1100)", "TSV"))
    assert set(queries.SERVER_ERRORS) <= set(names.split())


def test_the_errors_of_other_servers_are_left_out(engine: Any) -> None:
    rows = "\n".join(
        f"SELECT '{name}' AS name, {remote} AS remote, {value} AS value"
        + ("" if (name, remote) == ("CANNOT_STATVFS", 1) else " UNION ALL")
        for name, remote, value in (
            ("CANNOT_STATVFS", 0, 2),
            ("NO_ZOOKEEPER", 0, 400),
            ("CANNOT_STATVFS", 1, 30),
        )
    )
    sql = queries.FAST[ProbeSource.ERRORS].replace(f"FROM {ProbeSource.ERRORS}", f"FROM ({rows})")
    response = json.loads(str(engine.query(sql, "JSONCompact")))
    assert response["data"] == [["system.errors.faults", "2"]]


def test_a_delay_that_is_not_possible_is_counted_apart(engine: Any) -> None:
    rows = (
        "SELECT toUInt64(arrayJoin([0, 900, 1795460814])) AS absolute_delay, 0 AS is_readonly,"
        " 0 AS is_session_expired, 0 AS queue_size"
    )
    (select,) = queries.SLOW[ProbeSource.REPLICAS]
    sql = select.replace(f"FROM {ProbeSource.REPLICAS}", f"FROM ({rows})")
    found = dict(json.loads(str(engine.query(sql, "JSONCompact")))["data"])
    assert found["system.replicas.lag"] == "900"
    assert found["system.replicas.lag_unknown"] == "1"


def test_the_statements_raise_names_that_sound_like_the_servers_fault() -> None:
    raised = {name for names in STATEMENTS.values() for name in names}
    assert {"CANNOT_READ_ALL_DATA", "NOT_ENOUGH_SPACE", "NO_ZOOKEEPER", "LOGICAL_ERROR"} <= raised
