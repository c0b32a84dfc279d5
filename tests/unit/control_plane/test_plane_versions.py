"""The control plane stores what each released version of the daemons left in its spools."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from byoc_control_plane.rows import build_row
from lab.fakes.core import START_MS

VERSIONS = Path(__file__).parents[2] / "upgrade" / "versions"


def spooled(path: Path) -> list[bytes]:
    """Return the bodies of all messages, of the dead letters too."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(path.read_text())
        tables = ("SELECT body FROM message", "SELECT body FROM dead_letter")
        return [bytes(body) for table in tables for (body,) in database.execute(table)]


@pytest.mark.parametrize("daemon", ["state-exporter", "alert-forwarder"])
@pytest.mark.parametrize("version", sorted(path.name for path in VERSIONS.iterdir()))
def test_every_message_of_a_version_becomes_a_row(version: str, daemon: str) -> None:
    bodies = spooled(VERSIONS / version / daemon / "spool.sql")
    assert bodies
    for body in bodies:
        assert build_row(body, START_MS).table in {"byoc_state", "byoc_alerts"}
