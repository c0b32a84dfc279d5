"""The probes against the engine of a modern ClickHouse, full of texts that must not leave."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chdb.session
import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.run import configure, daemon_spec
from byoc_agents.app.runtime import Runtime
from byoc_agents.clickhouse import ClickHouse
from byoc_agents.egress.gate import Gate
from byoc_agents.state import queries
from byoc_agents.state.observation import ProbeSource, SourceResult, StateObservation
from byoc_agents.state.probes import Prober
from lab.fakes.sqs import FakeSqs
from lab.real.chdb_front import front
from lab.real.restricted_user import STATEMENTS

SENTINEL = "CUSTOMERSECRET"
TABLE = f"db_{SENTINEL}.t_{SENTINEL}"
PLANTED = (
    f"CREATE DATABASE db_{SENTINEL}",
    (
        f"CREATE TABLE {TABLE} (c_{SENTINEL} String, p String, v String) ENGINE = MergeTree "
        f"PARTITION BY p ORDER BY c_{SENTINEL} COMMENT 'comment {SENTINEL}'"
    ),
    f"SYSTEM STOP MERGES {TABLE}",
    *[f"INSERT INTO {TABLE} VALUES ('v{i} {SENTINEL}', 'p', '')" for i in range(7)],
    f"INSERT INTO {TABLE} VALUES ('{SENTINEL}', 'away', '')",
    f"ALTER TABLE {TABLE} DETACH PARTITION 'away'",
    (
        f"ALTER TABLE {TABLE} UPDATE v = '{SENTINEL}' WHERE c_{SENTINEL} != '' "
        "SETTINGS mutations_sync = 0"
    ),
)
BROKEN = f"SELECT * FROM db_{SENTINEL}.no_{SENTINEL} WHERE x = '{SENTINEL}'"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp(f"path-{SENTINEL}")))
    for statement in PLANTED:
        session.query(statement)
    with pytest.raises(RuntimeError, match=SENTINEL):
        session.query(BROKEN)
    yield session
    session.close()


ALL = {
    **{source: (select,) for source, select in queries.FAST.items()},
    **queries.SLOW,
}
QUERIES = [
    (source, number)
    for source, variants in ALL.items()
    for number in range(len(variants))
    if source is not ProbeSource.ASYNCHRONOUS_METRICS  # this engine has none; see the next test
]


@pytest.mark.parametrize(("source", "number"), QUERIES, ids=str)
def test_the_modern_engine_runs_every_query(
    engine: chdb.session.Session, source: ProbeSource, number: int
) -> None:
    response = json.loads(
        str(engine.query(queries.combine_selects([ALL[source][number]]), "JSONCompact"))
    )
    assert [column["name"] for column in response["meta"]] == ["name", "value"]
    assert {column["type"] for column in response["meta"]} == {"String"}
    for name, value in response["data"]:
        assert name.startswith(f"{source}.")
        assert float(value) >= 0


def test_the_query_of_the_one_table_that_the_engine_lacks_is_right_over_another(
    engine: chdb.session.Session,
) -> None:
    stand_in = f"(SELECT metric, toFloat64(value) AS value FROM {ProbeSource.METRICS})"
    select = queries.FAST[ProbeSource.ASYNCHRONOUS_METRICS]
    assert f"FROM {ProbeSource.ASYNCHRONOUS_METRICS}" in select
    over = select.replace(f"FROM {ProbeSource.ASYNCHRONOUS_METRICS}", f"FROM {stand_in}")
    engine.query(queries.combine_selects([queries.SERVER, over]))


def test_every_statement_of_the_least_privileged_user_parses(engine: chdb.session.Session) -> None:
    statements = [part for part in STATEMENTS.split(";") if part.strip()]
    assert len(statements) == 3 + len(queries.TABLES)
    for statement in statements:
        assert "Query" in str(engine.query(f"EXPLAIN AST {statement}"))


async def look(engine: chdb.session.Session) -> tuple[StateObservation, list[str]]:
    async with front(engine) as server, ClickHouse(server.http.url) as client:
        return await Prober(client, clock=SystemClock()).observe(), server.asked


async def test_a_modern_server_is_seen_and_counted_right(engine: chdb.session.Session) -> None:
    observation, asked = await look(engine)
    troubled = {
        source: how for source, how in observation.sources.items() if how is not SourceResult.OK
    }
    assert troubled == {ProbeSource.ASYNCHRONOUS_METRICS: SourceResult.ABSENT}
    figures = observation.figures
    assert figures.max_parts_in_partition == 7
    assert figures.active_parts == 7
    assert figures.pending_mutations == 1
    assert figures.stuck_mutations == 0, "it is younger than an hour"
    assert figures.detached_parts == 0, "a part that a user detached is not a problem"
    assert figures.replicated_tables == 0
    assert figures.readonly_replicas == 0
    assert figures.disk_free_ratio
    assert 0 < figures.disk_free_ratio < 1
    assert re.fullmatch(r"\d+\.\d+(\.\d+)*", observation.version)
    assert all(sql.startswith(f"/* {queries.COMMENT} */") for sql in asked)


async def test_what_is_asked_of_the_server_costs_little(
    engine: chdb.session.Session, capsys: pytest.CaptureFixture[str]
) -> None:
    async with front(engine) as server, ClickHouse(server.http.url) as client:
        watcher, clock = Prober(client, clock=SystemClock()), SystemClock()
        await watcher.observe()
        server.asked.clear()
        began = clock.boot_ns()
        for _ in range(20):
            await watcher.observe()
        milliseconds = (clock.boot_ns() - began) / 20 / 1e6
        assert len(server.asked) == 20, "one query a poll"
    with capsys.disabled():
        print(f"\none poll of a modern engine: {milliseconds:.1f} ms, one query and two GETs")


async def test_no_text_of_the_server_reaches_the_queue_or_the_disk(
    engine: chdb.session.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = [f"system.{name}" for name in ("mutations", "parts", "tables", "detached_parts")]
    for table in planted:
        assert SENTINEL in str(engine.query(f"SELECT * FROM {table}", "JSONEachRow")), table
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    arrived = asyncio.Event()
    async with front(engine) as server, FakeSqs(on_sent=lambda _: arrived.set()) as sqs:
        await one_message(environ(tmp_path, server.http.url, sqs), arrived)
        wire = b"".join(r.body + repr(r.headers).encode() for r in sqs.http.requests)
        disk = await asyncio.to_thread(everything_below, tmp_path)
    body: dict[str, Any] = json.loads(sqs.messages[0].body)
    assert [r["code"] for r in body["data"]["reasons"]] == ["OBSERVABILITY_PARTIAL"]
    assert SENTINEL.encode() not in wire
    assert SENTINEL.encode() not in disk


def environ(place: Path, clickhouse: str, sqs: FakeSqs) -> dict[str, str]:
    return {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REPLICA": "r-0",
        "BYOC_REGION": "eu-west-1",
        "BYOC_STATE_DIR": str(place / "state"),
        "BYOC_STATE_QUEUE_URL": sqs.queue_url,
        "BYOC_STATE_STARTING_SECONDS": "0",
        "BYOC_CLICKHOUSE_URL": clickhouse,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }


async def one_message(settings: dict[str, str], arrived: asyncio.Event) -> None:
    """Run the daemon until its first message has arrived, and stop it."""
    name = "state-exporter"
    made = configure([name], settings)
    runtime = Runtime(
        core=made.core,
        environ=settings,
        gate=Gate(made.destinations),
        clock=SystemClock(),
        metrics=Metrics(),
    )
    async with daemon_spec(name).open_daemon(
        runtime, made.clickhouse, made.daemons[name]
    ) as daemon:
        stop = asyncio.Event()
        task = asyncio.create_task(daemon.run(stop, 10.0))
        async with asyncio.timeout(30):
            await arrived.wait()
        stop.set()
        await task


def everything_below(place: Path) -> bytes:
    return b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
