"""Forged statements of a rotation, and honest rotations under bounds that change."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_agents.app.clock import SystemClock
from byoc_agents.ledger import FileLedger
from byoc_agents.ledger.format import decode, sha256_hex
from byoc_agents.ledger.reader import extend, raw_lines
from byoc_agents.ledger.tree import TreeHead
from tests.unit.ledger.ledger_fakes import (
    SMALL,
    FaultyDisk,
    QuickDisk,
    checked,
    files,
    ledger,
    message,
    tried,
)
from tests.unit.ledger.test_ledger_heads import BOUND, encoded, run


def append(directory: Path, **fields: Any) -> None:
    newest = files(directory)[-1]
    last = newest.read_bytes().splitlines()[-1]
    before = json.loads(last)
    line = {
        "kind": fields.pop("kind"),
        "sequence": before["sequence"] + 1,
        "time": before["time"],
        "previous": sha256_hex(last),
    }
    with newest.open("ab") as file:
        file.write(encoded(line | fields) + b"\n")


def number_of(path: Path) -> int:
    return int(path.name[7:13])


def forge(directory: Path, *, gone: int = 1, segment: int | None = None) -> None:
    """Delete the oldest files, and state it as a rotation of the last one of them."""
    removed = files(directory)[:gone]
    found = [json.loads(raw) for raw in removed[-1].read_bytes().splitlines()]
    append(
        directory,
        kind="removed",
        segment=number_of(removed[-1]) if segment is None else segment,
        first_sequence=found[0]["sequence"],
        last_sequence=found[-1]["sequence"],
        last_sha256=sha256_hex(removed[-1].read_bytes().splitlines()[-1]),
        bytes=BOUND,
    )
    for path in removed:
        path.unlink()


def problems(directory: Path, kept: list[str], *bounds: int) -> str:
    """Return what the customer reads, also after the daemon has gone on."""
    before = checked(directory, heads="\n".join(kept), bounds=bounds or (BOUND,)).problems
    kept = kept + run(directory, 3, first=900)
    after = checked(directory, heads="\n".join(kept), bounds=bounds or (BOUND,)).problems
    assert bool(before) == bool(after)
    return "\n".join(after)


@pytest.mark.parametrize("segment", [-1, 0, 2, 3, 77, 999_999])
@pytest.mark.parametrize("gone", [1, 2, 3])
def test_a_removal_of_another_file_explains_nothing(
    segment: int, gone: int, tmp_path: Path
) -> None:
    kept = run(tmp_path, 150)
    forge(tmp_path, gone=gone, segment=segment if segment != gone else gone + 1)
    assert "are missing and no line states their removal" in problems(tmp_path, kept)


@pytest.mark.parametrize("number", [0, 1])
def test_an_empty_file_before_the_first_one_changes_nothing(number: int, tmp_path: Path) -> None:
    kept = run(tmp_path, 150)
    forge(tmp_path, segment=number - 1)
    (tmp_path / f"ledger-{number:06}.jsonl").touch()
    assert "did not require it" in problems(tmp_path, kept)


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_the_deletion_of_several_files_is_found(gone: int, tmp_path: Path) -> None:
    kept = run(tmp_path, 150)
    forge(tmp_path, gone=gone)
    assert f"the bound of {BOUND} did not require it" in problems(tmp_path, kept)


def test_files_or_lines_in_the_middle_cannot_be_removed_with_a_statement(tmp_path: Path) -> None:
    kept = run(tmp_path, 150)
    second = files(tmp_path)[1]
    found = second.read_bytes().splitlines()
    append(
        tmp_path, kind="removed", segment=2, bytes=BOUND, last_sha256=sha256_hex(found[-1]),
        first_sequence=json.loads(found[0])["sequence"],
        last_sequence=json.loads(found[-1])["sequence"],
    )  # fmt: skip
    second.unlink()
    assert "are missing before it" in problems(tmp_path, kept)


def unstated(_: Path) -> dict[str, Any]:
    return {"segment": 999, "bytes": BOUND, "sha256": "0" * 64, "aside": ""}


def missing(_: Path) -> dict[str, Any]:
    return {"segment": 999, "bytes": BOUND, "sha256": "0" * 64, "aside": "aside-000999-7"}


def other_digest(directory: Path) -> dict[str, Any]:
    (directory / "aside-000003-7").write_bytes(bytes(BOUND))
    return {"segment": 3, "bytes": BOUND, "sha256": "0" * 64, "aside": "aside-000003-7"}


def larger_than_it_is(directory: Path) -> dict[str, Any]:
    (directory / "aside-000003-7").write_bytes(b"x")
    return {"segment": 3, "bytes": BOUND, "sha256": sha256_hex(b"x"), "aside": "aside-000003-7"}


def a_ledger_file(directory: Path) -> dict[str, Any]:
    path = files(directory)[1]
    content = path.read_bytes()
    return {
        "segment": 2, "bytes": len(content), "sha256": sha256_hex(content), "aside": path.name,
    }  # fmt: skip


def of_a_removed_file(directory: Path) -> dict[str, Any]:
    (directory / "aside-000001-7").write_bytes(bytes(BOUND))
    digest = sha256_hex(bytes(BOUND))
    return {"segment": 1, "bytes": BOUND, "sha256": digest, "aside": "aside-000001-7"}


@pytest.mark.parametrize(
    "claim",
    [unstated, missing, other_digest, larger_than_it_is, a_ledger_file, of_a_removed_file],
)
def test_bytes_that_are_not_there_do_not_fill_the_ledger(
    claim: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    kept = run(tmp_path, 150)
    for _ in range(6):
        append(tmp_path, kind="recovered", why="torn", **claim(tmp_path))
    forge(tmp_path)
    assert "did not require it" in problems(tmp_path, kept)


def test_a_torn_end_that_is_kept_counts_once(tmp_path: Path) -> None:
    kept = run(tmp_path, 150)
    size = BOUND // 8
    (tmp_path / "aside-000003-7").write_bytes(bytes(size))
    for _ in range(8):
        append(
            tmp_path, kind="recovered", why="torn", segment=3, bytes=size,
            sha256=sha256_hex(bytes(size)), aside="aside-000003-7",
        )  # fmt: skip
    forge(tmp_path)
    assert "did not require it" in problems(tmp_path, kept)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "refused", "reason": "x", "detail": "y" * 60_000, "suppressed": 0},
        {"kind": "unknown", "intent": 1, "why": "crash", "more": "y" * 60_000},
        {
            "kind": "recovered", "why": "torn", "segment": 3, "bytes": 0, "sha256": "",
            "aside": "y" * 60_000,
        },
        {
            "kind": "removed", "segment": 0, "first_sequence": 0, "last_sequence": 0,
            "last_sha256": "y" * 60_000, "bytes": 0,
        },
    ],
)  # fmt: skip
def test_a_line_that_is_too_long_is_found_and_hides_no_removal(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    kept = run(tmp_path, 150)
    append(tmp_path, **fields)
    forge(tmp_path)
    found = problems(tmp_path, kept)
    assert "longer than 4096 bytes: no daemon writes it" in found
    assert "did not require it" in found


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "intent", "destination": "y" * 60_000, "messages": []},
        {"kind": "receipt", "intent": 1, "outcomes": [], "more": "y" * 60_000},
        {"kind": "fact", "fact": "x", "subject": "", "detail": {"a": "y" * 60_000}},
    ],
)
def test_a_long_line_of_a_batch_makes_room_for_one_such_line_only(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    kept = run(tmp_path, 150)
    append(tmp_path, **fields)
    forge(tmp_path)
    assert "did not require it" in problems(tmp_path, kept)


def rewrite_as_two_lines(directory: Path, **claims: int) -> None:
    """Replace all of the history by a first line with its tree, and a removal."""
    tree: TreeHead | None = None
    for path in files(directory):
        for raw in raw_lines(path):
            tree = extend(tree, raw.content, decode(raw.content))
    newest = files(directory)[-1]
    first = json.loads(newest.read_bytes().splitlines()[0])
    last = newest.read_bytes().splitlines()[-1]
    number, sequence = number_of(newest) + 1, json.loads(last)["sequence"] + 1
    assert tree is not None
    encoded_tree = msgspec.to_builtins(tree)
    segment = first | {
        "sequence": sequence, "previous": sha256_hex(last), "segment": number, "open": [],
        "tree": encoded_tree, **claims,
    }  # fmt: skip
    for path in files(directory):
        path.unlink()
    (directory / f"ledger-{number:06}.jsonl").write_bytes(encoded(segment) + b"\n")
    append(
        directory, kind="removed", segment=number - 1, first_sequence=0,
        last_sequence=sequence - 1, last_sha256=sha256_hex(last), bytes=10 * BOUND,
    )  # fmt: skip


CLAIMS = [
    {"max_bytes": SMALL, "previous_bytes": 60_000},
    {"max_bytes": BOUND, "previous_bytes": BOUND},
    {"max_bytes": 100 * BOUND, "previous_bytes": 10 * BOUND},
    {"max_bytes": 0, "previous_bytes": 0},
]


@pytest.mark.parametrize("claims", CLAIMS)
def test_two_lines_in_place_of_all_history_are_found(
    claims: dict[str, int], tmp_path: Path
) -> None:
    kept = run(tmp_path, 150)
    rewrite_as_two_lines(tmp_path, **claims)
    assert "did not require it" in problems(tmp_path, kept)


@pytest.mark.parametrize("claims", CLAIMS)
async def test_the_start_reports_two_lines_in_place_of_all_history(
    claims: dict[str, int], tmp_path: Path
) -> None:
    kept = await asyncio.to_thread(run, tmp_path, 150)
    rewrite_as_two_lines(tmp_path, **claims)
    async with FileLedger(
        tmp_path, clock=SystemClock(), max_bytes=BOUND, expected=kept[-1], disk=QuickDisk()
    ) as made:
        assert made.status()["mismatch"] == "lost"


async def test_the_start_accepts_a_rotation_of_the_head_that_the_spool_knows(
    tmp_path: Path,
) -> None:
    kept = await asyncio.to_thread(run, tmp_path, 800)
    assert number_of(files(tmp_path)[0]) > 1
    async with FileLedger(
        tmp_path, clock=SystemClock(), max_bytes=BOUND, expected=kept[0], disk=QuickDisk()
    ) as made:
        assert made.status()["mismatch"] is None


@pytest.mark.parametrize("rotations", [1, 3])
def test_a_bound_that_was_lowered_for_a_while_is_found_and_can_be_stated(
    rotations: int, tmp_path: Path
) -> None:
    kept = run(tmp_path, 150)
    sends = 500
    while number_of(files(tmp_path)[0]) <= 4 * (rotations > 1):
        kept += run(tmp_path, 2, first=sends, max_bytes=SMALL)
        sends += 2
    kept += run(tmp_path, 2, first=sends, max_bytes=SMALL)
    kept += run(tmp_path, 5, first=800)
    assert number_of(files(tmp_path)[0]) > 1
    found = problems(tmp_path, kept)
    assert "did not require it. The ledger states a bound of 65536" in found
    assert f"run again with --max-bytes {SMALL} --max-bytes {BOUND}" in found
    assert problems(tmp_path, kept, SMALL, BOUND) == ""


def test_a_forged_rotation_is_found_also_if_a_smaller_bound_was_stated(tmp_path: Path) -> None:
    """The file that states the removal states its bound, and it is one of the customer's."""
    kept = run(tmp_path, 150)
    forge(tmp_path)
    assert "did not require it" in problems(tmp_path, kept, SMALL, BOUND)


def test_a_name_with_other_digits_is_not_a_file_of_the_ledger(tmp_path: Path) -> None:
    run(tmp_path, 3)
    (tmp_path / "ledger-\u0660\u0660\u0660\u0660\u0660\u0669.jsonl").write_bytes(b"x\n")
    run(tmp_path, 1, first=3)
    assert checked(tmp_path).problems == []


# What the documents state as not found.


def free_bytes(directory: Path) -> int:
    return BOUND - sum(path.stat().st_size for path in files(directory))


@pytest.mark.parametrize(("short_of", "found"), [(2_000, False), (110_000, True)])
def test_a_removal_is_not_found_if_less_than_one_write_is_free(
    short_of: int, found: bool, tmp_path: Path
) -> None:
    kept, sends = run(tmp_path, 300), 300
    while free_bytes(tmp_path) > short_of:
        kept += run(tmp_path, 1, first=sends)
        sends += 1
    assert number_of(files(tmp_path)[0]) == 1
    forge(tmp_path)
    assert bool(problems(tmp_path, kept)) == found


def test_a_removal_is_not_found_if_the_ledger_was_filled_first(tmp_path: Path) -> None:
    kept = run(tmp_path, 150)
    size = free_bytes(tmp_path) - 2_000
    (tmp_path / "aside-000003-7").write_bytes(bytes(size))
    append(
        tmp_path, kind="recovered", why="torn", segment=3, bytes=size,
        sha256=sha256_hex(bytes(size)), aside="aside-000003-7",
    )  # fmt: skip
    forge(tmp_path)
    assert checked(tmp_path, heads="\n".join(kept), bounds=(BOUND,)).problems == []


STEP = st.tuples(
    st.sampled_from([SMALL, 2 * SMALL, 4 * SMALL]),  # bound
    st.integers(1, 12),  # sends
    st.integers(1, 40),  # messages of each
    st.sampled_from([-1, 5, 9, 14, 23, 40]),  # the write at which it crashes
    st.booleans(),  # bodies are kept
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=2, max_size=8))
def test_an_honest_ledger_is_believed_whatever_its_bounds_and_crashes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, int, int, bool]]
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    heads: list[str] = []
    for number, (bound, sends, batch, crash_at, keep) in enumerate(steps):
        asyncio.run(live(directory, (bound, sends, batch, crash_at, keep), 10_000 * number, heads))
    bound = steps[-1][0]
    asyncio.run(live(directory, (bound, 1, 1, -1, False), 10_000_000, heads))
    bounds = {step[0] for step in steps}
    verdict = checked(directory, heads="\n".join(heads), bounds=tuple(bounds))
    assert verdict.problems == []


async def live(
    directory: Path, step: tuple[int, int, int, int, bool], first: int, heads: list[str]
) -> None:
    bound, sends, batch, crash_at, keep = step
    disk = QuickDisk() if crash_at < 0 else FaultyDisk(crash_at)
    async with ledger(directory, disk, max_bytes=bound, keep_bodies=keep) as made:
        for number in range(sends):
            some = (message(first + 100 * number + n, b"%d" % n * 50) for n in range(batch))
            if await tried(made, *some) and made.status()["tree"]:
                heads.append(str(made.status()["tree"]))
