"""A newer version's files on disk: this version reports them, starts nothing, changes nothing."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from byoc_agents import __version__
from byoc_agents.app import dead_letters
from byoc_agents.durable.schema import VERSION
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import LedgerNewerError, SpoolNewerError
from byoc_agents.ledger import FileLedger
from byoc_agents.ledger import format as lines
from lab.fakes.core import ListSink
from tests.upgrade.daemon_runs import BILLING, BOUND, STATE, open_run
from tests.upgrade.golden import GOLDEN, clock_at, restore

HERE = GOLDEN / __version__
NOT_OURS = {"lock", "spool.db-shm"}  # made by whoever looks; they hold nothing


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    restore(HERE, tmp_path / "state", tmp_path / "bucket")
    return tmp_path / "state"


def newer_spool(state_dir: Path) -> None:
    """Let a newer version have changed the file, and have ended in good order."""
    with closing(sqlite3.connect(state_dir / STATE / "spool.db")) as database:
        database.execute("ALTER TABLE message ADD COLUMN priority INTEGER")
        database.execute(f"PRAGMA user_version={VERSION + 1}")
        database.commit()
    (state_dir / STATE / "reserve").write_bytes(bytes(100))


def newer_journal(state_dir: Path) -> None:
    """Let a newer version have been killed: what it changed is in the journal only."""
    live = state_dir / STATE / "spool.db"
    with closing(sqlite3.connect(live)) as database:
        database.execute(f"PRAGMA user_version={VERSION + 1}")
        database.commit()
        for name in ("spool.db", "spool.db-wal"):
            shutil.copy(live.with_name(name), state_dir / f"kept-{name}")
    for name in ("spool.db", "spool.db-wal"):
        (state_dir / f"kept-{name}").rename(live.with_name(name))
    assert int.from_bytes(live.read_bytes()[60:64]) == VERSION


def newer_ledger(state_dir: Path) -> None:
    """Let a newer version have begun a file with lines that we do not know."""
    first = {"kind": "segment", "format": lines.FORMAT + 1, "chain": "of another kind"}
    path = state_dir / STATE / "ledger" / "ledger-000002.jsonl"
    path.write_text(json.dumps(first) + "\n" + json.dumps({"kind": "sealed"}) + "\n")


NEWER = [newer_spool, newer_journal, newer_ledger]


def contents(state_dir: Path) -> dict[str, str]:
    """Return the hash of every file that holds something."""
    files = [p for p in state_dir.rglob("*") if p.is_file() and p.name not in NOT_OURS]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("make_newer", NEWER)
def test_the_daemon_ends_with_2_says_why_and_leaves_every_byte(
    make_newer: Callable[[Path], None], state_dir: Path, tmp_path: Path
) -> None:
    make_newer(state_dir)
    before = contents(state_dir)
    queue = tmp_path / "queue.fifo"
    queue.mkdir()
    environment = {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REGION": "eu-west-1",
        "BYOC_LISTEN": "127.0.0.1:0",
        "BYOC_STATE_DIR": str(state_dir),
        "BYOC_STATE_QUEUE_URL": f"file://{queue}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "byoc_agents.app.cli", "run", STATE],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    ours = lines.FORMAT if make_newer is newer_ledger else VERSION
    expected = f"was written by a newer version (format {ours + 1}, this one reads up to {ours})"
    assert expected in done.stderr
    assert "BYOC_STATE_DIR: " in done.stderr
    assert contents(state_dir) == before
    assert list(queue.iterdir()) == []


@pytest.mark.parametrize("make_newer", [newer_spool, newer_journal])
async def test_the_backlog_is_still_there_for_the_newer_version(
    make_newer: Callable[[Path], None], state_dir: Path
) -> None:
    sink = ListSink()
    async with open_run(state_dir, STATE, clock_at(HERE)) as one:
        waiting = [message.id for message in await one.spool.peek(100)]
    make_newer(state_dir)
    with pytest.raises(SpoolNewerError):
        SpoolStore(state_dir / STATE / "spool.db", max_bytes=BOUND)
    with closing(sqlite3.connect(state_dir / STATE / "spool.db")) as newer:
        newer.execute(f"PRAGMA user_version={VERSION}")  # the part of the newer version: it reads
        newer.commit()
    async with open_run(state_dir, STATE, clock_at(HERE)) as one:
        assert one.spool.corruptions == 0
        await one.ship(sink)
    assert list(sink.stored) == waiting


async def test_the_ledger_is_not_opened_and_leaves_no_thread(state_dir: Path) -> None:
    newer_ledger(state_dir)
    ledger = FileLedger(state_dir / STATE / "ledger", clock=clock_at(HERE), max_bytes=BOUND)
    with pytest.raises(LedgerNewerError, match=r"ledger-000002\.jsonl was written by a newer"):
        await ledger.__aenter__()


def test_dead_letters_refuses_as_well(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer_spool(state_dir)
    assert dead_letters.main(["--state-dir", str(state_dir), "resend", "all"]) == 2
    assert "newer version" in capsys.readouterr().err


async def test_a_number_beyond_all_reason_is_damage_and_not_a_version(state_dir: Path) -> None:
    path = state_dir / BILLING / "spool.db"
    with path.open("r+b") as file:
        file.seek(60)
        file.write(b"\xff\xff\xff\xff")
    async with Spool(state_dir / BILLING, max_bytes=BOUND, clock=clock_at(HERE)) as spool:
        assert spool.corruptions == 1
        assert spool.salvaged > 0


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b'{"kind":"segment","format":7}', 7),
        (b'{"kind":"intent","format":7}', 0),
        (b'{"kind":"segment"}', 0),
        (b'{"kind":"segment","format":"7"}', 0),
        (b"torn", 0),
        (b"\xff", 0),
        (b"", 0),
    ],
)
def test_only_the_first_line_of_a_file_states_its_format(line: bytes, number: int) -> None:
    assert lines.format_of(line) == number
