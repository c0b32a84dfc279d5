"""The scraper's one query against real ClickHouse servers, old and new."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import chdb.session
import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.billing.sources.clickhouse import OLD_SQL, SQL, ServerSource
from byoc_agents.clickhouse import ClickHouse
from lab.real.chart import render
from lab.real.chart.pods import environment, pods
from lab.real.parts import clickhouse
from lab.real.parts.process import DIRECT, RealProcess
from lab.real.scraper import Scraper, ending, eventually
from lab.real.stored import directory, files, usages, verified

pytestmark = pytest.mark.real

REPLICAS = ("chi-a-0-0", "chi-a-0-1")
VALUES = render.CHART / "ci" / "replicas-values.yaml"
BURN = b"SELECT count() FROM (SELECT number FROM system.numbers LIMIT 30000000)"


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
    response = str(session.query(SQL.replace("system.asynchronous_metrics", metrics), "TSV"))
    session.close()
    named = dict(line.split("\t") for line in response.splitlines())
    assert named["host_name"]
    assert named["server_uuid"].count("-") == 4
    assert named["machine_cpus"] == "2"


@pytest.fixture
def two_servers(tmp_path: Path) -> Iterator[list[RealProcess]]:
    with ExitStack() as stack:
        found = [clickhouse.old_clickhouse(tmp_path / f"server-{number}") for number in range(2)]
        yield [stack.enter_context(one) for one in found]


def test_the_scraper_of_the_chart_bills_each_replica_completely(
    two_servers: list[RealProcess], tmp_path: Path
) -> None:
    """The rendered container, at these servers, while one of them is down and comes back."""
    (pod,) = [one for one in pods(render.manifests(VALUES)) if one.ours]
    (container,) = pod.ours
    rendered = environment(container)
    kept = ("BYOC_REPLICA", "BYOC_BILLING_METER", "BYOC_BILLING_TARGET")
    settings = {name: rendered[name] for name in kept}
    urls = zip(REPLICAS, (server.url for server in two_servers), strict=True)
    settings |= directory(tmp_path / "bucket") | {
        "BYOC_CLICKHOUSE_URL": ",".join(f"{name}={url}" for name, url in urls),
        "BYOC_POD_UID": "",
    }
    scraper = Scraper(tmp_path / "agent", settings)
    with ending(scraper):
        scraper.start()
        scraper.listening()
        for name, server in zip(REPLICAS, two_servers, strict=True):
            eventually(partial(_source, scraper, name))
            DIRECT.open(server.url, data=BURN, timeout=60).close()
        os.kill(two_servers[1].pid, signal.SIGSTOP)
        eventually(lambda: _shown(scraper, REPLICAS[1]).get("target_error"))
        assert _shown(scraper, REPLICAS[0])["target_error"] == ""
        DIRECT.open(two_servers[0].url, data=BURN, timeout=60).close()
        os.kill(two_servers[1].pid, signal.SIGCONT)
        eventually(lambda: _shown(scraper, REPLICAS[1]).get("target_error") == "")
        assert scraper.end(signal.SIGKILL) == -signal.SIGKILL
        scraper.start()
        scraper.listening()
        eventually(partial(_source, scraper, REPLICAS[1]))
        assert scraper.stop() == 0
    report = verified(str(tmp_path / "bucket"))
    stored = files(tmp_path / "bucket")
    assert report.findings == []
    assert all(".shared." in key for key in stored)
    records = usages(stored)
    assert {one.pod_uid for one in records} == {""}
    for replica in REPLICAS:
        own = [one for one in records if one.replica == replica]
        assert sorted(one.sequence for one in own) == list(range(len(own)))
        assert len({one.epoch for one in own}) == 1
        assert sum(one.used.cpu_core_seconds for one in own) > 0
    gaps = {(gap.replica, gap.reason) for gap in report.gaps}
    assert gaps <= {(name, "no_checkpoint") for name in REPLICAS} | {
        (REPLICAS[1], "target_unreadable")
    }


def _source(scraper: Scraper, replica: str) -> object:
    return _shown(scraper, replica).get("source")


def _shown(scraper: Scraper, replica: str) -> dict[str, Any]:
    """Return the replica's part of /status, nothing while nobody answers."""
    return dict(scraper.status().get("replicas", {}).get(replica, {}))
