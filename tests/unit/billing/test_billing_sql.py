"""The billing team's SQL names every field of a record; `make test-real` runs it in an engine."""

import re
from pathlib import Path

import msgspec
import pytest

import byoc_agents.billing
from byoc_agents.audit.sequences import SOFT_GAPS
from byoc_agents.billing.record import MAX_CPUS, SLACK_MS, TYPE, Usage, UsageRecord

SQL = Path(byoc_agents.billing.__file__).parent / "sql"


def structure(name: str) -> str:
    """Return the column list that a file reads objects with, spaces and quotes apart."""
    text = (SQL / name).read_text().replace("''", "'")
    found = re.search(
        r"specversion String.*?\bcounter_milliseconds Nullable\(Int64\)\)", text, re.DOTALL
    )
    assert found
    return " ".join(found[0].split())


def selected(name: str) -> str:
    found = re.search(r"SELECT\n(.*?)\nFROM", (SQL / name).read_text(), re.DOTALL)
    assert found
    return found[1]


def conditions(name: str) -> str:
    found = re.search(r"\nWHERE (.*?)(;|\nSETTINGS)", (SQL / name).read_text(), re.DOTALL)
    assert found
    return found[1]


def test_both_ways_to_load_read_and_select_the_same() -> None:
    assert conditions("load.sql") == conditions("s3queue.sql")
    assert structure("load.sql") == structure("s3queue.sql")
    assert selected("load.sql") == selected("s3queue.sql")


@pytest.mark.parametrize("struct", [UsageRecord, Usage])
def test_every_field_of_a_record_is_read(struct: type[msgspec.Struct]) -> None:
    columns = set(re.findall(r"[(, ]`?([\w.]+)`? [A-Z]", f" {structure('load.sql')}"))
    assert {field.encode_name for field in msgspec.structs.fields(struct)} - {"data"} <= columns


def test_every_usage_field_is_selected_into_a_column_of_the_table() -> None:
    columns = re.findall(r" AS (\w+)", selected("load.sql"))
    table = (SQL / "table.sql").read_text()
    assert all(re.search(rf"^    {column} ", table, re.MULTILINE) for column in columns)
    for field in msgspec.structs.fields(Usage):
        assert f"data.{field.encode_name}" in selected("load.sql").replace("`", "")


def test_only_our_type_is_loaded_and_nothing_is_a_float() -> None:
    for name in ("load.sql", "s3queue.sql"):
        assert f"type = '{TYPE}'" in (SQL / name).read_text()
        assert "Float" not in structure(name)
    assert "Float" not in (SQL / "table.sql").read_text()


def test_the_totals_have_the_bounds_and_the_soft_gaps_of_the_records() -> None:
    """SQL cannot import the constants, so its literals are compared with them."""
    text = (SQL / "totals.sql").read_text()
    assert f"coalesce(machine_cpus, known_cpus, {MAX_CPUS})" in text
    longest = max(SLACK_MS.values())
    assert [source for source, ms in SLACK_MS.items() if ms == longest] == ["clickhouse"]
    (shortest,) = {ms for source, ms in SLACK_MS.items() if source != "clickhouse"}
    slack = f"multiIf(source_changed OR usage_source = 'clickhouse', {longest}, {shortest})"
    assert f"{slack} AS slack_ms" in text
    assert f"gap_reason IN {SOFT_GAPS} AS soft" in text


def test_a_table_of_version_0_1_gets_every_column_in_its_place() -> None:
    """`load.sql` inserts by position."""
    table = re.findall(r"^    (\w+) (\S+),$", (SQL / "table.sql").read_text(), re.MULTILINE)
    names = [name for name, _ in table]
    added = re.findall(
        r"IF NOT EXISTS (\w+) (\S+)\s+AFTER (\w+)", (SQL / "upgrade.sql").read_text()
    )
    assert len(added) == 3
    for name, kind, before in added:
        assert (name, kind) in table
        assert names[names.index(name) - 1] == before
