"""The three real images against a real S3, SQS, ClickHouse, Alertmanager and a control plane.

The target is a container of its own. The daemons share its process namespace, as sidecars with
`shareProcessNamespace` do, and are shut in.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.config import Config
from botocore.session import get_session

from byoc_agents.audit import Report
from lab.real.alerts_lab import AM_CONFIG, HOOK, SECRET, TOKEN, control_plane, raise_alert
from lab.real.parts import clickhouse
from lab.real.parts.docker import BASE, Container, Engine
from lab.real.parts.images import DAEMONS, UID, environment, hardened, until_healthy
from lab.real.parts.localstack import CREDENTIALS, REGION
from lab.real.parts.process import RealProcess, free_port
from lab.real.scraper import eventually
from lab.real.stored import KEYS, PREFIX, Bucket, billed, bucket_at, usages
from tests.real.conftest import Started

NAME = "metered"
# Uses a third of a core under the name that BYOC_BILLING_TARGET gives.
WORK = f"""
import time
open("/proc/self/comm", "w").write("{NAME}")
while True:
    end = time.process_time() + 0.02
    while time.process_time() < end:
        sum(range(1000))
    time.sleep(0.04)
"""
WORKED_USEC = 1_000_000  # what the container uses at least while it is metered


@dataclass
class Queue:
    """One FIFO queue of LocalStack and what it has given so far."""

    client: Any
    url: str
    got: list[dict[str, Any]] = field(default_factory=list)

    def states(self) -> list[str]:
        """Take the available messages; return the states of all messages up to now."""
        response = self.client.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=1
        )
        for item in response.get("Messages", []):
            self.got.append(json.loads(item["Body"]))
            self.client.delete_message(QueueUrl=self.url, ReceiptHandle=item["ReceiptHandle"])
        return [message["data"]["state"] for message in self.got]


@pytest.fixture
def bucket(localstack: RealProcess) -> Iterator[Bucket]:
    with bucket_at(localstack.url) as made:
        made.create()
        yield made


@pytest.fixture
def queue(localstack: RealProcess) -> Iterator[Queue]:
    config = Config(proxies={}, read_timeout=60)
    client = get_session().create_client(
        "sqs", REGION, endpoint_url=localstack.url, config=config, **CREDENTIALS
    )
    made = client.create_queue(QueueName="images.fifo", Attributes={"FifoQueue": "true"})
    yield Queue(client, made["QueueUrl"])
    client.close()


@contextmanager
def metered(docker: Engine) -> Iterator[Container]:
    """Run the target, with the image's user and without a capability."""
    options = ["--network=none", f"--user={UID}", "--cap-drop=ALL", "--memory=256m"]
    with docker.run(BASE, "python3", "-c", WORK, options=options) as container:
        yield container


def settings(bucket: Bucket, queue: Queue, server: RealProcess) -> dict[str, str]:
    """Return all settings, of every daemon; each is given its own and the common ones."""
    return {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REGION": REGION,
        "BYOC_CLICKHOUSE_URL": server.url,
        "BYOC_CLICKHOUSE_USER": clickhouse.USER,
        "BYOC_CLICKHOUSE_PASSWORD": clickhouse.PASSWORD,
        "BYOC_BILLING_TARGET": f"process:{NAME}",
        "BYOC_BILLING_METER": "cgroup",
        "BYOC_BILLING_SAMPLE_SECONDS": "0.5",
        "BYOC_BILLING_WINDOW_SECONDS": "2",
        "BYOC_BILLING_SEAL_SECONDS": "2",
        "BYOC_STATE_QUEUE_URL": queue.url,
        "BYOC_STATE_POLL_SECONDS": "1",
        "BYOC_ALERTS_TOKEN": TOKEN,
        "BYOC_ALERTS_SIGNING_SECRET": SECRET,
        "BYOC_ALERTS_WEBHOOK_TOKEN": HOOK,
        "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
        "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
        "BYOC_ALERTS_ANNOTATIONS": "summary",
        "AWS_ENDPOINT_URL": bucket.url,
        **bucket.settings,
        **KEYS,
    }


class Sidecars:
    """The three daemons as sidecars of one container."""

    def __init__(self, docker: Engine, images: Callable[[str], str], beside: Container) -> None:
        self._docker, self._images, self._beside = docker, images, beside
        self.running: dict[str, Container] = {}

    def start(self, stack: ExitStack, values: dict[str, str]) -> None:
        """Start all three, and wait until they are healthy."""
        starts = {name: f"BYOC_{name.split('-')[0].upper()}" for name in DAEMONS}
        starts["alert-forwarder"] = "BYOC_ALERTS"
        for name, own in starts.items():
            foreign = tuple(start for start in starts.values() if start != own)
            mine = {key: value for key, value in values.items() if not key.startswith(foreign)}
            mine["BYOC_LISTEN"] = f"127.0.0.1:{free_port()}"
            options = [
                *hardened(),
                "--network=host",
                f"--pid=container:{self._beside.id}",
                *environment(mine),
            ]
            running = self._docker.run(self._images(name), options=options)
            self.running[name] = stack.enter_context(running)
        for container in self.running.values():
            until_healthy(container)

    def stop(self) -> dict[str, int]:
        """Return the exit codes."""
        return {name: container.stop() for name, container in self.running.items()}


async def test_usage_state_and_alert_arrive(  # noqa: PLR0917  fixtures
    docker: Engine,
    images: Callable[[str], str],
    bucket: Bucket,
    queue: Queue,
    old_clickhouse: RealProcess,
    alertmanager: Started,
) -> None:
    hook = free_port()
    sender = alertmanager(AM_CONFIG.format(port=hook, hook=HOOK))
    values = settings(bucket, queue, old_clickhouse)
    values["BYOC_ALERTS_LISTEN"] = f"127.0.0.1:{hook}"
    async with control_plane() as plane:
        values["BYOC_ALERTS_URL"] = plane.url
        with ExitStack() as stack:
            target = stack.enter_context(metered(docker))
            sidecars = Sidecars(docker, images, target)
            await asyncio.to_thread(sidecars.start, stack, values)
            before = used_usec(target)
            await raise_alert(sender, "ReadonlyReplica")
            await plane.until(lambda: ("ReadonlyReplica", "firing") in plane.delivered())
            await asyncio.to_thread(eventually, queue.states)
            await asyncio.to_thread(eventually, lambda: used_usec(target) - before > WORKED_USEC)
            worked = used_usec(target) - before
            await asyncio.to_thread(eventually, bucket.writes)
            assert await asyncio.to_thread(sidecars.stop) == dict.fromkeys(DAEMONS, 0)
            total = used_usec(target)
    assert {*queue.states()} <= {"starting", "running", "stopping"}
    assert {message["type"] for message in queue.got} == {"byoc.service.state.v1"}
    report = bucket.verified()
    assert inside(docker, images("billing-scraper"), bucket) == report, "also with the cut models"
    assert report.ok, report
    assert worked / 1e6 <= float(billed(report)) <= total / 1e6
    measured = [one for one in usages(bucket.objects()) if one.quality != "gap"]
    assert {one.source for one in measured} == {"cgroup.v1"}, "the best there is, as a neighbor"


def inside(docker: Engine, image: str, bucket: Bucket) -> Report:
    """Return what the image's own `byoc-agents verify` says of the bucket."""
    values = {"AWS_ENDPOINT_URL_S3": bucket.url, "AWS_DEFAULT_REGION": REGION, **KEYS}
    options = ["--network=host", *hardened(), *environment(values)]
    command = ("verify", f"s3://{bucket.name}/{PREFIX}", "--json")
    said = docker.output("run", "--rm", *options, image, *command)
    return msgspec.json.decode(said, type=Report)


def used_usec(container: Container) -> int:
    """Return what the kernel counted for a container, in microseconds."""
    group = Path("/sys/fs/cgroup/cpuacct/docker") / container.id / "cpuacct.usage"
    return int(group.read_text()) // 1000
