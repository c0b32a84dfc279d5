"""The compactor on a directory: real SIGKILLs, the same bytes as in S3, and held objects."""

import asyncio
import json
from pathlib import Path

import pytest

from byoc_agents.audit import Audit
from byoc_agents.audit.check import OF_ONE_OBJECT, OF_TWO_OBJECTS, check_fitness
from byoc_agents.billing.archive import Shard
from byoc_agents.errors import SendError
from byoc_control_plane.bucket import ExistsError, Listed
from byoc_control_plane.cli import main
from byoc_control_plane.compactor import Compactor
from byoc_control_plane.directory import DirectoryBucket
from byoc_control_plane.key_list import ITEM_BYTES
from byoc_control_plane.metrics import PlaneMetrics
from lab.control_plane.compaction import (
    compact_many,
    compact_until,
    contents,
    kill_at_each,
    kill_often,
    write,
)
from lab.fakes.billing import objects
from tests.unit.billing.buckets import torn
from tests.unit.control_plane.compactor_harness import BEFORE, history, landing, opened, with_body


def test_sigkill_at_any_access_leaves_the_same_bytes_and_the_same_report(tmp_path: Path) -> None:
    """`python -m lab.control_plane.compaction kills` makes a thousand."""
    found = kill_often(40, seed=1, directory=tmp_path)
    assert found["kills"] >= 40
    assert found["points"] >= 30


def test_sigkill_at_each_of_the_first_accesses_leaves_the_same_bytes(tmp_path: Path) -> None:
    """`python -m lab.control_plane.compaction points` takes the first thousand."""
    found = kill_at_each(25, tmp_path)
    assert (found["kills"], found["points"]) == (25, 25)


def test_a_child_is_really_killed(tmp_path: Path) -> None:
    write(tmp_path, landing(1))
    assert compact_until(tmp_path, 1)
    assert contents(tmp_path) == {one.id: one.body for one in landing(1)}
    assert not compact_until(tmp_path, 0)
    assert all(name.startswith("v1/archive/") for name in contents(tmp_path))


def test_many_objects_are_verified_digit_by_digit(tmp_path: Path) -> None:
    """`python -m lab.control_plane.compaction million` compacts a million."""
    found = compact_many(240, 2, tmp_path)
    assert (found["objects"], found["records"], found["verify"]) == (240, 480, "equal")
    assert found["peak_rss_mib"] <= 256


async def test_a_directory_gives_the_bytes_of_a_bucket(tmp_path: Path) -> None:
    write(tmp_path, landing())
    made = Compactor(DirectoryBucket(tmp_path), "v1/", Shard(0, 1), PlaneMetrics())
    tally = await made.run(BEFORE)
    async with opened(landing()) as harness:
        assert await harness.compact() == tally
        assert contents(tmp_path) == harness.s3.objects


@pytest.mark.parametrize("most", [1, 5, 20, 1000])
async def test_hours_that_do_not_fit_into_the_memory_are_listed_again(
    most: int, tmp_path: Path
) -> None:
    """The hours come in any order: those of a service come before those of the next one."""
    for number in range(4):
        late = history(number, now_ms=1_795_435_200_000 + (3 - number) * 3_600_000)
        write(tmp_path, objects((late.measured() for _ in range(8)), size=2))
    bounds = {"max_sources": most, "max_listed_bytes": most * ITEM_BYTES}
    made = Compactor(DirectoryBucket(tmp_path), "v1/", Shard(0, 1), PlaneMetrics(), **bounds)
    tally = await made.run("2026-11-23T20")
    assert (tally.archived, tally.deleted, tally.held) == (16, 16, 0)
    assert all(name.startswith("v1/archive/") for name in contents(tmp_path))


async def test_a_list_is_in_the_order_of_s3(tmp_path: Path) -> None:
    keys = ["v1/org=a/x", "v1/org=a-b/x", "v1/org=a/y/z", "v1/org=a.b/x", "v1/other/x"]
    for key in [*keys, "v1/org=a/.partial-x"]:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b"12")
    bucket = DirectoryBucket(tmp_path)
    found = [item async for item in bucket.list_objects("v1/org=")]
    assert found == [Listed(key, 2) for key in sorted(keys[:-1], key=str.encode)]
    assert [item async for item in bucket.list_objects("v1/none/org=")] == []


async def test_an_existing_file_is_never_replaced(tmp_path: Path) -> None:
    bucket = DirectoryBucket(tmp_path)
    await bucket.put_once("a/b", b"1")
    await bucket.put_once("a/b", b"1")
    with pytest.raises(ExistsError):
        await bucket.put_once("a/b", b"2")
    assert await bucket.get("a/b") == b"1"
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    assert await bucket.get("link") == "not a regular file"
    assert await bucket.get("none") is None
    assert await bucket.delete(["a/b", "none"]) == {}
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/x", "a//x", "a\n/../../x", "", "link/x"])
def test_a_key_leads_to_no_file_outside(key: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(SendError):
        asyncio.run(DirectoryBucket(root).put_once(key, b"1"))
    assert [path.name for path in tmp_path.rglob("*")] == ["root", "link"]


def test_the_command_takes_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BYOC_PLANE_BUCKET", f"file://{tmp_path}")
    write(tmp_path, landing())
    write(tmp_path, [with_body(torn(landing()[0]), b"x")])
    assert main(["compact", "--shard", "0/1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["archived"], found["held"], found["ok"]) == (26, 1, False)


@pytest.mark.parametrize("url", ["file://no-root", "file:///no/such/directory"])
def test_a_directory_must_exist(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BYOC_PLANE_BUCKET", url)
    assert main(["compact", "--shard", "0/1"]) == 2
    assert f"BYOC_PLANE_BUCKET: invalid value {url!r}: expected" in capsys.readouterr().err


def test_the_short_check_finds_what_the_audit_finds() -> None:
    """Altered, torn, doubled and overlapping objects: the same kinds with the same keys."""
    good = landing(2)
    records = [history(5).measured()]
    bad = [
        *good[:3],
        torn(good[3]),
        with_body(good[4], good[5].body),
        with_body(good[6], b"x"),
        *objects(records * 1),
    ]
    pods = [[(one.id, one.body) for one in bad], [(one.id, one.body) for one in good]]
    pods.append([*pods[1], pods[1][0]])
    for pod in pods:
        whole, short = Audit(partial=True), Audit(partial=True, fitness_only=True)
        for key, body in pod:
            whole.add(key, body)
            short.add(key, body)
        wanted = OF_ONE_OBJECT | OF_TWO_OBJECTS
        expected = [one for one in whole.found.kept if one.kind in wanted]
        assert list(short.found.kept) == expected
    assert check_fitness(pods[0]).unfit
    assert not check_fitness(pods[1]).unfit
