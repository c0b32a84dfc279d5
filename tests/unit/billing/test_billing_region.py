"""A bucket in another region than ours would be reached by the NAT: the daemon does not start."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from lab.fakes.http import Behavior, Request, always, close, reply, serve
from lab.fakes.s3 import FakeS3


async def start(s3: FakeS3, tmp_path: Path) -> Process:
    environ = {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REGION": "eu-west-1",
        "BYOC_BILLING_BUCKET": "usage",
        "BYOC_BILLING_TARGET": f"pid:{os.getpid()}",
        "BYOC_STATE_DIR": str(tmp_path),
        "BYOC_LISTEN": "127.0.0.1:0",
        "AWS_ENDPOINT_URL_S3": s3.url,
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    command = [sys.executable, "-m", "byoc_agents.app.cli", "run", "billing-scraper"]
    return await asyncio.create_subprocess_exec(*command, env=environ, stderr=PIPE)


def of_region(region: str) -> Behavior:
    """Return S3's response to a stranger: no, but in that region."""
    return reply(403, {"x-amz-bucket-region": region})


async def test_it_stops_at_the_start_and_names_both_regions(tmp_path: Path) -> None:
    async with FakeS3(always(of_region("us-west-2"))) as s3:
        process = await start(s3, tmp_path)
        _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    printed = errors.decode().splitlines()[-1]
    assert printed == (
        "BYOC_BILLING_BUCKET: the bucket is in us-west-2: expected BYOC_REGION, eu-west-1"
    )
    (asked,) = s3.http.requests
    assert (asked.method, asked.path, asked.body) == ("HEAD", "/usage", b"")
    assert "authorization" not in asked.headers


@pytest.mark.parametrize("response", [of_region("eu-west-1"), reply(404), close, serve])
async def test_it_starts_if_the_region_is_ours_or_not_reported(
    response: Behavior, tmp_path: Path
) -> None:
    def script(request: Request) -> Behavior:
        return response if request.method == "HEAD" else serve

    async with FakeS3(script) as s3:
        process = await start(s3, tmp_path)
        assert process.stderr
        while b"daemon.started" not in await asyncio.wait_for(process.stderr.readline(), 60):
            assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
