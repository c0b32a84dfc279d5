"""The command for dead letters, while a daemon has the spool open."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from byoc_agents.app import dead_letters
from byoc_agents.app.clock import SystemClock
from byoc_agents.durable.spool import Spool
from byoc_agents.message import Message


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    """Yield a spool in use, with two dead letters and one queued message."""
    async with Spool(tmp_path / "alert-forwarder", max_bytes=1 << 20, clock=SystemClock()) as spool:
        for name in ("a", "b", "waiting"):
            message = Message(name, "byoc.alert.v1", b'{"id":"%s"}' % name.encode(), 0)
            await spool.put(message)
            if name != "waiting":
                await spool.dead_letter(message, "rejected", "status 422")
        yield spool


async def queue(spool: Spool) -> list[tuple[str, bytes]]:
    return [(message.id, message.body) for message in await spool.peek(9)]


def run(tmp_path: Path, *argv: str) -> int:
    return dead_letters.main(["--state-dir", str(tmp_path), *argv])


async def test_list_shows_bodies_only_with_the_option(
    spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "list") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [first["id"], second["id"]] == ["a", "b"]
    assert (first["daemon"], first["reason"]) == ("alert-forwarder", "rejected")
    assert (first["detail"], first["bytes"], "body" in first) == ("status 422", 10, False)
    assert run(tmp_path, "list", "--bodies") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["body"] == '{"id":"a"}'
    assert len(await spool.dead_letters()) == 2


async def test_resend_queues_the_same_bytes_at_the_end(spool: Spool, tmp_path: Path) -> None:
    assert run(tmp_path, "resend", "b") == 0
    assert await queue(spool) == [("waiting", b'{"id":"waiting"}'), ("b", b'{"id":"b"}')]
    assert [letter.message.id for letter in await spool.dead_letters()] == ["a"]


async def test_resend_all(spool: Spool, tmp_path: Path) -> None:
    assert run(tmp_path, "resend", "all") == 0
    assert [name for name, _ in await queue(spool)] == ["waiting", "a", "b"]
    await spool.put(Message("later", "t", b"{}", 0))
    assert [name for name, _ in await queue(spool)] == ["waiting", "a", "b", "later"]


async def test_listing_from_another_process_does_not_write_the_daemons_wal(
    spool: Spool, tmp_path: Path
) -> None:
    """Only the process that writes the WAL may rewrite it; the daemon keeps writing meanwhile."""
    wal = spool.path.with_name("spool.db-wal")
    before = (wal.read_bytes(), wal.stat().st_mtime_ns)
    listing = ["-m", "byoc_agents.app.cli", "dead-letters", "--state-dir", str(tmp_path), "list"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *listing, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert [json.loads(line)["id"] for line in output.splitlines()] == ["a", "b"]
    assert (wal.read_bytes(), wal.stat().st_mtime_ns) == before
    await spool.put(Message("later", "t", b"{}", 0))
    assert [name for name, _ in await queue(spool)] == ["waiting", "later"]
    assert spool.corruptions == 0


async def test_resend_reports_an_unknown_id_and_resends_the_others(
    spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "resend", "none", "a") == 1
    assert capsys.readouterr().err == "no dead letter none\n"
    assert [name for name, _ in await queue(spool)] == ["waiting", "a"]


def test_a_missing_state_directory_has_no_dead_letters_and_is_not_created(tmp_path: Path) -> None:
    assert run(tmp_path / "none", "list") == 0
    assert not (tmp_path / "none").exists()


def test_a_malformed_spool_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "spool.db").write_text("not a spool")
    assert run(tmp_path, "list") == 2
    assert "is not a spool" in capsys.readouterr().err
