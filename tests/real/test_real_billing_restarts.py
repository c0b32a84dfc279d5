"""The scraper or its target is paused, ended or restarted. Every CPU second is kept."""

import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from lab.real.burner import burning
from lab.real.counters import cpu_usec, settled
from lab.real.parts.kernel import ControlGroup
from lab.real.scraper import WINDOW_SECONDS, Scraper, eventually, passed, scraping
from lab.real.stored import billed, billed_exactly, directory, files, usages, verified

PAUSE_SECONDS = 3.5 * WINDOW_SECONDS


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def scraper(tmp_path: Path, bucket: Path, cgroup_v1: ControlGroup) -> Iterator[Scraper]:
    """Meter the group from when it is empty."""
    target = f"cgroup:{cgroup_v1['cpuacct']}"
    with scraping(tmp_path / "daemon", target, directory(bucket)) as running:
        running.sampled()
        yield running


def test_a_paused_daemon_estimates_and_loses_nothing(
    scraper: Scraper, cgroup_v1: ControlGroup, bucket: Path
) -> None:
    with burning("pulse", cgroup_v1.command([])) as burner:
        burner.pulse()
        scraper.sampled()
        scraper.process.send_signal(signal.SIGSTOP)
        passed(PAUSE_SECONDS)
        scraper.process.send_signal(signal.SIGCONT)
        scraper.sampled()
        burner.rest()
        truth = settled(cgroup_v1)
        assert scraper.stop() == 0
    billed_exactly(verified(str(bucket)), 0, truth)
    estimated = [one for one in usages(files(bucket)) if one.quality == "estimated"]
    print(f"estimated, milliseconds: {[one.elapsed_milliseconds for one in estimated]}")
    assert sum(one.elapsed_milliseconds for one in estimated) >= PAUSE_SECONDS * 1000


def test_the_last_partial_window_arrives_at_sigterm(
    tmp_path: Path, cgroup_v1: ControlGroup, bucket: Path
) -> None:
    target = f"cgroup:{cgroup_v1['cpuacct']}"
    settings = {"BYOC_BILLING_WINDOW_SECONDS": "60", "BYOC_BILLING_SEAL_SECONDS": "3600"}
    with scraping(tmp_path / "daemon", target, directory(bucket), **settings) as scraper:
        scraper.sampled()
        with burning("burn", cgroup_v1.command([])) as burner:
            burner.burn(0.5)
            truth = settled(cgroup_v1)
            assert scraper.stop() == 0
    billed_exactly(verified(str(bucket)), 0, truth)
    last = usages(files(bucket))[-1]
    assert 0 < last.elapsed_milliseconds < 60_000


def test_a_target_that_ends_and_comes_back_is_two_incarnations(
    scraper: Scraper, cgroup_v1: ControlGroup, bucket: Path
) -> None:
    """As a container does: its group is removed, and another one is made at the same path."""
    used = []
    for core_seconds in (0.7, 0.4):
        with burning("burn", cgroup_v1.command([])) as burner:
            burner.burn(core_seconds)
        used.append(settled(cgroup_v1))
        scraper.sampled()
        if len(used) == 1:
            cgroup_v1["cpuacct"].rmdir()
            scraper.sampled()
            cgroup_v1["cpuacct"].mkdir()
            scraper.sampled()
    assert scraper.stop() == 0
    report, records = verified(str(bucket)), usages(files(bucket))
    assert report.findings == []
    assert len({one.incarnation for one in records if one.incarnation}) == 2
    assert sum(one.restart_observed for one in records) == 1
    assert {gap.reason for gap in report.gaps} == {"no_checkpoint", "target_absent"}
    assert billed(report) == Decimal(sum(used)).scaleb(-6)


def test_a_restarted_process_is_two_incarnations(tmp_path: Path, bucket: Path) -> None:
    """Found by its name each time; what it used before it was found counts as well."""
    name = f"target-{tmp_path.name[-8:]}"
    with scraping(tmp_path / "daemon", f"process:{name}", directory(bucket)) as scraper:
        scraper.sampled()
        used = [use_cpu(scraper, name, seconds) for seconds in (1.5, 1.0)]
        assert scraper.stop() == 0
    report, records = verified(str(bucket)), usages(files(bucket))
    incarnations = {one.incarnation for one in records if one.source == "process"}
    assert report.findings == []
    assert sum(one.restart_observed for one in records) == 1
    assert len(incarnations) == 2
    assert float(billed(report)) == pytest.approx(sum(used), abs=0.1)


def use_cpu(scraper: Scraper, name: str, core_seconds: float) -> float:
    """Burn, let it be seen, end; return the core seconds."""
    with burning(name) as burner:
        used = burner.burn(core_seconds, children=1)
        scraper.sampled()
    eventually(lambda: not scraper.status()["source"])
    return used


def test_a_daemon_that_was_killed_bills_what_was_used_meanwhile(
    scraper: Scraper, cgroup_v1: ControlGroup, bucket: Path
) -> None:
    assert scraper.end(signal.SIGKILL) == -signal.SIGKILL
    with burning("burn", cgroup_v1.command([])) as burner:
        burner.burn(0.5)
    truth = settled(cgroup_v1)
    assert cpu_usec(cgroup_v1) == truth
    scraper.start()
    scraper.listening()
    scraper.sampled()
    assert scraper.stop() == 0
    billed_exactly(verified(str(bucket)), 0, truth)
