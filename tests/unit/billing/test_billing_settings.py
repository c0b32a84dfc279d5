"""The settings of the scraper that name a container and its size."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from byoc_agents.app.run import configure
from byoc_agents.app.settings import load
from byoc_agents.billing.daemon import Settings, metered_container
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import ConfigError
from lab.fakes.core import FakeClock

BUCKET = {"BYOC_BILLING_BUCKET": "bucket"}


def settings(**more: str) -> Settings:
    (found,) = load([Settings], BUCKET | more, {})
    assert isinstance(found, Settings)
    return found


@pytest.mark.parametrize(
    ("text", "limit"), [("8000", 8000), ("0", None), ("274877906944", 1 << 38), ("", None)]
)
def test_each_limit_is_read_for_itself_and_0_is_none(text: str, limit: int | None) -> None:
    found = settings(BYOC_LIMITS_CPU_MILLICORES=text)
    assert (found.cpu_limit_millicores, found.memory_limit_bytes) == (limit, None)
    found = settings(BYOC_LIMITS_MEMORY_BYTES=text)
    assert (found.cpu_limit_millicores, found.memory_limit_bytes) == (None, limit)


@pytest.mark.parametrize("text", ["-1", "1.5", "4Gi", "max", "9" * 19])
@pytest.mark.parametrize("name", ["BYOC_LIMITS_CPU_MILLICORES", "BYOC_LIMITS_MEMORY_BYTES"])
def test_a_limit_that_is_no_whole_number_is_refused(name: str, text: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{name}: invalid value '{text}' .must be a whole number"
    ):
        settings(**{name: text})


@pytest.mark.parametrize(
    ("environ", "file", "container"),
    [
        ({}, {}, ""),
        ({"BYOC_CONTAINER_NAME": "clickhouse"}, {}, "clickhouse"),
        ({"BYOC_CONTAINER_NAME": "server"}, {}, "server"),
        ({}, {"container_name": "server"}, "server"),
    ],
)
def test_a_process_is_looked_for_in_a_container_only_if_one_was_named(
    environ: dict[str, str], file: dict[str, str], container: str
) -> None:
    (found,) = load([Settings], BUCKET | environ, file)
    assert metered_container(found, environ) == container


@pytest.mark.parametrize(
    ("target", "meter", "expected"),
    [
        ("cgroup:/x", "process", "cgroup"),
        ("cgroup:/x", "clickhouse", "cgroup"),
        ("clickhouse:http://x:1", "cgroup", "clickhouse"),
        ("pid:7", "clickhouse", "process or cgroup"),
        ("process:x", "clickhouse", "process or cgroup"),
    ],
)
def test_a_meter_that_cannot_read_the_target_is_refused(
    target: str, meter: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(BYOC_BILLING_TARGET=target, BYOC_BILLING_METER=meter)
    assert str(caught.value) == (
        f"BYOC_BILLING_METER: invalid value '{meter}': expected {expected} for "
        f"BYOC_BILLING_TARGET={target}"
    )


SERVICE = {
    "BYOC_ORGANIZATION_ID": "org",
    "BYOC_SERVICE_ID": "svc",
    "BYOC_REGION": "eu-west-1",
    "BYOC_REPLICA": "scraper",
    "BYOC_BILLING_BUCKET": "file:///bucket",
    "BYOC_BILLING_METER": "clickhouse",
    "BYOC_CLICKHOUSE_URL": "r0=https://r0:8443,r1=https://r1:8443",
}


def test_every_server_of_a_list_is_a_destination() -> None:
    found = configure(["billing-scraper"], SERVICE).destinations
    assert [(one.host, one.port, one.setting) for one in found] == [
        ("r0", 8443, "BYOC_CLICKHOUSE_URL"),
        ("r1", 8443, "BYOC_CLICKHOUSE_URL"),
    ]


@pytest.mark.parametrize(
    ("more", "mistake"),
    [
        (
            {"BYOC_BILLING_METER": "process"},
            "'process': expected clickhouse, since BYOC_CLICKHOUSE_URL names several servers",
        ),
        ({"BYOC_CLICKHOUSE_URL": "r0=https://a,r0=https://b"}, "r0 is given twice"),
        ({"BYOC_CLICKHOUSE_URL": "r0=https://a,https://b"}, "expected name=url,name=url"),
    ],
)
def test_a_list_that_cannot_be_metered_is_refused(more: dict[str, str], mistake: str) -> None:
    with pytest.raises(ConfigError, match=mistake):
        configure(["billing-scraper"], SERVICE | more)


@pytest.mark.parametrize(
    ("stored", "setting", "expected"),
    [
        ("billing/meter/r0", "http://127.0.0.1:1", "it has the checkpoints of several servers"),
        ("billing/meter", "r0=http://127.0.0.1:1", "it has the checkpoint of a single target"),
    ],
)
async def test_a_directory_of_the_other_kind_is_refused(
    tmp_path: Path, stored: str, setting: str, expected: str
) -> None:
    """Both kinds on one directory would bill the time of the other one again."""
    place = tmp_path / "billing-scraper"
    async with Spool(place, max_bytes=1 << 20, clock=FakeClock()) as spool:
        await spool.commit(WriteBatch(state={stored: b"{}"}))
    environ = SERVICE | {
        "BYOC_BILLING_BUCKET": f"file://{tmp_path}/bucket",
        "BYOC_CLICKHOUSE_URL": setting,
        "BYOC_STATE_DIR": str(tmp_path),
        "BYOC_LISTEN": "127.0.0.1:0",
    }
    command = [sys.executable, "-m", "byoc_agents.app.cli", "run", "billing-scraper"]
    process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=PIPE)
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert errors.decode().splitlines()[-1] == (
        f"BYOC_STATE_DIR: {place}: {expected}: expected another directory"
    )


def test_an_unknown_meter_is_refused() -> None:
    expected = "BYOC_BILLING_METER: invalid value 'kernel'.*expected process, clickhouse or cgroup"
    with pytest.raises(ConfigError, match=expected):
        settings(BYOC_BILLING_METER="kernel")
