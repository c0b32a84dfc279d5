"""One stream of numbered messages: a replica's, or the service's. What was told is durable.

The message and the position after it are one commit, so a kill between any two steps neither
skips nor repeats a number. Where there is no room, the change is told as soon as there is, with
the number of changes that were lost in between.
"""

import asyncio
from collections.abc import Callable, Mapping

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.sink import Message
from byoc_agents.durable.spool import EPOCH, Spool
from byoc_agents.durable.store import Change
from byoc_agents.errors import SpoolError
from byoc_agents.state.message import Kind, Position

NUMBERS_AHEAD = 500  # more than a journal of 4 MiB can have held

Make = Callable[[Kind, Position, int], Message]  # of (kind, position, now in milliseconds)


class Stream:
    """Tells changes at once and the same again as a heartbeat."""

    def __init__(  # noqa: PLR0913  the parts it is made of
        self,
        agent: str,
        key: str,
        *,
        heartbeat_seconds: float,
        spool: Spool,
        clock: Clock,
        metrics: Metrics,
        sent: Callable[[], Mapping[str, bool]] = dict,
    ) -> None:
        """`sent` blocks and returns what `byoc_agents.ledger.recent` does."""
        self.position: Position | None = None
        self._agent = agent
        self._keys = (f"{key}/position", f"{key}/more")
        self._heartbeat_ns = int(heartbeat_seconds * 1e9)
        self._spool = spool
        self._clock = clock
        self._metrics = metrics
        self._sent = sent
        self._compared = False  # the position with what has left
        self._told_at_ns: int | None = None
        self._said = ""  # what the last message said
        self._unheard = ""  # the last change that found no room
        self._lost = 0  # changes since `told` that found no room, but for the last
        self._log = structlog.get_logger().bind(agent=agent, stream=key)

    async def load(self) -> bytes | None:
        """Read where the stream stands; return what was kept beside it. Raises SpoolError."""
        position, more = self._keys
        stored = await self._spool.state(self._keys[0].rpartition("/")[0] + "/")
        self.position = _decoded(stored.get(position))
        if self.position is None:  # there, but another version's: its numbers must not come again
            again = position in stored
            self.position = await (self._anew() if again else self._first())
        self._compared = False
        self._said = self.position.told
        if self._unheard == self._said:  # the commit that failed was made all the same
            self._unheard = ""
        return stored.get(more)

    async def _first(self) -> Position:
        return Position(epoch=int((await self._spool.state(EPOCH))[EPOCH]))

    async def _anew(self, least_ms: int = 0) -> Position:
        now_ms = self._clock.wall_ns() // 1_000_000
        return Position(epoch=await self._spool.later_epoch(max(now_ms, least_ms)))

    async def tell(self, word: str, make: Make, more: bytes = b"") -> bool:
        """Put a message into the spool where one is due. Return whether there is no trouble.

        `word` is what the message says in short; another one than the last is a transition.
        `more` is kept beside the position. An error of the spool is logged and counted here.
        """
        try:
            if self.position is None:
                await self.load()
            if not self._compared:
                await self._compare(make)
            return await self._tell(word, make, more)
        except SpoolError as error:
            self._note(error, word)
            return False

    async def _compare(self, make: Make) -> None:
        """Begin the numbers anew where one of the next has left: the spool is an older one."""
        position, sent = self.position, await asyncio.to_thread(self._sent)
        assert position is not None  # noqa: S101  loaded
        now_ms = self._clock.wall_ns() // 1_000_000
        numbers = range(position.sequence, position.sequence + NUMBERS_AHEAD if sent else 0)
        ahead = (msgspec.structs.replace(position, sequence=number) for number in numbers)
        if any(make("heartbeat", one, now_ms).id in sent for one in ahead):
            self._log.error("state.outrun", epoch=position.epoch, sequence=position.sequence)
            self.position = await self._anew(position.epoch + 1)
        self._compared = True

    async def _tell(self, word: str, make: Make, more: bytes) -> bool:
        position, now_ns = self.position, self._clock.boot_ns()
        assert position is not None  # noqa: S101  loaded
        kind: Kind = "heartbeat" if word == position.told else "transition"
        if kind == "heartbeat" and not self._due(now_ns):
            return True
        lost = self._lost + (self._unheard not in {"", word})
        position = msgspec.structs.replace(position, lost=position.lost + lost)
        message = make(kind, position, self._clock.wall_ns() // 1_000_000)
        after = msgspec.structs.replace(
            position,
            sequence=position.sequence + 1,
            transitions=position.transitions + (kind == "transition"),
            told=word,
        )
        self.position = None  # unknown until the commit is known to be made
        keys = dict(zip(self._keys, (msgspec.json.encode(after), more), strict=True))
        await self._spool.commit(Change(messages=[message], state=keys))
        self.position, self._told_at_ns, self._said = after, now_ns, word
        self._lost, self._unheard = 0, ""
        self._log.info("state.told", kind=kind, sequence=position.sequence, says=word)
        return True

    def _due(self, now_ns: int) -> bool:
        return self._told_at_ns is None or now_ns - self._told_at_ns >= self._heartbeat_ns

    def _note(self, error: SpoolError, word: str) -> None:
        """Count a change that could not be kept, once."""
        change = word if word != self._said else ""
        if change != self._unheard:
            self._lost += bool(self._unheard)
            self._unheard = change
        self._metrics.spool_errors.labels(self._agent, "state").inc()
        self._log.error("state.not_kept", error=str(error), says=word, lost=self._lost)


def _decoded(stored: bytes | None) -> Position | None:
    if stored is None:
        return None
    try:
        return msgspec.json.decode(stored, type=Position)
    except msgspec.DecodeError:  # written by another version
        return None
