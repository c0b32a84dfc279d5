"""The rendered pod, run: every sidecar in its own image with what the chart gives it, and no more.

A real Docker Engine, a real ClickHouse as the target in a shared process namespace, S3 and SQS of
a real LocalStack, the reference control plane. Native sidecars are started before ClickHouse and
stopped after it, as the kubelet does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.session import get_session

from byoc_agents.app.keyed_ids import keyed_id
from lab.real.chart import render
from lab.real.chart.pods import DOWNWARD, Pod, environment, pods
from lab.real.chart.run import Sandbox, resident_bytes, sandbox, used_core_seconds
from lab.real.parts import clickhouse, install
from lab.real.parts.docker import BASE, Container, Engine
from lab.real.parts.localstack import CREDENTIALS, REGION
from lab.real.parts.process import RealProcess
from lab.real.scraper import eventually
from lab.real.stored import Bucket, billed, bucket_at, usages

VALUES = install.ROOT / "lab" / "real" / "chart" / "run-values.yaml"
SECRET = "whsec_" + "A" * 32
KEYS = "\n".join(["[default]", *(f"{name} = {value}" for name, value in CREDENTIALS.items())])
FILES = {
    "byoc-aws": {"credentials": KEYS},
    "byoc-clickhouse": {"password": clickhouse.PASSWORD},
    "byoc-alerts": {
        "token": "control",
        "signing-secret": SECRET,
        "webhook-token": "webhook",
        "fingerprint-secret": "f" * 32,
    },
}
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
BURN = b"SELECT sum(sipHash64(number)) FROM numbers(100000000)"
ENDPOINT = "http://127.0.0.1:4566"  # of LocalStack, in the pod
SEEN = {"starting", "running", "degraded"}  # words for a ClickHouse that answers
SHARE_OF_LIMIT = 0.8  # of memory, that a sidecar may hold at the end of this


@dataclass(frozen=True)
class Queue:
    """A FIFO queue of LocalStack."""

    client: Any
    url: str

    def take(self) -> list[dict[str, Any]]:
        """Return the next messages, if any come within a second."""
        asked = {"QueueUrl": self.url, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 1}
        found = self.client.receive_message(**asked).get("Messages", [])
        return [json.loads(one["Body"]) for one in found]


@contextmanager
def queue_at(url: str, name: str) -> Iterator[Queue]:
    """Make a queue, behind a client that is closed at the end."""
    client = get_session().create_client("sqs", REGION, endpoint_url=url, **CREDENTIALS)
    try:
        made = client.create_queue(QueueName=name, Attributes={"FifoQueue": "true"})
        yield Queue(client, made["QueueUrl"])
    finally:
        client.close()


@contextmanager
def control_plane(directory: Path) -> Iterator[tuple[int, Path]]:
    """Run the reference receiver; give its port and the file it prints events to."""
    for file, content in FILES["byoc-alerts"].items():
        (directory / file).write_text(content)
    said = directory / "events"
    files = ("--token-file", "token", "--signing-secret-file", "signing-secret")
    with (
        said.open("wb") as out,
        subprocess.Popen(
            [sys.executable, "-m", "lab.receiver", *files],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(install.ROOT)},
            stdout=out,
        ) as process,
    ):
        try:
            first = eventually(lambda: said.read_text().partition("\n")[1] and said.read_text())
            yield int(first.split("\n")[0].rpartition(":")[2].partition("/")[0]), said
        finally:
            process.kill()


@contextmanager
def old_clickhouse(made: Sandbox) -> Iterator[Container]:
    """Run Debian's ClickHouse as the rendered container would: its uid, limits and volumes."""
    (spec,) = made.pod.spec["containers"]
    data = made.volumes / "data"
    for name in ("data", "tmp"):
        (data / name).mkdir()
        (data / name).chmod(0o2777)
    config = clickhouse.CONFIG.format(
        http_port=8123, tcp_port=9000, directory="/var/lib/clickhouse"
    )
    (data / "config.xml").write_text(config)
    (data / "users.xml").write_text(clickhouse.USERS)
    paths = f"/unpacked{LIBRARIES}:/unpacked/lib/x86_64-linux-gnu:/system"
    options = (
        f"--volume={install.debian().resolve()}:/unpacked:ro",
        f"--volume={LIBRARIES}:/system:ro",
        f"--env=LD_LIBRARY_PATH={paths}",
    )
    command = (
        "/unpacked/usr/sbin/clickhouse-server",
        "--config-file=/var/lib/clickhouse/config.xml",
    )
    with made.run(spec, BASE, *command, options=options) as running:
        eventually(lambda: _answers(made, "http://127.0.0.1:8123/ping"))
        yield running


@dataclass(frozen=True)
class Harness:
    """The pod's sandbox, and the three receivers that it can reach over its loopback."""

    made: Sandbox
    bucket: Bucket
    queue: Queue
    events: Path  # what the control plane printed


@pytest.fixture
def harness(docker: Engine, localstack: RealProcess, tmp_path: Path) -> Iterator[Harness]:
    """Make all of it for one rendered pod; no container of it runs yet."""
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    with ExitStack() as stack:
        bucket = stack.enter_context(bucket_at(localstack.url))
        bucket.create()
        queue = stack.enter_context(queue_at(localstack.url, f"{bucket.name}.fifo"))
        port, events = stack.enter_context(control_plane(tmp_path))
        pod = _rendered(bucket, queue.url.removeprefix(localstack.url))
        made = stack.enter_context(sandbox(docker, pod, volumes, FILES))
        stack.enter_context(made.relaying({4566: localstack.port, 9999: port}))
        yield Harness(made, bucket, queue, events)


@pytest.fixture
def sidecars(harness: Harness, images: Callable[[str], str]) -> Iterator[dict[str, Container]]:
    """Start every sidecar in the order of the pod, and wait for what its liveness probe asks."""
    with ExitStack() as stack:
        found = {}
        for spec in harness.made.pod.ours:
            running = harness.made.run(spec, images(spec["name"]))
            found[spec["name"]] = stack.enter_context(running)
            eventually(partial(_alive, harness.made, spec))
        yield found


def test_the_rendered_pod_meters_tells_and_relays(
    harness: Harness, sidecars: dict[str, Container]
) -> None:
    assert set(sidecars) == {"billing-scraper", "state-exporter", "alert-forwarder"}
    with old_clickhouse(harness.made) as target:
        eventually(lambda: _status(harness.made)["source"] == "process")
        before = used_core_seconds(target)
        harness.made.get("http://127.0.0.1:8123/", BURN)
        eventually(harness.bucket.writes)  # while it runs, not only at the end
        eventually(lambda: SEEN & {str(one["data"]["state"]) for one in harness.queue.take()})
        eventually(lambda: "byoc.alert.heartbeat.v1" in harness.events.read_text())
        after = used_core_seconds(target)
        target.stop()
    for name, sidecar in reversed(sidecars.items()):
        _stopped_well(name, sidecar)
    _billed(harness.bucket, target.id, after - before, after)


def _rendered(bucket: Bucket, queue: str) -> Pod:
    """Return the chart's pod with this bucket and this path of a queue."""
    sets = f"billingScraper.bucket={bucket.name},stateExporter.queueUrl={ENDPOINT}{queue}"
    (pod,) = pods(render.manifests(VALUES, "--set", sets))
    return pod


def _stopped_well(name: str, sidecar: Container) -> None:
    """Stop a sidecar: it stayed within its limit, drained and ended by itself."""
    limit, held = sidecar.inspect()["HostConfig"]["Memory"], resident_bytes(sidecar)
    print(f"{name}: {held / 2**20:.1f} MiB of {limit / 2**20:.0f} MiB")
    assert held < SHARE_OF_LIMIT * limit
    assert sidecar.stop() == 0, sidecar.logs()
    assert sidecar.inspect()["State"]["OOMKilled"] is False


def _billed(bucket: Bucket, identity: str, least: float, most: float) -> None:
    """Check that the usage in S3 is the target's own, read from the kernel, and all of it."""
    records = [one for one in usages(bucket.objects()) if one.quality != "gap"]
    assert {one.source for one in records} == {"process"}
    assert {one.container_id for one in records} == {identity}
    (record, *_) = records
    service = (record.organization_id, record.service_id)
    assert {one.pod_uid for one in records} == {keyed_id(DOWNWARD["metadata.uid"], "pod", *service)}
    report = bucket.verified()
    assert report.findings == []
    print(f"used {least:.2f} of {most:.2f} core-seconds, billed {billed(report):.2f}")
    assert Decimal(least) * Decimal("0.97") <= billed(report) <= Decimal(most) * Decimal("1.1")


def _answers(made: Sandbox, url: str) -> bool:
    try:
        return bool(made.get(url))
    except subprocess.CalledProcessError:
        return False


def _alive(made: Sandbox, spec: dict[str, Any]) -> bool:
    try:
        return made.probe(spec, "livenessProbe").strip() == "ok"
    except subprocess.CalledProcessError:
        return False


def _status(made: Sandbox) -> dict[str, Any]:
    (scraper,) = [one for one in made.pod.ours if one["name"] == "billing-scraper"]
    port = environment(scraper)["BYOC_LISTEN"].rpartition(":")[2]
    daemons = json.loads(made.get(f"http://127.0.0.1:{port}/status"))["daemons"]
    found: dict[str, Any] = daemons["billing-scraper"]
    return found
