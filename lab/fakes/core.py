"""A clock, a sink and ledgers for tests, which neither mock nor sleep."""

import asyncio
import heapq
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import count
from typing import NamedTuple

from byoc_agents.delivery.sink import Transmit, transmit_unrecorded
from byoc_agents.errors import LedgerError, Reason, SendError
from byoc_agents.message import Message, Outcome, Receipt

START_MS = 1_795_435_200_000  # 2026-11-23T12:00:00Z
SETTLE_TURNS = 25  # turns of the loop that a woken task has to park itself again
NS = 1_000_000_000


class FakeClock:
    """A clock that only a test moves. `sleep` waits until then."""

    def __init__(self, wall_ms: int = START_MS, boot_seconds: float = 1000.0) -> None:
        self.boot_id = "boot-1"
        self._wall_ns = wall_ms * 1_000_000
        self._boot_ns = int(boot_seconds * NS)
        self._parked: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = count()
        self._changed = asyncio.Event()

    def wall_ns(self) -> int:
        """Return the wall time the test has set."""
        return self._wall_ns

    def boot_ns(self) -> int:
        """Return the boot time the test has set."""
        return self._boot_ns

    async def sleep(self, seconds: float) -> None:
        """Wait until the test has moved the clock that far; 0 or less is one turn of the loop."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._parked, (self._boot_ns + int(seconds * NS), next(self._order), woken))
        self._changed.set()
        await woken

    @property
    def waits(self) -> list[float]:
        """Return the remaining seconds of each sleeper, shortest first."""
        waiting = sorted(entry for entry in self._parked if not entry[2].done())
        return [(deadline - self._boot_ns) / NS for deadline, _, _ in waiting]

    async def parked(self, sleepers: int = 1) -> list[float]:
        """Wait until that many tasks sleep, also ones that now run in threads; return `waits`."""
        while len(self.waits) < sleepers:
            self._changed.clear()
            await self._changed.wait()
        return self.waits

    async def advance(self, seconds: float) -> None:
        """Advance both times, and wake each sleeper at its own time."""
        end = self._boot_ns + int(seconds * NS)
        while self._parked and self._parked[0][0] <= end:
            deadline, _, woken = heapq.heappop(self._parked)
            self._move(deadline)
            if not woken.done():
                woken.set_result(None)
                await settle()
        self._move(end)
        await settle()

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock as an operator or NTP does; boot time does not change."""
        self._wall_ns += int(seconds * NS)

    def _move(self, boot_ns: int) -> None:
        moved = max(0, boot_ns - self._boot_ns)
        self._boot_ns += moved
        self._wall_ns += moved


async def settle(turns: int = SETTLE_TURNS) -> None:
    """Yield to the loop until no task can continue without a thread or a socket."""
    for _ in range(turns):
        await asyncio.sleep(0)


class Hang(Enum):
    """The actions of a scripted send in addition to answering."""

    FOREVER = "never answers; ends by cancellation"
    UNTIL_RELEASED = "answers OK once the test sets `released`"


class Raised(NamedTuple):
    """A step that raises a SendError instead of returning it."""

    error: SendError


Answer = Outcome | Sequence[Outcome] | Callable[[Sequence[Message]], Outcome]
Step = Answer | Exception | Raised | Hang


class ScriptedSink:
    """A receiver that follows a script, one step per send, and then accepts everything.

    `stored` has the messages that it accepted, each with its first bytes. `sent` has every message
    of every send in order, whatever the result.
    """

    destination = "test://sink"

    def __init__(
        self, script: Iterable[Step] = (), *, max_messages: int = 1, max_bytes: int = 1 << 20
    ) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.script = list(script)
        self.batches: list[list[Message]] = []
        self.stored: dict[str, bytes] = {}
        self.entered = asyncio.Event()  # set when a send begins
        self.released = asyncio.Event()

    @property
    def sent(self) -> list[str]:
        """Return the ids of every send, in order, repeats included."""
        return [message.id for batch in self.batches for message in batch]

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        """Execute the next step of the script."""
        return await transmit(batch, lambda: self._step(batch))

    async def _step(self, batch: Sequence[Message]) -> Sequence[Outcome]:
        self.batches.append(list(batch))
        self.entered.set()
        step = self.script.pop(0) if self.script else self.take
        if isinstance(step, Hang):
            await (self.released.wait() if step is Hang.UNTIL_RELEASED else asyncio.Event().wait())
            return [self.take([message]) for message in batch]
        if isinstance(step, Raised):
            raise step.error
        if isinstance(step, Exception) and not isinstance(step, SendError):
            raise step
        return self._answer(step, batch)

    def _answer(self, step: Answer, batch: Sequence[Message]) -> Sequence[Outcome]:
        if callable(step):
            return [step([message]) for message in batch]
        outcomes: Sequence[Outcome] = step if isinstance(step, Sequence) else [step] * len(batch)
        for message, outcome in zip(batch, outcomes, strict=False):
            if isinstance(outcome, Receipt):
                self.take([message])
        return outcomes

    def take(self, batch: Sequence[Message]) -> Receipt:
        """Store a message unless its id is stored already."""
        (message,) = batch
        if message.id in self.stored:
            return Receipt(Reason.ALREADY_STORED, 412)
        self.stored[message.id] = message.body
        return Receipt(Reason.OK, 200, "etag")


ListSink = ScriptedSink  # without a script it takes everything


class NullLedger:
    """A ledger that writes nothing."""

    async def intent(self, destination: str, batch: Sequence[Message]) -> int:  # noqa: ARG002
        """Return 0."""
        return 0

    async def receipt(
        self, intent: int, batch: Sequence[Message], outcomes: Sequence[Outcome]
    ) -> None:
        """Do nothing."""


class ListLedger:
    """A ledger in memory; it raises `refusal` while that is set."""

    def __init__(self) -> None:
        self.intents: list[tuple[str, list[str]]] = []  # destination, message ids
        self.receipts: list[tuple[int, list[str], list[Reason]]] = []
        self.refusal = ""

    async def intent(self, destination: str, batch: Sequence[Message]) -> int:
        """Record the message about to be sent. Raises LedgerError while `refusal` is set."""
        self._check()
        self.intents.append((destination, [message.id for message in batch]))
        return len(self.intents) - 1

    async def receipt(
        self, intent: int, batch: Sequence[Message], outcomes: Sequence[Outcome]
    ) -> None:
        """Record the result. Raises LedgerError while `refusal` is set."""
        self._check()
        reasons = [outcome.reason for outcome in outcomes]
        self.receipts.append((intent, [message.id for message in batch], reasons))

    def _check(self) -> None:
        if self.refusal:
            raise LedgerError(self.refusal)
