"""The compactor's own GET: botocore's signature, and botocore for all but a whole response."""

import base64
import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiobotocore.session import get_session
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from byoc_agents.billing.archive import Shard
from byoc_agents.egress.destinations import s3_destination
from byoc_agents.egress.gate import Gate
from byoc_control_plane.bucket import Bucket
from byoc_control_plane.compactor import Compactor
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.quick_get import QuickGet
from byoc_control_plane.quick_http import QuickHttp
from byoc_control_plane.signature import Keys
from lab.fakes.http import FakeHttp, Script, close, cut, garbage, in_order, reply, serve
from lab.fakes.s3 import FakeS3
from tests.unit.control_plane.compactor_harness import BEFORE, landing, opened

KEY = "v1/org=o 1/service=s+\u00fc/date=2026-11-23/hour=12/a~b_c-1-0-1.jsonl.zst"
BODY = b"records"
GOOD = base64.b64encode(hashlib.sha256(BODY).digest()).decode()


async def keys() -> Keys:
    return Keys("AKID", "secret", "token")


@asynccontextmanager
async def quick_get(url: str) -> AsyncIterator[QuickGet]:
    gate = Gate([s3_destination("usage", "eu-west-1", url, setting="BUCKET")])
    async with QuickHttp(gate, url, user_agent="quick", max_body_bytes=1000) as http:
        yield QuickGet(http, f"{url}/usage/", "eu-west-1", keys, lambda: 10**18)


@pytest.mark.parametrize("token", ["token", None])
async def test_the_signature_is_that_of_botocore(token: str | None) -> None:
    async with quick_get("http://127.0.0.1:9000") as quick:
        path = quick.path(KEY)
        headers = {"x-amz-checksum-mode": "ENABLED"}
        request = AWSRequest("GET", f"http://127.0.0.1:9000{path}", headers)
        S3SigV4Auth(Credentials("AKID", "secret", token), "s3", "eu-west-1").add_auth(request)
        stamp = dt.datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%S%z")
        now_ns = int(stamp.timestamp()) * 10**9
        given = quick.sign(path, Keys("AKID", "secret", token), now_ns)
    folder = "/usage/v1/org%3Do%201/service%3Ds%2B%C3%BC/date%3D2026-11-23/hour%3D12"
    assert path == f"{folder}/a~b_c-1-0-1.jsonl.zst"
    assert {name.lower(): text for name, text in given.items()} == {
        name.lower(): text for name, text in request.headers.items()
    }


@pytest.mark.parametrize(
    ("status", "headers", "body", "found"),
    [
        (200, {}, BODY, BODY),
        (200, {"x-amz-checksum-sha256": GOOD, "x-amz-checksum-type": "FULL_OBJECT"}, BODY, BODY),
        (200, {"x-amz-checksum-sha256": GOOD}, b"other", None),
        (200, {"x-amz-checksum-crc32": "AAAAAA=="}, BODY, None),  # botocore's part
        (200, {}, b"", b""),
        (301, {"location": "http://127.0.0.1:1/"}, BODY, None),
        (403, {}, BODY, None),
        (404, {}, BODY, None),
        (503, {}, BODY, None),
    ],
)
async def test_only_a_whole_response_with_its_checksum_is_used(
    status: int, headers: Mapping[str, str], body: bytes, found: bytes | None
) -> None:
    script = in_order(reply(status, headers, body))
    async with FakeHttp(script) as server, quick_get(server.url) as quick:
        assert await quick.get(KEY) == found
        assert len(server.requests) == 1


@pytest.mark.parametrize("behavior", [close, cut(), garbage()], ids=["closed", "cut", "garbage"])
async def test_a_connection_that_fails_is_left_to_botocore(behavior: Any) -> None:
    def script(_: object) -> Any:
        return behavior

    async with FakeHttp(script) as server, quick_get(server.url) as quick:
        assert await quick.get(KEY) is None


def failing(status: int) -> Script:
    """Answer each GET of the compactor's own with a failure, and those of botocore as S3 does."""
    failed = reply(status, {}, b"")
    return lambda request: (
        failed if request.method == "GET" and request.headers["user-agent"] == "quick"
        and request.path.count("=") else serve
    )  # fmt: skip


@pytest.mark.parametrize("status", [200, 503])
async def test_an_archive_is_the_same_with_either_get(status: int) -> None:
    async with opened(landing()) as harness:
        await harness.compact()
    expected = harness.s3.objects
    script: Script = failing(status) if status != 200 else lambda _: serve
    async with opened(landing(), script) as harness, quick_get(harness.s3.url) as quick:
        bucket = Bucket(harness.client, "usage", quick)
        tally = await Compactor(bucket, "v1/", Shard(0, 1), PlaneMetrics()).run(BEFORE)
        assert (tally.archived, tally.held) == (27, 0)
        assert harness.s3.objects == expected
        reads = [one for one in harness.s3.http.requests if one.path.endswith(".jsonl.zst")]
        gets = sum(one.method == "GET" for one in reads)
    assert gets == (27 if status == 200 else 54)


@pytest.mark.parametrize("quick_too", [True, False])
async def test_a_list_is_the_same_with_and_without_botocore(*, quick_too: bool) -> None:
    async with FakeS3() as fake, AsyncExitStack() as stack:
        fake.page_keys = 3
        names = [f"v1/org=o{n}/a b&<\u00fc>" for n in range(8)]
        names += [] if quick_too else ["v1/org=x/y"]
        fake.objects = dict.fromkeys(names, b"12") | {"v2": b"1"}
        options = {"aws_access_key_id": "AKID", "aws_secret_access_key": "secret"}
        client = await stack.enter_async_context(
            get_session().create_client(
                "s3", endpoint_url=fake.url, region_name="eu-west-1", **options
            )
        )
        quick = await stack.enter_async_context(quick_get(fake.url))
        bucket = Bucket(client, "usage", quick if quick_too else None)
        found = [(one.key, one.size) async for one in bucket.list_objects("v1/org=")]
        assert found == [(name, 2) for name in sorted(names)]
        agents = {one.headers["user-agent"] == "quick" for one in fake.http.requests}
        assert agents == {quick_too}
        assert len(fake.http.requests) == 3


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"<ListBucketResult/>", b"<a><IsTruncated>true</IsTruncated></a>",
     b"<a><IsTruncated>false</IsTruncated><Contents><Key>k</Key></Contents></a>"],
)  # fmt: skip
async def test_a_response_that_is_not_a_list_is_left_to_botocore(body: bytes) -> None:
    async with FakeHttp(in_order(reply(200, {}, body))) as server, quick_get(server.url) as quick:
        assert await quick.list_page("v1/", "") is None
