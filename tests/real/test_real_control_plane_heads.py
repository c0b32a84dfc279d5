"""Ledger heads from the daemon's messages by way of ClickHouse to `ledger verify --heads`."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import chdb.session
import pytest

from byoc_agents import __version__
from byoc_agents.app import cli
from byoc_agents.app.cloudevents import Agent, encode
from byoc_agents.ledger import FileLedger
from byoc_agents.ledger.tree import encode_hash
from lab.control_plane.messages import ORIGIN, Replica, heartbeat_event
from lab.fakes.billing import NOON_MS
from tests.real.control_plane_tables import empty, rows, store_events
from tests.unit.ledger.ledger_fakes import QuickDisk, files, ledger, message, send

pytestmark = pytest.mark.real

EXPORTER, FORWARDER = "state-exporter", "alert-forwarder"
EXPORT = (  # as docs/control-plane.md has it
    "SELECT head FROM ledger_heads WHERE organization_id = 'org-1' AND service_id = 'service-1'"
    " AND replica = 'clickhouse-0' ORDER BY daemon, ledger_size"
)
DOCS = Path(__file__).parents[2] / "docs" / "control-plane.md"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


def sender(made: FileLedger) -> Agent:
    """Return what a daemon with this ledger says of itself."""
    tree = made.tree
    return Agent(
        version=__version__,
        configuration_sha256="c" * 64,
        ledger_size=tree.size,
        ledger_root=encode_hash(tree.root),
    )


async def deliver(directory: Path, daemon: str, sends: int, *, first: int = 1) -> list[bytes]:
    """Run a daemon: a message before the first send and after each. Return the messages."""
    names = {"organization": "org-1", "service": "service-1", "replica": "clickhouse-0"}
    replica, bodies = Replica(**names), []  # type: ignore[arg-type]
    async with ledger(directory, QuickDisk()) as made:
        for number in range(sends + 1):
            if number:
                await send(made, message(first + number))
            agent = sender(made)
            if daemon == FORWARDER:
                beat = heartbeat_event(NOON_MS + number, number, origin=ORIGIN, agent=agent)
                bodies.append(encode(beat))
            else:
                replica.agent = agent
                bodies.append(replica.message(NOON_MS + number))
    return bodies


@pytest.fixture
def state_dir(tmp_path: Path, engine: chdb.session.Session) -> Path:
    """Return the state directory of two daemons whose messages are in the control plane."""
    empty(engine)
    for daemon, sends in ((EXPORTER, 5), (FORWARDER, 3)):
        bodies = asyncio.run(deliver(tmp_path / "state" / daemon / "ledger", daemon, sends))
        for _ in range(2):  # delivered twice
            store_events(engine, bodies, NOON_MS)
    return tmp_path / "state"


def export(engine: chdb.session.Session, path: Path) -> Path:
    path.write_text("".join(f"{row['head']}\n" for row in rows(engine, EXPORT)))
    return path


def verify(state_dir: Path, heads: Path) -> int:
    return cli.main(["ledger", "verify", str(state_dir), "--heads", str(heads)])


def test_the_heads_of_both_daemons_confirm_their_ledgers(
    engine: chdb.session.Session,
    state_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heads = export(engine, tmp_path / "heads.txt")
    assert len(heads.read_text().splitlines()) == 6 + 4, "each size and root once"
    assert verify(state_dir, heads) == 0
    printed = capsys.readouterr().out
    assert "6 kept heads confirmed" in printed
    assert "4 kept heads confirmed" in printed


def test_a_ledger_that_was_cut_or_written_again_is_found(
    engine: chdb.session.Session,
    state_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heads = export(engine, tmp_path / "heads.txt")
    (newest,) = files(state_dir / FORWARDER / "ledger")
    whole = newest.read_bytes()
    newest.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert verify(state_dir, heads) == 1
    assert "lines were cut off the end" in capsys.readouterr().out
    newest.write_bytes(whole)
    shutil.rmtree(state_dir / EXPORTER)
    another = deliver(state_dir / EXPORTER / "ledger", EXPORTER, 7, first=100)  # and longer
    asyncio.run(another)
    assert verify(state_dir, heads) == 1
    assert "another history" in capsys.readouterr().out


def test_the_documentation_has_this_query() -> None:
    assert " ".join(EXPORT.split()) in " ".join(DOCS.read_text().split())


def test_a_message_of_0_1_0_has_no_head(engine: chdb.session.Session) -> None:
    empty(engine)
    store_events(engine, [Replica().message(NOON_MS), encode(heartbeat_event(NOON_MS, 0))], NOON_MS)
    assert rows(engine, "SELECT * FROM ledger_heads") == []
