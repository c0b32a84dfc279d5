"""The spool stores the ledger's head: a start that finds them apart says so, everywhere."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from byoc_agents.app.clock import SystemClock
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.runtime import Runtime
from byoc_agents.app.settings import CoreSettings
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.gate import Gate
from byoc_agents.ledger import FileLedger
from byoc_agents.ledger.format import RecoveredLine
from byoc_agents.ledger.reader import find_mismatch
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.tree import encode_hash
from lab.fakes.core import ListSink
from tests.unit.alerts.webhook_harness import eventually
from tests.unit.ledger.ledger_fakes import (
    QuickDisk,
    checked,
    files,
    ledger,
    lines,
    message,
    send,
    written,
)

NAME = "billing-scraper"


class Idle:
    """A source that makes nothing."""

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def finish(self) -> None:
        pass

    def status(self) -> dict[str, object]:
        return {}


async def deliver(state_dir: Path, sends: int) -> tuple[FileLedger, Metrics]:
    """Deliver messages as a daemon does; return its ledger and its metrics."""
    core = CoreSettings(
        organization_id="o", service_id="s", region="eu-west-1", replica="r",
        state_dir=str(state_dir), ledger_max_bytes=1 << 20,
    )  # fmt: skip
    metrics = Metrics()
    runtime = Runtime(core, {}, Gate([]), SystemClock(), metrics, configuration_sha256="c" * 64)
    async with runtime.spool(NAME) as spool, runtime.ledger(NAME, spool) as made:
        sink = ListSink()
        daemon = runtime.daemon(NAME, source=Idle(), spool=spool, sink=sink, ledger=made)
        stop = asyncio.Event()
        running = asyncio.create_task(daemon.run(stop, 5))
        await spool.put(*(message(len(lines(made.directory)) * 100 + n) for n in range(sends)))
        await eventually(lambda: len(sink.stored) == sends)
        daemon.observe()
        stop.set()
        await running
        agent = runtime.agent(made)
        assert (agent.ledger_size, agent.ledger_root) == (
            made.tree.size,
            encode_hash(made.tree.root),
        )
    return made, metrics


def gauge(metrics: Metrics, reason: str) -> float | None:
    labels = {"daemon": NAME, "reason": reason}
    return metrics.registry.get_sample_value("byoc_ledger_mismatch", labels)


def remove(directory: Path) -> None:
    shutil.rmtree(directory)


def cut(directory: Path) -> None:
    path = files(directory)[-1]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-4]))


def replace(directory: Path) -> None:
    shutil.rmtree(directory)
    asyncio.run(written(directory, sends=20))


def restore(directory: Path) -> None:
    shutil.rmtree(directory)
    shutil.copytree(directory.with_name("snapshot"), directory)


@pytest.mark.parametrize(
    ("change", "why"),
    [(remove, "lost"), (replace, "lost"), (cut, "older"), (restore, "older")],
)
def test_a_ledger_that_is_not_the_one_the_spool_knows_is_reported(
    change: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    directory = tmp_path / NAME / "ledger"
    asyncio.run(deliver(tmp_path, 2))
    shutil.copytree(directory, directory.with_name("snapshot"))
    before, _ = asyncio.run(deliver(tmp_path, 3))
    change(directory)
    with capture_logs() as logs:
        made, metrics = asyncio.run(deliver(tmp_path, 1))
    assert made.status()["mismatch"] == why
    assert gauge(metrics, why) == 1
    assert gauge(metrics, "older" if why == "lost" else "lost") == 0
    assert f"ledger.{why}" in [one["event"] for one in logs]
    (line,) = [one for one in lines(directory) if isinstance(one, RecoveredLine)]
    assert (line.why, line.expected) == (why, str(before.tree))
    verdict = checked(directory)
    assert any(f"the spool knew the head {before.tree}" in note for note in verdict.notes)
    again, metrics = asyncio.run(deliver(tmp_path, 1))  # the new history is the known one from here
    assert again.status()["mismatch"] is None
    assert gauge(metrics, why) == 0


def test_a_ledger_that_goes_on_is_not_reported(tmp_path: Path) -> None:
    for _ in range(3):
        made, metrics = asyncio.run(deliver(tmp_path, 2))
        assert made.status()["mismatch"] is None
    assert gauge(metrics, "lost") == gauge(metrics, "older") == 0


def test_a_ledger_that_is_ahead_of_the_spool_is_not_reported(tmp_path: Path) -> None:
    """A kill between the ledger's line and the spool's commit leaves this."""
    asyncio.run(deliver(tmp_path, 2))
    asyncio.run(written(tmp_path / NAME / "ledger", sends=4))
    assert asyncio.run(deliver(tmp_path, 1))[0].status()["mismatch"] is None


async def test_a_spool_without_a_head_reports_nothing(tmp_path: Path) -> None:
    """A spool of 0.1.0, and one that replaced a damaged file."""
    await deliver(tmp_path, 2)
    (tmp_path / NAME / "spool.db").unlink()
    assert (await deliver(tmp_path, 1))[0].status()["mismatch"] is None


async def test_the_head_is_stored_with_each_delivery(tmp_path: Path) -> None:
    """Without an fsync of its own, and never a line that a power cut could take."""
    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as spool:
        await spool.put(message(1))
        await spool.remove(["id-1"], {"ledger/head": b"41 root"})
        assert await spool.state("ledger/") == {"ledger/head": b"41 root"}


async def test_every_head_of_the_kept_files_is_found_again(tmp_path: Path) -> None:
    heads = []
    async with ledger(tmp_path, QuickDisk()) as made:
        for number in range(60):
            await send(made, *(message(1000 * number + n) for n in range(10)))
            heads.append(str(made.tree))
    segments = Segments(tmp_path)
    assert files(tmp_path)[0].name != "ledger-000001.jsonl"
    assert {find_mismatch(segments, head) for head in heads} == {None}
    size, root = heads[-1].split()
    assert find_mismatch(segments, f"{int(size) - 1} {root}") == "lost"
    assert find_mismatch(segments, f"{int(size) + 100} {root}") == "older"
    assert find_mismatch(segments, "nonsense") is None


async def test_a_mismatch_is_stated_once_the_disk_takes_it(tmp_path: Path) -> None:
    await written(tmp_path / "other")
    blocked = tmp_path / "ledger"
    blocked.write_text("a file in place of the directory")
    made = FileLedger(
        blocked, clock=SystemClock(), max_bytes=1 << 20, expected="7 root", disk=QuickDisk()
    )
    async with made:
        assert made.last_error
        blocked.unlink()
        await send(made, message(1))
    assert [line.why for line in lines(blocked) if isinstance(line, RecoveredLine)] == ["lost"]
