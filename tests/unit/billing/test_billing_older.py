"""A spool that was rolled back, for example by a damaged journal, gives no wrong bill."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.audit import Audit, Report
from byoc_agents.billing.objects import parse_key
from byoc_agents.billing.rollback import uncertain_since_ms
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.sources.target import TargetObservation
from byoc_agents.durable.spool import Spool
from tests.unit.billing.scraper_harness import SECOND, Harness, recent_sends

MAX_BYTES = 1 << 20


@asynccontextmanager
async def opened(harness: Harness) -> AsyncIterator[None]:
    """Be one process on the directory as it is."""
    async with Spool(harness.directory, max_bytes=MAX_BYTES, clock=harness.clock) as harness.spool:
        harness.scraper = harness.made()
        yield


async def shipped(harness: Harness) -> dict[str, bytes]:
    """Take everything out of the spool, as the shipper does."""
    messages = await harness.spool.peek(1000, 1 << 30)
    harness.sent |= dict.fromkeys((one.id for one in messages), True)
    if messages:
        await harness.spool.remove([one.id for one in messages])
    return {one.id: one.body for one in messages}


def audited(stored: dict[str, bytes]) -> Report:
    audit = Audit()
    for key, body in stored.items():
        audit.add(key, body)
    return audit.report("bucket")


@pytest.mark.parametrize(
    "before", [0, 13, 25, 75], ids=["nothing yet", "one minute", "staged", "sealed"]
)
@pytest.mark.parametrize("lost", [0, 13, 80, 200])
async def test_what_has_left_is_billed_once_and_the_rest_is_stated(
    tmp_path: Path, before: int, lost: int
) -> None:
    harness, earlier = Harness(tmp_path / "state"), tmp_path / "earlier"
    first_ns = harness.clock.boot_ns() + 5 * SECOND  # of the first sample
    async with opened(harness):
        await harness.ticks(before)
        stored = await shipped(harness)
    shutil.copytree(harness.directory, earlier)
    async with opened(harness):
        await harness.ticks(lost)
        await harness.scraper.finish()
        stored |= await shipped(harness)
    shutil.rmtree(harness.directory)
    earlier.rename(harness.directory)
    async with opened(harness):
        await harness.ticks(200)
        await harness.scraper.finish()
        for key, body in (await shipped(harness)).items():
            assert stored.setdefault(key, body) == body, "S3 keeps the first one"
    report = audited(stored)
    assert {one.detail for one in report.findings} <= {"stated: spool_corrupt"}
    billed = sum(total.cpu_core_seconds for total in report.services)
    unrecorded = sum(one.core_seconds for one in report.unrecorded)
    assert billed + unrecorded == Decimal(harness.clock.boot_ns() - first_ns) / SECOND


async def test_usage_is_billed_once_if_the_spool_falls_back_behind_the_start_of_an_epoch(
    tmp_path: Path,
) -> None:
    """The ledger is read only as far back as to the objects of the later epoch."""
    harness, earlier = Harness(tmp_path / "state"), tmp_path / "earlier"
    first_ns = harness.clock.boot_ns() + 5 * SECOND  # of the first sample
    async with opened(harness):
        await harness.ticks(75)
        await harness.sealer.seal_all()
        stored = await shipped(harness)
    shutil.copytree(harness.directory, earlier)
    for _ in range(3):
        harness.sent = dict(list(harness.sent.items())[-1:])
        async with opened(harness):
            await harness.ticks(80)
            await harness.scraper.finish()
            stored |= await shipped(harness)
        shutil.rmtree(harness.directory)
        shutil.copytree(earlier, harness.directory)
    report = audited(stored)
    assert {one.detail for one in report.findings} <= {"stated: spool_corrupt"}
    billed = sum(total.cpu_core_seconds for total in report.services)
    unrecorded = sum(one.core_seconds for one in report.unrecorded)
    assert billed + unrecorded == Decimal(harness.clock.boot_ns() - first_ns) / SECOND


def absent() -> TargetObservation:
    return TargetObservation(None, absent=True)


def born_now(harness: Harness) -> TargetObservation:
    return TargetObservation(
        Reading(
            source="cgroup.v2",
            incarnation="boot-1-8",
            container_id="",
            cpu_usec=0,
            memory_bytes=1 << 30,
            born_boot_ns=harness.clock.boot_ns(),
        )
    )


@pytest.mark.parametrize("after", ["absent", "another"])
@pytest.mark.parametrize("how", ["older", "removed"])
async def test_what_is_lost_is_stated_also_where_its_target_is_gone(
    tmp_path: Path, how: str, after: str
) -> None:
    """As after a restart of the pod: the container is younger than the lost records."""
    harness, earlier = Harness(tmp_path / "state"), tmp_path / "earlier"
    async with opened(harness):
        await harness.ticks(75)
        stored = await shipped(harness)
    shutil.copytree(harness.directory, earlier)
    async with opened(harness):
        await harness.ticks(80)
        if how == "older":
            await harness.scraper.finish()
            stored |= await shipped(harness)
        else:
            await harness.ticks(30)
    if how == "older":
        shutil.rmtree(harness.directory)
        earlier.rename(harness.directory)
    else:
        (harness.directory / "spool.db").unlink()
    await harness.clock.advance(30)
    harness.target.observation = absent() if after == "absent" else born_now(harness)
    async with opened(harness):
        await harness.ticks(5)
        harness.target.observation = born_now(harness)
        await harness.ticks(200)
        await harness.scraper.finish()
        stored |= await shipped(harness)
    report = audited(stored)
    assert {one.detail for one in report.findings} <= {"stated: spool_corrupt"}
    reason = "spool_corrupt" if how == "older" else "no_checkpoint"
    assert reason in {gap.reason for gap in report.gaps}


def keyed(hour: int, sequence: int) -> str:
    folder = f"v1/org=org/service=service/date=2026-11-23/hour={hour:02}"
    return f"{folder}/uid-1-{sequence:010}-{sequence:010}.jsonl.zst"


@pytest.mark.parametrize(
    ("sent", "since"),
    [
        ({}, None),
        ({"another id": True}, None),
        ({keyed(9, 0): True, keyed(11, 2): True, keyed(10, 1): True}, "11"),
        ({keyed(9, 0): True, keyed(10, 1): False}, "09"),
        ({keyed(10, 1): False, keyed(9, 0): False}, "09"),
    ],
    ids=["nothing", "no object", "stored", "one is stored", "announced only"],
)
def test_usage_may_be_missing_from_the_newest_object_on_that_is_stored(
    sent: dict[str, bool], since: str | None
) -> None:
    expected = since and parse_rfc3339(f"2026-11-23T{since}:00:00Z")
    assert uncertain_since_ms(recent_sends(sent)) == expected


async def test_epochs_rise_even_if_the_clock_was_set_back(tmp_path: Path) -> None:
    """`verify` goes by their order."""
    harness = Harness(tmp_path / "state")
    async with opened(harness):
        await harness.ticks(25)
        await harness.scraper.finish()
        before = {key.epoch for key in filter(None, map(parse_key, await shipped(harness)))}
    shutil.rmtree(harness.directory)
    harness.clock.step_wall(-3600)
    async with opened(harness):
        await harness.ticks(25)
        await harness.scraper.finish()
        after = {key.epoch for key in filter(None, map(parse_key, await shipped(harness)))}
    assert max(before) < min(after)


async def test_the_epoch_begun_in_need_is_earlier_than_any_to_come(tmp_path: Path) -> None:
    """Even if the ledger is lost with the spool, but not the lock's number."""
    harness = Harness(tmp_path / "state")
    async with opened(harness):
        await harness.ticks(25)
        await harness.scraper.finish()
        (first,) = {key.epoch for key in filter(None, map(parse_key, await shipped(harness)))}
    harness.sent |= {
        name.replace(str(first), str(first + 9_000_000)): True for name in harness.sent
    }
    (harness.directory / "spool.db").unlink()
    epochs = []
    for sent in (harness.sent, {}):
        harness.sent = dict(sent)
        async with opened(harness):
            await harness.ticks(25)
            await harness.scraper.finish()
            (epoch,) = {key.epoch for key in filter(None, map(parse_key, await shipped(harness)))}
        (harness.directory / "spool.db").unlink()
        harness.clock.step_wall(-3600)
        epochs.append(epoch)
    assert first + 9_000_000 < epochs[0] < epochs[1]
