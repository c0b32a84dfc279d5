"""A database of an earlier build of the control plane: what the next start does with it."""

import asyncio
import base64
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chdb.session
import pytest

from byoc_agents.app.cloudevents import encode, rfc3339
from byoc_agents.errors import ConfigError
from byoc_control_plane.rows import build_row
from byoc_control_plane.schema import VIEWS, split_statements, table_statements
from byoc_control_plane.store import (
    EmbeddedStore,
    check_tables,
    create_tables,
    fetch_rows,
    insert_rows,
)
from lab.control_plane.messages import Replica, heartbeat_event
from lab.control_plane.processes import ROOT, plane_environment
from lab.fakes.billing import NOON_MS

pytestmark = pytest.mark.real

EARLIER = ROOT / "tests" / "upgrade" / "control_plane" / "earlier_tables.sql"
EXECUTE = "execute these statements and start again: "


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        loop = asyncio.get_running_loop()
        session = await loop.run_in_executor(thread, chdb.session.Session, str(tmp_path / "db"))
        yield EmbeddedStore(session, thread)
        await loop.run_in_executor(thread, session.close)


async def make_earlier(store: EmbeddedStore) -> None:
    """Create the earlier tables with two messages, and views that show something else."""
    earlier = split_statements(EARLIER.read_text().replace("{engine}", ""))
    (usage,) = [one for one in table_statements() if "EXISTS byoc_usage\n" in one]
    for statement in [usage, *earlier]:
        await store.run(statement)
    await store.run("SYSTEM STOP TTL MERGES")
    for view in VIEWS:
        await store.run(f"CREATE VIEW {view} AS SELECT 'earlier' AS build")
    await insert_rows(store, "byoc_state", state_lines(1))
    beat = build_row(encode(heartbeat_event(NOON_MS, 1)), NOON_MS + 1000)
    await insert_rows(store, "byoc_alerts", [beat.line])
    at = rfc3339(int(time.time() * 1000))  # such a row is kept for a day
    progress = f'{{"stream": "state", "consumer": "a", "at": "{at}"}}'
    await insert_rows(store, "byoc_progress", [progress.encode()])


def state_lines(count: int) -> list[bytes]:
    """Return the rows of one replica's messages, one per second, each a millisecond later."""
    replica = Replica(organization="org-1", service="s")
    times = range(NOON_MS, NOON_MS + count * 1000, 1000)
    return [build_row(replica.message(at), at + 1).line for at in times]


async def refusal(store: EmbeddedStore) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        await create_tables(store)
    return refused.value.mistakes


async def count(store: EmbeddedStore, table: str) -> int:
    (row,) = await fetch_rows(store, f"SELECT count() AS n FROM {table} FINAL")
    return int(row["n"])


async def test_the_error_names_each_table_and_its_statements_and_they_keep_the_rows(
    store: EmbeddedStore,
) -> None:
    await make_earlier(store)
    mistakes = await refusal(store)
    assert [text.split(":")[0] for text in mistakes] == [
        *("table byoc_state", "table byoc_alerts", "table byoc_progress"),
    ]
    assert "the columns seen_at, earliness_ms are missing" in mistakes[0]
    assert "the columns organization_id are missing" in mistakes[2]
    assert await fetch_rows(store, "SELECT DISTINCT build FROM fleet_now")  # not touched yet
    for text in mistakes:
        for statement in text.partition(EXECUTE)[2].split("; "):
            await store.run(statement)
    await create_tables(store)
    for table in ("byoc_state", "byoc_alerts", "byoc_progress"):
        assert await count(store, table) == await count(store, f"{table}_before") == 1
    rows = await fetch_rows(store, "SELECT seen_at = arrived_at AS same FROM byoc_state")
    assert rows == [{"same": 1}]
    # A later message counts once, also in the tables that its insert keeps up to date.
    await insert_rows(store, "byoc_state", state_lines(2)[1:])
    assert await count(store, "byoc_state") == 2
    agents = await fetch_rows(store, "SELECT replica, daemon FROM agents_now ORDER BY daemon")
    assert [row["daemon"] for row in agents] == ["alert-forwarder", "state-exporter"]
    fleet = await fetch_rows(store, "SELECT replica FROM fleet_now")
    assert sorted(row["replica"] for row in fleet) == sorted(row["replica"] for row in agents)


async def test_missing_columns_alone_are_added_by_one_statement(store: EmbeddedStore) -> None:
    await create_tables(store)
    await insert_rows(store, "byoc_state", state_lines(1))
    for view in ("byoc_agents_from_state", "byoc_replicas_from_state"):
        await store.run(f"DROP VIEW {view}")
    await store.run("ALTER TABLE byoc_state DROP COLUMN seen_at, DROP COLUMN ledger_root")
    (text,) = await refusal(store)
    assert text.startswith("table byoc_state: the columns seen_at, ledger_root are missing.")
    (statement,) = text.partition(EXECUTE)[2].split("; ")
    assert statement.startswith("ALTER TABLE byoc_state ADD COLUMN IF NOT EXISTS seen_at ")
    await store.run(statement)
    await create_tables(store)
    rows = await fetch_rows(store, "SELECT seen_at = arrived_at AS same FROM byoc_state")
    assert rows == [{"same": 1}]


async def test_with_existing_tables_a_missing_and_an_earlier_one_are_errors(
    store: EmbeddedStore,
) -> None:
    await make_earlier(store)
    await store.run("DROP TABLE byoc_rejected")
    with pytest.raises(ConfigError) as refused:
        await check_tables(store)
    assert len(refused.value.mistakes) == 5
    assert refused.value.mistakes[-1] == (
        "table byoc_rejected: it does not exist: expected the statements of"
        " `byoc-control-plane schema`"
    )


async def test_views_of_another_version_are_replaced(store: EmbeddedStore) -> None:
    await create_tables(store)
    made = (
        "SELECT name, as_select FROM system.tables"
        " WHERE engine LIKE '%View' AND database = currentDatabase() ORDER BY name"
    )
    expected = await fetch_rows(store, made)
    assert len(expected) == len(VIEWS) + 1 + 8
    for view in VIEWS:
        await store.run(f"CREATE OR REPLACE VIEW {view} AS SELECT 1 AS earlier")
    await store.run(
        "ALTER TABLE byoc_agents_from_state MODIFY QUERY SELECT organization_id, service_id,"
        " replica, 'state-exporter' AS daemon, max(arrived_at) AS last_seen FROM byoc_state"
        " GROUP BY organization_id, service_id, replica"
    )
    assert await fetch_rows(store, made) != expected
    await create_tables(store)
    assert await fetch_rows(store, made) == expected


async def test_starts_at_one_time_do_no_harm(store: EmbeddedStore) -> None:
    lines = state_lines(9)
    await create_tables(store)
    await asyncio.gather(
        *(create_tables(store) for _ in range(3)),
        *(insert_rows(store, "byoc_state", [line]) for line in lines),
    )
    assert await count(store, "byoc_state") == 9
    (agent,) = await fetch_rows(
        store, "SELECT toUnixTimestamp64Milli(last_seen) AS ms FROM agents_now"
    )
    assert agent["ms"] == NOON_MS + 8001


@pytest.mark.parametrize("tables", ["single", "existing"])
def test_a_process_ends_with_the_statements_and_exit_code_2(tmp_path: Path, tables: str) -> None:
    session = chdb.session.Session(str(tmp_path / "db"))
    for statement in split_statements(EARLIER.read_text().replace("{engine}", "")):
        if "EXISTS byoc_state\n" in statement:
            session.query(statement)
    session.close()
    settings = {
        "BYOC_PLANE_STORE_URL": f"chdb:{tmp_path / 'db'}",
        "BYOC_PLANE_TABLES": tables,
        "BYOC_PLANE_TOKEN": "t",
        "BYOC_PLANE_SIGNING_SECRET": "whsec_" + base64.b64encode(b"s" * 32).decode(),
        "BYOC_PLANE_LISTEN": "127.0.0.1:0",
        "BYOC_PLANE_EVENTS_LISTEN": "127.0.0.1:0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "byoc_control_plane", "run", "receiver"],
        cwd=ROOT,
        env={**plane_environment(), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "table byoc_state: the columns seen_at, earliness_ms are missing" in done.stderr
    assert "RENAME TABLE byoc_state TO byoc_state_before" in done.stderr
    missing = "table byoc_alerts: it does not exist" in done.stderr
    assert missing == (tables == "existing")
