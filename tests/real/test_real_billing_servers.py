"""The scraper's one query against real ClickHouse servers, old and new."""

from pathlib import Path

import chdb.session
import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.billing.sources.clickhouse import OLD_SQL, SQL, ServerSource
from byoc_agents.clickhouse import ClickHouse
from lab.real.parts import clickhouse
from lab.real.parts.process import RealProcess

pytestmark = pytest.mark.real


async def test_a_server_from_before_serveruuid_names_itself_by_its_host(
    old_clickhouse: RealProcess,
) -> None:
    async with ClickHouse(old_clickhouse.url, clickhouse.USER, clickhouse.PASSWORD) as client:
        rows = await client.query(OLD_SQL)
        assert {row["name"] for row in rows} >= {"uptime", "host_name", "machine_cpus"}
        reading = await ServerSource(client, SystemClock()).read()
    assert reading.incarnation.count("-") == 1


def test_a_new_server_answers_the_query_with_its_uuid(tmp_path: Path) -> None:
    session = chdb.session.Session(str(tmp_path))
    metrics = "(SELECT arrayJoin(['OSUserTimeCPU0', 'OSUserTimeCPU1']) AS metric, 1.5 AS value)"
    answer = str(session.query(SQL.replace("system.asynchronous_metrics", metrics), "TSV"))
    session.close()
    named = dict(line.split("\t") for line in answer.splitlines())
    assert named["host_name"]
    assert named["server_uuid"].count("-") == 4
    assert named["machine_cpus"] == "2"
