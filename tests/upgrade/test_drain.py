"""`byoc-agents drain`: an old directory is emptied while another one has taken its place."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from byoc_agents import __version__
from byoc_agents import audit as verify
from byoc_agents.sinks.directory import DirectorySink
from tests.upgrade.daemon_runs import BILLING, STATE, open_run, scraper, ticks
from tests.upgrade.golden import GOLDEN, clock_at, restore

HERE = GOLDEN / __version__
PATIENCE_SECONDS = 60  # on a machine that is busy with other things


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Lay out a state directory that was moved away, the bucket it fed, and room for a queue."""
    restore(HERE, tmp_path / "aside", tmp_path / "bucket")
    (tmp_path / "queue.fifo").mkdir()
    return tmp_path


@contextmanager
def draining(place: Path, daemon: str) -> Iterator[subprocess.Popen[str]]:
    environment = {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REPLICA": "replica-0",
        "BYOC_REGION": "eu-west-1",
        "BYOC_STATE_DIR": str(place / "aside"),
        "BYOC_BILLING_BUCKET": f"file://{place / 'bucket'}",
        "BYOC_STATE_QUEUE_URL": f"file://{place / 'queue.fifo'}",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "byoc_agents.app.cli", "drain", daemon],
        env={"PATH": os.environ["PATH"], **environment},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_nothing_is_lost_or_doubled_when_another_directory_has_gone_on_meanwhile(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = clock_at(HERE, 60)
    async with open_run(place / "new", BILLING, clock) as one:
        source = scraper(one)
        await ticks(one, source, 60)
        await source.finish()
        await one.ship(DirectorySink(place / "bucket"))
    with draining(place, BILLING) as process:
        assert process.wait(PATIENCE_SECONDS) == 0
    capsys.readouterr()
    assert verify.main([str(place / "bucket"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == []
    async with open_run(place / "aside", BILLING, clock) as one:
        assert one.spool.totals.events == 0


def test_what_is_left_is_said_by_the_exit_code(place: Path) -> None:
    """The backlog is delivered; the dead letter stays, and is for somebody to look at."""
    with draining(place, STATE) as process:
        assert process.wait(PATIENCE_SECONDS) == 1
    assert len(list((place / "queue.fifo").iterdir())) == 2


def test_it_can_be_stopped_while_the_receiver_is_away_and_loses_nothing(place: Path) -> None:
    bucket = (place / "bucket").rename(place / "not-mounted")
    with draining(place, BILLING) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line)["event"] == "message.held":
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 1
    bucket.rename(place / "bucket")
    with draining(place, BILLING) as process:
        assert process.wait(PATIENCE_SECONDS) == 0
    assert verify.main([str(place / "bucket")]) == 0
