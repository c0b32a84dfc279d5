"""The access SQL at a modern engine: what each role reads and what the broker may do."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.access import clickhouse_sql as sql
from byoc_agents.access import server_checks
from byoc_agents.access.clickhouse_admin import GrantAccount
from byoc_agents.access.clickhouse_server import PAGE_ROWS, ClickHouseServer
from byoc_agents.access.errors import ServerError
from byoc_agents.access.server_checks import ServerCheck
from byoc_agents.clickhouse import ClickHouse
from lab.real import access_columns
from lab.real.access_engine import (
    TABLES,
    broker,
    engineer,
    over_copies,
    prepare,
    role_grants,
    session,
    viewed_tables,
)
from lab.real.chdb_front import Engine, front

METRICS, READER, SHAPE, TEXT = sql.ROLES
ID = "0190a7c2-7e5b-7c3e-8d21-f0a4b6c8d9e0"
USER = sql.GrantUser(
    grant_id=ID,
    certificate_uri=f"spiffe://svc-1.byoc/grant/{ID}",
    role=READER,
    ticket="CS-1234",
    valid_until=datetime(2030, 11, 27, 9, tzinfo=UTC),
)
SINCE = datetime(2020, 1, 1, tzinfo=UTC)
CLUSTERS = (
    "<remote_servers><c><shard><replica><host>127.0.0.1</host><port>1</port></replica></shard></c>"
    "</remote_servers>"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("access")
    prepare(made)
    plant(made)
    return made


@pytest.fixture(scope="module")
def plain_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("access-plain")
    prepare(made, sql.Names.PLAIN)
    plant(made)
    return made


# --- what the roles read ---

SECRET = re.compile(r"zz_[a-z_0-9]+?_zz")
QUERIES = [  # texts of queries; each has a secret at a place that a shape must not show
    "SELECT * FROM t WHERE email = 'zz_literal_zz'",
    "SELECT 1 /* zz_comment_zz */",
    "SELECT 1 -- zz_line_comment_zz",
    "SELECT $tag$zz_heredoc_zz$tag$",
    'SELECT 1 AS `zz_alias_zz`, 2 AS "zz_double_zz"',
    "SELECT 'a\\'zz_escaped_zz'",
    "SELECT 'unterminated zz_open_zz",
    "INSERT INTO t VALUES ('zz_values_zz', 1)",
    "INSERT INTO t FORMAT CSV\nzz_csv_zz,1",
    'INSERT INTO t FORMAT JSONEachRow {"a":"zz_json_zz"}',
    "CREATE USER u IDENTIFIED BY 'zz_password_zz'",
    "SELECT * FROM s3('https://b/x?X-Amz-Signature=zz_signature_zz', 'zz_key_zz', 'zz_secret_zz')",
    "SELECT * FROM t WHERE name = “zz_smart_zz”",
]
UNPARSED = ["garbage zz_garbage_zz ???", "SELECT $tag$ zz_half_heredoc_zz"]


def plant(place: Path) -> None:
    """Put a secret into every text of every copy, and queries with secrets into query_log."""
    with session(place, "planter", admin=True) as engine:
        for table in viewed_tables():
            texts = {
                name: planted
                for name, kind in columns(engine, table)
                if (planted := secret(f"zz_{table}_{name.lower().replace('.', '_')}_zz", kind))
            }
            names = ", ".join(f"`{name}`" for name in texts)
            engine.query(
                f"INSERT INTO {TABLES}.{table} ({names}) SELECT {', '.join(texts.values())}"
            )
        for texts_of, kind in ((QUERIES, "QueryFinish"), (UNPARSED, "ExceptionBeforeStart")):
            for text in texts_of:
                insert = "Insert" if text.startswith("INSERT") else "Select"
                escaped = text.replace("\\", "\\\\").replace("'", "\\'")
                engine.query(
                    f"INSERT INTO {TABLES}.query_log (type, query_kind, query, exception)"
                    f" VALUES ('{kind}', '{insert}', '{escaped}', 'zz_in_error_zz')"
                )


def columns(engine: Engine, table: str) -> list[tuple[str, str]]:
    text = engine.query(
        f"SELECT name, type FROM system.columns WHERE database = '{TABLES}' AND table = '{table}'",
        "TSVRaw",
    )
    return [(name, kind) for name, _, kind in (x.partition("\t") for x in str(text).splitlines())]


def secret(text: str, kind: str) -> str:
    """Return an expression of the type that holds the text; empty for a type without text."""
    kind = re.sub(r"(LowCardinality|Nullable)\((\w+)\)", r"\2", kind)
    if text == "zz_columns_type_zz":
        return f"'Enum8(''{text}'' = 1)'"
    if text == "zz_query_log_query_zz":
        return f"'SELECT ''{text}'''"
    forms = {
        "String": f"'{text}'",
        "Array(String)": f"['{text}']",
        "Map(String, String)": f"map('{text}', '{text}')",
        "Map(String, UInt64)": f"map('{text}', toUInt64(1))",
        "Map(String, UInt8)": f"map('{text}', toUInt8(1))",
        "Array(Tuple(name String, type String))": f"[('{text}', '{text}')]",
    }
    assert kind in forms or "String" not in kind, f"{text}: {kind}"
    return forms.get(kind, "")


ENGINE_WORDS = {  # texts that the engine or its configuration chooses, and no query
    METRICS: {
        *("zz_metrics_metric_zz", "zz_events_event_zz", "zz_asynchronous_metrics_metric_zz"),
        *("zz_errors_name_zz", "zz_disks_name_zz", "zz_disks_type_zz"),
    },
    READER: {
        *("zz_query_log_query_kind_zz", "zz_query_log_profileevents_zz"),
        *("zz_processes_query_kind_zz", "zz_processes_profileevents_zz"),
        *("zz_merges_merge_type_zz", "zz_merges_merge_algorithm_zz", "zz_mutations_mutation_id_zz"),
        *("zz_parts_engine_zz", "zz_parts_part_type_zz", "zz_parts_disk_name_zz"),
        *("zz_replicas_engine_zz", "zz_replication_queue_type_zz"),
        *("zz_replication_queue_merge_type_zz", "zz_tables_engine_zz"),
        *("zz_tables_storage_policy_zz", "zz_columns_default_kind_zz"),
    },
}
PLAIN_NAMES = {
    *(
        f"zz_{table}_{name}_zz"
        for table in ("merges", "mutations", "parts", "replicas", "replication_queue", "columns")
        for name in ("database", "table")
    ),
    *("zz_query_log_databases_zz", "zz_query_log_tables_zz"),
    *("zz_tables_database_zz", "zz_tables_name_zz", "zz_columns_name_zz"),
}
IN_TEXT = {
    *("zz_query_log_query_zz", "zz_query_log_exception_zz", "zz_in_error_zz"),
    *SECRET.findall(" ".join(QUERIES + UNPARSED)),
}


def readable(place: Path, role: str) -> tuple[set[str], set[str]]:
    """Return the views that the role may read, and every planted secret that they show."""
    seen, found = set(), set()
    with engineer(place, role) as engine:
        for view in sql.views():
            try:
                text = str(engine.query(f"SELECT * FROM {sql.VIEWS}.{view}", "JSONEachRow"))
            except RuntimeError as error:
                assert "Code: 497" in str(error)  # noqa: PT017
                continue
            assert text, view
            seen.add(view)
            found |= set(SECRET.findall(text))
    return seen, found


def reached(role: str) -> set[str]:
    """Return the views of a role and of the roles in it."""
    views, inner = sql.role_grants()[role]
    return set(views).union(*map(reached, inner))


@pytest.mark.parametrize("role", sql.ROLES)
def test_a_role_reads_its_views_and_no_planted_secret_but_in_text(place: Path, role: str) -> None:
    seen, found = readable(place, role)
    assert seen == reached(role)
    words = ENGINE_WORDS[METRICS] | (set() if role == METRICS else ENGINE_WORDS[READER])
    assert found == words | (IN_TEXT if role == TEXT else set())


@pytest.mark.parametrize("role", sql.ROLES)
def test_plain_names_show_the_names_of_tables_and_columns_in_addition(
    plain_place: Path, role: str
) -> None:
    _, found = readable(plain_place, role)
    words = ENGINE_WORDS[METRICS] | (
        set() if role == METRICS else ENGINE_WORDS[READER] | PLAIN_NAMES
    )
    assert found == words | (IN_TEXT if role == TEXT else set())


def test_the_secrets_were_planted_in_every_text_of_every_table(place: Path) -> None:
    """An administrator finds them all, so a role that does not is kept from them."""
    found = set()
    with session(place, "admin", admin=True) as engine:
        for table in viewed_tables():
            found |= set(
                SECRET.findall(str(engine.query(f"SELECT * FROM {TABLES}.{table}", "JSONEachRow")))
            )
    assert len(found) > 180
    assert found >= IN_TEXT | PLAIN_NAMES | ENGINE_WORDS[METRICS] | ENGINE_WORDS[READER]


def test_a_table_has_one_hash_in_every_view(place: Path) -> None:
    with session(place, "planter", admin=True) as engine:
        engine.query(
            f"INSERT INTO {TABLES}.query_log (query, databases, tables)"
            " VALUES ('SELECT 2', ['shop'], ['shop.orders'])"
        )
        engine.query(f"INSERT INTO {TABLES}.parts (database, table) VALUES ('shop', 'orders')")
        engine.query(f"INSERT INTO {TABLES}.tables (database, name) VALUES ('shop', 'orders')")
        wanted = "hex(sipHash64Keyed((72623859790382856, 651345242494996240), 'shop.orders'))"
        (hashed,) = str(engine.query(f"SELECT {wanted}", "TSVRaw")).split()
    with engineer(place, READER) as engine:
        for question in (
            f"SELECT count() FROM byoc_access.query_log WHERE has(tables, '{hashed}')",
            f"SELECT count() FROM byoc_access.parts WHERE table = '{hashed}'",
            f"SELECT count() FROM byoc_access.tables WHERE table = '{hashed}'",
        ):
            assert int(str(engine.query(question, "TSVRaw"))) > 0, question
    assert int.from_bytes(bytes(range(1, 9))) == 72623859790382856


def test_the_real_system_tables_have_the_rows_of_the_customers_tables(place: Path) -> None:
    """The views user sees them, although the engineer has no right to any of these tables."""
    made = "CREATE OR REPLACE VIEW byoc_access.real_parts"
    definer = f" DEFINER = {sql.VIEWS_USER} SQL SECURITY DEFINER AS "
    shop = "hex(sipHash64Keyed((72623859790382856, 651345242494996240), 'shop'))"
    try:
        with session(place, "admin", admin=True) as engine:
            engine.query(f"{made}{definer}{sql.views()['parts']}")
        with engineer(place, READER, also=["GRANT SELECT ON byoc_access.real_parts"]) as engine:
            through = f"SELECT count() FROM byoc_access.real_parts WHERE database = {shop}"
            seen = str(engine.query(through, "TSVRaw"))
            own = "SELECT count() FROM system.parts WHERE database = 'shop'"
            assert (int(seen), int(str(engine.query(own, "TSVRaw")))) == (1, 0)
    finally:
        with session(place, "admin", admin=True) as engine:
            engine.query("DROP VIEW byoc_access.real_parts")


# --- what no role can do ---

DICTIONARY_VALUE = "SELECT dictGet('shop.prices', 'price', 1)"
EMAIL = "SELECT dictGet('shop.emails', 'email', 1)"
JOINED = "SELECT joinGet('shop.joined', 'email', toUInt64(1))"
ESCAPES = {
    "a customer's table": ("SELECT * FROM shop.orders", 497),
    "its number of rows": ("SELECT count() FROM shop.orders", 497),
    "its structure": ("DESCRIBE TABLE shop.orders", 497),
    "its definition": ("SHOW CREATE TABLE shop.orders", 497),
    "its plan": ("EXPLAIN ESTIMATE SELECT * FROM shop.orders", 497),
    "through view()": ("SELECT * FROM view(SELECT * FROM shop.orders)", 497),
    "its index": ("SELECT * FROM mergeTreeIndex('shop', 'orders')", 497),
    "through loop()": ("SELECT * FROM loop('shop', 'orders')", 497),
    "through merge()": ("SELECT * FROM merge('shop', '.*')", 636),
    "through cluster()": ("SELECT * FROM cluster('c', shop.orders)", 497),
    "through clusterAllReplicas()": ("SELECT * FROM clusterAllReplicas('c', shop.orders)", 497),
    "system through clusterAllReplicas()": (
        "SELECT * FROM clusterAllReplicas('c', system.one)",
        497,
    ),
    "through remote()": ("SELECT * FROM remote('127.0.0.1:1', shop.orders)", 497),
    "a URL": ("SELECT * FROM url('http://127.0.0.1:1/', 'TSV', 'a String')", 497),
    "a file": ("SELECT * FROM file('/etc/passwd', 'LineAsString', 'a String')", 497),
    "S3": ("SELECT * FROM s3('http://127.0.0.1:1/bucket/x', 'TSV', 'a String')", 497),
    "a program": ("SELECT * FROM executable('x', 'TSV', 'a String')", 497),
    "a list of files": ("SELECT * FROM filesystem('/etc')", 497),
    "a dictionary": ("SELECT * FROM dictionary('shop.prices')", 497),
    "a dictionary as a table": ("SELECT * FROM shop.emails", 497),
    "a value of a dictionary": (DICTIONARY_VALUE, 497),
    "a value of a dictionary of the orders": (EMAIL, 497),
    "a value of a join": (JOINED, 497),
    "a backup": ("BACKUP TABLE shop.orders TO File('x')", 497),
    "to write through a function": ("INSERT INTO FUNCTION null('a Int8') VALUES (1)", 497),
    "a temporary table": ("CREATE TEMPORARY TABLE z (a Int8)", 497),
    "a view": ("CREATE VIEW byoc_access.mine AS SELECT 1", 497),
    "to drop a view": ("DROP VIEW byoc_access.query_log", 497),
    "to change a view": ("ALTER TABLE byoc_access.parts MODIFY QUERY SELECT 1", 497),
    "a copy of a system table": (f"SELECT query FROM {TABLES}.query_log", 497),
    "a column in WHERE": (f"SELECT count() FROM {TABLES}.query_log WHERE query LIKE '%a%'", 497),
    "a column in PREWHERE": (
        f"SELECT count() FROM {TABLES}.query_log PREWHERE query LIKE '%a%'",
        497,
    ),
    "a column in match()": (f"SELECT count() FROM {TABLES}.query_log WHERE match(query, 'a')", 497),
    "the hash key": ("SELECT * FROM byoc_access_key.name_key", 497),
    "a key by its structure": ("DESCRIBE TABLE byoc_access_key.name_key", 497),
    "users": ("SELECT * FROM system.users", 497),
    "grants": ("SELECT * FROM system.grants", 497),
    "to create a user": ("CREATE USER x", 497),
    "to grant": (f"GRANT {TEXT} TO default", 497),
    "another role": ("SET ROLE admin", 512),
    "a role that does not exist": ("SET ROLE byoc_access_broker", 511),
    "addresses of functions": ("SELECT addressToSymbol(1)", 497),
    "to stop merges": ("SYSTEM STOP MERGES shop.orders", 497),
    "to flush logs": ("SYSTEM FLUSH LOGS", 497),
    "a setting": ("SET max_threads = 64", 164),
    "to end read-only mode": ("SET readonly = 0", 164),
    "a setting of one query": ("SELECT 1 SETTINGS max_execution_time = 0", 164),
    "no line in the log": ("SELECT 1 SETTINGS log_queries = 0", 164),
    "a sampled log": ("SELECT 1 SETTINGS log_queries_probability = 0", 164),
    "more rows than the profile's": ("SELECT number FROM numbers(20000)", 396),
    "to read more than the profile's": ("SELECT sum(number) FROM numbers(1000000000)", 158),
    "more memory than the profile's": (
        "SELECT groupArray(randomString(1000)) FROM numbers(9000000)",
        241,
    ),
}


@pytest.mark.parametrize(("text", "code"), ESCAPES.values(), ids=ESCAPES)
@pytest.mark.parametrize("role", [METRICS, TEXT])
def test_a_way_past_the_views_is_refused(place: Path, role: str, text: str, code: int) -> None:
    """With the least role and with the greatest."""
    with (
        configured(place, role) as engine,
        pytest.raises(RuntimeError, match=rf"^Code: {code}\b"),
    ):
        engine.query(text)


def test_the_dictionaries_and_the_join_have_values(place: Path) -> None:
    """An administrator reads them, so their refusals are not those of a missing table."""
    with session(place, "admin", admin=True) as engine:
        found = [str(engine.query(one, "TSVRaw")) for one in (DICTIONARY_VALUE, EMAIL, JOINED)]
    assert found == ["unknown\n", "anna@example.com\n", "anna@example.com\n"]


@pytest.mark.parametrize("role", [METRICS, TEXT])
def test_the_function_file_reads_every_file_in_this_engine(
    place: Path, role: str, tmp_path: Path
) -> None:
    """No role can prevent it: an engine within a program checks neither the grant nor the path.

    A server checks both, in the releases that `version` accepts; the check `file_function` asks it.
    """
    file = tmp_path / "outside"
    file.write_text("zz_file_zz")
    with configured(place, role) as engine:
        assert str(engine.query(f"SELECT file('{file}')", "TSVRaw")) == "zz_file_zz\n"
        with pytest.raises(RuntimeError, match=r"^Code: 497\b"):
            engine.query(f"SELECT * FROM file('{file}', 'LineAsString', 'a String')")


@pytest.mark.parametrize("name", ["max_threads", "max_execution_time", "readonly", "log_queries"])
def test_a_setting_may_be_set_to_the_value_that_it_has_and_to_no_other(
    place: Path, name: str
) -> None:
    value = sql.profile_settings()[name]
    with configured(place, TEXT) as engine:
        engine.query(f"SET {name} = {value}")
        engine.query(f"SELECT 1 SETTINGS {name} = {value}")
        with pytest.raises(RuntimeError, match=r"^Code: 164\b"):
            engine.query(f"SET {name} = {int(value) - 1}")


@contextmanager
def configured(place: Path, role: str, also: Iterable[str] = ()) -> Iterator[Engine]:
    grants = (f"GRANT {role}", *also)
    roles = {**role_grants(), "admin": ["GRANT SELECT ON shop.*"]}
    own: dict[str, Any] = {"grants": grants, "roles": roles, "config": CLUSTERS}
    with session(place, "engineer", limits=True, **own) as engine:
        yield engine


def test_with_read_on_remote_the_check_passes_and_only_the_network_stops_the_query(
    place: Path,
) -> None:
    """So it is never granted, and `role_remote` refuses a server where it is."""
    with (
        configured(place, METRICS, also=["GRANT REMOTE ON *.*"]) as engine,
        pytest.raises(RuntimeError) as raised,
    ):
        engine.query("SELECT * FROM clusterAllReplicas('c', shop.orders)")
    assert "Code: 497" not in str(raised.value)


def test_killing_queries_ends_none_of_another_user(place: Path) -> None:
    with engineer(place, TEXT) as engine:
        assert "default" in str(engine.query("SELECT currentUser()", "TSVRaw"))
        assert str(engine.query("KILL QUERY WHERE user != 'default' ASYNC", "TSVRaw")) == ""


def test_the_quota_counts_the_queries(place: Path) -> None:
    with engineer(place, METRICS) as engine:
        question = "SELECT metric FROM byoc_access.metrics LIMIT 1"
        for _ in range(600):
            engine.query(question)
        with pytest.raises(RuntimeError, match="Code: 201"):
            engine.query(question)


# --- the broker ---

CREATE = sql.create_user(USER)
BROKER_MAY_NOT = {
    "a user of another name": CREATE.replace(USER.name, "byoc_state_exporter"),
    "the prefix without its end": CREATE.replace(USER.name, "byoc_grant"),
    "another role": CREATE.replace(READER, "admin"),
    "to drop the exporter": "DROP USER byoc_state_exporter",
    "to drop itself": "DROP USER byoc_access_broker",
    "to drop the default user": "DROP USER default",
    "to alter a grant's user": f"ALTER USER {USER.name} IDENTIFIED WITH no_password",
    "to alter the default user": "ALTER USER default IDENTIFIED WITH no_password",
    "to grant": f"GRANT SELECT ON *.* TO {sql.VIEWS_USER}",
    "to grant a source": f"GRANT REMOTE ON *.* TO {sql.VIEWS_USER}",
    "to create a role": "CREATE ROLE x",
    "to alter the profile": "ALTER SETTINGS PROFILE byoc_access SETTINGS readonly = 0",
    "to drop the quota": "DROP QUOTA byoc_access",
    "a customer's table": "SELECT * FROM shop.orders",
    "to change a view": "DROP VIEW byoc_access.parts",
}


@pytest.mark.parametrize("statement", BROKER_MAY_NOT.values(), ids=BROKER_MAY_NOT)
def test_the_broker_is_refused(place: Path, statement: str) -> None:
    with (
        session(
            place,
            "broker",
            grants=[
                f"GRANT {right}{' WITH ADMIN OPTION' if admin else ''}"
                for right, _, admin in sql.grants("broker.sql")
            ],
            roles={**role_grants(), "admin": ["GRANT SELECT ON shop.*"]},
        ) as engine,
        pytest.raises(RuntimeError, match=r"Code: 497\b"),
    ):
        engine.query(statement)


@pytest.mark.parametrize("role", sql.ROLES)
def test_the_broker_may_create_and_drop_the_user_of_a_grant(place: Path, role: str) -> None:
    """The access check passes; this engine then has no place to store a user (514)."""
    create = CREATE.replace(READER, role)
    with broker(place) as engine:
        with pytest.raises(RuntimeError, match=r"Code: 514\b"):
            engine.query(create)
        engine.query(sql.drop_user(ID))
        engine.query(sql.kill_queries(ID))
        engine.query(sql.flush_logs())


@pytest.mark.parametrize(
    ("without", "statement"),
    [
        ("CREATE USER", CREATE),
        ("CREATE USER", sql.drop_user(ID)),
        (READER, CREATE),
        ("FLUSH LOGS", sql.flush_logs()),
        ("SHOW USERS", sql.grant_users()),
        ("SHOW USERS", sql.read_back(ID)),
    ],
)
def test_a_missing_grant_of_the_broker_is_noticed(
    place: Path, without: str, statement: str
) -> None:
    with broker(place, without=without) as engine, pytest.raises(RuntimeError, match="Code: 497"):
        engine.query(statement)


def test_every_question_of_the_broker_is_answered(place: Path) -> None:
    """With its own grants. The engine has no such user, so most answers have no row."""
    with broker(place) as engine:
        engine.query(sql.flush_logs())
        for question in (
            sql.read_back(ID),
            sql.running_queries(ID),
            sql.grant_users(),
            sql.collect_queries(ID, SINCE),
            sql.collect_sessions(ID, SINCE, certificates=True),
            sql.collect_sessions(ID, SINCE, certificates=False),
        ):
            assert str(engine.query(question, "JSONEachRow")) == ""
        (clock,) = rows(engine, sql.server_clock())
        assert int(clock["milliseconds"]) > 1_700_000_000_000
        assert int(rows(engine, sql.count_queries(ID, SINCE))[0]["started"]) == 0
        assert int(rows(engine, sql.count_sessions(ID, SINCE))[0]["lines"]) == 0
        names = {row["name"] for row in rows(engine, sql.session_log_columns())}
        assert names > {*sql.SESSION_COLUMNS, *sql.CERTIFICATE_COLUMNS} - {"time"}


def test_the_collected_lines_are_those_of_the_user_since_the_time(place: Path) -> None:
    """Asked about the one user of this engine, whose queries the log has."""
    with session(place, "admin", admin=True) as engine:
        engine.query("SELECT 'marked'")
        engine.query(sql.flush_logs())
        question = sql.collect_queries(ID, SINCE).replace(USER.name, "default")
        found = [row for row in rows(engine, question) if row["query"] == "SELECT 'marked'"]
        assert {row["type"] for row in found} >= {"QueryStart", "QueryFinish"}
        assert [int(row["time"]) for row in found] == sorted(int(row["time"]) for row in found)
        later = sql.collect_queries(ID, datetime(2100, 1, 1, tzinfo=UTC)).replace(
            USER.name, "default"
        )
        assert rows(engine, later) == []
        totals = rows(engine, sql.count_queries(ID, SINCE).replace(USER.name, "default"))
        assert int(totals[0]["started"]) >= 1


def rows(engine: Engine, text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in str(engine.query(text, "JSONEachRow")).splitlines()]


def test_the_engine_parses_every_statement_as_we_mean_it(place: Path) -> None:
    """Each one survives a round trip through the engine's formatter."""
    statements = [
        *sql.split_statements(sql.setup_script(bytes(16))),
        *sql.split_statements(sql.setup_script(bytes(16), sql.Names.PLAIN)),
        CREATE,
        sql.drop_user(ID),
        sql.kill_queries(ID),
        sql.flush_logs(),
    ]
    with session(place, "admin", admin=True) as engine:
        for statement in statements:
            once = formatted(engine, statement)
            assert formatted(engine, once) == once
        once = formatted(engine, CREATE)
        for part in (USER.name, "ssl_certificate SAN", "VALID UNTIL", "DEFAULT ROLE", "CONST"):
            assert part in once


def formatted(engine: Engine, statement: str) -> str:
    text = statement.replace("\\", "\\\\").replace("'", "\\'")
    return str(engine.query(f"SELECT formatQuerySingleLine('{text}')", "TSVRaw")).strip()


# --- the broker's methods over HTTP ---


async def test_the_brokers_methods_work_over_http_with_its_own_grants(place: Path) -> None:
    """All but the creation of a user, which passes the access check and ends at 514."""
    account = GrantAccount(
        grant_id=ID,
        certificate_uri=USER.certificate_uri,
        role=READER,
        ticket="CS-1234",
        end_ms=int(USER.valid_until.timestamp()) * 1000,
    )
    with broker(place) as engine:
        async with front(engine) as http, ClickHouse(http.http.url) as client:
            server = ClickHouseServer("r0", client, client, sql.Storage.DEFAULT)
            assert await server.read_clock_ms() > 1_700_000_000_000
            assert await server.list_users() == []
            assert await server.find_differences(account) == ["missing"]
            with pytest.raises(ServerError, match="code 514"):
                await server.create_user(account)
            await server.kill_queries(USER.name)
            await server.drop_user(USER.name)
            assert await server.running_queries(USER.name) == []
            logs = await server.collect(USER.name, 0)
            assert (logs.queries, logs.sessions, logs.gap) == (b"", b"", "")
            assert logs.counts["queries"] == logs.counts["failed_logins"] == 0


async def test_the_pages_of_a_log_are_all_of_its_lines(place: Path) -> None:
    """All lines have the same time, so only their order within it separates the pages."""
    queries = PAGE_ROWS // 2 + 5

    class OverCopies:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine

        def query(self, text: str, fmt: str = "CSV") -> object:
            if "system.query_log" in text:
                text = over_copies(text)
            return self._engine.query(text, fmt)

    with session(place, "admin", admin=True) as engine:
        engine.query(
            f"INSERT INTO {TABLES}.query_log (type, query_id, user, event_date, event_time,"
            " event_time_microseconds) SELECT if(number % 2, 'QueryFinish', 'QueryStart'),"
            f" toString(intDiv(number, 2)), '{USER.name}', today(), now(), now64(6)"
            f" FROM numbers({2 * queries})"
        )
        async with front(OverCopies(engine)) as http, ClickHouse(http.http.url) as client:
            server = ClickHouseServer("r0", client, client, sql.Storage.DEFAULT)
            logs = await server.collect(USER.name, 0)
        engine.query(f"ALTER TABLE {TABLES}.query_log DELETE WHERE user = '{USER.name}'")
    lines = [json.loads(line) for line in logs.queries.splitlines()]
    assert len(lines) == 2 * queries > PAGE_ROWS
    assert len({(line["query_id"], line["type"]) for line in lines}) == len(lines)
    assert (logs.counts["queries"], logs.gap) == (queries, "")


# --- the checks of a server ---


class Server:
    """The engine, where the broker's probe and the views read the copies."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def query(self, text: str, fmt: str = "CSV") -> object:
        if text.startswith("SELECT [formatQuery") or "FROM system.mutations" in text:
            text = over_copies(text)
        return self._engine.query(text, fmt)


async def checked(engine: Engine, names: sql.Names = sql.Names.HASHED) -> dict[str, str]:
    async with front(engine) as server, ClickHouse(server.http.url) as client:
        found = await server_checks.check_server(client.query, names=names)
    return {problem.check.value: str(problem) for problem in found}


# Always found here: a file cannot bind a quota to roles, and this engine's file() needs no grant.
ALWAYS = {ServerCheck.QUOTA.value, ServerCheck.FILE_FUNCTION.value}


async def test_a_server_set_up_with_the_shipped_sql_passes(place: Path) -> None:
    with broker(place) as engine:
        assert set(await checked(Server(engine))) == ALWAYS


async def test_a_server_where_everybody_reads_system_is_refused(place: Path) -> None:
    with broker(place) as engine:
        found = await checked(engine)
    assert found[ServerCheck.SYSTEM_OPEN] == (
        "system_open: every user reads all of system: expected select_from_system_db_requires_grant"
    )


async def test_views_of_the_other_kind_of_names_are_refused(place: Path) -> None:
    with broker(place) as engine:
        found = await checked(Server(engine), sql.Names.PLAIN)
    assert set(found) == {*ALWAYS, "views"}


async def test_plain_views_pass_if_the_policy_says_plain(plain_place: Path) -> None:
    with broker(plain_place) as engine:
        assert set(await checked(Server(engine), sql.Names.PLAIN)) == ALWAYS


WRONG_ROLES: dict[str, tuple[dict[str, list[str]], str]] = {
    "READ ON REMOTE": ({METRICS: ["GRANT REMOTE ON *.*"]}, "role_remote"),
    "every source": ({READER: ["GRANT SOURCES ON *.*"]}, "role_remote"),
    "a customer's table": ({SHAPE: ["GRANT SELECT ON shop.orders"]}, "role_grants"),
    "one column": ({SHAPE: ["GRANT SELECT(id) ON shop.orders"]}, "role_grants"),
    "all of system": ({METRICS: ["GRANT SELECT ON system.*"]}, "role_grants"),
    "a second role inside": ({TEXT: [f"GRANT {METRICS}"]}, "role_grants"),
    "a foreign role inside": ({TEXT: ["GRANT admin"], "admin": []}, "role_grants"),
}


@pytest.mark.parametrize(("also", "check"), WRONG_ROLES.values(), ids=WRONG_ROLES)
async def test_a_role_with_more_rights_is_refused(
    place: Path, also: dict[str, list[str]], check: str
) -> None:
    roles = role_grants()
    for role, more in also.items():
        roles[role] = [*roles.get(role, []), *more]
    with as_broker(place, roles) as engine:
        assert set(await checked(Server(engine))) == {*ALWAYS, check}


async def test_a_missing_role_and_a_missing_grant_are_refused(place: Path) -> None:
    roles = role_grants()
    del roles[TEXT]
    roles[READER] = [one for one in roles[READER] if "parts" not in one]
    with as_broker(place, roles) as engine:
        found = await checked(Server(engine))
    assert set(found) == {*ALWAYS, "role_missing", "role_grants"}
    assert found["role_missing"] == "role_missing: no role byoc_access_text: expected roles.sql"
    assert "has not SELECT ON byoc_access.parts" in found["role_grants"]


@contextmanager
def as_broker(place: Path, roles: dict[str, list[str]]) -> Iterator[Engine]:
    grants = [f"GRANT {right}" for right, _, _ in sql.grants("broker.sql") if METRICS not in right]
    with session(place, "broker", grants=grants, roles=roles) as engine:
        yield engine


CHANGED_VIEWS = {
    "other columns": (
        (
            f"CREATE OR REPLACE VIEW byoc_access.errors DEFINER = {sql.VIEWS_USER}"
            f" SQL SECURITY DEFINER AS SELECT * FROM {TABLES}.errors"
        ),
        "byoc_access.errors reads something else",
    ),
    "the reader's rights": (
        (
            "CREATE OR REPLACE VIEW byoc_access.errors SQL SECURITY INVOKER AS"
            f" {over_copies(sql.views()['errors'])}"
        ),
        "byoc_access.errors does not read as byoc_access_views",
    ),
    "no view": ("DROP VIEW byoc_access.errors", "byoc_access.errors is missing"),
}


@pytest.mark.parametrize(("statement", "problem"), CHANGED_VIEWS.values(), ids=CHANGED_VIEWS)
async def test_a_changed_view_is_refused(place: Path, statement: str, problem: str) -> None:
    restore = next(
        over_copies(one)
        for one in sql.split_statements(sql.read_file("views.sql"))
        if one.startswith("CREATE OR REPLACE VIEW byoc_access.errors")
    )
    try:
        with session(place, "admin", admin=True) as engine:
            engine.query(statement)
        with broker(place) as engine:
            found = await checked(Server(engine))
    finally:
        with session(place, "admin", admin=True) as engine:
            engine.query(restore)
    assert set(found) == {*ALWAYS, "views"}
    assert problem in found["views"]


# --- every column of the engine ---


def test_every_column_of_the_engine_is_in_a_view_or_left_out_for_a_reason() -> None:
    reasons = access_columns.load_reasons()
    version, columns_of_engine = access_columns.engine_columns()
    assert access_columns.mistakes(columns_of_engine, reasons) == []
    assert sum(map(len, columns_of_engine.values())) > 5000
    made = access_columns.page(version, columns_of_engine, reasons)
    assert access_columns.PAGE.read_text() == made, "python -m lab.real.access_columns --update"


def test_a_new_column_or_table_would_be_noticed() -> None:
    reasons = access_columns.load_reasons()
    _, found = access_columns.engine_columns()
    found["query_log"].append("new_column")
    found["new_table"] = ["a"]
    del found["unicode"]
    assert sorted(access_columns.mistakes(found, reasons)) == [
        "new_table.a: no view and no reason",
        "query_log.new_column: no view and no reason",
        "unicode: no such table",
    ]
