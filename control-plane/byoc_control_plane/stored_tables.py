"""The tables that ClickHouse has, compared with those that this version needs.

A missing table is created; a table of an earlier build is never changed by this program, because
that can copy every row. The error has the statements that change it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

CREATED = re.compile(
    r"^CREATE TABLE IF NOT EXISTS (?P<name>\w+)\n\((?P<columns>.*)\n\)\n"
    r"ENGINE = (?P<engine>\w+)(?:\((?P<version>\w+)\))?.*\n"
    r"ORDER BY \((?P<key>[^)]*)\)",
    re.DOTALL | re.MULTILINE,
)
READ = re.compile(
    r"^CREATE MATERIALIZED VIEW IF NOT EXISTS (\w+) TO .*^FROM (\w+)$", re.DOTALL | re.MULTILINE
)
STORED_ENGINE = re.compile(r"\w*MergeTree(?:\(([^)]*)\))?")
TABLES_QUERY = (
    "SELECT name, engine_full, sorting_key FROM system.tables WHERE database = currentDatabase()"
)
COLUMNS_QUERY = "SELECT table, name FROM system.columns WHERE database = currentDatabase()"


class NeededTable(NamedTuple):
    """A table as its statement creates it."""

    name: str
    columns: Mapping[str, str]  # name -> declaration
    version: str  # the column of ReplacingMergeTree, or empty
    sorting_key: str
    statement: str


class StoredTable(NamedTuple):
    """A table that exists."""

    columns: frozenset[str]
    version: str
    sorting_key: str  # empty of other engines than MergeTree's
    is_merge_tree: bool


def is_table(statement: str) -> bool:
    """Return whether a statement creates a table, and not a view."""
    return CREATED.search(statement) is not None


def needed_tables(statements: Iterable[str]) -> list[NeededTable]:
    """Return the tables that the statements create, in their order."""
    tables = []
    for statement in statements:
        if found := CREATED.search(statement):
            columns = {
                declaration.split()[0]: " ".join(declaration.split())
                for declaration in _split_columns(found["columns"])
            }
            key, version = " ".join(found["key"].split()), found["version"] or ""
            tables.append(NeededTable(found["name"], columns, version, key, found.string))
    return tables


def stored_tables(
    tables: Iterable[Mapping[str, Any]], columns: Iterable[Mapping[str, Any]]
) -> dict[str, StoredTable]:
    """Return what exists, by name, from the rows of TABLES_QUERY and COLUMNS_QUERY."""
    names: dict[str, set[str]] = {}
    for row in columns:
        names.setdefault(row["table"], set()).add(row["name"])
    stored = {}
    for row in tables:
        engine = STORED_ENGINE.match(row["engine_full"])
        last = ((engine and engine[1]) or "").rpartition(",")[2].strip()
        version = "" if last.startswith("'") else last  # path and replica of a replicated one
        stored[row["name"]] = StoredTable(
            frozenset(names.get(row["name"], ())), version, row["sorting_key"], engine is not None
        )
    return stored


def find_differences(statements: Sequence[str], stored: Mapping[str, StoredTable]) -> list[str]:
    """Return one text per table that this version cannot use, with what changes it."""
    differences = []
    for needed in needed_tables(statements):
        found = stored.get(needed.name)
        if found is None:
            differences.append(
                f"table {needed.name}: it does not exist: expected the statements of"
                " `byoc-control-plane schema`"
            )
            continue
        missing = [name for name in needed.columns if name not in found.columns]
        same_rows = not found.is_merge_tree or (
            (found.version, found.sorting_key) == (needed.version, needed.sorting_key)
        )
        if same_rows and not missing:
            continue
        what = f"the columns {', '.join(missing)} are missing" if missing else ""
        if same_rows:
            changes = [add_columns(needed, missing)]
        else:
            what += " and " if what else ""
            what += (
                f"version column {found.version!r} and sorting key {found.sorting_key!r}:"
                f" expected {needed.version!r} and {needed.sorting_key!r}"
            )
            changes = copy_statements(statements, needed, found)
        differences.append(
            f"table {needed.name}: {what}. Stop all processes that write to it, execute"
            f" these statements and start again: {'; '.join(changes)}"
        )
    return differences


def add_columns(needed: NeededTable, missing: Iterable[str]) -> str:
    """Return the statement that adds columns. Rows that exist get the defaults."""
    added = ", ".join(f"ADD COLUMN IF NOT EXISTS {needed.columns[name]}" for name in missing)
    return f"ALTER TABLE {needed.name} {added}"


def copy_statements(
    statements: Sequence[str], needed: NeededTable, found: StoredTable
) -> list[str]:
    """Return the statements that create the table again and copy its rows.

    The earlier table stays as NAME_before. The materialized views are dropped first, so that the
    copy does not count as new messages; the next start creates them.
    """
    views = [
        one[1]
        for statement in statements
        if (one := READ.search(statement)) and one[2] == needed.name
    ]
    names = ", ".join(
        name
        for name, declaration in needed.columns.items()
        if name in found.columns and " MATERIALIZED " not in declaration
    )
    create = needed.statement[needed.statement.index("CREATE TABLE") :]
    before = f"{needed.name}_before"
    copy = f"INSERT INTO {needed.name} ({names}) SELECT {names} FROM {before}"  # noqa: S608  own text
    return [
        *(f"DROP VIEW IF EXISTS {view}" for view in views),
        f"RENAME TABLE {needed.name} TO {before}",
        " ".join(create.split()),
        f"{copy} SETTINGS max_partitions_per_insert_block = 0",
    ]


def _split_columns(text: str) -> list[str]:
    """Split a list of declarations at its commas outside of parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts
