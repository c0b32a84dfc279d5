"""Whoever changes a ledger is found: any byte, line or file, but for the very end of it."""

import asyncio
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_agents.ledger import FileLedger
from byoc_agents.ledger.format import IntentLine, LinePosition, decode, encode, sha256_hex
from byoc_agents.ledger.verify import verify
from tests.unit.ledger.ledger_fakes import (
    QuickDisk,
    checked,
    files,
    ledger,
    message,
    send,
    written,
)

Raw = list[list[bytes]]  # the lines of each file, with their line ends


async def fill(directory: Path, sends: int, *, keep_bodies: bool = False) -> None:
    async with ledger(directory, QuickDisk(), keep_bodies=keep_bodies) as made:
        for number in range(sends):
            made.record_refusal("host", f"evil-{number}.example")
            await send(made, *(message(10 * number + n, b"%d" % number * 99) for n in (1, 2)))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a ledger of several files."""
    directory = tmp_path_factory.mktemp("sound")
    asyncio.run(fill(directory, 30))
    return directory


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return one of the same kind that keeps bodies, to be damaged."""
    asyncio.run(fill(tmp_path / "ledger", 30, keep_bodies=True))
    return tmp_path / "ledger"


def read(directory: Path) -> Raw:
    return [path.read_bytes().splitlines(keepends=True) for path in files(directory)]


class Rewritten:
    """The same files with other content."""

    def __init__(self, sound: Path, directory: Path) -> None:
        self._names = [path.name for path in files(sound)]
        self.directory = directory

    def problems(self, content: list[bytes]) -> list[str]:
        for name, data in zip(self._names, content, strict=True):
            (self.directory / name).write_bytes(data)
        return checked(self.directory).problems


@pytest.fixture(scope="module")
def rewritten(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Rewritten:
    return Rewritten(sound, tmp_path_factory.mktemp("rewritten"))


def test_a_sound_ledger_is_well(sound: Path) -> None:
    verdict = checked(sound)
    assert verdict.problems == []
    assert verdict.files == len(files(sound)) >= 3
    assert verdict.intents == verdict.receipts == 30
    assert verdict.refused == 30
    assert verdict.lines == sum(map(len, read(sound)))
    last = read(sound)[-1][-1].removesuffix(b"\n")
    line = decode(last)
    assert line
    assert verdict.head == str(LinePosition(line.sequence, sha256_hex(last)))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_is_found(sound: Path, rewritten: Rewritten, data: st.DataObject) -> None:
    content = [b"".join(part) for part in read(sound)]
    content[-1], tail = content[-1][: -len(read(sound)[-1][-1])], read(sound)[-1][-1]
    part = data.draw(st.integers(0, len(content) - 1))
    position = data.draw(st.integers(0, len(content[part]) - 1))
    flipped = bytearray(content[part])
    flipped[position] ^= data.draw(st.integers(1, 255))
    content[part] = bytes(flipped)
    content[-1] += tail
    assert rewritten.problems(content)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_line_that_is_missing_is_found(
    sound: Path, rewritten: Rewritten, data: st.DataObject
) -> None:
    raw = read(sound)
    part = data.draw(st.integers(0, len(raw) - 1))
    position = data.draw(st.integers(0, len(raw[part]) - 1 - (part == len(raw) - 1)))
    del raw[part][position]
    assert rewritten.problems([b"".join(part) for part in raw])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_two_lines_that_changed_places_are_found(
    sound: Path, rewritten: Rewritten, data: st.DataObject
) -> None:
    raw = read(sound)
    places = [(part, n) for part, some in enumerate(raw) for n in range(len(some))]
    (a, b), (c, d) = data.draw(
        st.lists(st.sampled_from(places), min_size=2, max_size=2, unique=True)
    )
    raw[a][b], raw[c][d] = raw[c][d], raw[a][b]
    assert rewritten.problems([b"".join(part) for part in raw])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_file_that_is_cut_short_is_found(
    sound: Path, rewritten: Rewritten, data: st.DataObject
) -> None:
    """But for whole lines at the very end: for those there are anchors."""
    content = [b"".join(part) for part in read(sound)]
    part = data.draw(st.integers(0, len(content) - 1))
    cut = data.draw(st.integers(0, len(content[part]) - 1))
    content[part] = content[part][:cut]
    if part == len(content) - 1 and content[part].endswith(b"\n"):
        return
    if part == len(content) - 1 and not content[part]:
        return
    assert rewritten.problems(content)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_inserted_bytes_are_found(
    sound: Path, rewritten: Rewritten, data: st.DataObject
) -> None:
    content = [b"".join(part) for part in read(sound)]
    part = data.draw(st.integers(0, len(content) - 1))
    position = data.draw(st.integers(0, len(content[part]) - 1 - len(read(sound)[-1][-1])))
    added = data.draw(st.binary(min_size=1, max_size=20))
    content[part] = content[part][:position] + added + content[part][position:]
    assert rewritten.problems(content)


def test_every_loss_at_the_end_is_found_by_an_anchor(sound: Path, rewritten: Rewritten) -> None:
    sequence, sha256 = checked(sound).head.split(":")
    anchor = {int(sequence): sha256}
    raw = read(sound)
    assert checked(sound, anchor).ok
    for lost in (1, 2, 5):
        cut = [*raw[:-1], raw[-1][:-lost]]
        assert rewritten.problems([b"".join(part) for part in cut]) == []
        assert not checked(rewritten.directory, anchor).ok


def test_a_history_made_anew_from_some_line_on_is_found_by_an_anchor(copy: Path) -> None:
    """With all hashes computed again, only an anchor shows the change."""
    sequence, sha256 = checked(copy).head.split(":")
    path = files(copy)[-1]
    found = [decode(raw) for raw in path.read_bytes().splitlines()]
    previous, forged = "", []
    for line in found:
        assert line
        fields = {"previous": previous} if previous else {}
        if isinstance(line, IntentLine):
            fields["destination"] = "https://innocent.example"
        raw = encode(type(line)(**{f: getattr(line, f) for f in line.__struct_fields__} | fields))
        previous = sha256_hex(raw)
        forged.append(raw)
    path.write_bytes(b"\n".join(forged) + b"\n")
    assert checked(copy).ok
    assert not checked(copy, {int(sequence): sha256}).ok


def test_the_place_of_a_change_is_named(copy: Path) -> None:
    path = files(copy)[1]
    path.write_bytes(path.read_bytes().replace(b"id-", b"ID-", 1))
    line = next(n for n, raw in enumerate(path.read_bytes().splitlines(), 1) if b"ID-" in raw)
    assert any(p.startswith(f"{path.name}:{line}: changed") for p in checked(copy).problems)


@pytest.mark.parametrize("number", [0, 1])
def test_a_whole_file_that_is_missing_is_found(number: int, copy: Path) -> None:
    files(copy)[number].unlink()
    (problem, *_) = checked(copy).problems
    assert "are missing" in problem


def test_a_removed_file_that_no_line_states_is_found_beside_one_that_is(tmp_path: Path) -> None:
    async def make() -> None:
        async with ledger(tmp_path, QuickDisk()) as made:
            for number in range(60):
                await send(made, *(message(1000 * number + n) for n in range(10)))

    asyncio.run(make())
    assert checked(tmp_path).ok
    files(tmp_path)[0].unlink()
    assert "no line states their removal" in checked(tmp_path).problems[-1]


@pytest.mark.parametrize("damage", ["changed", "missing", "longer"])
def test_a_kept_body_that_is_not_what_was_sent_is_found(damage: str, copy: Path) -> None:
    body = min((copy / "bodies").glob("*/*"))
    if damage == "missing":
        body.unlink()
    else:
        content = body.read_bytes()
        body.write_bytes(content + b"x" if damage == "longer" else b"x" + content[1:])
    assert any(body.name in problem for problem in checked(copy).problems)


def test_a_stated_torn_end_that_was_taken_away_is_found(tmp_path: Path) -> None:
    asyncio.run(written(tmp_path))
    path = files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-5])
    asyncio.run(written(tmp_path, sends=1))
    assert checked(tmp_path).ok
    next(tmp_path.glob("aside-*")).unlink()
    assert "aside-" in checked(tmp_path).problems[0]


def test_an_empty_or_missing_directory_is_not_well(tmp_path: Path) -> None:
    assert not checked(tmp_path).ok
    assert not checked(tmp_path / "nothing").ok


def test_a_line_that_is_just_being_written_is_no_problem(copy: Path) -> None:
    """The writer finishes it while the reader looks a second time."""
    path = files(copy)[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert verify(copy, settle=lambda: None).problems

    def finish() -> None:
        path.write_bytes(whole)

    assert verify(copy, settle=finish).problems == []


async def test_a_living_ledger_can_be_verified_at_any_time(tmp_path: Path) -> None:
    """Also while files are removed under the reader."""
    async with ledger(tmp_path, QuickDisk()) as made:
        writer = asyncio.create_task(_send_for_ever(made))
        notes: list[str] = []
        while not any("removed by rotation" in note for note in notes):
            verdict = await asyncio.to_thread(checked, tmp_path)
            assert verdict.problems == []
            notes = verdict.notes
        writer.cancel()
        await asyncio.wait([writer])
    assert checked(tmp_path).problems == []


async def _send_for_ever(made: FileLedger) -> None:
    for number in itertools.count():
        await send(made, *(message(1000 * number + n) for n in range(10)))
