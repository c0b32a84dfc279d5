"""The SQL in the engine of ClickHouse 25.8, which compose.yaml names, and in that of 26.9.

Both get the same statements and rows, and give the same results, digit by digit.
"""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from byoc_control_plane.fleet import QUERIES, fill_query
from byoc_control_plane.progress import AHEAD, DAEMONS, DELAYED, PROGRESS, SILENT
from byoc_control_plane.schema import (
    USAGE_SQL,
    VIEWS,
    split_statements,
    table_statements,
    tenant_statements,
)
from lab.control_plane.fleet_rows import END_MS, store_fleet
from lab.control_plane.processes import ROOT
from lab.fakes.billing import objects
from lab.real.parts import install
from tests.real.engine_process import run_engine
from tests.real.test_real_chdb import URL, audited, expected, records, stored

pytestmark = pytest.mark.real

REPLICAS = 200
SINCE = "2026-11-10"
FORMAT_SETTINGS = "output_format_json_quote_decimals=1, output_format_json_quote_64bit_integers=1"
LOAD = f"s3(\n    '{URL}/v1/**/*.jsonl.{{zst,gz}}'"


class Recorder:
    """A store that keeps the statements."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    async def run(self, statement: str, data: bytes = b"") -> bytes:
        self.statements.append(f"{statement}\n{data.decode()}" if data else statement)
        return b""


def fleet_statements() -> list[str]:
    recorder = Recorder()
    asyncio.run(store_fleet(recorder, REPLICAS))
    return ["SYSTEM STOP TTL MERGES", *recorder.statements]  # the fleet is of a fixed day


def usage_statements(place: Path) -> list[str]:
    """Return load.sql, reading a directory, and each other file of the billing team."""
    (load,) = split_statements((USAGE_SQL / "load.sql").read_text())
    assert LOAD in load
    load = load.replace(LOAD, f"file(\n    '{place}/v1/**/*.jsonl.{{zst,gz}}'")
    return [load, *split_statements((USAGE_SQL / "upgrade.sql").read_text())]


def view_queries() -> dict[str, str]:
    """Return a query of each view, of the page, of the metrics and of the billing team."""
    queries = {
        view: f"SELECT * FROM {view}(since = '{SINCE}')" if view.endswith("_since") else
        f"SELECT * FROM {view}" for view in VIEWS
    }  # fmt: skip
    queries |= {f"page {name}": fill_query(one, END_MS, SINCE) for name, one in QUERIES.items()}
    metrics = {"silent": SILENT, "daemons": DAEMONS, "progress": PROGRESS, "delayed": DELAYED}
    metrics["ahead"] = AHEAD
    queries |= {f"metric {name}": query for name, query in metrics.items()}
    for name in ("totals.sql", "conflicts.sql"):
        (queries[name],) = split_statements((USAGE_SQL / name).read_text())
    queries["billing_totals"] = "SELECT * FROM billing_totals"
    return queries


def read(line: str) -> Any:
    return json.loads(line, parse_float=Decimal)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Any]]]:
    """Return the rows of each query by engine, after all statements were executed."""
    directory = tmp_path_factory.mktemp("engines")
    place = stored(directory / "objects", objects(records()))
    statements = [*table_statements(), *usage_statements(place), *fleet_statements()]
    queries = view_queries()
    asked = [f"{query.strip()} SETTINGS {FORMAT_SETTINGS}" for query in queries.values()]
    found: dict[str, dict[str, list[Any]]] = {}
    for name, package in (("25.8", install.older_chdb()), ("26.9", install.chdb())):
        given = [*statements, *asked, "SELECT version() AS version"]
        answers = run_engine(package, str(directory / name), given, "JSONEachRow")
        assert set(answers[: len(statements)]) == {""}, name
        answered = list(zip([*queries, "version"], answers[len(statements) :], strict=True))
        assert not [text for _, text in answered if text.startswith("Code:")]
        found[name] = {
            query: sorted(map(read, text.splitlines()), key=str) for query, text in answered
        }
    return found


def test_the_older_engine_is_the_one_that_compose_names(
    results: dict[str, dict[str, list[Any]]],
) -> None:
    compose = yaml.safe_load((ROOT / "control-plane" / "compose.yaml").read_text())
    _, _, tag = compose["services"]["clickhouse"]["image"].rpartition(":")
    for engine, found in results.items():
        (row,) = found["version"]
        assert row["version"].startswith(f"{engine}.")
    assert tag.startswith("25.8.")


def test_every_view_and_query_has_the_same_rows_in_both_engines(
    results: dict[str, dict[str, list[Any]]],
) -> None:
    older, newer = results["25.8"], results["26.9"]
    for query in newer.keys() - {"version"}:
        assert older[query] == newer[query], query
    empty = {query for query, rows in newer.items() if not rows}
    # These fleets have no requests for access and no altered record.
    assert empty == {"grants_now", "page grants", "conflicts.sql"}


def test_the_totals_of_the_older_engine_are_those_of_the_verifier(
    results: dict[str, dict[str, list[Any]]],
) -> None:
    report = expected(audited(objects(records())))
    found: dict[str, dict[str, Decimal]] = {}
    for row in results["25.8"]["totals.sql"]:
        name = f"{row['organization_id']}/{row['service_id']}"
        sums = found.setdefault(name, {})
        for column in report.get(name, {}):
            sums[column] = sums.get(column, Decimal(0)) + Decimal(row[column])
    assert {name: found[name] for name in report} == report


def test_the_row_policies_parse_in_the_older_engine(tmp_path: Path) -> None:
    asked = [f"EXPLAIN AST {statement}" for statement in tenant_statements()]
    found = run_engine(install.older_chdb(), str(tmp_path / "e"), asked)
    assert found
    assert not [one for one in found if one.startswith("Code:")]
