"""Each real part is what the other real tests take it for."""

import asyncio
import base64
import errno
import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from lab.real.parts import clickhouse, install
from lab.real.parts.kernel import ControlGroup
from lab.real.parts.localstack import CREDENTIALS, REGION
from lab.real.parts.process import DIRECT, PartError, RealProcess, free_port, responds

RACERS = 20
BURN_SECONDS = 0.3  # CPU, not wall: what `burn` uses in user mode before it ends
BURN = f"import time\nwhile time.process_time() < {BURN_SECONDS}: pass"


def get(url: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> str:
    with DIRECT.open(urllib.request.Request(url, body, headers or {}), timeout=10) as response:
        return str(response.read().decode().strip())


def query(server: RealProcess, sql: str, password: str = clickhouse.PASSWORD) -> str:
    """Ask as the read-only user; raises urllib's HTTPError for anything but 200."""
    who = {"X-ClickHouse-User": clickhouse.USER, "X-ClickHouse-Key": password}
    return get(server.url, who, sql.encode())


@pytest.fixture
def aws(localstack: RealProcess) -> Callable[[str], Any]:
    """Open clients of LocalStack that never retry."""
    config = AioConfig(retries={"total_max_attempts": 1}, proxies={})

    def client(service: str) -> Any:
        return get_session().create_client(
            service, REGION, endpoint_url=localstack.url, config=config, **CREDENTIALS
        )

    return client


async def status(call: Any) -> int:
    try:
        return int((await call)["ResponseMetadata"]["HTTPStatusCode"])
    except ClientError as error:
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


async def test_s3_refuses_a_second_put_of_a_key(aws: Callable[[str], Any]) -> None:
    async with aws("s3") as s3:
        bucket = await a_bucket(s3)
        put = {"Bucket": bucket, "Key": "k", "IfNoneMatch": "*"}
        assert await status(s3.put_object(Body=b"first", **put)) == 200
        assert await status(s3.put_object(Body=b"second", **put)) == 412
        stored = await s3.get_object(Bucket=bucket, Key="k")
        assert await stored["Body"].read() == b"first"


async def test_s3_lets_exactly_one_of_many_racing_puts_win(aws: Callable[[str], Any]) -> None:
    async with aws("s3") as s3:
        bucket = await a_bucket(s3)
        bodies = [str(racer).encode() for racer in range(RACERS)]
        puts = [
            s3.put_object(Bucket=bucket, Key="k", IfNoneMatch="*", Body=body) for body in bodies
        ]
        ends = await asyncio.gather(*map(status, puts))
        stored = await s3.get_object(Bucket=bucket, Key="k")
        assert ends.count(200) == 1
        assert set(ends) <= {200, 409, 412}
        assert await stored["Body"].read() == bodies[ends.index(200)]


async def test_s3_refuses_a_body_that_does_not_match_its_checksum(
    aws: Callable[[str], Any],
) -> None:
    other = base64.b64encode(hashlib.sha256(b"another body").digest()).decode()
    async with aws("s3") as s3:
        bucket = await a_bucket(s3)
        put = s3.put_object(Bucket=bucket, Key="k", Body=b"body", ChecksumSHA256=other)
        assert await status(put) == 400
        assert "Contents" not in await s3.list_objects_v2(Bucket=bucket)


async def test_sqs_fifo_keeps_the_order_of_a_group_and_drops_a_repeat(
    aws: Callable[[str], Any],
) -> None:
    async with aws("sqs") as sqs:
        made = await sqs.create_queue(
            QueueName=f"q-{secrets.token_hex(4)}.fifo", Attributes={"FifoQueue": "true"}
        )
        queue = {"QueueUrl": made["QueueUrl"]}
        for number in [0, 1, 2, 1, 3, 4]:
            await sqs.send_message(
                MessageBody=str(number),
                MessageGroupId="replica",
                MessageDeduplicationId=f"id-{number}",
                **queue,
            )
        got = await sqs.receive_message(MaxNumberOfMessages=10, **queue)
        assert [message["Body"] for message in got["Messages"]] == ["0", "1", "2", "3", "4"]


async def test_localstack_listens_on_loopback_only(localstack: RealProcess) -> None:
    assert listening_addresses(localstack) == {"127.0.0.1"}


def test_old_clickhouse_answers_as_the_daemons_ask(old_clickhouse: RealProcess) -> None:
    assert get(f"{old_clickhouse.url}/ping") == "Ok."
    assert get(f"{old_clickhouse.url}/replicas_status") == "Ok."
    assert query(old_clickhouse, "SELECT version()") == "18.16.1"
    assert listening_addresses(old_clickhouse) == {"127.0.0.1"}


def test_old_clickhouse_refuses_a_wrong_password_with_401(old_clickhouse: RealProcess) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        query(old_clickhouse, "SELECT 1", password="wrong")
    refused.value.close()
    assert refused.value.code == 401


def test_old_clickhouse_lacks_the_tables_it_stands_for_lacking(old_clickhouse: RealProcess) -> None:
    tables = set(query(old_clickhouse, "SHOW TABLES FROM system").split())
    assert {"events", "metrics", "asynchronous_metrics", "replicas", "parts", "mutations"} <= tables
    assert not {"disks", "detached_parts", "errors"} & tables


def test_old_clickhouse_has_no_asynchronous_metrics_at_first(old_clickhouse: RealProcess) -> None:
    """It fills them 30 s into the next minute: 30 to 90 s after its start."""
    assert query(old_clickhouse, "SELECT count() FROM system.asynchronous_metrics") == "0"


def test_old_clickhouse_counts_cpu_only_once_a_query_used_some(old_clickhouse: RealProcess) -> None:
    cpu = "SELECT value FROM system.events WHERE event = 'OSCPUVirtualTimeMicroseconds'"
    assert not query(old_clickhouse, cpu)
    some = "SELECT number FROM system.numbers LIMIT 20000000"
    heavy = f"SELECT count() FROM ({some}) WHERE sipHash64(number) % 7 = 3"
    assert int(query(old_clickhouse, heavy)) > 0
    assert int(query(old_clickhouse, cpu)) > 50_000


def test_old_clickhouse_can_be_killed_and_comes_back_with_its_data(
    old_clickhouse: RealProcess,
) -> None:
    get(old_clickhouse.url, body=b"CREATE TABLE t (n UInt8) ENGINE = MergeTree ORDER BY n")
    get(old_clickhouse.url, body=b"INSERT INTO t VALUES (7)")
    first = old_clickhouse.pid
    old_clickhouse.kill()
    assert not responds(f"{old_clickhouse.url}/ping")
    old_clickhouse.start()
    assert query(old_clickhouse, "SELECT n FROM t") == "7"
    assert old_clickhouse.pid != first


def test_alertmanager_starts_with_the_given_configuration(
    alertmanager: Callable[[str], RealProcess],
) -> None:
    running = alertmanager("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    status = json.loads(get(f"{running.url}/api/v2/status"))
    assert status["cluster"]["status"] == "disabled"
    assert "receiver: nobody" in status["config"]["original"]
    assert version(status["versionInfo"]["version"]) >= (0, 25)
    assert listening_addresses(running) == {"127.0.0.1"}


def test_prometheus_starts_with_the_given_configuration(
    prometheus: Callable[[str], RealProcess],
) -> None:
    running = prometheus("global: {scrape_interval: 7s}\n")
    config = json.loads(get(f"{running.url}/api/v1/status/config"))
    built = json.loads(get(f"{running.url}/api/v1/status/buildinfo"))
    assert "scrape_interval: 7s" in config["data"]["yaml"]
    assert version(built["data"]["version"]) >= (2, 42)
    assert listening_addresses(running) == {"127.0.0.1"}


def test_a_v1_group_counts_the_cpu_of_a_command_from_its_first_instruction(
    cgroup_v1: ControlGroup,
) -> None:
    subprocess.run(cgroup_v1.command([sys.executable, "-c", BURN]), check=True)
    counted = int((cgroup_v1["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
    assert BURN_SECONDS <= counted < BURN_SECONDS + 1
    assert int((cgroup_v1["memory"] / "memory.max_usage_in_bytes").read_text()) > 1_000_000


def test_a_v2_group_counts_the_cpu_of_a_command_from_its_first_instruction(
    cgroup_v2: ControlGroup,
) -> None:
    subprocess.run(cgroup_v2.command([sys.executable, "-c", BURN]), check=True)
    stat = dict(
        line.split() for line in (cgroup_v2["unified"] / "cpu.stat").read_text().splitlines()
    )
    assert BURN_SECONDS <= int(stat["usage_usec"]) / 1e6 < BURN_SECONDS + 1


def test_a_running_process_can_be_moved_into_a_group(cgroup_v1: ControlGroup) -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            cgroup_v1.add(sleeper.pid)
            held = (cgroup_v1["cpuacct"] / "cgroup.procs").read_text().split()
        finally:
            sleeper.kill()
    assert held == [str(sleeper.pid)]


def test_a_small_disk_gets_full(small_disk: Path) -> None:
    assert small_disk.is_mount()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (small_disk / "file").write_bytes(bytes(17 * 1024 * 1024))


def test_a_part_that_ends_instead_of_starting_shows_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such license')"]
    part = RealProcess("broken", command, tmp_path / "log", port=free_port(), ready_path="/")
    with pytest.raises(PartError, match="broken ended with 1:\nno such license"):
        part.start()


def test_a_part_that_never_gets_ready_is_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    part = RealProcess(
        "mute", command, tmp_path / "log", port=free_port(), ready_path="/", ready_seconds=0.2
    )
    with pytest.raises(PartError, match="mute not ready"):
        part.start()
    with pytest.raises(PartError, match="mute is not running"):
        _ = part.pid


def test_a_missing_interpreter_is_named() -> None:
    with pytest.raises(PartError, match=r"no Python 3\.99 with venv"):
        install.find_python("3.99")


def test_the_parts_are_fetched_once() -> None:
    stamps = {path: path.stat().st_mtime_ns for path in install.CACHE.glob("*.stamp")}
    assert {install.debian(), install.localstack(), install.chdb()}
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(stamps) >= 3


async def a_bucket(s3: Any) -> str:
    name = f"bucket-{secrets.token_hex(4)}"
    await s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return name


def listening_addresses(running: RealProcess) -> set[str]:
    """Local addresses on which the part's whole process tree accepts TCP."""
    leader = psutil.Process(running.pid)
    sockets = [
        sock
        for process in [leader, *leader.children(recursive=True)]
        for sock in process.net_connections("inet")
    ]
    return {sock.laddr.ip for sock in sockets if sock.status == psutil.CONN_LISTEN}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
