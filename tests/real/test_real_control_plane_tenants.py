"""What a customer reads from the control plane, and how long it keeps rows: in the engine itself.

The engine in this process takes users from a file only, and is always the user `default`. So that
user is the customer `default`: it gets the grants and the filter of the row policies as tenants.sql
has them.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import chdb.session
import pytest

from byoc_agents.access.events import message_of
from byoc_agents.access.machine import State
from byoc_agents.alerts.events import Origin
from byoc_agents.app.cloudevents import Agent, encode, rfc3339
from byoc_control_plane.schema import VIEWS, table_statements, tenant_statements
from lab.control_plane.messages import Replica, heartbeat_event, watch_alert
from lab.fakes.billing import NOON_MS, ReplicaHistory, objects
from tests.real.control_plane_tables import empty, load_usage, rows, store_events, store_rows
from tests.unit.access.access_documents import grant_of

pytestmark = pytest.mark.real

OWN, OTHER = "default", "org-2"
POLICY = re.compile(
    r"CREATE ROW POLICY IF NOT EXISTS (\w+) ON ([\w,\s]+?)\s+USING (.+?)"
    r" TO (?:ALL EXCEPT )?byoc_tenant"
)
GRANT = re.compile(r"GRANT SELECT ON (\w+) TO byoc_tenant")
STATEMENTS = tenant_statements()
POLICIES = {  # name -> its tables and its filter
    found[1]: (found[2].replace("\n", "").replace(" ", "").split(","), found[3])
    for statement in STATEMENTS
    if (found := POLICY.search(statement))
}
GRANTED = [found[1] for statement in STATEMENTS if (found := GRANT.search(statement))]
SINCE = "(since = '2020-01-01')"  # the parameter of the views that have one
AGENT = Agent(
    version="0.2.0", configuration_sha256="c" * 64, ledger_size=7, ledger_root="r" * 43 + "="
)
TTL = re.compile(r"EXISTS (\w+)\n.*TTL toDateTime\((\w+)\) \+ INTERVAL (\d+) DAY", re.DOTALL)
TTLS = [found.groups() for one in table_statements() if (found := TTL.search(one))]


@contextmanager
def opened(place: Path, rights: str) -> Iterator[chdb.session.Session]:
    """Open the engine with these rights of its only user; one at a time."""
    config, users = place / "config.xml", place / "users.xml"
    users.write_text(
        "<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users><default>"
        "<password/><networks><ip>::/0</ip></networks><profile>default</profile>"
        f"<quota>default</quota>{rights}</default></users></clickhouse>"
    )
    config.write_text(
        f"<clickhouse><user_directories><users_xml><path>{users}</path></users_xml>"
        "</user_directories></clickhouse>"
    )
    session = chdb.session.Session(f"{place / 'db'}?config-file={config}")
    try:
        yield session
    finally:
        session.close()


def rights_of(policy: str, readable: list[str]) -> str:
    """Return the rights of a user with a policy of tenants.sql, who may read these names."""
    tables, condition = POLICIES[policy]
    grants = "".join(f"<query>GRANT SELECT ON default.{name}</query>" for name in readable)
    filters = "".join(
        f"<{table}><filter>{escape(condition)}</filter></{table}>" for table in tables
    )
    return f"<grants>{grants}</grants><databases><default>{filters}</default></databases>"


def fill(session: chdb.session.Session, place: Path, organization: str) -> None:
    """Store messages of every kind, a grant, and usage of one organization."""
    service = f"service-of-{organization}"
    names = Replica(organization=organization, service=service, agent=AGENT)
    origin = Origin(organization, service, "eu-west-1", "r-0")
    grant = message_of(grant_of(State.OPEN), organization, service, {"queries": 3})
    bodies = [
        names.message(NOON_MS),
        names.message(NOON_MS + 1),
        encode(heartbeat_event(NOON_MS, 1, origin=origin, agent=AGENT)),
        encode(watch_alert(NOON_MS, 1, origin=origin)),
        grant.body,
    ]
    store_events(session, bodies, NOON_MS + 1000)
    at = rfc3339(int(time.time() * 1000))  # such a row is kept for a day
    progress = f'{{"organization_id": "{organization}", "at": "{at}"}}'
    store_rows(session, "byoc_progress", [progress.encode()])
    rejected = f'{{"organization_id": "{organization}", "arrived_at": "{at}"}}'
    store_rows(session, "byoc_usage_rejected", [rejected.encode()])
    history = ReplicaHistory(organization_id=organization, service_id=service)
    for message in objects([history.measured() for _ in range(3)]):
        path = place / organization / message.id
        path.parent.mkdir(parents=True)
        path.write_bytes(message.body)
    load_usage(session, place / organization)


def organizations(session: chdb.session.Session, name: str) -> set[str]:
    asked = name + (SINCE if name.endswith("_since") else "")
    return {row["organization_id"] for row in rows(session, f"SELECT organization_id FROM {asked}")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the place of an engine with rows of two organizations in each table."""
    made = tmp_path_factory.mktemp("tenants")
    with opened(made, "<access_management>1</access_management>") as session:
        empty(session)
        for organization in (OWN, OTHER):
            fill(session, made / "usage", organization)
    return made


def test_each_table_and_view_that_a_customer_may_read_shows_its_own_rows_only(place: Path) -> None:
    assert POLICIES["byoc_tenant"][1] == "organization_id = currentUser()"
    assert len(GRANTED) >= 13
    with opened(place, rights_of("byoc_tenant", GRANTED)) as customer:
        assert {name: organizations(customer, name) for name in GRANTED} == {
            name: {OWN} for name in GRANTED
        }


def test_everybody_else_reads_the_rows_of_all(place: Path) -> None:
    with opened(place, rights_of("byoc_vendor", GRANTED)) as vendor:
        assert {name: organizations(vendor, name) for name in GRANTED} == {
            name: {OWN, OTHER} for name in GRANTED
        }


def test_both_policies_are_on_every_table_with_rows_of_customers(place: Path) -> None:
    """Also on a table that no customer may read: a later grant would show its own rows only."""
    tables = POLICIES["byoc_tenant"][0]
    assert POLICIES["byoc_vendor"][0] == tables
    with opened(place, "<access_management>1</access_management>") as session:
        stored = rows(
            session,
            "SELECT table FROM system.columns INNER JOIN system.tables"
            " ON columns.database = tables.database AND columns.table = tables.name"
            " WHERE columns.name = 'organization_id' AND engine LIKE '%MergeTree'"
            " AND tables.database = 'default'",
        )
        assert {row["table"] for row in stored} == set(tables)
    with opened(place, rights_of("byoc_tenant", tables)) as customer:
        assert {table: organizations(customer, table) for table in tables} == {
            table: {OWN} for table in tables
        }


def stored_names(session: chdb.session.Session) -> set[str]:
    """Return the names of all tables, views and materialized views."""
    found = rows(session, "SELECT name FROM system.tables WHERE database = 'default'")
    return {row["name"] for row in found}


def test_a_customer_may_not_read_what_is_not_granted(place: Path) -> None:
    with opened(place, "<access_management>1</access_management>") as session:
        other = stored_names(session) - set(GRANTED)
    assert {"byoc_replicas", "byoc_progress", "byoc_rejected", "fleet_now", "silent_now"} < other
    assert "byoc_agents_from_state" in other
    with opened(place, rights_of("byoc_tenant", GRANTED)) as customer:
        for name in sorted(other):
            with pytest.raises(RuntimeError, match="Not enough privileges"):
                customer.query(f"SELECT * FROM {name}")


def test_a_view_that_is_granted_later_shows_a_customer_its_own_rows_only(place: Path) -> None:
    views = [view for view in VIEWS if view not in GRANTED]
    tables = POLICIES["byoc_tenant"][0]
    with opened(place, rights_of("byoc_tenant", [*GRANTED, *views, *tables])) as customer:
        assert organizations(customer, "fleet_now") == {OWN}
        assert organizations(customer, "silent_now") <= {OWN}


def test_every_view_reads_with_the_rights_of_the_person_who_asks(place: Path) -> None:
    """No view names a definer, and the engine's default for such a view is the invoker."""
    with opened(place, "<access_management>1</access_management>") as session:
        views = rows(
            session,
            "SELECT name, create_table_query AS text FROM system.tables"
            " WHERE database = 'default' AND engine = 'View'",
        )
        (default,) = rows(
            session,
            "SELECT value FROM system.settings WHERE name = 'default_normal_view_sql_security'",
        )
    assert {row["name"] for row in views} == {"billing_totals", *VIEWS}
    assert not [row["name"] for row in views if "DEFINER" in row["text"]]
    assert not [row["name"] for row in views if "SECURITY NONE" in row["text"]]
    assert default["value"] == "INVOKER"


def test_every_table_with_an_end_of_its_rows_is_tested() -> None:
    assert {(table, days) for table, _, days in TTLS} == {
        ("byoc_state", "400"),
        ("byoc_alerts", "400"),
        ("byoc_grants", "400"),
        ("byoc_rejected", "400"),
        ("byoc_usage_rejected", "400"),
        ("byoc_progress", "1"),
    }


@pytest.mark.parametrize(("table", "column", "days"), TTLS)
def test_rows_are_removed_after_the_stated_days_and_not_before(
    tmp_path: Path, table: str, column: str, days: str
) -> None:
    name = {"byoc_progress": "consumer", "byoc_usage_rejected": "object"}.get(table, "id")
    with opened(tmp_path, "<access_management>1</access_management>") as session:
        empty(session)  # it also stops the removal
        now_ms = int(rows(session, "SELECT toUnixTimestamp64Milli(now64(3)) AS ms")[0]["ms"])
        for label, hours in (("older", 12), ("younger", -12)):
            at = rfc3339(now_ms - (int(days) * 24 + hours) * 3_600_000)
            store_rows(session, table, [f'{{"{name}": "{label}", "{column}": "{at}"}}'.encode()])
        kept = f"SELECT {name} AS label FROM {table} ORDER BY label"
        assert [row["label"] for row in rows(session, kept)] == ["older", "younger"]
        session.query("SYSTEM START TTL MERGES")
        session.query(f"OPTIMIZE TABLE {table} FINAL")
        assert [row["label"] for row in rows(session, kept)] == ["younger"]
