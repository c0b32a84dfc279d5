"""The SQL for replicated engines against a real keeper: the engine takes every statement.

chdb never sets the address at which other servers fetch parts, so none of its replicas becomes
active: the tables are created and read, and an INSERT is refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from byoc_control_plane.schema import VIEWS, table_statements
from lab.real.parts import install
from lab.real.parts.process import RealProcess
from lab.real.parts.zookeeper import zookeeper
from tests.real.engine_process import run_engine

pytestmark = pytest.mark.real

TABLES = {
    *("byoc_usage", "byoc_state", "byoc_alerts", "byoc_agents", "byoc_replicas", "byoc_grants"),
    *("byoc_progress", "byoc_rejected", "byoc_usage_rejected"),
}
CONFIG = """<clickhouse>
  <zookeeper><node><host>127.0.0.1</host><port>{port}</port></node></zookeeper>
  <macros><shard>1</shard><replica>{replica}</replica></macros>
  <default_replica_path>/clickhouse/tables/{{database}}/{{table}}/{{shard}}</default_replica_path>
  <default_replica_name>{{replica}}</default_replica_name>
  <interserver_http_host>127.0.0.1</interserver_http_host>
  <interserver_http_port>9009</interserver_http_port>
</clickhouse>"""
REPLICAS = "SELECT table, zookeeper_path, total_replicas, is_readonly FROM system.replicas"


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealProcess]:
    with zookeeper(tmp_path_factory.mktemp("zookeeper") / "z") as running:
        yield running


def ask(keeper: RealProcess, directory: Path, replica: str, queries: list[str]) -> list[str]:
    """Return what each query gives as TSV, or its error."""
    directory.mkdir(exist_ok=True)
    config = directory / f"{replica}.xml"
    config.write_text(CONFIG.format(port=keeper.port, replica=replica))
    return run_engine(install.chdb(), f"{directory / replica}?config-file={config}", queries)


def test_two_replicas_take_the_same_tables_and_read_the_views(
    keeper: RealProcess, tmp_path: Path
) -> None:
    statements = table_statements("replicated")
    plain = [view for view in VIEWS if not view.endswith("_since")]
    reads = [f"SELECT * FROM {view}" for view in (*plain, "billing_totals")]
    reads += [f"SELECT * FROM {view}(since = '2026-11-01')" for view in VIEWS if view not in plain]
    for number, replica in enumerate("ab", 1):
        found = ask(keeper, tmp_path, replica, [*statements, *reads, REPLICAS])
        assert found[:-1] == [""] * (len(statements) + len(reads))
        rows: Any = [line.split("\t") for line in found[-1].splitlines()]
        assert {row[0] for row in rows} == TABLES
        assert {row[1] for row in rows} == {f"/clickhouse/tables/default/{t}/1" for t in TABLES}
        assert {row[2] for row in rows} == {str(number)}


def test_a_replica_with_another_table_is_refused(keeper: RealProcess, tmp_path: Path) -> None:
    """So the engine has compared the table with the one in the keeper."""
    ask(keeper, tmp_path, "c", table_statements("replicated"))
    (table,) = [one for one in table_statements("replicated") if "EXISTS byoc_state\n" in one]
    changed = table.replace("    transition UInt64,", "    transition UInt32,")
    (found,) = ask(keeper, tmp_path, "d", [changed])
    assert "Code: 122" in found, found  # INCOMPATIBLE_COLUMNS


def test_an_insert_is_refused_because_no_replica_of_chdb_is_active(
    keeper: RealProcess, tmp_path: Path
) -> None:
    """If this fails, chdb has become able to: then rows belong into the first test."""
    insert = "INSERT INTO byoc_progress VALUES ('state', 'a', now64(3), now64(3), 30, '')"
    found = ask(keeper, tmp_path, "e", [*table_statements("replicated"), insert])
    assert "Code: 242" in found[-1], found[-1]  # TABLE_IS_READ_ONLY
