"""The spool against a model, as its callers see it: many tasks at once, some of them cancelled.

Through closing and opening, a kill in an open transaction, a power cut, a full bound, a disk that
fails for a while, and a file that is removed or damaged meanwhile. Acknowledged changes exist, in
the order of the calls. Refused changes do not exist. Cancelled changes exist as a whole or not at
all.
"""

import asyncio
import random
import resource
import shutil
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolCorruptError, SpoolUnavailableError
from lab.fakes.core import FakeClock
from tests.unit.durable.lost_writes import cut_short, image
from tests.unit.durable.plain_spool import Model
from tests.unit.durable.spool_asks import BATCHES, MAX_BYTES, Ask, asked, explained

MARKS = "spool/"  # the spool's own checkpoints
ALL = (1000, 1 << 24)

T = TypeVar("T")


@contextmanager
def files_cannot_grow(over_bytes: int) -> Iterator[None]:
    """Let writes stop there: short where they lie across it, EFBIG beyond."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (over_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def journal_blocked(directory: Path) -> Iterator[None]:
    """Put something in the place of the journal that can be neither opened nor removed."""
    journal = directory / "spool.db-wal"
    journal.unlink(missing_ok=True)
    journal.mkdir()
    try:
        yield
    finally:
        journal.rmdir()


class Camera(list[bytes]):
    """Lines of a change that copies the directory while they are being stored."""

    def __init__(self, directory: Path, copy: Path) -> None:
        super().__init__([b"never acknowledged"])
        self._from, self._to = directory, copy

    def __iter__(self) -> Iterator[bytes]:
        for name, content in image(self._from).items():
            (self._to / name).write_bytes(content)
        return super().__iter__()


class SpoolAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.open_in(new_directory())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def open_in(self, directory: Path) -> None:
        self.directory, self.corruptions = directory, 0
        self.spool = Spool(directory, max_bytes=MAX_BYTES, clock=FakeClock())
        self.run(self.spool.__aenter__())

    def close(self) -> None:
        self.run(self.spool.__aexit__())

    def teardown(self) -> None:
        self.close()
        self.runner.close()
        shutil.rmtree(self.directory)

    def seen(self) -> Model:
        """Return all that a caller can read."""

        async def read() -> Model:
            spool = self.spool
            queue, staged, state, dead = await asyncio.gather(
                spool.peek(*ALL), spool.staged(), spool.state(), spool.dead_letters()
            )
            own = {key: value for key, value in state.items() if not key.startswith(MARKS)}
            return Model(queue, staged, own, [letter.message for letter in dead])

        return self.run(read())

    def ask(self, batch: Sequence[Ask]) -> list[list[Model]]:
        """Return each way in which it can have gone."""
        answers = self.run(asked(self.spool, batch))
        ways = list(explained(self.model, batch, answers))
        found = [
            (ask.name, ask.cancelled, answer) for ask, answer in zip(batch, answers, strict=True)
        ]
        assert ways, found
        return ways

    def adopt(self, candidates: Sequence[Model]) -> None:
        """Go on from that of them which is seen."""
        seen = self.seen()
        assert seen in candidates, f"{seen} is none of {candidates}"
        self.model = seen

    @rule(batch=BATCHES)
    def many_at_once(self, batch: list[Ask]) -> None:
        self.adopt([way[-1] for way in self.ask(batch)])

    @rule(batch=BATCHES, pages=st.integers(0, 12), more=st.sampled_from([0, 1000, 3000]))
    def disk_that_takes_no_more(self, batch: list[Ask], pages: int, more: int) -> None:
        with files_cannot_grow(pages * 4096 + more):
            ways = self.ask(batch)
        self.run(self.spool.probe())
        self.adopt([way[-1] for way in ways])

    @rule(batch=BATCHES)
    def journal_that_cannot_be_opened(self, batch: list[Ask]) -> None:
        with journal_blocked(self.directory):
            with pytest.raises(SpoolUnavailableError):  # noticed: a kill before it would lose it
                self.run(self.spool.commit(WriteBatch(state={"x": b"never"})))
            ways = self.ask(batch)
        self.run(self.spool.probe())
        self.adopt([way[-1] for way in ways])

    @rule(number=st.integers(1, 4), size=st.integers(0, 9000))
    def peek(self, number: int, size: int) -> None:
        wanted = self.model.queue[:number]
        while len(wanted) > 1 and sum(len(m.body) for m in wanted) > size:
            wanted.pop()
        assert self.run(self.spool.peek(number, size)) == wanted

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open_in(self.directory)

    @rule()
    def kill_in_a_transaction(self) -> None:
        """Continue from the files on the disk while a change is being written."""
        copy = new_directory()
        change = WriteBatch(stage=Camera(self.directory, copy), state={"x": b"never"})
        self.run(asyncio.wait([self.runner.get_loop().create_task(self.spool.commit(change))]))
        assert (copy / "spool.db").exists()
        self.fall_back_to(copy)

    @rule(batch=BATCHES, seed=st.integers(0, 1 << 32))
    def power_cut(self, batch: list[Ask], seed: int) -> None:
        """Lose the power while all of it is under way, and any sector that was on its way."""
        before = image(self.directory)
        ways = self.ask(batch)
        found, _ = cut_short(before, image(self.directory), random.Random(seed))
        copy = new_directory()
        for name, content in found.items():
            (copy / name).write_bytes(content)
        self.fall_back_to(copy)
        self.adopt([model for way in ways for model in way])

    def fall_back_to(self, copy: Path) -> None:
        self.close()
        shutil.rmtree(self.directory)
        self.open_in(copy)

    @rule(whole=st.booleans())
    def file_removed(self, whole: bool) -> None:
        """Tell the next write, and take everything but the checkpoints over."""
        if whole:
            shutil.rmtree(self.directory)
        else:
            self.spool.path.unlink()
        with pytest.raises(SpoolCorruptError, match="removed"):
            self.run(self.spool.commit(WriteBatch(state={"x": b"never"})))
        self.model.state, self.corruptions = {}, self.corruptions + 1

    @rule(place=st.integers(0, 99))
    def body_damaged(self, place: int) -> None:
        """Tell the next who reads it; only it and the checkpoints are lost."""
        if not self.model.queue:  # no precondition: draws may not depend on earlier results
            return
        victim = self.model.queue[place % len(self.model.queue)]
        self.close()
        path = self.spool.path
        content = path.read_bytes()
        assert victim.body[:20] in content
        path.write_bytes(content.replace(victim.body[:20], bytes(20)))
        self.open_in(self.directory)
        with pytest.raises(SpoolCorruptError, match="set aside"):
            self.run(self.spool.peek(*ALL))
        left, dead = (
            [m for m in shelf if not m.body.startswith(victim.body[:20])]
            for shelf in (self.model.queue, self.model.dead)
        )
        self.model = Model(left, self.model.staged, {}, dead)
        self.corruptions += 1

    @invariant()
    def same(self) -> None:
        assert self.seen() == self.model
        totals = self.spool.totals
        assert totals.events == self.model.events()
        assert totals.bytes == self.model.bytes()
        assert totals.dead_letters == len(self.model.dead)
        oldest = self.model.queue[0].created_at_ms if self.model.queue else None
        assert totals.oldest_created_at_ms == oldest
        assert self.spool.corruptions == self.corruptions


def new_directory() -> Path:
    """Return one in memory where there is such a thing: a step waits for many syncs."""
    room = "/dev/shm" if Path("/dev/shm").is_dir() else None
    return Path(tempfile.mkdtemp(prefix="byoc-spool-", dir=room))


TestSpoolAgainstModel = SpoolAgainstModel.TestCase
TestSpoolAgainstModel.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, derandomize=True, database=None
)
