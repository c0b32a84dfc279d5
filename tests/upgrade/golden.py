"""Write the files that a version leaves when it is killed with a backlog: `versions/VERSION/`.

`python -m tests.upgrade.golden` writes the directory of the version that runs, once, for its
release; directories of older versions are never written again. Until a version is released, remove
its directory and write it again after a change of a format. Spools are stored as SQL, so that a
reader sees their contents; ledgers and objects as they are.
"""

import asyncio
import json
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from byoc_agents import __version__
from byoc_agents.delivery.sink import Sink, Transmit, transmit_unrecorded
from byoc_agents.message import Message, Outcome
from byoc_agents.sinks.directory import DirectorySink
from lab.fakes.core import START_MS, FakeClock, ListSink
from tests.upgrade.daemon_runs import (
    ALERTS,
    BILLING,
    DAEMONS,
    STATE,
    DaemonRun,
    exporter,
    notification,
    open_run,
    relay,
    scraper,
    ticks,
)

GOLDEN = Path(__file__).parent / "versions"
BOOT_SECONDS = 1000.0  # of the clock at the start of the runs
SENT_TICKS, KEPT_TICKS = 132, 126  # of 5 s: 11 minutes that were delivered, 10 that were not
END = "story.json"


def clock_at(version_dir: Path, later_seconds: float = 0) -> FakeClock:
    """Return a clock that stands so long after the moment of the kill."""
    seconds = json.loads((version_dir / END).read_text())["seconds"] + later_seconds
    return FakeClock(START_MS + round(seconds * 1000), BOOT_SECONDS + seconds)


def restore(version_dir: Path, state_dir: Path, bucket: Path) -> None:
    """Lay out a state directory and a bucket as that version left them."""
    shutil.copytree(version_dir / "bucket", bucket)
    for daemon in DAEMONS:
        shutil.copytree(version_dir / daemon / "ledger", state_dir / daemon / "ledger")
        with closing(sqlite3.connect(state_dir / daemon / "spool.db")) as database:
            database.executescript((version_dir / daemon / "spool.sql").read_text())
            database.execute("PRAGMA journal_mode=WAL")


def dumped(spool: Path) -> str:
    """Return a spool file as SQL, with the two marks that SQLite's own dump leaves out."""
    with closing(sqlite3.connect(spool)) as database:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        lines = list(database.iterdump())
    marks = ["PRAGMA auto_vacuum=INCREMENTAL;", f"PRAGMA user_version={version};"]
    return "\n".join([*marks, *lines]) + "\n"


async def write(version_dir: Path) -> None:
    """Run the daemons and keep the files that they leave."""
    with tempfile.TemporaryDirectory() as directory:
        state_dir, bucket, killed = (Path(directory) / x for x in ("state", "bucket", "killed"))
        bucket.mkdir()
        seconds = await _run_daemons(state_dir, bucket, killed)
        for daemon in DAEMONS:
            place = version_dir / daemon
            place.mkdir(parents=True)
            (place / "spool.sql").write_text(dumped(killed / daemon / "spool.db"))
            lines = (killed / daemon / "ledger").glob("*.jsonl")
            (place / "ledger").mkdir()
            for path in lines:
                shutil.copy(path, place / "ledger")
        shutil.copytree(bucket, version_dir / "bucket")
        (version_dir / END).write_text(json.dumps({"seconds": seconds}) + "\n")


async def _run_daemons(state_dir: Path, bucket: Path, killed: Path) -> int:
    """Run each daemon and kill it: its files are copied while it still has them open."""
    runs = {BILLING: _billing, STATE: _state, ALERTS: _alerts}
    for daemon, play in runs.items():
        async with open_run(state_dir, daemon, FakeClock(START_MS, BOOT_SECONDS)) as one:
            await play(one, bucket)
            shutil.copytree(state_dir / daemon, killed / daemon)
            seconds = (one.clock.wall_ns() // 1_000_000 - START_MS) // 1000
    return seconds


async def _billing(one: DaemonRun, bucket: Path) -> None:
    """Leave an object stored, others that wait, staged lines, an open window, a send in flight."""
    sink = _Named(DirectorySink(bucket), "s3://vendor-usage")
    source = scraper(one)
    await ticks(one, source, SENT_TICKS)
    await one.ship(sink)
    await ticks(one, source, KEPT_TICKS)
    await one.ledger.intent(sink.destination, await one.spool.peek())


async def _state(one: DaemonRun, _bucket: Path) -> None:
    """Leave messages delivered, a transition that waits, a dead letter."""
    sink = _Named(ListSink(), "sqs://byoc-state.fifo")
    await ticks(one, exporter(one, readonly=False), SENT_TICKS)
    await one.ship(sink)
    await ticks(one, exporter(one, readonly=True), KEPT_TICKS // 2)
    (refused,) = await one.spool.peek()
    await one.spool.dead_letter(refused, "rejected", "status 400")
    await ticks(one, exporter(one, readonly=False), KEPT_TICKS // 2)


async def _alerts(one: DaemonRun, _bucket: Path) -> None:
    """Leave a beginning delivered, its end and another beginning that wait, a dead letter."""
    sink = _Named(ListSink(), "https://control-plane.example/v1/events")
    await one.clock.advance(300)
    await relay(one).accept(notification(("Down", "firing")))
    await one.ship(sink)
    await one.clock.advance(300)
    await relay(one).accept(notification(("Refused", "firing")))
    (refused,) = await one.spool.peek()
    await one.spool.dead_letter(refused, "rejected", "status 422")
    await relay(one).accept(notification(("Down", "resolved"), ("Full", "firing")))
    await one.clock.advance((SENT_TICKS + KEPT_TICKS) * 5 - 600)


class _Named:
    """A sink that goes by the name it would have in a data plane."""

    def __init__(self, sink: Sink, destination: str) -> None:
        self.destination = destination
        self.max_messages, self.max_bytes = sink.max_messages, sink.max_bytes
        self._sink = sink

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        """Send as the other does."""
        return await self._sink.send(batch, transmit)


def main() -> int:
    """Write the directory of this version; refuse where it is there already."""
    place = GOLDEN / __version__
    if place.exists():
        sys.stderr.write(f"{place.relative_to(Path.cwd())} is there: a release never changes\n")
        return 1
    asyncio.run(write(place))
    return 0


if __name__ == "__main__":
    sys.exit(main())
