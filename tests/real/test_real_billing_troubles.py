"""Errors that a person must repair are named in the log and in /status; nothing is dropped."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lab.fakes.http import Behavior, Request, reply, serve
from lab.fakes.s3 import FakeS3, s3_error
from lab.real.burner import burning
from lab.real.counters import settled
from lab.real.parts.kernel import ControlGroup
from lab.real.parts.localstack import CREDENTIALS, REGION
from lab.real.parts.process import RealProcess
from lab.real.scraper import NAME, Scraper, ending, eventually
from lab.real.stored import Bucket, billed_exactly, bucket_at, verified

GRACE_SECONDS = 1
ELSEWHERE = "us-west-2"


@pytest.fixture
def bucket(localstack: RealProcess) -> Iterator[Bucket]:
    """Name a bucket that is not there yet."""
    with bucket_at(localstack.url) as named:
        yield named


@pytest.fixture
def scraper(tmp_path: Path, bucket: Bucket, cgroup_v1: ControlGroup) -> Iterator[Scraper]:
    settings = {
        **bucket.settings,
        "BYOC_BILLING_TARGET": f"cgroup:{cgroup_v1['cpuacct']}",
        "BYOC_SHUTDOWN_GRACE_SECONDS": str(GRACE_SECONDS),
    }
    with ending(Scraper(tmp_path / "daemon", settings)) as daemon:
        yield daemon


def test_a_bucket_that_is_made_later_gets_everything(
    scraper: Scraper, bucket: Bucket, cgroup_v1: ControlGroup
) -> None:
    truth = held_over_a_restart(scraper, cgroup_v1, "not_found", "404 NoSuchBucket")
    bucket.create()
    eventually(scraper.delivered)
    assert scraper.last_error() == ""
    assert scraper.stop() == 0
    billed_exactly(bucket.verified(), 0, truth)


def test_credentials_that_come_later_are_found(
    scraper: Scraper, bucket: Bucket, cgroup_v1: ControlGroup, tmp_path: Path
) -> None:
    """No restart: the file is read again at each attempt."""
    bucket.create()
    file = tmp_path / "credentials"
    without = {k: v for k, v in scraper.settings.items() if k.lower() not in CREDENTIALS}
    scraper.settings = {**without, "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    truth = held_over_a_restart(scraper, cgroup_v1, "credentials", "no AWS credentials")
    file.write_text("[default]\n" + "".join(f"{k} = {v}\n" for k, v in CREDENTIALS.items()))
    eventually(scraper.delivered)
    assert scraper.last_error() == ""
    assert scraper.stop() == 0
    billed_exactly(bucket.verified(), 0, truth)


@pytest.fixture
async def strict_s3() -> AsyncIterator[FakeS3]:
    """S3's rule on regions, as LocalStack takes any: a request signed for another is refused."""
    moved = s3_error(301, "PermanentRedirect", {"x-amz-bucket-region": REGION})
    refuse = reply(moved.status, moved.headers, moved.body)

    def script(request: Request) -> Behavior:
        return serve if f"/{REGION}/s3/" in request.headers["authorization"] else refuse

    async with FakeS3(script) as s3:
        yield s3


async def test_a_wrong_region_is_named_and_all_is_kept_for_the_right_one(
    scraper: Scraper, strict_s3: FakeS3, cgroup_v1: ControlGroup, tmp_path: Path
) -> None:
    right = {**scraper.settings, "AWS_ENDPOINT_URL_S3": strict_s3.url}
    scraper.settings = {**right, "BYOC_REGION": ELSEWHERE}
    detail = f"the bucket is in {REGION}, we are in {ELSEWHERE}"
    truth = await asyncio.to_thread(held_over_a_restart, scraper, cgroup_v1, "wrong_region", detail)
    assert strict_s3.puts == []
    assert await asyncio.to_thread(scraper.stop) == 0
    scraper.settings = right
    await asyncio.to_thread(scraper.start)
    await asyncio.to_thread(scraper.listening)
    await asyncio.to_thread(eventually, scraper.delivered)
    assert await asyncio.to_thread(scraper.stop) == 0
    for key, body in strict_s3.objects.items():
        (tmp_path / "stored" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stored" / key).write_bytes(body)
    billed_exactly(await asyncio.to_thread(verified, str(tmp_path / "stored")), 0, truth)
    assert all(strict_s3.applied(key) == 1 for key in strict_s3.objects)


def held_over_a_restart(scraper: Scraper, group: ControlGroup, reason: str, detail: str) -> int:
    """Burn while the daemon cannot send, stop it, start it again; return the microseconds used."""
    start(scraper)
    with burning("burn", group.command([])) as burner:
        burner.burn(0.5)
    truth = settled(group)
    scraper.sampled()
    assert_held(scraper, reason, detail)
    assert scraper.stop() == 0
    assert scraper.logged("daemon.stopped")[-1]["backlog_events"] > 0
    start(scraper)
    assert_held(scraper, reason, detail)
    return truth


def start(scraper: Scraper) -> None:
    scraper.start()
    scraper.listening()
    scraper.sampled()


def assert_held(scraper: Scraper, reason: str, detail: str) -> None:
    """Check that it says what is wrong where people look, keeps everything and stays ready."""
    eventually(lambda: scraper.last_error() == reason)
    status = scraper.status()
    assert detail in status["last_error"]["detail"]
    assert status["last_error"]["action"] == "hold"
    assert status["backlog"]["events"] > 0
    assert status["backlog"]["dead_letters"] == 0
    held = scraper.logged("message.held")[-1]
    assert (held["daemon"], held["level"], held["reason"]) == (NAME, "error", reason)
    assert detail in held["detail"]
    assert scraper.page("readyz")[0] == 200
