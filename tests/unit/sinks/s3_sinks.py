"""Parts for the tests of the S3 sink: messages, and a sink on a fake's address."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.session import AioSession

from byoc_agents.egress.destinations import s3_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.message import Message
from byoc_agents.sinks.s3 import S3Sink
from lab.fakes.http import Behavior, raw
from lab.fakes.s3 import s3_error

MESSAGE = Message(
    id="v1/org=o/date=2026-01-01/a-1.jsonl.zst",
    type="byoc.billing.usage.v1",
    body=b"\x28\xb5\x2f\xfd" + bytes(range(256)),
    created_at_ms=1,
    content_type="application/x-ndjson",
    content_encoding="zstd",
)
HERE = "eu-west-1"


@asynccontextmanager
async def sink_to(url: str, session: AioSession, **options: Any) -> AsyncIterator[S3Sink]:
    gate = Gate([s3_destination("bucket", HERE, url)])
    settings: dict[str, Any] = {"region": HERE, "endpoint_url": url} | options
    async with S3Sink(session, gate, "bucket", **settings) as sink:
        yield sink


def said(status: int, code: str, headers: dict[str, str] | None = None, more: str = "") -> Behavior:
    return raw(s3_error(status, code, headers, more).encode())


THERE = {"x-amz-bucket-region": "us-west-2"}
