"""A real scraper process against a real S3: kills, outages, and two copies of one daemon."""

import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from lab.real.burner import burning
from lab.real.counters import settled
from lab.real.parts.kernel import ControlGroup
from lab.real.parts.process import RealProcess
from lab.real.scraper import NAME, Scraper, eventually, passed, scraping
from lab.real.stored import Bucket, billed_exactly, bucket_at, verified

KILLS = 4  # for each seed
SEEDS = [1, 2]
RESTART_AT = 2  # the kill after which S3 itself is restarted, with nothing left in it
RACED_OBJECTS = 4


@pytest.fixture
def bucket(localstack: RealProcess) -> Iterator[Bucket]:
    """Name a bucket that is not there yet."""
    with bucket_at(localstack.url) as named:
        yield named


def test_usage_arrives_and_the_verifier_is_content(
    tmp_path: Path, bucket: Bucket, cgroup_v1: ControlGroup
) -> None:
    bucket.create()
    target = f"cgroup:{cgroup_v1['cpuacct']}"
    with scraping(tmp_path / "daemon", target, bucket.settings) as scraper:
        scraper.sampled()
        with burning("burn", cgroup_v1.command([])) as burner:
            burner.burn(1.0)
        eventually(bucket.writes)  # while it runs, not only at the end
        truth = settled(cgroup_v1)
        assert scraper.stop() == 0
    billed_exactly(bucket.verified(), 0, truth)
    assert set(bucket.writes().values()) == {1}


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random_while_s3_freezes_and_restarts(
    seed: int, tmp_path: Path, bucket: Bucket, localstack: RealProcess, cgroup_v1: ControlGroup
) -> None:
    """An S3 that forgets all at its restart is two stores, of which neither may hold a key twice.

    A key may be in both, where the kill came before the response: then with the same bytes.
    """
    rng = random.Random(seed)
    bucket.create()
    before, target = tmp_path / "stored", f"cgroup:{cgroup_v1['cpuacct']}"
    with (
        scraping(tmp_path / "daemon", target, bucket.settings) as scraper,
        burning("pulse", cgroup_v1.command([])) as burner,
    ):
        scraper.sampled()
        burner.pulse()
        for kill in range(1, KILLS + 1):
            run_scraper(scraper, localstack, rng)
            assert scraper.end(signal.SIGKILL) == -signal.SIGKILL
            if kill == RESTART_AT and seed == SEEDS[0]:
                save(bucket, before)
                localstack.kill()
                localstack.start()
                bucket.create()
            scraper.start()
        burner.rest()
        truth = settled(cgroup_v1)
        scraper.listening()
        scraper.sampled()
        assert scraper.stop() == 0
    save(bucket, before)
    report = verified(str(before))
    print(f"seed={seed} kills={KILLS} objects={report.objects} records={report.records}")
    billed_exactly(report, 0, truth)


def run_scraper(scraper: Scraper, localstack: RealProcess, rng: random.Random) -> None:
    """Let a while go by: during the start, or later; with S3 frozen for a part of it, or not."""
    if rng.random() < 0.75:
        scraper.listening()
        passed(rng.uniform(0.5, 2.0))
    if rng.random() < 0.5:
        with frozen(localstack):
            passed(rng.uniform(0.2, 1.2))
    passed(rng.uniform(0, 0.5))


def save(bucket: Bucket, place: Path) -> None:
    """Copy the bucket's objects into the directory saved before."""
    assert set(bucket.writes().values()) == {1}
    for key, body in bucket.objects().items():
        assert not (place / key).exists() or (place / key).read_bytes() == body
    bucket.copy_to(place)


@contextmanager
def frozen(process: RealProcess) -> Iterator[None]:
    """Stop a process group: connections are accepted by the kernel, nothing is answered."""
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


def test_two_copies_of_one_daemon_race_and_each_object_is_written_once(
    tmp_path: Path, bucket: Bucket, localstack: RealProcess, cgroup_v1: ControlGroup
) -> None:
    """As when a volume was restored while the first pod runs: same identity, same sealed bytes."""
    sealed = sealed_objects(tmp_path / "first", bucket, cgroup_v1)
    bucket.create()
    with ExitStack() as stack:
        with frozen(localstack):  # both have sent their first object before one is answered
            racers = [
                stack.enter_context(racer(tmp_path, name, bucket, cgroup_v1)) for name in "ab"
            ]
            for one in racers:
                eventually(partial(connected, one, localstack.port))
            passed(0.3)
        for one in racers:
            eventually(one.delivered)
        ends = [outcomes(one) for one in racers]
        for one in racers:
            one.end(signal.SIGKILL)  # in good order each would go on with windows of its own
    print(f"objects={len(sealed)} ends={ends}")
    assert bucket.objects() == sealed
    assert set(bucket.writes().values()) == {1}
    assert sum(end["ok"] for end in ends) == len(sealed)
    assert sum(end["already_stored"] for end in ends) == len(sealed)
    assert bucket.verified().findings == []


def sealed_objects(place: Path, bucket: Bucket, group: ControlGroup) -> dict[str, bytes]:
    """Let a daemon seal objects that no bucket takes, kill it, return key -> bytes."""
    target = f"cgroup:{group['cpuacct']}"
    with scraping(place, target, bucket.settings) as scraper:
        eventually(lambda: len(scraper.logged("billing.sealed")) >= RACED_OBJECTS)
        scraper.end(signal.SIGKILL)
    shutil.copytree(place / "state", place / "look")
    with closing(sqlite3.connect(place / "look" / NAME / "spool.db")) as spool:
        return dict(spool.execute("SELECT id, body FROM message ORDER BY id"))


@contextmanager
def racer(tmp_path: Path, name: str, bucket: Bucket, group: ControlGroup) -> Iterator[Scraper]:
    """Start a daemon on a copy of the first one's state; it closes no window of its own."""
    shutil.copytree(tmp_path / "first" / "state", tmp_path / name / "state")
    settings = {"BYOC_BILLING_WINDOW_SECONDS": "60", "BYOC_BILLING_SEAL_SECONDS": "3600"}
    target = f"cgroup:{group['cpuacct']}"
    with scraping(tmp_path / name, target, bucket.settings, **settings) as running:
        yield running


def connected(scraper: Scraper, port: int) -> bool:
    """Return whether it has a connection to that port."""
    peers = psutil.Process(scraper.process.pid).net_connections("tcp4")
    return port in {peer.raddr[1] for peer in peers if peer.status == "ESTABLISHED"}


def outcomes(scraper: Scraper) -> dict[str, int]:
    """Return how its attempts ended."""
    reasons = ("ok", "already_stored", "conflict")
    return {
        reason: scraper.counted("byoc_send_attempts_total", result=reason) for reason in reasons
    }
