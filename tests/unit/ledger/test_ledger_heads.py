"""Verification with heads that a customer has kept outside of the machine.

Each test does to a ledger what somebody with write access to its volume can do, and needs no key.
"""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from byoc_agents.ledger.format import GENESIS, sha256_hex
from byoc_agents.ledger.heads import checkpoint_text, is_signed, parse_heads, sign_note
from tests.unit.ledger.ledger_fakes import (
    QuickDisk,
    checked,
    files,
    ledger,
    lines,
    message,
    send,
)

BOUND = 1 << 20
Heads = list[str]


async def live(
    directory: Path, sends: int, *, first: int = 0, max_bytes: int = BOUND, batch: int = 10
) -> Heads:
    """Run a daemon for so many sends; return the head after each, as /status shows it."""
    heads = []
    async with ledger(directory, QuickDisk(), max_bytes=max_bytes) as made:
        for number in range(first, first + sends):
            await send(made, *(message(1000 * number + n) for n in range(batch)))
            heads.append(str(made.status()["tree"]))
    return heads


def run(directory: Path, sends: int, *, first: int = 0, max_bytes: int = BOUND) -> Heads:
    return asyncio.run(live(directory, sends, first=first, max_bytes=max_bytes))


def encoded(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def append(directory: Path, **fields: Any) -> None:
    """Append a line with the right number and hash."""
    newest = files(directory)[-1]
    last = newest.read_bytes().splitlines()[-1]
    before = {"sequence": json.loads(last)["sequence"] + 1, "time": json.loads(last)["time"]}
    with newest.open("ab") as file:
        file.write(encoded({**before, "previous": sha256_hex(last), **fields}) + b"\n")


def forge_removal(directory: Path, segment: int = 1) -> None:
    """Delete the oldest file, and append one line that states a rotation."""
    oldest, *_, newest = files(directory)
    gone = oldest.read_bytes().splitlines()
    last = newest.read_bytes().splitlines()[-1]
    forged = {
        "kind": "removed",
        "sequence": json.loads(last)["sequence"] + 1,
        "time": json.loads(last)["time"],
        "previous": sha256_hex(last),
        "segment": segment,
        "first_sequence": 0,
        "last_sequence": json.loads(gone[-1])["sequence"],
        "last_sha256": sha256_hex(gone[-1]),
        "bytes": BOUND,
    }
    oldest.unlink()
    with newest.open("ab") as file:
        file.write(encoded(forged) + b"\n")


def write_again(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change lines and compute all hashes again."""
    previous = GENESIS
    for path in files(directory):
        made = []
        for raw in path.read_bytes().splitlines():
            fields = json.loads(raw)
            edit(fields)
            made.append(encoded(fields | {"previous": previous}))
            previous = sha256_hex(made[-1])
        path.write_bytes(b"\n".join(made) + b"\n")


def test_every_head_that_was_ever_kept_is_confirmed(tmp_path: Path) -> None:
    kept = run(tmp_path, 30) + run(tmp_path, 30)
    verdict = checked(tmp_path, heads="\n".join(kept))
    assert (verdict.problems, verdict.heads) == ([], 60)
    assert verdict.tree.split()[0] == str(verdict.lines)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_deleted_history_with_a_forged_rotation_is_found(goes_on: bool, tmp_path: Path) -> None:
    run(tmp_path, 150)
    assert len(files(tmp_path)) >= 3
    forge_removal(tmp_path)
    if goes_on:
        run(tmp_path, 3, first=500)
    (problem,) = checked(tmp_path).problems
    assert "states that file 1 was removed" in problem
    assert f"the bound of {BOUND} did not require it" in problem


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_forged_rotation_of_another_file_is_found(goes_on: bool, tmp_path: Path) -> None:
    """No rule judges the removal of a file that is not the one before the oldest."""
    kept = run(tmp_path, 150)
    forge_removal(tmp_path, segment=77)
    if goes_on:
        kept += run(tmp_path, 3, first=500)
    problems = checked(tmp_path, heads="\n".join(kept)).problems
    assert any("are missing and no line states their removal" in problem for problem in problems)


def test_a_forged_rotation_after_a_forged_torn_end_is_found(tmp_path: Path) -> None:
    """The bytes of a torn end count towards the bound only if its file has them."""
    kept = run(tmp_path, 150)
    torn = {"kind": "recovered", "segment": 999, "why": "torn", "bytes": BOUND, "aside": ""}
    append(tmp_path, **torn, sha256="0" * 64)
    forge_removal(tmp_path)
    kept += run(tmp_path, 3, first=500)
    problems = checked(tmp_path, heads="\n".join(kept)).problems
    assert any("did not require it" in problem for problem in problems)


def test_a_forged_rotation_under_a_forged_lower_bound_is_found(tmp_path: Path) -> None:
    kept = run(tmp_path, 150)
    forge_removal(tmp_path)
    run(tmp_path, 1, first=500, max_bytes=64 * 1024)
    write_again(
        tmp_path, lambda fields: fields.update({"max_bytes": 64 * 1024} if "open" in fields else {})
    )
    assert any("another history" in p for p in checked(tmp_path, heads=kept[-1]).problems)


def test_a_cut_end_is_found(tmp_path: Path) -> None:
    kept = run(tmp_path, 12)
    (path,) = files(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-9]))
    assert checked(tmp_path).ok
    (problem,) = checked(tmp_path, heads=kept[-1]).problems
    assert "ends with 16, before the kept head 24: lines were cut off the end" in problem
    run(tmp_path, 12, first=12)  # the daemon goes on, with other lines at the same places
    assert checked(tmp_path).ok
    verdict = checked(tmp_path, heads="\n".join(kept))
    assert "another history" in verdict.problems[0]
    assert verdict.heads == 8  # of before the cut


def test_a_new_chain_is_found(tmp_path: Path) -> None:
    kept = run(tmp_path / "ledger", 12)
    shutil.rmtree(tmp_path / "ledger")
    run(tmp_path / "ledger", 3, first=12)
    (problem,) = checked(tmp_path / "ledger", heads=kept[-1]).problems
    assert "or it was begun again" in problem
    run(tmp_path / "ledger", 20, first=15)
    (problem,) = checked(tmp_path / "ledger", heads=kept[-1]).problems
    assert "another history" in problem


def test_a_volume_that_was_restored_from_a_snapshot_is_found(tmp_path: Path) -> None:
    kept = run(tmp_path / "ledger", 6)
    shutil.copytree(tmp_path / "ledger", tmp_path / "snapshot")
    kept += run(tmp_path / "ledger", 6, first=6)
    shutil.rmtree(tmp_path / "ledger")
    shutil.copytree(tmp_path / "snapshot", tmp_path / "ledger")
    (problem,) = checked(tmp_path / "ledger", heads=kept[-1]).problems
    assert "an older copy was restored" in problem
    run(tmp_path / "ledger", 9, first=12)
    (problem,) = checked(tmp_path / "ledger", heads=kept[-1]).problems
    assert "another history" in problem
    assert checked(tmp_path / "ledger", heads="\n".join(kept[:6])).heads == 6


def test_a_chain_that_was_written_again_is_found(tmp_path: Path) -> None:
    kept = run(tmp_path, 40)

    def hide(fields: dict[str, Any]) -> None:
        if fields["kind"] == "intent":
            fields["destination"] = "s3://innocent"

    write_again(tmp_path, hide)
    assert any("another history" in p for p in checked(tmp_path, heads=kept[20]).problems)


def test_a_rotation_is_no_forgery(tmp_path: Path) -> None:
    """Heads of removed lines are named; one of the kept lines confirms the rest."""
    kept = run(tmp_path, 1000)
    assert files(tmp_path)[0].name != "ledger-000001.jsonl"
    verdict = checked(tmp_path, heads="\n".join(kept))
    assert verdict.problems == []
    assert verdict.heads < 1000
    removed = [note for note in verdict.notes if "its lines were removed" in note]
    assert len(removed) == 1000 - verdict.heads
    (problem,) = checked(tmp_path, heads="\n".join(kept[:5])).problems
    assert "no kept head is of a size from there on: nothing confirms them" in problem


def test_a_rotation_under_a_bound_that_was_lowered_needs_the_customers_word(tmp_path: Path) -> None:
    kept = run(tmp_path, 250)
    kept += run(tmp_path, 5, first=250, max_bytes=128 * 1024)
    (problem,) = checked(tmp_path, heads=kept[-1], bounds=[BOUND]).problems
    assert "did not require it. The ledger states a bound of 131072: if BYOC_LEDGER" in problem
    assert "run again with --max-bytes 131072 --max-bytes 1048576" in problem
    assert checked(tmp_path, heads=kept[-1], bounds=[128 * 1024, BOUND]).ok


def test_a_file_that_does_not_continue_the_tree_is_found(tmp_path: Path) -> None:
    run(tmp_path, 100)
    assert len(files(tmp_path)) > 1

    def shrink(fields: dict[str, Any]) -> None:
        if fields.get("segment") == 2:
            fields["tree"] = {"size": 0, "subtrees": []}

    write_again(tmp_path, shrink)
    assert any("states the tree 0 " in p for p in checked(tmp_path).problems)


def test_a_head_is_not_of_the_place_where_another_size_was(tmp_path: Path) -> None:
    kept = run(tmp_path, 5)
    root = kept[1].split()[1]
    size = kept[2].split()[0]
    assert not checked(tmp_path, heads=f"{size} {root}").ok


def test_the_chain_of_lines_can_be_anchored_as_before(tmp_path: Path) -> None:
    run(tmp_path, 5)
    head = checked(tmp_path).head
    verdict = checked(tmp_path, heads=f"# noted in May\n\n{head}\n")
    assert (verdict.problems, verdict.heads) == ([], 1)
    assert not checked(tmp_path, heads=f"{head[:-1]}{'0' if head[-1] != '0' else '1'}").ok


@pytest.mark.parametrize(
    "text",
    ["forty-one", "41 AAAA", f"41 {'A' * 44}", "log\n41", "log\nx\nAAAA", "log with+plus\n1\nAAAA"],
)
def test_a_text_that_is_no_head_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"line \d"):
        parse_heads(f"# heads\n{text}\n")


def test_a_ledger_goes_on_in_a_new_file_if_its_bound_is_another(tmp_path: Path) -> None:
    run(tmp_path, 2)
    run(tmp_path, 2)
    assert len(files(tmp_path)) == 1
    run(tmp_path, 2, max_bytes=2 * BOUND)
    assert len(files(tmp_path)) == 2
    assert checked(tmp_path).ok
    assert lines(tmp_path)[0].sequence == 0


def test_a_removal_that_overstates_the_size_of_its_file_is_found(tmp_path: Path) -> None:
    """Another bound ended the first file early. Without it an eighth of the bound is free."""
    run(tmp_path, 2, max_bytes=2 * BOUND)
    kept = run(tmp_path, 325, first=2)
    free = BOUND - sum(path.stat().st_size for path in files(tmp_path))
    assert files(tmp_path)[0].stat().st_size < 10_000
    assert BOUND // 10 < free < BOUND // 8
    forge_removal(tmp_path)
    kept += run(tmp_path, 1, first=500)
    (problem,) = checked(tmp_path, heads="\n".join(kept)).problems
    assert "states that file 1 was removed" in problem
    assert "did not require it" in problem


def test_a_rotation_of_a_file_that_ended_early_is_no_forgery(tmp_path: Path) -> None:
    run(tmp_path, 2, max_bytes=2 * BOUND)
    run(tmp_path, 325, first=2)
    sends = 500
    while files(tmp_path)[0].name == "ledger-000001.jsonl":
        run(tmp_path, 5, first=sends)
        sends += 5
        assert checked(tmp_path).problems == []
    assert len(files(tmp_path)) > 2


@pytest.mark.parametrize("end", ["\v", "\f", "\x1c", "\x85", "\u2028"])
def test_only_a_line_feed_ends_a_line_of_a_note(end: str) -> None:
    """The signature covers the bytes: another character must not become a line feed."""
    key = Ed25519PrivateKey.generate()
    note = sign_note(
        checkpoint_text("org/svc/one", 5, b"\0" * 32) + "two\nlines\n", "org/svc/one", key
    )
    (head,) = parse_heads(note).heads
    assert is_signed(head, key.public_key())
    (changed,) = parse_heads(note.replace("two\nlines", f"two{end}lines")).heads
    assert not is_signed(changed, key.public_key())
    (windows,) = parse_heads(note.replace("\n", "\r\n")).heads
    assert is_signed(windows, key.public_key())
