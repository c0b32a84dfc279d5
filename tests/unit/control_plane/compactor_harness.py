"""A bucket of the S3 fake, compactors on it, and audits of it."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiobotocore.session import get_session

from byoc_agents.audit import Audit, Report
from byoc_agents.audit.bucket import read_bucket
from byoc_agents.audit.readers import Hours
from byoc_agents.billing.archive import Shard
from byoc_agents.egress.aws import aws_config
from byoc_agents.egress.destinations import s3_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.message import Message
from byoc_agents.sinks.s3 import addressing
from byoc_control_plane.bucket import Bucket
from byoc_control_plane.compactor import Compactor, Tally
from byoc_control_plane.key_list import ITEM_BYTES
from byoc_control_plane.metrics import PlaneMetrics
from lab.fakes.billing import ReplicaHistory, eventful, objects
from lab.fakes.http import Script, serving
from lab.fakes.s3 import FakeS3

BEFORE = "2026-11-23T14"  # the histories' records are of the hours 12 and 13
ARCHIVE = "v1/archive/date=2026-11-23/hour=12/shard-0-of-1"
WHOLE = Shard(0, 1)


def history(number: int, **fields: Any) -> ReplicaHistory:
    """Return a replica of its own."""
    return ReplicaHistory(replica=f"r-{number}", pod_uid=f"uid-{number}", seed=number, **fields)


def landing(replicas: int = 3, size: int = 5) -> list[Message]:
    """Return the objects of replicas with gaps, restarts and two epochs: 41 records each."""
    return [
        one for number in range(replicas) for one in objects(eventful(history(number)), size=size)
    ]


class Harness:
    """One bucket."""

    def __init__(self, script: Script = serving) -> None:
        self.s3 = FakeS3(script)
        self.metrics = PlaneMetrics()
        self.client: Any

    def add(self, messages: Iterable[Message]) -> None:
        self.s3.objects.update({message.id: message.body for message in messages})

    async def compact(
        self,
        shard: Shard = WHOLE,
        *,
        before: str = BEFORE,
        max_sources: int = 50_000,
        max_listed_bytes: int = 10**9,
    ) -> Tally:
        bucket = Bucket(self.client, "usage")
        bounds = {"max_sources": max_sources, "max_listed_bytes": max_listed_bytes}
        return await Compactor(bucket, "v1/", shard, self.metrics, **bounds).run(before)

    async def compact_in_steps(self) -> Tally:
        """Compact with so little memory that there are several lists and archives."""
        return await self.compact(max_sources=4, max_listed_bytes=4 * ITEM_BYTES)

    async def verify(self) -> Report:
        """Return the report of `byoc-agents verify s3://usage/v1/`."""
        audit = Audit()
        await read_bucket(audit, self.client, ("usage", "v1/"), Hours(), lambda _objects: None)
        return audit.report("s3://usage/v1/")

    def stored(self, archived: bool) -> dict[str, bytes]:
        """Return the objects that are archives or manifests, or the others."""
        items = self.s3.objects.items()
        return {key: body for key, body in items if key.startswith("v1/archive/") == archived}

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@asynccontextmanager
async def opened(
    messages: Iterable[Message] = (), script: Script = serving
) -> AsyncIterator[Harness]:
    """Yield a harness with these objects. Its client tries each request once."""
    harness = Harness(script)
    harness.add(messages)
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    async with harness.s3:
        url = harness.s3.url
        config = aws_config(
            Gate([s3_destination("usage", "eu-west-1", url)]), s3=addressing("usage", url)
        )
        place: dict[str, Any] = {"endpoint_url": url, "region_name": "eu-west-1"}
        async with get_session().create_client("s3", config=config, **place, **keys) as client:
            harness.client = client
            yield harness


def with_body(message: Message, body: bytes) -> Message:
    """Return an object with other bytes under its key."""
    return msgspec.structs.replace(message, body=body)


def by_key(report: Report) -> Report:
    """Return the report with its findings in one order: held objects are audited last."""
    found = sorted(report.findings, key=repr)
    return msgspec.structs.replace(report, findings=found)
