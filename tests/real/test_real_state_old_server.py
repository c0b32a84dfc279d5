"""The state exporter polls a real old ClickHouse; the server's logs show the exporter's queries."""

import asyncio
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from byoc_agents.app.clock import SystemClock
from byoc_agents.clickhouse import ClickHouse
from byoc_agents.state.observation import Login, Ping, ProbeSource, SourceResult, StateObservation
from byoc_agents.state.probes import Prober
from byoc_agents.state.queries import COMMENT
from lab.real.parts import clickhouse
from lab.real.parts.process import RealProcess

PATIENCE_SECONDS = 60.0


async def look(server: RealProcess, password: str = clickhouse.PASSWORD) -> StateObservation:
    async with ClickHouse(server.url, clickhouse.USER, password) as client:
        return await Prober(client, clock=SystemClock()).observe()


FILTERED = {ProbeSource.PARTS, ProbeSource.REPLICAS, ProbeSource.MUTATIONS}


async def test_an_old_server_shows_what_it_has_and_the_rest_is_named(
    old_clickhouse: RealProcess,
) -> None:
    observation = await look(old_clickhouse)
    assert (observation.ping, observation.login, observation.version) == (
        Ping.OK,
        Login.OK,
        "18.16.1",
    )
    lacking = {source for source, how in observation.sources.items() if how is SourceResult.ABSENT}
    assert lacking == {ProbeSource.DISKS, ProbeSource.ERRORS, ProbeSource.DETACHED_PARTS}
    hidden = {source for source, how in observation.sources.items() if how is SourceResult.HIDDEN}
    assert hidden == FILTERED, "nothing proves yet that there is nothing to be seen"
    assert observation.figures.readonly_replicas == 0
    assert observation.figures.replicas_status_ok is True


async def test_an_old_server_with_a_table_is_believed(old_clickhouse: RealProcess) -> None:
    ask(old_clickhouse, "CREATE TABLE t (d Date, x UInt8) ENGINE = MergeTree(d, x, 8192)")
    for x in range(3):
        ask(old_clickhouse, f"INSERT INTO t VALUES ('2026-11-0{x + 1}', {x})")
    observation = await look(old_clickhouse)
    assert {observation.sources[source] for source in FILTERED} == {SourceResult.OK}
    assert observation.figures.active_parts
    assert observation.figures.pending_mutations == 0, "by the query without is_killed"


async def test_a_wrong_password_is_a_refused_login(old_clickhouse: RealProcess) -> None:
    assert (await look(old_clickhouse, "wrong")).login is Login.REFUSED


async def test_every_query_is_found_in_the_query_log_under_our_name(tmp_path: Path) -> None:
    server = clickhouse.old_clickhouse(tmp_path)
    config, users = tmp_path / "config.xml", tmp_path / "users.xml"
    log = (
        "<query_log><database>system</database><table>query_log</table>"
        "<flush_interval_milliseconds>100</flush_interval_milliseconds></query_log></yandex>"
    )
    config.write_text(config.read_text().replace("</yandex>", log))
    logged = "<readonly><readonly>1</readonly><log_queries>1</log_queries></readonly>"
    users.write_text(
        users.read_text().replace("<readonly><readonly>1</readonly></readonly>", logged)
    )
    with server:
        await look(server)
        sql = f"SELECT count() FROM system.query_log WHERE user = '{clickhouse.USER}' AND query"
        ours = f"{sql} LIKE '/* {COMMENT} */%'"
        assert await asyncio.to_thread(soon, lambda: int(ask(server, ours)) > 0)
        assert int(ask(server, f"{sql} NOT LIKE '/* {COMMENT} */%'")) == 0


def soon(met: Callable[[], bool]) -> bool:
    """Ask again and again until it is so, or patience ends."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def ask(server: RealProcess, sql: str) -> str:
    """Run a query as the administrator; an empty response while there is no table yet."""
    try:
        with urllib.request.urlopen(server.url, data=sql.encode(), timeout=10) as response:
            return str(response.read().decode().strip())
    except urllib.error.HTTPError:
        return "0"
