"""A checkpointed value is read again after errors: one test per row of the contract."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from byoc_agents.durable.checkpoint import Checkpointed
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolError, SpoolFullError, SpoolUnavailableError
from lab.fakes.core import FakeClock


class ScriptedSpool(Spool):
    """A spool that a test can stop before or after a commit."""

    error: SpoolError | None = None
    stored_anyway = False
    replaced = 0  # files that were replaced because of damage
    let_commit: asyncio.Event | None = None

    @property
    def corruptions(self) -> int:
        return self.replaced

    async def commit(self, change: WriteBatch) -> None:
        if self.let_commit:
            await self.let_commit.wait()
        if self.error is None or self.stored_anyway:
            await super().commit(change)
        if self.error:
            raise self.error


class Counter:
    """A number that is stored in a spool, with the number of times it was read."""

    def __init__(self, spool: ScriptedSpool) -> None:
        self.spool = spool
        self.reads = 0
        self.let_read: asyncio.Event | None = None
        self.checkpoint = Checkpointed(spool, self._read)

    async def _read(self) -> int:
        self.reads += 1
        found = int((await self.spool.state("number")).get("number", b"0"))
        if self.let_read:
            await self.let_read.wait()
        return found

    async def set(self, number: int) -> None:
        await self.checkpoint.commit(WriteBatch(state={"number": b"%d" % number}), number)


@pytest.fixture
async def counter(tmp_path: Path) -> AsyncIterator[Counter]:
    async with ScriptedSpool(tmp_path, max_bytes=1 << 20, clock=FakeClock()) as spool:
        yield Counter(spool)


async def test_a_value_is_read_once_and_known_after_a_commit(counter: Counter) -> None:
    assert await counter.checkpoint.load() == 0
    await counter.set(1)
    assert await counter.checkpoint.load() == 1
    assert counter.reads == 1
    assert await Counter(counter.spool).checkpoint.load() == 1


async def test_a_full_spool_has_stored_nothing_and_the_value_stays(counter: Counter) -> None:
    await counter.checkpoint.load()
    counter.spool.error = SpoolFullError("full")
    with pytest.raises(SpoolFullError):
        await counter.set(1)
    assert await counter.checkpoint.load() == 0
    assert counter.reads == 1


@pytest.mark.parametrize("stored_anyway", [True, False])
async def test_a_failed_commit_may_have_been_made(counter: Counter, stored_anyway: bool) -> None:
    await counter.checkpoint.load()
    counter.spool.error, counter.spool.stored_anyway = SpoolUnavailableError("disk"), stored_anyway
    with pytest.raises(SpoolUnavailableError):
        await counter.set(1)
    assert await counter.checkpoint.load() == int(stored_anyway)
    assert counter.reads == 2


async def test_a_cancelled_commit_may_have_been_made(counter: Counter) -> None:
    await counter.checkpoint.load()
    counter.spool.let_commit = asyncio.Event()
    commit = asyncio.ensure_future(counter.set(1))
    await asyncio.sleep(0)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    await counter.checkpoint.load()
    assert counter.reads == 2


async def test_a_file_that_replaced_a_damaged_one_is_read(counter: Counter) -> None:
    await counter.checkpoint.load()
    await counter.set(1)
    counter.spool.replaced = 1
    await Spool.commit(counter.spool, WriteBatch(state={"number": None}))
    assert await counter.checkpoint.load() == 0


async def test_the_latest_value_is_known_without_reading(counter: Counter) -> None:
    assert (counter.checkpoint.latest, counter.checkpoint.is_current) == (None, False)
    await counter.checkpoint.load()
    await counter.set(1)
    assert (counter.checkpoint.latest, counter.checkpoint.is_current) == (1, True)
    counter.spool.replaced = 1
    assert (counter.checkpoint.latest, counter.checkpoint.is_current) == (1, False)
    assert counter.reads == 1


@pytest.mark.parametrize(
    ("error", "current"),
    [(None, True), (SpoolFullError("full"), True), (SpoolUnavailableError("disk"), False)],
)
async def test_two_values_may_be_in_one_commit(
    counter: Counter, error: SpoolError | None, *, current: bool
) -> None:
    other = Counter(counter.spool)
    await counter.checkpoint.load()
    await other.checkpoint.load()
    counter.spool.error = error
    with suppress(SpoolError), other.checkpoint.committing(1):
        await counter.set(1)
    assert [one.checkpoint.is_current for one in (counter, other)] == [current, current]
    expected = 0 if error else 1
    assert [one.checkpoint.latest for one in (counter, other)] == [expected, expected]


async def test_a_read_that_failed_is_repeated(counter: Counter) -> None:
    failures = iter([SpoolUnavailableError("disk")])

    async def read() -> int:
        for failure in failures:
            raise failure
        return 7

    checkpoint = Checkpointed(counter.spool, read)
    with pytest.raises(SpoolUnavailableError):
        await checkpoint.load()
    assert await checkpoint.load() == 7


async def test_callers_at_the_same_time_share_one_read(counter: Counter) -> None:
    assert await asyncio.gather(*(counter.checkpoint.load() for _ in range(3))) == [0, 0, 0]
    assert counter.reads == 1


@pytest.mark.parametrize("error", [None, SpoolUnavailableError("disk")])
async def test_a_value_read_during_a_commit_is_read_again(
    counter: Counter, error: SpoolError | None
) -> None:
    """It may lack what the commit has stored."""
    counter.let_read = asyncio.Event()
    load = asyncio.ensure_future(counter.checkpoint.load())
    await asyncio.sleep(0)
    await counter.spool.state()  # behind the first read
    assert counter.reads == 1
    counter.spool.error, counter.spool.stored_anyway = error, True
    if error:
        with pytest.raises(SpoolUnavailableError):
            await counter.set(1)
    else:
        await counter.set(1)
    counter.let_read.set()
    assert await load == 1
    assert counter.reads == 2
