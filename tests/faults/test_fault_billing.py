"""Exactly once, with an oracle: kills at every step, lost responses, bad responses, lost disks.

The oracle is the S3 fake (each object written, and how often), the shipped verifier (nothing
missing, doubled, torn or overlapping) and the truth about the target's counter.
"""

import asyncio
import multiprocessing
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.audit import Audit, Report
from lab.fakes.http import (
    Behavior,
    Request,
    always,
    cut,
    drip,
    hang,
    lose,
    reply,
    reset,
    serve,
    serving,
)
from lab.fakes.http import close as close_connection
from lab.fakes.s3 import FakeS3, s3_error
from tests.faults.killable_scraper import SAMPLE_SECONDS, ScraperRun, cpu_usec, run_scraper

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.faults.killable_scraper"])
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # for the fork server's preload
TICKS = 24  # two minutes: 12 windows, 4 objects
SEEDS = range(int(os.environ.get("FAULT_SEEDS", "5")))  # `make test-real` runs 40
BAD_RESPONSES: dict[str, Behavior] = {
    "409": reply(409, body=s3_error(409, "ConditionalRequestConflict").body),
    "403": reply(403, body=s3_error(403, "AccessDenied").body),
    "404": reply(404, body=s3_error(404, "NoSuchBucket").body),
    "301": reply(301, body=s3_error(301, "PermanentRedirect").body),
    "500": reply(500, body=s3_error(500, "InternalError").body),
    "503 throttled": reply(503, body=s3_error(503, "SlowDown").body),
    "hang": hang,
    "slow": drip(),
    "closed": close_connection,
    "reset": reset,
    "half-closed": cut(),
    "applied, response lost": lose(),
    "applied, connection reset": lose(reset),
}


class Harness:
    """Runs follow each other on one state directory, in front of one bucket."""

    def __init__(self, directory: Path, s3: FakeS3) -> None:
        self.directory = directory
        self.s3 = s3
        self.second = 0
        self.kills = 0

    async def run(self, ticks: int = TICKS, **how: Any) -> int | None:
        """Run the scraper to its end; return its exit code, -9 when it was killed."""
        process = self.start(ticks, **how)
        await asyncio.to_thread(process.join)
        return self.ended(process, ticks)

    def start(self, ticks: int = TICKS, **how: Any) -> ForkServerProcess:
        run = ScraperRun(self.directory, self.s3.url, self.second, ticks, **how)
        process = CONTEXT.Process(target=run_scraper, args=(run,))
        process.start()
        return process

    def ended(self, process: ForkServerProcess, ticks: int) -> int | None:
        self.second += ticks * SAMPLE_SECONDS
        self.kills += process.exitcode == -9
        return process.exitcode

    async def settle(self) -> Report:
        """Run the scraper a last time in good order and audit what the bucket holds."""
        self.s3.http.script = serving
        assert await self.run(finish=True) == 0
        audit = Audit()
        for key, body in sorted(self.s3.objects.items()):
            audit.add(key, body)
        return audit.report("bucket")

    def billed(self, report: Report) -> Decimal:
        return sum((total.cpu_core_seconds for total in report.replicas), Decimal(0))


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with FakeS3() as s3:
        yield Harness(tmp_path / "state", s3)


def assert_exactly_once(harness: Harness, report: Report) -> None:
    """Check the bucket against the truth from the first sample to the last."""
    lost = [f for f in report.findings if f.detail == "stated: spool_corrupt"]
    assert report.findings == lost
    assert all(harness.s3.applied(key) == 1 for key in harness.s3.objects)
    unrecorded = sum((u.core_seconds for u in report.unrecorded), Decimal(0))
    unrecorded += sum((f.core_seconds or Decimal(0) for f in lost), Decimal(0))
    truth = cpu_usec(harness.second) - cpu_usec(SAMPLE_SECONDS)
    assert harness.billed(report) + unrecorded == Decimal(truth) / 1_000_000


async def test_an_undisturbed_run_is_complete(harness: Harness) -> None:
    report = await harness.settle()
    assert_exactly_once(harness, report)
    assert len(harness.s3.objects) >= TICKS * SAMPLE_SECONDS // 30


async def test_a_kill_at_every_step_of_seal_put_and_ack(harness: Harness) -> None:
    """The state directory and the bucket go on from one killed run to the next."""
    assert await harness.run(ticks=1) == 0
    step = 0
    exit_code: int | None = -9
    while exit_code == -9:
        step += 1
        exit_code = await harness.run(ticks=13, kill_at=step)
    report = await harness.settle()
    print(f"kills={harness.kills} steps={step} objects={report.objects} records={report.records}")
    assert harness.kills >= 20
    assert_exactly_once(harness, report)


@pytest.mark.parametrize("seed", SEEDS)
async def test_kills_at_random_moments_while_s3_answers_badly(harness: Harness, seed: int) -> None:
    rng = random.Random(seed)
    assert await harness.run(ticks=1) == 0
    harness.s3.http.script = badly(rng, list(BAD_RESPONSES.values()), chance=0.4)
    for _ in range(4):
        process = harness.start(ticks=TICKS, attempt_seconds=0.05)
        await asyncio.sleep(rng.random() * 0.4)
        process.kill()
        await asyncio.to_thread(process.join)
        harness.ended(process, TICKS)
    report = await harness.settle()
    print(f"seed={seed} kills={harness.kills} objects={report.objects} records={report.records}")
    assert_exactly_once(harness, report)


@pytest.mark.parametrize("behavior", BAD_RESPONSES.values(), ids=BAD_RESPONSES)
async def test_nothing_is_dropped_while_s3_answers(harness: Harness, behavior: Behavior) -> None:
    harness.s3.http.script = always(behavior)
    assert await harness.run(attempt_seconds=0.05) == 0
    assert_exactly_once(harness, await harness.settle())


async def test_a_full_disk_makes_longer_windows_and_loses_no_cpu_second(harness: Harness) -> None:
    assert await harness.run() == 0
    held = len(harness.s3.objects)
    assert await harness.run(max_file_bytes=spool_bytes(harness)) == 0
    assert_exactly_once(harness, await harness.settle())
    assert len(harness.s3.objects) > held


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_corrupt_spool_is_set_aside_and_stated(harness: Harness, seed: int) -> None:
    rng = random.Random(seed)
    assert await harness.run() == 0
    harness.s3.http.script = always(BAD_RESPONSES["503 throttled"])
    assert await harness.run() == 0
    damage(harness.directory / "spool.db", rng)
    assert await harness.run() == 0
    report = await harness.settle()
    aside = list(harness.directory.glob("spool.db.corrupt-*"))
    print(f"seed={seed} set_aside={len(aside)} gaps={[gap.reason for gap in report.gaps]}")
    assert_exactly_once(harness, report)
    assert {gap.reason for gap in report.gaps} >= ({"spool_corrupt"} if aside else set())
    assert len(aside) == len(report.epoch_ends)


async def test_a_lost_state_directory_is_stated_and_nothing_is_billed_twice(
    harness: Harness,
) -> None:
    assert await harness.run() == 0
    shutil.rmtree(harness.directory)
    report = await harness.settle()
    assert_exactly_once(harness, report)
    assert "no_checkpoint" in {gap.reason for gap in report.gaps}
    assert len(report.epoch_ends) == 1


def badly(
    rng: random.Random, behaviors: list[Behavior], chance: float
) -> Callable[[Request], Behavior]:
    return lambda _: rng.choice(behaviors) if rng.random() < chance else serve


def spool_bytes(harness: Harness) -> int:
    return max(path.stat().st_size for path in harness.directory.iterdir())


def damage(path: Path, rng: random.Random) -> None:
    """Overwrite one page of the file with noise; the last commits may be in the journal."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(0, len(content), 4096)
    content[start : start + 4096] = rng.randbytes(min(4096, len(content) - start))
    path.write_bytes(content)
