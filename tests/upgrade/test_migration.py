"""Spools of format 1 (0.1.0) are changed to the present format when they are opened."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from byoc_agents.billing.rollback import read_key
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.schema import VERSION
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.store import SpoolStore, count
from byoc_agents.ledger.recent import newest_sent, recently_sent
from byoc_agents.message import Message
from tests.upgrade.daemon_runs import ALERTS, BILLING, BOUND, DAEMONS, STATE
from tests.upgrade.golden import GOLDEN, clock_at, restore

OLD = GOLDEN / "0.1.0"
WAITING = "SELECT id, body FROM message ORDER BY position"
DEAD = "SELECT id, body FROM dead_letter ORDER BY position"
NUMBERED = Message("numbered", "t", b"body", 1, stream="s", epoch=7, sequence=9)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    restore(OLD, tmp_path / "state", tmp_path / "bucket")
    return tmp_path / "state"


def rows(spool: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(spool)) as database:
        return database.execute(query).fetchall()


def store_at(path: Path) -> SpoolStore:
    return SpoolStore(path, max_bytes=BOUND)


@pytest.mark.parametrize("daemon", DAEMONS)
def test_all_rows_are_kept_and_numbered_messages_are_accepted(state_dir: Path, daemon: str) -> None:
    path = state_dir / daemon / "spool.db"
    assert rows(path, "PRAGMA user_version") == [(1,)]
    waiting, dead = rows(path, WAITING), rows(path, DEAD)
    with closing(store_at(path)) as store:
        with store.transaction():
            store.apply(WriteBatch(messages=[NUMBERED]))
        found = store.peek(1000, 1 << 30)
        assert [(m.id, m.body) for m in found[:-1]] == waiting
        assert {(m.stream, m.epoch, m.sequence) for m in found[:-1]} == {("", 0, 0)}
        assert found[-1] == NUMBERED
        assert [(letter.message.id, letter.message.body) for letter in store.dead_letters()] == dead
        assert store.totals() == count(store.connection)
    assert rows(path, "PRAGMA user_version") == [(VERSION,)]
    with closing(store_at(path)) as store:
        assert store.peek(1000, 1 << 30) == found


@pytest.mark.parametrize("daemon", [STATE, ALERTS])
def test_a_dead_letter_of_format_1_goes_back_to_the_queue(state_dir: Path, daemon: str) -> None:
    path = state_dir / daemon / "spool.db"
    ((letter, body),) = rows(path, DEAD)
    with closing(store_at(path)) as store:
        with store.transaction():
            assert store.requeue(str(letter))
        assert [m.body for m in store.peek(1000, 1 << 30) if m.id == letter] == [body]


def test_a_second_program_may_have_changed_the_file_meanwhile(state_dir: Path) -> None:
    """`dead-letters` opens the file next to the daemon."""
    path = state_dir / BILLING / "spool.db"
    with closing(store_at(path)) as one, closing(store_at(path)) as other:
        assert one.peek(1000, 1 << 30) == other.peek(1000, 1 << 30)


@pytest.mark.parametrize("daemon", DAEMONS)
async def test_the_rows_of_a_damaged_file_of_format_1_are_recovered(
    state_dir: Path, daemon: str
) -> None:
    path = state_dir / daemon / "spool.db"
    waiting, dead = rows(path, WAITING), rows(path, DEAD)
    with path.open("r+b") as file:
        file.seek(60)  # the version: a number that no version will have
        file.write(b"\xff\xff\xff\xff")
    async with Spool(path.parent, max_bytes=BOUND, clock=clock_at(OLD)) as spool:
        assert spool.corruptions == 1
        assert [(m.id, m.body) for m in await spool.peek(1000, 1 << 30)] == waiting
        letters = await spool.dead_letters()
        assert [(letter.message.id, letter.message.body) for letter in letters] == dead


def test_the_objects_that_0_1_0_has_sent_have_their_position_in_the_key(state_dir: Path) -> None:
    sends = recently_sent(state_dir / BILLING / "ledger", read_key)
    keys = [key for (key,) in rows(state_dir / BILLING / "spool.db", "SELECT id FROM message")]
    assert [send.stored for send in sends] == [True] * (len(sends) - 1) + [False]
    assert sends[-1].id == keys[0], "it was in flight"
    assert newest_sent(sends, "billing") == sends[-1].last
