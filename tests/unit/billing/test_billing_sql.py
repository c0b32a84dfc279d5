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


QUEUES = ("s3queue.sql", "s3queue_archives.sql")


@pytest.mark.parametrize("name", QUEUES)
def test_every_way_to_load_reads_and_selects_the_same(name: str) -> None:
    assert conditions("load.sql") == conditions(name)
    assert structure("load.sql") == structure(name)
    assert selected("load.sql") == selected(name)


@pytest.mark.parametrize(
    ("name", "hours", "objects_per_hour"),
    [("s3queue.sql", 31 * 24, 336 * 4), ("s3queue_archives.sql", 366 * 24, 113)],
)
def test_a_queue_remembers_every_object_that_its_path_can_have(
    name: str, hours: int, objects_per_hour: int
) -> None:
    """Within the stated size nothing is forgotten, so nothing is read again."""
    text = (SQL / name).read_text()
    (limit,) = re.findall(r"tracked_files_limit = (\d+),", text)
    assert hours * objects_per_hour <= int(limit) < hours * (objects_per_hour + 4)
    stated = 336 if name == "s3queue.sql" else objects_per_hour
    assert f"{int(limit):,} " in text
    assert f": {stated} " in text
    (path,) = re.findall(r"'https://BUCKET\.s3\.REGION\.amazonaws\.com/(.*)', 'JSON", text)
    # A path without a period would have more objects each day.
    assert path in {
        "v1/**/date=YEAR-MONTH-*/**/*.jsonl.zst",
        "v1/archive/date=YEAR-*/**/*.jsonl.zst",
    }
    assert "mode = 'unordered'" in text
    assert "after_processing = 'keep'" in text
    assert "tracked_file_ttl_sec = 0," in text


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
    for name in ("load.sql", *QUEUES):
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
