"""An older version's files, continued by this one: nothing is lost, doubled or renumbered."""

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from byoc_agents import __version__
from byoc_agents import audit as verify
from byoc_agents.app import dead_letters
from byoc_agents.durable import schema
from byoc_agents.report.cli import main as ledger
from byoc_agents.sinks.directory import DirectorySink
from lab.fakes.core import FakeClock, ListSink
from tests.upgrade.daemon_runs import (
    ALERTS,
    BILLING,
    DAEMONS,
    SAMPLE_SECONDS,
    STATE,
    exporter,
    notification,
    open_run,
    relay,
    scraper,
    ticks,
)
from tests.upgrade.golden import BOOT_SECONDS, GOLDEN, clock_at, restore, write
from tests.upgrade.golden import main as golden

VERSIONS = sorted(path.name for path in GOLDEN.iterdir())
AWAY_SECONDS = 95  # between the kill and the new version's start


@dataclass(frozen=True)
class Old:
    """The unpacked files of a version, read with nothing but sqlite3."""

    version_dir: Path
    state_dir: Path
    bucket: Path

    def clock(self) -> FakeClock:
        return clock_at(self.version_dir, AWAY_SECONDS)

    def rows(self, daemon: str, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.state_dir / daemon / "spool.db")) as database:
            return database.execute(query).fetchall()

    def state(self, daemon: str, key: str) -> Any:
        rows = self.rows(daemon, f"SELECT value FROM state WHERE key = '{key}'")
        return json.loads(rows[0][0])


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Old:
    found = Old(GOLDEN / request.param, tmp_path / "state", tmp_path / "bucket")
    restore(found.version_dir, found.state_dir, found.bucket)
    return found


@pytest.mark.parametrize("daemon", DAEMONS)
async def test_a_backlog_is_delivered_in_its_order_with_its_own_bytes(
    old: Old, daemon: str
) -> None:
    waiting = old.rows(daemon, "SELECT id, body FROM message ORDER BY position")
    assert waiting
    sink = ListSink()
    async with open_run(old.state_dir, daemon, old.clock()) as one:
        assert one.spool.corruptions == 0
        await one.ship(sink)
    assert list(sink.stored.items()) == waiting


async def test_metering_goes_on_in_the_same_epoch_and_the_bucket_verifies(
    old: Old, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old.rows(BILLING, "SELECT count(*) FROM staged")[0][0] > 0
    async with open_run(old.state_dir, BILLING, old.clock()) as one:
        source = scraper(one, "a-name-that-0.1.0-did-not-give")
        await ticks(one, source, 60)
        await source.finish()
        await one.ship(DirectorySink(old.bucket))
        used = Decimal(one.clock.boot_ns()) / 10**9 - int(BOOT_SECONDS + SAMPLE_SECONDS)
    capsys.readouterr()
    assert verify.main([str(old.bucket), "--json"]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=verify.Report)
    assert report.findings == []
    assert [gap.reason for gap in report.gaps] == ["no_checkpoint"]  # of the very first start
    assert sum(total.cpu_core_seconds for total in report.services) == used


async def test_state_messages_go_on_with_the_next_number(old: Old) -> None:
    before = old.state(STATE, "state/replica/replica-0/position")
    sink = ListSink()
    async with open_run(old.state_dir, STATE, old.clock()) as one:
        await one.ship(ListSink())
        await ticks(one, exporter(one, readonly=True), 1)
        await one.ship(sink)
    (data,) = [json.loads(body)["data"] for body in sink.stored.values()]
    assert (data["epoch"], data["sequence"]) == (before["epoch"], before["sequence"])
    assert (data["kind"], data["previous_state"]) == ("transition", before["told"])
    assert data["transition"] == before["transitions"] + 1


async def test_what_was_reported_is_not_reported_again_and_what_follows_is(old: Old) -> None:
    async with open_run(old.state_dir, ALERTS, old.clock()) as one:
        again = relay(one)
        known = [("Down", "resolved"), ("Refused", "firing"), ("Full", "firing")]
        assert await again.accept(notification(*known)) == 0
        assert await again.accept(notification(("Full", "resolved"))) == 1


async def test_an_open_alert_counts_when_it_is_seen_again_and_a_later_start_ends_it(
    old: Old,
) -> None:
    async with open_run(old.state_dir, ALERTS, old.clock()) as one:
        firing = notification(("Full", "firing"), ("Refused", "firing"))
        assert await relay(one).accept(firing) == 0
        continued = relay(one)
        assert await continued.confirm_reopened() == 0
        assert continued.open_episodes()[0] == 2
        later = notification(("Full", "firing")).replace(b"T12:01:00", b"T12:10:00")
        assert await continued.accept(later) == 2
        assert continued.open_episodes()[0] == 2


@pytest.mark.parametrize("daemon", [STATE, ALERTS])
async def test_a_dead_letter_can_be_sent_again(
    old: Old, daemon: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ((letter, body),) = old.rows(daemon, "SELECT id, body FROM dead_letter")
    assert dead_letters.main(["--state-dir", str(old.state_dir), "list"]) == 0
    assert letter in capsys.readouterr().out
    assert dead_letters.main(["--state-dir", str(old.state_dir), "resend", letter]) == 0
    sink = ListSink()
    async with open_run(old.state_dir, daemon, old.clock()) as one:
        await one.ship(sink)
    assert list(sink.stored.items())[-1] == (letter, body)


@pytest.mark.parametrize("daemon", DAEMONS)
async def test_a_ledger_goes_on_in_its_chain(
    old: Old, daemon: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one of 0.1.0, in a second file: the first line of a file states the tree before it."""
    directory = old.state_dir / daemon / "ledger"
    (file,) = directory.glob("*.jsonl")
    before = file.read_bytes()
    async with open_run(old.state_dir, daemon, old.clock()) as one:
        await one.ship(ListSink())
    after = b"".join(path.read_bytes() for path in sorted(directory.glob("*.jsonl")))
    assert after.startswith(before)
    assert len(after) > len(before)
    capsys.readouterr()
    assert ledger(["verify", str(old.state_dir / daemon / "ledger")], {}) == 0, capsys.readouterr()


async def test_a_send_that_the_old_version_had_in_flight_is_stated_as_unknown(old: Old) -> None:
    async with open_run(old.state_dir, BILLING, old.clock()):
        pass
    written = sorted((old.state_dir / BILLING / "ledger").glob("*.jsonl"))
    unknown = [line for file in written for line in _json(file) if line["kind"] == "unknown"]
    assert [line["why"] for line in unknown] == ["crash"]


def test_this_version_has_its_files() -> None:
    """A release adds them: `python -m tests.upgrade.golden`."""
    assert __version__ in VERSIONS


async def test_what_this_version_writes_has_the_shape_that_its_files_show(tmp_path: Path) -> None:
    """Another shape under the same number would be read by an older version, and misread."""
    newest = GOLDEN / __version__
    await write(tmp_path / "made")
    for daemon in DAEMONS:
        made, kept = tmp_path / "made" / daemon, newest / daemon
        assert _columns(made / "spool.sql") == _columns(kept / "spool.sql")
        assert _checkpoints(made / "spool.sql") == _checkpoints(kept / "spool.sql")
        assert _lines(made / "ledger") == _lines(kept / "ledger")


def test_the_number_of_the_format_is_that_of_the_newest_files() -> None:
    text = (GOLDEN / __version__ / BILLING / "spool.sql").read_text()
    assert f"PRAGMA user_version={schema.VERSION};" in text


def test_a_release_is_never_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert golden() == 1
    assert "a release never changes" in capsys.readouterr().err


def _restored(sql: Path) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    database.executescript(sql.read_text())
    return database


def _columns(sql: Path) -> list[Any]:
    with closing(_restored(sql)) as database:
        return database.execute("SELECT sql FROM sqlite_master ORDER BY sql").fetchall()


def _checkpoints(sql: Path) -> dict[str, Any]:
    with closing(_restored(sql)) as database:
        rows = database.execute("SELECT key, value FROM state").fetchall()
    return {key.partition("/")[0]: _shape(_decoded(value)) for key, value in rows}


def _decoded(value: bytes) -> Any:
    return json.loads(value) if value.startswith(b"{") else value.decode()


def _json(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _lines(directory: Path) -> dict[str, Any]:
    lines = [line for path in directory.iterdir() for line in _json(path)]
    return {line["kind"]: _shape(line) for line in lines}


def _shape(value: Any) -> Any:
    """Return names and types without the values."""
    if isinstance(value, dict):
        return {key: _shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shape(one) for one in value[:1]]
    return type(value).__name__
