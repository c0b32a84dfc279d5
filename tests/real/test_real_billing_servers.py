"""The scraper's one query against real ClickHouse servers, old and new."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

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
    answer = str(session.query(SQL.replace("system.asynchronous_metrics", metrics), "TSV"))
    session.close()
    named = dict(line.split("\t") for line in answer.splitlines())
    assert named["host_name"]
    assert named["server_uuid"].count("-") == 4
    assert named["machine_cpus"] == "2"


@pytest.fixture
def two_servers(tmp_path: Path) -> Iterator[list[RealProcess]]:
    with ExitStack() as stack:
        found = [clickhouse.old_clickhouse(tmp_path / f"server-{number}") for number in range(2)]
        yield [stack.enter_context(one) for one in found]


def test_the_containers_of_a_scraper_pod_bill_each_replica_completely(
    two_servers: list[RealProcess], tmp_path: Path
) -> None:
    """The rendered containers, at these servers, into one bucket: one stream per replica."""
    (pod,) = [one for one in pods(render.manifests(VALUES)) if one.ours]
    bucket = directory(tmp_path / "bucket")
    with ExitStack() as stack:
        scrapers = []
        for server, container in zip(two_servers, pod.ours, strict=True):
            rendered = environment(container)
            settings = {name: rendered[name] for name in ("BYOC_REPLICA", "BYOC_BILLING_METER")}
            settings |= bucket | {
                "BYOC_BILLING_TARGET": f"clickhouse:{server.url}",
                "BYOC_POD_UID": rendered.get("BYOC_POD_UID", ""),
                "BYOC_STATE_DIR": str(tmp_path / Path(rendered["BYOC_STATE_DIR"]).name),
            }
            scraper = Scraper(tmp_path / rendered["BYOC_REPLICA"], settings)
            scrapers.append(stack.enter_context(ending(scraper)))
        for scraper in scrapers:
            scraper.start()
        for scraper, server in zip(scrapers, two_servers, strict=True):
            scraper.listening()
            eventually(partial(_source, scraper))
            DIRECT.open(server.url, data=BURN, timeout=60).close()
            scraper.sampled()
        assert [scraper.stop() for scraper in scrapers] == [0, 0]
    report = verified(str(tmp_path / "bucket"))
    records = usages(files(tmp_path / "bucket"))
    assert report.findings == []
    assert len(report.replicas) == 2
    assert {one.replica for one in records} == {"chi-a-0-0", "chi-a-0-1"}
    assert {one.pod_uid for one in records} == {""}
    for replica in ("chi-a-0-0", "chi-a-0-1"):
        own = [one for one in records if one.replica == replica]
        assert sorted(one.sequence for one in own) == list(range(len(own)))
        assert len({one.epoch for one in own}) == 1
        assert sum(one.used.cpu_core_seconds for one in own) > 0


def _source(scraper: Scraper) -> object:
    return scraper.status().get("source")
