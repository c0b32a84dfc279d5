"""The state directory on a real file system that gets full, or that the kernel makes read-only.

Meanwhile the bucket is not there, so nothing can be delivered either. The final bill is
compared with the kernel's counter, to the microsecond.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.real.burner import burning
from lab.real.counters import settled
from lab.real.disks import DISK_BYTES, fill, make_read_only, repair
from lab.real.parts import kernel
from lab.real.parts.kernel import ControlGroup
from lab.real.parts.process import RealProcess
from lab.real.scraper import WINDOW_SECONDS, Scraper, eventually, passed, scraping
from lab.real.stored import Bucket, billed_exactly, bucket_at, usages

FULL_SECONDS = 3.5 * WINDOW_SECONDS


@pytest.fixture
def bucket(localstack: RealProcess) -> Iterator[Bucket]:
    """Name a bucket that is not there yet."""
    with bucket_at(localstack.url) as named:
        yield named


def test_a_full_disk_makes_longer_windows_and_loses_no_cpu_second(
    tmp_path: Path, small_disk: Path, bucket: Bucket, cgroup_v1: ControlGroup
) -> None:
    with metering(tmp_path, small_disk, bucket, cgroup_v1) as scraper:
        with burning("pulse", cgroup_v1.command([])) as burner:
            burner.pulse()
            eventually(lambda: scraper.last_error() == "not_found")
            with full(small_disk):
                cannot_write(scraper, "disk is full")
            eventually(lambda: scraper.page("readyz")[0] == 200)
        truth = settled(cgroup_v1)  # of all, its end included
        bucket.create()
        assert scraper.logged("daemon.task_failed") == []
        assert scraper.stop() == 0  # it sends all within its grace period
    longest_seconds = assert_all_there(bucket, truth)
    assert longest_seconds > WINDOW_SECONDS  # now and then it finds a free block and uses it


def test_a_read_only_disk_ends_in_good_order_and_loses_no_cpu_second(
    tmp_path: Path, bucket: Bucket, cgroup_v1: ControlGroup
) -> None:
    """The kernel turns ext4 read-only when it meets an error; only a repair turns it back."""
    with (
        kernel.ext4(tmp_path / "disk", DISK_BYTES) as disk,
        metering(tmp_path, disk, bucket, cgroup_v1, grace_seconds=2) as scraper,
    ):
        with burning("pulse", cgroup_v1.command([])) as burner:
            burner.pulse()
            eventually(lambda: scraper.last_error() == "not_found")
            make_read_only(disk)
            cannot_write(scraper, "readonly")
            assert scraper.stop() == 0
            assert scraper.logged("daemon.task_failed") == []
            repair(disk)
            bucket.create()
            scraper.start()
            scraper.listening()
            eventually(scraper.delivered)
        truth = settled(cgroup_v1)
        assert scraper.stop() == 0
    longest_seconds = assert_all_there(bucket, truth)
    assert longest_seconds >= FULL_SECONDS


@contextmanager
def metering(
    place: Path, disk: Path, bucket: Bucket, group: ControlGroup, grace_seconds: int = 30
) -> Iterator[Scraper]:
    """Run a scraper whose state is on that disk, from before the group is used."""
    settings = {**bucket.settings, "BYOC_SHUTDOWN_GRACE_SECONDS": str(grace_seconds)}
    state = {"BYOC_STATE_DIR": str(disk / "state")}
    target = f"cgroup:{group['cpuacct']}"
    with scraping(place / "daemon", target, settings, **state) as scraper:
        scraper.sampled()
        yield scraper


def cannot_write(scraper: Scraper, why: str) -> None:
    """Wait until it says so, and check that it goes on for a few windows, not ready but alive."""
    eventually(lambda: scraper.page("readyz")[0] == 503)
    passed(FULL_SECONDS)
    code, text = scraper.page("readyz")
    print(f"not ready: {text.strip()}")
    assert code == 503
    assert "billing-scraper: spool: " in text
    assert why in text
    assert scraper.page("healthz")[0] == 200


def assert_all_there(bucket: Bucket, truth: int) -> float:
    """Check the bucket against the counter; return how long the longest window was, seconds."""
    records = usages(bucket.objects())
    longest = max(one.elapsed_milliseconds for one in records)
    print(f"{len(records)} records, the longest window {longest} ms, {truth} us of CPU")
    billed_exactly(bucket.verified(), 0, truth)
    return longest / 1000


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Keep a disk full: what the daemon gives back (its journal, its reserve) is taken at once."""
    other, over = disk / "other", threading.Event()

    def take() -> None:
        while not over.wait(0.01):
            fill(other)

    fill(other)
    taking = threading.Thread(target=take)
    taking.start()
    try:
        yield
    finally:
        over.set()
        taking.join()
        other.unlink()
