import errno
from pathlib import Path

import pytest

from byoc_agents.errors import Reason
from byoc_agents.message import Message
from byoc_agents.sinks.directory import DirectorySink, reason_of


def message(key: str, body: bytes = b"body") -> Message:
    return Message(id=key, type="t", body=body, created_at_ms=0)


def names_below(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*")]


@pytest.mark.parametrize(
    "key",
    ["../out", "a/../../out", "/etc/out", "", ".", "a//b", "a/./b", "a/", "a\0b", "a/.partial-x"],
)
async def test_an_id_that_is_no_plain_path_is_rejected(key: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (outcome,) = await DirectorySink(root).send([message(key)])
    assert outcome.reason is Reason.REJECTED
    assert names_below(tmp_path) == ["root"]


async def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "a").symlink_to(outside)
    (outcome,) = await DirectorySink(root).send([message("a/b")])
    assert outcome.reason is Reason.FORBIDDEN
    assert not list(outside.iterdir())


async def test_a_directory_in_the_place_of_an_id_is_held(tmp_path: Path) -> None:
    outcomes = await DirectorySink(tmp_path).send([message("a/b"), message("a")])
    assert [outcome.reason for outcome in outcomes] == [Reason.OK, Reason.FORBIDDEN]


async def test_a_missing_root_is_held_and_not_made(tmp_path: Path) -> None:
    (outcome,) = await DirectorySink(tmp_path / "volume").send([message("a")])
    assert outcome.reason is Reason.NOT_FOUND
    assert not (tmp_path / "volume").exists()


async def test_what_a_killed_process_left_behind_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".partial-abc").write_bytes(b"to")
    (outcome,) = await DirectorySink(tmp_path).send([message("a", b"whole")])
    assert outcome.reason is Reason.OK
    assert (tmp_path / "a").read_bytes() == b"whole"


async def test_nothing_temporary_stays(tmp_path: Path) -> None:
    sink = DirectorySink(tmp_path)
    for _ in range(2):
        await sink.send([message("d/a")])
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, Reason.SERVER_ERROR),
        (errno.EDQUOT, Reason.SERVER_ERROR),
        (errno.EIO, Reason.SERVER_ERROR),
        (errno.EROFS, Reason.FORBIDDEN),
        (errno.EACCES, Reason.FORBIDDEN),
        (errno.EFBIG, Reason.TOO_LARGE),
    ],
    ids=str,
)
def test_what_the_file_system_says_becomes_a_reason(number: int, reason: Reason) -> None:
    assert reason_of(OSError(number, "")) is reason


async def test_a_file_where_a_directory_should_be_is_held(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (outcome,) = await DirectorySink(tmp_path).send([message("a/b")])
    assert outcome.reason is Reason.NOT_FOUND


async def test_an_id_too_long_for_the_file_system_is_rejected(tmp_path: Path) -> None:
    (outcome,) = await DirectorySink(tmp_path).send([message("x" * 300)])
    assert outcome.reason is Reason.REJECTED
