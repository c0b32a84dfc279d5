"""The store against a model of plain Python values, through reopening, crashes and power cuts."""

import random
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.store import ROW_OVERHEAD_BYTES, SpoolStore, count
from byoc_agents.errors import SpoolFullError
from byoc_agents.message import Message
from tests.unit.durable.lost_writes import Image, cut_short, image
from tests.unit.durable.plain_spool import Model

MAX_BYTES = 8 * ROW_OVERHEAD_BYTES
NUMBERS = st.integers(0, 9)
MESSAGES = st.builds(
    Message,
    id=NUMBERS.map(lambda n: f"m{n}"),
    type=st.just("t"),
    body=st.binary(max_size=64),
    created_at_ms=st.integers(0, 9),
    events=st.integers(0, 3),
    replaces=st.sampled_from(["", "", "a", "b"]),
)


class StoreAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="byoc-store-"))
        self.store = self.opened()
        self.model = Model()

    def opened(self) -> SpoolStore:
        store = SpoolStore(self.directory / "spool.db", max_bytes=MAX_BYTES)
        store.connection.execute("PRAGMA synchronous=OFF")  # the cuts are made by `lost_writes`
        store.connection.execute("PRAGMA wal_autocheckpoint=8")  # the journal is often moved
        return store

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def do(self, work: Callable[[], object]) -> None:
        with self.store.transaction():
            work()

    @rule(
        messages=st.lists(MESSAGES, max_size=3),
        lines=st.lists(st.binary(max_size=64), max_size=3),
        unstaged=st.integers(0, 4),
        state=st.dictionaries(st.sampled_from("xyz"), st.none() | st.binary(max_size=3)),
    )
    def commit(
        self,
        messages: list[Message],
        lines: list[bytes],
        unstaged: int,
        state: dict[str, bytes | None],
    ) -> None:
        unstaged = min(unstaged, len(self.model.staged))
        after = self.model.copy()
        after.staged = after.staged[unstaged:] + lines
        for message in messages:
            after.put(message)
        after.state = {k: v for k, v in (after.state | state).items() if v is not None}
        fits = after.bytes() <= max(MAX_BYTES, self.model.bytes())
        refused = False
        try:
            with self.store.transaction():
                self.store.apply(WriteBatch(messages, state, lines, unstaged))
        except SpoolFullError:
            refused = True
        assert refused is not fits
        self.model = after if fits else self.model

    @rule(number=NUMBERS)
    def remove(self, number: int) -> None:
        self.do(lambda: self.store.remove([f"m{number}"]))
        self.model.remove([f"m{number}"])

    @rule(number=NUMBERS)
    def dead_letter(self, number: int) -> None:
        there = (m for m in self.model.queue if m.id == f"m{number}")
        message = next(there, Message(f"m{number}", "t", b"", 0))
        self.do(lambda: self.store.dead_letter(message, "rejected", "", 1))
        self.model.dead_letter(message)

    @rule(number=NUMBERS)
    def requeue(self, number: int) -> None:
        requeued = self.model.requeue(f"m{number}")
        with self.store.transaction():
            assert self.store.requeue(f"m{number}") is requeued

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.opened()

    @rule(messages=st.lists(MESSAGES, max_size=2))
    def crash(self, messages: list[Message]) -> None:
        """Go on from a copy of the files, taken while a transaction was open."""
        copy = Path(tempfile.mkdtemp(prefix="byoc-store-"))
        with suppress(SpoolFullError), self.store.transaction():
            with suppress(SpoolFullError), self.store.savepoint():
                self.store.apply(WriteBatch(messages=messages, state={"x": b"uncommitted"}))
            for suffix in ("", "-wal"):
                file = self.directory / f"spool.db{suffix}"
                if file.exists():
                    shutil.copy(file, copy)
            raise SpoolFullError  # the transaction is not committed
        self.store.close()
        shutil.rmtree(self.directory)
        self.directory = copy
        self.store = self.opened()

    @rule(messages=st.lists(MESSAGES, max_size=3), seed=st.integers(0, 1 << 32))
    def power_cut(self, messages: list[Message], seed: int) -> None:
        """Lose the power in a commit, and with it any sector that was on its way to the disk."""
        before = image(self.directory)
        after = self.model.copy()
        for message in messages:
            after.put(message)
        with suppress(SpoolFullError), self.store.transaction():
            self.store.apply(WriteBatch(messages=messages))
        full = self.store.totals().bytes != after.bytes()
        found, committed = cut_short(before, image(self.directory), random.Random(seed))
        self.fall_back_to(found)
        there = self.store.peek(100, 1 << 20)
        assert there in (
            [after.queue] if committed and not full else [after.queue, self.model.queue]
        )
        if there == after.queue and not full:
            self.model = after

    def fall_back_to(self, found: Image) -> None:
        """Go on from other files, opened as after any start."""
        self.store.close()
        shutil.rmtree(self.directory)
        self.directory.mkdir()
        for name, content in found.items():
            (self.directory / name).write_bytes(content)
        self.store = self.opened()

    @invariant()
    def same(self) -> None:
        assert self.store.peek(100, 1 << 20) == self.model.queue
        assert self.store.staged() == self.model.staged
        assert self.store.state("") == self.model.state
        assert [letter.message for letter in self.store.dead_letters()] == self.model.dead
        assert self.store.totals() == count(self.store.connection)
        assert self.store.totals().bytes == self.model.bytes()


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, derandomize=True, database=None
)
