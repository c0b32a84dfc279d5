"""A modern engine that has the access roles, views and limits of the shipped SQL.

The engine in this process takes users from a file only, and is always the user `default`. So each
role, grant, profile setting and quota goes into the file word for word, and `default` is made a
member of one role, or the broker.

It also lets everybody read `system`, whatever `select_from_system_db_requires_grant` is. So the
grants are tried on tables of the same columns in a database where the engine asks for each.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import chdb.session

from byoc_agents.access import clickhouse_sql as sql
from lab.real.chdb_front import Engine

TABLES = "copies"  # the database of the tables in place of `system`
KEY = bytes(range(1, 17))
LOGS = ("query_log", "session_log")
KEPT_LOGS = (  # every log that this engine can keep, in addition to LOGS
    *("part_log", "text_log", "trace_log", "metric_log", "asynchronous_metric_log", "crash_log"),
    *("query_thread_log", "query_views_log", "opentelemetry_span_log", "zookeeper_log"),
    *("processors_profile_log", "asynchronous_insert_log", "backup_log", "blob_storage_log"),
    *("s3queue_log", "azure_queue_log", "query_metric_log", "error_log"),
    *("aggregated_zookeeper_log", "transactions_info_log", "filesystem_cache_log"),
    *("filesystem_read_prefetches_log", "iceberg_metadata_log", "background_schedule_pool_log"),
    *("zookeeper_connection_log",),
)
LOOKUPS = (  # other tables of the customer: a dictionary of the orders, one without rows, a join
    (
        "CREATE DICTIONARY shop.emails (id UInt64, email String) PRIMARY KEY id"
        " SOURCE(CLICKHOUSE(TABLE 'orders' DB 'shop')) LAYOUT(FLAT()) LIFETIME(0)"
    ),
    (
        "CREATE DICTIONARY shop.prices (id UInt64, price String DEFAULT 'unknown') PRIMARY KEY id"
        " SOURCE(NULL()) LAYOUT(FLAT()) LIFETIME(0)"
    ),
    "CREATE TABLE shop.joined (id UInt64, email String) ENGINE = Join(ANY, LEFT, id)",
    "INSERT INTO shop.joined VALUES (1, 'anna@example.com')",
)
_ASYNCHRONOUS = "metric String, value Float64, description String"  # this engine lacks it
_QUOTA = re.compile(r"FOR INTERVAL 1 hour MAX (.*?)\n")


def over_copies(statement: str) -> str:
    """Return a statement that reads the copies in place of the system tables."""
    return re.sub(r"\b(FROM|ON) system\.(\w+)", rf"\1 {TABLES}.\2", statement)


def viewed_tables() -> list[str]:
    """Return the names of the system tables that the views read."""
    return sorted(
        {table for text in sql.views().values() for table in re.findall(r"system\.(\w+)", text)}
    )


def prepare(place: Path, names: sql.Names = sql.Names.HASHED) -> None:
    """Make empty copies of the system tables, a customer's tables, and the shipped views."""
    with session(place, "admin", admin=True) as engine:
        engine.query("SELECT 1")
        engine.query("SYSTEM FLUSH LOGS")
        engine.query(f"CREATE DATABASE {TABLES}")
        for table in viewed_tables():
            made = f"CREATE TABLE {TABLES}.{table}"
            storage = "ENGINE = MergeTree ORDER BY tuple()"
            if table == "asynchronous_metrics":
                engine.query(f"{made} ({_ASYNCHRONOUS}) {storage}")
            else:
                engine.query(f"{made} {storage} AS SELECT * FROM system.{table} LIMIT 0")
        engine.query("CREATE DATABASE shop")
        engine.query(
            "CREATE TABLE shop.orders (id UInt32, email String)"
            " ENGINE = MergeTree ORDER BY id PARTITION BY email"
        )
        engine.query("INSERT INTO shop.orders VALUES (1, 'anna@example.com')")
        for statement in LOOKUPS:
            engine.query(statement)
        for statement in made_here(sql.setup_script(KEY, names)):
            engine.query(over_copies(statement))


def made_here(script: str) -> list[str]:
    """Return the statements of a script that make databases, tables and views."""
    return [
        statement
        for statement in sql.split_statements(script)
        if re.match(r"CREATE (DATABASE|TABLE|OR REPLACE VIEW)|INSERT", statement)
    ]


@contextmanager
def engineer(place: Path, role: str, *, also: Iterable[str] = ()) -> Iterator[Engine]:
    """Be an engineer with one of the roles, under the profile and the quota."""
    with session(place, "engineer", grants=(f"GRANT {role}", *also), limits=True) as engine:
        yield engine


@contextmanager
def broker(place: Path, *, without: str = "none", also: Iterable[str] = ()) -> Iterator[Engine]:
    """Be the broker, with exactly the grants of `broker.sql` but those with the text `without`."""
    grants = [
        f"GRANT {right}{' WITH ADMIN OPTION' if admin else ''}"
        for right, _, admin in sql.grants("broker.sql")
        if without not in right
    ]
    with session(place, "broker", grants=(*grants, *also)) as engine:
        yield engine


@contextmanager
def session(
    place: Path,
    name: str,
    *,
    admin: bool = False,
    grants: Iterable[str] = (),
    limits: bool = False,
    roles: Mapping[str, Iterable[str]] | None = None,
    config: str = "",
) -> Iterator[Engine]:
    """Start the engine as `default` with these rights; one at a time."""
    users, settings = place / f"{name}-users.xml", place / f"{name}.xml"
    own = (
        "<access_management>1</access_management>"
        if admin
        else f"<grants>{_queries(grants)}</grants>"
    )
    profile, quota = (_profile(), _quota()) if limits else ("", "")
    users.write_text(
        f"<clickhouse><profiles><default>{profile}</default>"
        f"<{sql.PROFILE}>{_profile()}</{sql.PROFILE}></profiles>"
        f"<quotas><default>{quota}</default><{sql.QUOTA}>{_quota()}</{sql.QUOTA}></quotas>"
        f"<roles>{_roles(role_grants() if roles is None else roles)}</roles><users>"
        f"{_user('default', '<password/><networks><ip>::/0</ip></networks>', own)}"
        f"{_user(sql.VIEWS_USER, _LOCKED, f'<grants>{_queries(_definer())}</grants>')}"
        "</users></clickhouse>"
    )
    logs = "".join(
        f"<{log}><database>system</database><table>{log}</table>"
        f"<flush_interval_milliseconds>50</flush_interval_milliseconds></{log}>"
        for log in LOGS
    )
    settings.write_text(
        f"<clickhouse>{logs}{config}"
        f"<user_directories><users_xml><path>{users}</path></users_xml></user_directories>"
        "</clickhouse>"
    )
    engine = chdb.session.Session(f"{place / 'db'}?config-file={settings}")
    try:
        yield engine
    finally:
        engine.close()


def role_grants() -> dict[str, list[str]]:
    """Return the grants of `roles.sql` by role."""
    found: dict[str, list[str]] = {role: [] for role in sql.ROLES}
    for right, role, _ in sql.grants("roles.sql"):
        found[role].append(f"GRANT {right}")
    return found


_LOCKED = f"<password_sha256_hex>{'0' * 64}</password_sha256_hex><networks/>"


def _definer() -> list[str]:
    return [over_copies(f"GRANT {right}") for right, _, _ in sql.grants("views.sql")]


def _user(name: str, login: str, rights: str) -> str:
    usual = "<profile>default</profile><quota>default</quota>"
    return f"<{name}>{login}{usual}{rights}</{name}>"


def _roles(roles: Mapping[str, Iterable[str]]) -> str:
    return "".join(
        f"<{role}><grants>{_queries(grants)}</grants></{role}>" for role, grants in roles.items()
    )


def _queries(grants: Iterable[str]) -> str:
    return "".join(f"<query>{escape(grant)}</query>" for grant in grants)


def _profile() -> str:
    settings = sql.profile_settings()
    values = "".join(f"<{name}>{value}</{name}>" for name, value in settings.items())
    constant = "".join(f"<{name}><const/></{name}>" for name in settings)
    return f"{values}<constraints>{constant}</constraints>"


def _quota() -> str:
    found = _QUOTA.search(sql.read_file("broker.sql"))
    assert found
    limits = dict(limit.split(" = ") for limit in found[1].strip().split(", "))
    values = "".join(f"<{name}>{value}</{name}>" for name, value in limits.items())
    return f"<interval><duration>3600</duration>{values}</interval>"
