"""The SQL of the probes and its grants: the same tables, and never a name."""

import re
from pathlib import Path

import pytest

import byoc_agents.state
from byoc_agents.state import queries

SQL = (Path(byoc_agents.state.__file__).parent / "sql" / "least_privilege.sql").read_text()
SELECTS = [
    *queries.FAST.values(),
    *(variant for variants in queries.SLOW.values() for variant in variants),
]
CHART = Path(__file__).parents[3] / "helm" / "byoc-agents"
REQUIRES_GRANT = "select_from_system_db_requires_grant"  # without it the grants of columns are idle
# What holds a name or a text of the customer, or makes the server ask Keeper for every table.
FORBIDDEN = (
    *("command", "latest_fail_reason", "last_error_message", "last_exception", "exception"),
    *("path", "partition", "disk_name", "mutation_id", "replica_name", "zookeeper_path", "comment"),
    *("log_max_index", "log_pointer", "total_replicas", "active_replicas", "lost_part_count"),
    *("zookeeper_exception", "replica_is_active", "query", "user"),
)


def statements() -> str:
    """Return the file without its comments."""
    return "\n".join(line for line in SQL.splitlines() if not line.startswith("--"))


def test_the_user_is_granted_what_is_read_no_more_and_no_less() -> None:
    grants = re.findall(r"(GRANT .*) TO byoc_state_exporter;", statements())
    granted = dict(_columns(grant) for grant in grants[1:])
    assert grants[0] == "GRANT SHOW TABLES ON *.*"
    assert set(granted) == set(queries.TABLES)
    read: dict[str, set[str]] = {}
    for select in SELECTS:
        table, columns = _read_columns(select)
        read.setdefault(table, set()).update(columns)
    assert {table: set(columns) for table, columns in granted.items()} == read


def _read_columns(select: str) -> tuple[str, set[str]]:
    """Return the table of a query, and the words of the SELECT over it that can be columns."""
    text = re.sub(r"'[^']*'", "", select)
    (table,) = re.findall(r"FROM (system\.\w+)", text)
    inner = text[text.rindex("SELECT", 0, text.index(table)) :].replace(table, "")
    inner = re.sub(r" AS \w+", "", inner)  # the names that the results get
    return table, set(re.findall(r"\b[a-z_]+\b(?!\()", inner))


def _columns(grant: str) -> tuple[str, tuple[str, ...]]:
    found = re.fullmatch(r"GRANT SELECT\(([\w, ]+)\) ON (\S+)", grant)
    assert found, f"{grant}: a whole table"
    return found[2], tuple(found[1].split(", "))


@pytest.mark.parametrize("file", ["templates/clickhouse.yaml", "examples/altinity/chi.yaml"])
def test_the_chart_grants_the_same(file: str) -> None:
    here = re.findall(r"GRANT [^<\n]+", (CHART / file).read_text())
    assert here == re.findall(r"(GRANT .*) TO byoc_state_exporter;", statements())


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("templates/clickhouse.yaml", f"<{REQUIRES_GRANT}>true</{REQUIRES_GRANT}>"),
        (
            "examples/altinity/chi.yaml",
            f'\n    settings:\n      access_control_improvements/{REQUIRES_GRANT}: "true"\n',
        ),
    ],
)
def test_the_chart_makes_the_grants_bind(file: str, setting: str) -> None:
    assert setting in (CHART / file).read_text()


@pytest.mark.parametrize("select", SELECTS)
def test_a_query_reads_granted_tables_only(select: str) -> None:
    read = set(re.findall(r"(?:FROM|JOIN|IN)\s+([a-z_]+\.[a-z_]+)", select))
    assert read
    assert read <= set(queries.TABLES)


@pytest.mark.parametrize("select", SELECTS)
def test_no_query_reads_a_text_or_asks_keeper(select: str) -> None:
    words = set(re.findall(r"[a-z_]+", re.sub(r"'[^']*'", "", select)))
    assert not words & set(FORBIDDEN)


def test_names_are_used_for_grouping_only() -> None:
    for select in SELECTS:
        outside = re.sub(r"GROUP BY database, table, partition_id", "", select)
        assert not re.search(r"\b(database|table|partition_id)\b", outside)


def test_the_profile_carries_the_comment_and_is_readonly() -> None:
    assert f"log_comment = '{queries.COMMENT}'" in statements()
    assert "readonly = 1" in statements()
    assert "HOST LOCAL" in statements()


@pytest.mark.parametrize("select", SELECTS)
def test_every_row_of_a_query_is_a_constant_name_and_a_text(select: str) -> None:
    assert re.match(r"SELECT (concat\('system\.[a-z_]+\.', \w+\)|pair\.1) AS name, ", select)
