"""The billing team's SQL names every field of a record; `make test-real` runs it in an engine."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

import byoc_agents.billing
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.audit.sequences import SOFT_GAPS
from byoc_agents.audit.validate import (
    FEWEST_SAMPLES,
    MAX_BYTE_SECONDS,
    MAX_BYTES,
    MAX_CORE_SECONDS,
    MAX_MACHINE_CPUS,
    MAX_MILLICORES,
    MAX_NUMBER,
    MAX_TIME_MS,
    MICROSECOND,
    SHORTEST_SAMPLE_MS,
    STEP_TOLERANCE_MS,
    YEAR_2100_MS,
)
from byoc_agents.billing.record import (
    MAX_CPUS,
    SLACK_MS,
    TYPE,
    Allocated,
    Counter,
    GapReason,
    Quality,
    Resized,
    Samples,
    SizeSource,
    Usage,
    UsageRecord,
    Used,
)
from byoc_agents.billing.sources.reading import SourceName

SQL = Path(byoc_agents.billing.__file__).parent / "sql"


QUEUES = ("s3queue.sql", "s3queue_archives.sql")


def text(name: str) -> str:
    return (SQL / name).read_text()


def one(pattern: str, name: str) -> str:
    """Return the only text of a file that fits a pattern."""
    (found,) = re.findall(pattern, text(name), re.DOTALL)
    return str(found)


def structure() -> str:
    """Return the fields that are read from a line, with their spaces as one."""
    return " ".join(one(r"'(Tuple\(\s+specversion String,.*?\))'\) AS record", "table.sql").split())


def values(column: str) -> list[tuple[str, ...]]:
    """Return each list of values that a text of a record is compared with."""
    found = re.findall(rf"\b{re.escape(column)} NOT IN\s+\(([^)]*)\)", text("table.sql"))
    return [tuple(re.findall(r"'([^']*)'", values)) for values in found]


@pytest.mark.parametrize("name", QUEUES)
def test_every_way_to_load_inserts_the_lines_as_they_are(name: str) -> None:
    assert "INSERT INTO byoc_usage_lines (line, object)\nSELECT line, _path\n" in text("load.sql")
    assert "'LineAsString',\n    'line String')" in text("load.sql")
    assert "\n(\n    line String\n)\n" in text(name)
    assert "jsonl.zst', 'LineAsString')" in text(name)
    assert "TO byoc_usage_lines AS\nSELECT line, _path AS object\nFROM " in text(name)


@pytest.mark.parametrize(
    ("name", "hours", "objects_per_hour", "more"),
    [("s3queue.sql", 31 * 24, 268 * 5, 5), ("s3queue_archives.sql", 366 * 24, 113, 1)],
)
def test_a_queue_remembers_every_object_that_its_path_can_have(
    name: str, hours: int, objects_per_hour: int, more: int
) -> None:
    """Within the stated size nothing is forgotten, so nothing is read again."""
    queue = text(name)
    (limit,) = re.findall(r"tracked_files_limit = (\d+),", queue)
    assert hours * objects_per_hour <= int(limit) < hours * (objects_per_hour + more)
    stated = 268 if name == "s3queue.sql" else objects_per_hour
    assert f"{int(limit):,} " in queue
    assert f": {stated} " in queue
    (path,) = re.findall(r"'https://BUCKET\.s3\.REGION\.amazonaws\.com/(.*)', 'Line", queue)
    # A path without a period would have more objects each day.
    assert path in {
        "v1/**/date=YEAR-MONTH-*/**/*.jsonl.zst",
        "v1/archive/date=YEAR-*/**/*.jsonl.zst",
    }
    assert "mode = 'unordered'" in queue
    assert "after_processing = 'keep'" in queue
    assert "tracked_file_ttl_sec = 0;" in queue


STRUCTS = (UsageRecord, Usage, Allocated, Resized, Used, Counter, Samples)
KEYS = dict(zip(STRUCTS, (1, 2, 3, 4, 5, 6, 7), strict=True))  # the place of its keys in the SQL


@pytest.mark.parametrize("struct", STRUCTS)
def test_every_field_of_a_record_is_read_and_expected_unless_it_has_a_default(
    struct: type[msgspec.Struct],
) -> None:
    fields = msgspec.structs.fields(struct)
    names = {field.encode_name for field in fields}
    assert names <= set(re.findall(r"[(, ]`?([\w.]+)`? (?:String|Tuple)", structure()))
    (expected,) = re.findall(
        rf"NOT hasAll\(keys\[{KEYS[struct]}\], \[([^\]]*)\]\)", text("table.sql")
    )
    required = {field.encode_name for field in fields if field.required}
    if struct is UsageRecord:
        required.discard("type")  # a rule of its own
        required.discard("datacontenttype")
    assert set(re.findall(r"'([^']*)'", expected)) == required


def test_nothing_is_read_as_a_number() -> None:
    """A number of a line is its own text until its column gives the same text again."""
    assert set(re.findall(r"\b(String|Tuple|[A-Z]\w*\d\w*|Decimal)\b", structure())) == {
        "String",
        "Tuple",
    }
    assert "Float" not in text("table.sql")


def test_both_tables_of_records_have_the_same_columns() -> None:
    usage, read = (
        re.findall(r"(?m)^    (\w+) (\S.*?),?$", one(rf"{name}\n\((.*?)\n\)", "table.sql"))
        for name in ("byoc_usage", "byoc_usage_read")
    )
    plain = [(name, re.sub(r"LowCardinality\((\w+)\)", r"\1", kind)) for name, kind in usage]
    assert plain[:-1] == read[:-3]
    assert plain[-1][0] == "period_milliseconds"
    assert [name for name, _ in read[-3:]] == ["folder", "reason", "line"]


def test_the_sql_knows_every_value_of_a_record() -> None:
    """A value that a version adds is rejected until it is here too."""
    sizes = get_args(SizeSource)
    assert values("size.source") == [get_args(get_type_hints(Allocated)["source"])]
    for column in ("size.cpu_source", "size.memory_source"):
        assert values(column) == [(*sizes, "#null")]
    assert values("data.source") == [(*get_args(SourceName), "none")]
    assert values("data.quality") == [get_args(Quality)]
    (reasons,) = values("data.gap_reason")
    assert sorted(reasons) == sorted(get_args(GapReason))
    assert f"record.type != '{TYPE}'" in text("table.sql")


def test_the_totals_have_the_bounds_and_the_soft_gaps_of_the_records() -> None:
    """SQL cannot import the constants, so its literals are compared with them."""
    totals = text("totals.sql")
    assert f"coalesce(machine_cpus, known_cpus, {MAX_CPUS})" in totals
    longest = max(SLACK_MS.values())
    assert [source for source, ms in SLACK_MS.items() if ms == longest] == ["clickhouse"]
    (shortest,) = {ms for source, ms in SLACK_MS.items() if source != "clickhouse"}
    slack = f"multiIf(source_changed OR usage_source = 'clickhouse', {longest}, {shortest})"
    assert f"{slack} AS slack_ms" in totals
    assert f"gap_reason IN {SOFT_GAPS} AS soft" in totals


def test_each_bound_of_the_totals_is_that_of_the_verifier() -> None:
    """All literals between the two comments, in their order: a rule without one here is none."""
    rules = one(r"-- Rules of audit/validate.py.*?AS counter_end,(.*?)AS sound", "totals.sql")
    literals = re.findall(r"(?<![\w.])'?-?\d[\d.:-]*'?", rules)
    largest = MAX_CORE_SECONDS - MICROSECOND
    assert literals == [
        *("'1970-01-01'", "3", f"'{rfc3339(YEAR_2100_MS)[:10]}'", "3", "1", str(MAX_TIME_MS)),
        *(str(MAX_TIME_MS), "0", "0", str(MAX_TIME_MS), "0", "0", str(MAX_TIME_MS)),
        *("0", str(MAX_MILLICORES), "0", str(MAX_BYTES), "1", "1", str(MAX_MACHINE_CPUS)),
        *(str(MAX_BYTES), f"'{MAX_BYTE_SECONDS}'", "0", f"'{MAX_CORE_SECONDS:f}'", "6"),
        *("0", f"'{largest:f}'", "6", "0", f"'{largest:f}'", "6"),
        *(str(MAX_NUMBER), str(MAX_NUMBER), str(-MAX_NUMBER)),
        *(str(FEWEST_SAMPLES), str(SHORTEST_SAMPLE_MS)),
        *("0", "0", "1000", "1", "0", str(STEP_TOLERANCE_MS), "1", "1000"),
    ]


def test_a_table_of_version_0_1_gets_every_column_in_its_place() -> None:
    """A table of 0.1.0 then differs from a new one in nothing."""
    columns = one(r"byoc_usage\n\((.*?)\n\)", "table.sql")
    table = re.findall(r"^    (\w+) (\S+),$", columns, re.MULTILINE)
    names = [name for name, _ in table]
    added = re.findall(r"IF NOT EXISTS (\w+) (\S+)\s+AFTER (\w+)", text("upgrade.sql"))
    assert len(added) == 3
    for name, kind, before in added:
        assert (name, kind) in table
        assert names[names.index(name) - 1] == before
