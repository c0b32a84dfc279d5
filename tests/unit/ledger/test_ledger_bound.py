"""The ledger removes segments to stay within its bound, and records the removal."""

import hashlib
from pathlib import Path

import pytest

from byoc_agents.ledger.format import IntentLine, RemovedLine
from tests.unit.ledger.ledger_fakes import (
    SMALL,
    FaultyDisk,
    QuickDisk,
    checked,
    files,
    kinds,
    ledger,
    lines,
    message,
    send,
    total_bytes,
    tried,
    written,
)


async def test_the_directory_stays_within_its_bound_and_says_what_it_removed(
    tmp_path: Path,
) -> None:
    sizes = []
    async with ledger(tmp_path, QuickDisk()) as made:
        for number in range(60):
            await send(made, *(message(1000 * number + n) for n in range(10)))
            sizes.append(total_bytes(tmp_path))
        assert made.status()["bytes"] == total_bytes(tmp_path)
    assert max(sizes) <= SMALL
    assert max(sizes) > SMALL * 3 // 4
    found = lines(tmp_path)
    removed = [line for line in found if isinstance(line, RemovedLine)]
    assert found[0].sequence == removed[-1].last_sequence + 1 > 0
    assert found[0].previous == removed[-1].last_sha256
    verdict = checked(tmp_path)
    assert verdict.problems == []
    assert any("removed by rotation" in note for note in verdict.notes)


async def test_the_chain_goes_on_over_files_and_restarts(tmp_path: Path) -> None:
    for _ in range(4):
        await written(tmp_path, sends=20)
    assert len(files(tmp_path)) > 1
    assert [line.sequence for line in lines(tmp_path)] == list(range(len(lines(tmp_path))))
    assert checked(tmp_path).ok


async def test_an_anchor_of_a_removed_file_is_still_confirmed(tmp_path: Path) -> None:
    async with ledger(tmp_path, QuickDisk()) as made:
        for number in range(60):
            await send(made, *(message(1000 * number + n) for n in range(10)))
    removed = [line for line in lines(tmp_path) if isinstance(line, RemovedLine)][-1]
    assert checked(tmp_path, {removed.last_sequence: removed.last_sha256}).ok
    assert not checked(tmp_path, {removed.last_sequence: "0" * 64}).ok


async def test_bodies_are_kept_once_a_file_and_go_with_it(tmp_path: Path) -> None:
    body = b"x" * 3000
    async with ledger(tmp_path, QuickDisk(), keep_bodies=True) as made:
        for _ in range(3):
            await send(made, message(0, body))
        (kept,) = (tmp_path / "bodies" / "000001").iterdir()
        assert kept.name == hashlib.sha256(body).hexdigest()
        assert kept.read_bytes() == body
        for number in range(1, 60):
            await send(made, message(number, b"%d" % number + body))
            assert total_bytes(tmp_path) <= SMALL
    assert not kept.exists()
    verdict = checked(tmp_path)
    assert (verdict.problems, verdict.bodies) == ([], verdict.intents)


async def test_a_body_that_would_fill_the_ledger_is_not_kept(tmp_path: Path) -> None:
    async with ledger(tmp_path, keep_bodies=True) as made:
        await send(made, message(0, b"x" * SMALL))
    intent = lines(tmp_path)[1]
    assert isinstance(intent, IntentLine)
    assert not intent.messages[0].kept
    assert not (tmp_path / "bodies").exists()


async def test_a_body_that_cannot_be_kept_is_not_sent(tmp_path: Path) -> None:
    disk = FaultyDisk()
    async with ledger(tmp_path, disk, keep_bodies=True) as made:
        disk.failing = ("place",)
        assert not await tried(made, message())
    assert "IntentLine" not in kinds(tmp_path)


def test_a_bound_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        ledger(tmp_path, max_bytes=1000)
