"""`byoc-control-plane compact`: settings, exit codes, and the directory that `verify` reads."""

import asyncio
import json
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from random import Random

import aiohttp
import pytest

from byoc_agents.app.settings import load
from byoc_agents.audit import Audit
from byoc_agents.audit.readers import Hours, read_directory
from byoc_agents.billing.archive import ArchiveBuilder, ArchiveKey, Shard
from byoc_control_plane.cli import main
from byoc_control_plane.compact import compact, open_bucket
from byoc_control_plane.settings import CompactorSettings
from lab.control_plane.processes import plane_environment
from lab.fakes.billing import objects
from lab.fakes.http import Behavior, Exchange, Request, close, lose, reply, serve
from lab.fakes.s3 import FakeS3
from tests.unit.billing.buckets import audit
from tests.unit.control_plane.compactor_harness import history, landing, with_body

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "BYOC_PLANE_BUCKET": "usage",
    "BYOC_PLANE_REGION": "eu-west-1",
}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, text in KEYS.items():
        monkeypatch.setenv(name, text)
    return dict(KEYS)


async def test_the_exit_code_says_whether_something_is_held(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    messages = landing()
    async with FakeS3() as s3:
        s3.objects = {message.id: message.body for message in messages}
        environ["AWS_ENDPOINT_URL_S3"] = s3.url
        assert await compact(Shard(0, 1), environ, watch=False) == 0
        assert "27 objects in 1 archives, 27 deleted. OK\n" in capsys.readouterr().out
        broken = with_body(messages[0], b"x")
        s3.objects[broken.id.replace("uid-0", "uid-9")] = broken.body
        assert await compact(Shard(0, 1), environ, watch=False) == 1
        out, err = capsys.readouterr()
        assert out == "0 objects in 0 archives, 0 deleted. 1 held: see the log\n"
        assert "object.held" in err
        assert "torn_object" in err
        assert await compact(Shard(0, 1), environ, watch=False, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False, "archives": 0, "archived": 0, "deleted": 0, "held": 1
    }  # fmt: skip


async def test_a_bucket_that_does_not_respond_is_exit_code_2(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    environ["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9"
    assert await compact(Shard(0, 1), environ, watch=False) == 2
    assert "compact.failed" in capsys.readouterr().err


async def test_an_hour_that_may_still_get_objects_is_left_alone(environ: dict[str, str]) -> None:
    async with FakeS3() as s3:
        environ["AWS_ENDPOINT_URL_S3"] = s3.url
        messages = landing(1)
        future = {one.id.replace("date=2026", "date=2999"): one.body for one in messages}
        s3.objects = dict(future)
        assert await compact(Shard(0, 1), environ, watch=False) == 0
        assert s3.objects == future


@pytest.mark.usefixtures("environ")
def test_a_mistyped_shard_or_setting_says_what_is_expected(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["compact", "--shard", "3/3"]) == 2
    assert "expected i/n with i from 0 to n-1" in capsys.readouterr().err
    monkeypatch.setenv("BYOC_PLANE_CLOSE_SECONDS", "-1")
    assert main(["compact", "--shard", "0/3"]) == 2
    assert "BYOC_PLANE_CLOSE_SECONDS: invalid value '-1'" in capsys.readouterr().err
    monkeypatch.delenv("BYOC_PLANE_CLOSE_SECONDS")
    monkeypatch.setenv("BYOC_PLANE_BUCKETS", "usage")
    assert main(["compact", "--shard", "0/3"]) == 2
    assert "BYOC_PLANE_BUCKETS" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [reply(503), lose()], ids=["refused", "answer lost"])
async def test_an_archive_is_sent_again_from_its_first_byte(
    environ: dict[str, str], fault: Behavior
) -> None:
    """It is sent in parts. A second attempt must not continue after the last one of the first."""
    attempts = 0
    body = Random(1).randbytes(1_000_000)

    def script(_request: Request) -> Behavior:
        nonlocal attempts
        attempts += 1
        return fault if attempts == 1 else serve

    async with FakeS3(script) as s3:
        environ["AWS_ENDPOINT_URL_S3"] = s3.url
        own = CompactorSettings(bucket="usage", region="eu-west-1")
        async with open_bucket(own, environ) as bucket:
            await bucket.put_once("key", body)
        assert s3.objects["key"] == body
        assert s3.applied("key") == 1
    assert attempts > 1


@pytest.mark.usefixtures("environ")
def test_the_bucket_is_required(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BYOC_PLANE_BUCKET")
    assert main(["compact", "--shard", "0/1"]) == 2
    assert "BYOC_PLANE_BUCKET" in capsys.readouterr().err


# Directories: copies of a bucket.


def stored(root: Path, objects: dict[str, bytes]) -> Path:
    for key, body in objects.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return root


def archives(prefix: str = "v1/") -> dict[str, bytes]:
    builder = ArchiveBuilder()
    for message in landing():
        builder.add(message.id, message.body)
    manifest, body = builder.finish()
    name = ArchiveKey(prefix, "2026-11-23", "12", Shard(0, 1))
    return {name.body: body, name.manifest: manifest.encode()}


def verified(root: Path, hours: Hours = Hours()) -> Audit:  # noqa: B008  immutable
    made = Audit()
    read_directory(made, root, hours, lambda _objects: None)
    return made


def test_a_copied_archive_is_verified_like_the_objects(tmp_path: Path) -> None:
    expected = audit(landing())
    root = stored(tmp_path, archives() | {one.id: one.body for one in landing()[:4]})
    assert verified(root).report("here") == expected


def test_an_archive_outside_the_hours_is_not_read(tmp_path: Path) -> None:
    root = stored(tmp_path, archives())
    assert verified(root, Hours("2026-11-23T13", "")).report("").objects == 0
    assert verified(root, Hours("2026-11-23T12", "2026-11-23T13")).report("").objects == 27


def test_more_records_than_the_manifest_names_are_found(tmp_path: Path) -> None:
    """Someone who can write both may seal them again; a reader of *.jsonl.zst would load them."""
    whole, short = ArchiveBuilder(), ArchiveBuilder()
    for message in landing(1):
        whole.add(message.id, message.body)
    for message in landing(1)[:-1]:
        short.add(message.id, message.body)
    manifest, body = whole.finish()
    forged = type(manifest)(
        size=manifest.size,
        sha256=manifest.sha256,
        records=manifest.records,
        sources=short.sources,
    )
    name = ArchiveKey("v1/", "2026-11-23", "12", Shard(0, 1))
    root = stored(tmp_path, {name.body: body, name.manifest: forged.encode()})
    report = verified(root).report("")
    assert report.counts["torn_object"] == 1
    assert "more records than its manifest" in report.findings[0].detail


def test_the_command_verifies_archives_without_the_control_plane(tmp_path: Path) -> None:
    root = stored(tmp_path, archives())
    argv = [sys.executable, "-m", "byoc_agents.app.cli", "verify", str(root), "--json"]
    done = subprocess.run(argv, env=plane_environment(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["objects"], report["records"]) == (27, 123)


@pytest.mark.parametrize(("text", "prefix"), [("v1", "v1/"), ("v1/", "v1/"), ("a/b//", "a/b/")])
def test_the_prefix_ends_with_one_slash(text: str, prefix: str) -> None:
    (own,) = load([CompactorSettings], KEYS | {"BYOC_PLANE_PREFIX": text}, {})
    assert own.prefix == prefix


async def test_watching_shows_metrics_until_sigterm() -> None:
    async with FakeS3() as s3, aiohttp.ClientSession() as session:
        s3.objects = {message.id: message.body for message in landing()}
        more = {"AWS_ENDPOINT_URL_S3": s3.url, "BYOC_PLANE_LISTEN": "127.0.0.1:0"}
        argv = ["-m", "byoc_control_plane", "compact", "--shard", "0/1", "--watch"]
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *argv,
            env=plane_environment() | KEYS | more,
            stdout=PIPE,
            stderr=PIPE,
        )
        assert child.stdout
        assert child.stderr
        async with asyncio.timeout(60):
            listening = json.loads(await child.stderr.readline())
            done = await child.stdout.readline()
            url = f"http://127.0.0.1:{listening['port']}/metrics"
            async with session.get(url) as response:
                page = await response.text()
            child.terminate()
            assert await child.wait() == 0
    assert done == b"27 objects in 1 archives, 27 deleted. OK\n"
    assert 'byoc_plane_objects_total{outcome="archived"} 27.0' in page
    assert "byoc_plane_held_objects 0.0" in page


@pytest.mark.parametrize("lost", [False, True], ids=["not done", "done"])
async def test_sigkill_at_a_request_to_s3_leaves_the_same_bytes(lost: bool) -> None:
    """The server kills the process at a request, before or after S3 executes it."""
    one = history(0)
    messages = objects((one.measured() for _ in range(4)), size=2)
    async with FakeS3() as s3:
        s3.objects = {message.id: message.body for message in messages}
        assert await run_killed(s3) == 0
        expected, requests = dict(s3.objects), len(s3.http.requests)
    for number in range(requests):
        async with FakeS3() as s3:
            s3.objects = {message.id: message.body for message in messages}
            assert await run_killed(s3, number, lost=lost) == -signal.SIGKILL
            assert await run_killed(s3) == 0
            assert s3.objects == expected, number


async def run_killed(s3: FakeS3, number: int = -1, *, lost: bool = False) -> int | None:
    """Run the command; kill it at its request of this number; return its exit code."""
    started = asyncio.Event()
    child: asyncio.subprocess.Process | None = None
    first = len(s3.http.requests)

    async def kill(exchange: Exchange) -> None:
        await started.wait()
        if lost:
            exchange.apply(exchange.request)
        assert child
        child.kill()
        await close(exchange)

    s3.http.script = lambda request: kill if request.number == first + number else serve
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "byoc_control_plane", "compact", "--shard", "0/1"),
        env=plane_environment() | KEYS | {"AWS_ENDPOINT_URL_S3": s3.url},
        stdout=PIPE,
        stderr=PIPE,
    )
    started.set()
    await child.communicate()
    return child.returncode
