"""A modern engine whose only user has the profile and the grants of the shipped SQL.

The engine in this process takes users from a file only, refuses CREATE USER (code 514: no writable
storage) and is always the user `default`. So that user gets the statements' settings: each profile
setting and each GRANT is copied into the file, and the engine parses and enforces it.

It also lets everybody read `system` (a server does too, unless
`select_from_system_db_requires_grant` is set, and this engine does not read that switch). So the
grants are tried on views of the same names in a database where the engine asks for each.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import chdb.session

import byoc_agents.state
from byoc_agents.state import queries
from lab.real.chdb_front import Engine

SQL = (Path(byoc_agents.state.__file__).parent / "sql" / "least_privilege.sql").read_text()
STATEMENTS = "\n".join(line for line in SQL.splitlines() if not line.startswith("--"))
SETTINGS = {
    name: value.strip("'")
    for name, value in re.findall(
        r"(\w+) = ('[^']*'|\d+)", STATEMENTS[: STATEMENTS.index(";")].partition("SETTINGS\n")[2]
    )
}
"""The settings of the profile."""
GRANTS = re.findall(r"(GRANT .*) TO byoc_state_exporter;", STATEMENTS)

VIEWS = "views"  # the database where grants are asked for
_ASYNCHRONOUS = (  # the one table that this engine lacks
    "SELECT arrayJoin(['MaxPartCountForPartition', 'MemoryResident']) AS metric, 1. AS value"
)
TABLE = f"{VIEWS}.customers"
PREPARED = (
    f"CREATE DATABASE {VIEWS}",
    *[
        f"CREATE VIEW {VIEWS}.{table.removeprefix('system.')} AS "
        + (_ASYNCHRONOUS if "asynchronous" in table else f"SELECT * FROM {table}")
        for table in sorted(queries.TABLES)
    ],
    f"CREATE TABLE {TABLE} (x UInt8) ENGINE = MergeTree ORDER BY x PARTITION BY x",
    *[f"INSERT INTO {TABLE} VALUES ({x})" for x in range(3)],
)


class OverViews:
    """A client whose queries read the views."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def query(self, sql: str, fmt: str = "CSV") -> object:
        return self._engine.query(sql.replace("FROM system.", f"FROM {VIEWS}."), fmt)


def prepare(place: Path) -> None:
    """Make the views and a customer's table, as an administrator."""
    with _session(place, "admin", "", "<access_management>1</access_management>") as engine:
        for statement in PREPARED:
            engine.query(statement)


def all_columns(place: Path) -> set[str]:
    """Return `table.column` of every column of the views, as an administrator."""
    sql = "SELECT concat('system.', table, '.', name) FROM system.columns WHERE database = '{}'"
    with _session(place, "admin", "", "<access_management>1</access_management>") as engine:
        found = str(engine.query(sql.format(VIEWS), "TSV")).split()
    return {one for one in found if one.rpartition(".")[0] in queries.TABLES}


@contextmanager
def restricted_user(
    place: Path, *, without: str = "none", column: str = "none"
) -> Iterator[Engine]:
    """Run the engine as the least-privileged user; one at a time.

    Leave out the grants that contain the text `without`, and `column`, written as `table.column`.
    """
    profile = "".join(f"<{name}>{value}</{name}>" for name, value in SETTINGS.items())
    kept = (_leave_out(column, grant) for grant in GRANTS if without not in grant)
    granted = (grant.replace(" system.", f" {VIEWS}.") for grant in kept if grant)
    grants = "".join(f"<query>{escape(grant)}</query>" for grant in granted)
    with _session(place, "restricted_user", profile, f"<grants>{grants}</grants>") as engine:
        yield engine


def _leave_out(column: str, grant: str) -> str:
    """Return the grant without a column; empty if it grants no other."""
    table, _, name = column.rpartition(".")
    columns = granted_columns(grant)
    if not grant.endswith(f" ON {table}") or name not in columns:
        return grant
    others = ", ".join(one for one in columns if one != name)
    return f"GRANT SELECT({others}) ON {table}" if others else ""


def granted_columns(grant: str) -> tuple[str, ...]:
    """Return the columns of `GRANT SELECT(a, b) ON table`; none for another right."""
    found = re.match(r"GRANT SELECT\(([\w, ]+)\) ON ", grant)
    return tuple(found[1].split(", ")) if found else ()


@contextmanager
def _session(place: Path, name: str, profile: str, rights: str) -> Iterator[Engine]:
    config, users = place / f"{name}.xml", place / f"{name}-users.xml"
    users.write_text(
        f"<clickhouse><profiles><default>{profile}</default></profiles>"
        "<quotas><default/></quotas><users><default><password/>"
        "<networks><ip>::/0</ip></networks><profile>default</profile><quota>default</quota>"
        f"{rights}</default></users></clickhouse>"
    )
    config.write_text(
        "<clickhouse><query_log><database>system</database><table>query_log</table>"
        "<flush_interval_milliseconds>50</flush_interval_milliseconds></query_log>"
        f"<user_directories><users_xml><path>{users}</path></users_xml></user_directories>"
        "</clickhouse>"
    )
    session = chdb.session.Session(f"{place / 'db'}?config-file={config}")
    try:
        yield session
    finally:
        session.close()
