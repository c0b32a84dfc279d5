"""One durable stream of numbered messages: about one replica, or about the service.

A message and the position after it are one commit, so a kill between any two steps neither skips
nor repeats a number. If the spool has no room, the latest state is published as soon as there is
room, with the number of changes that were lost in between.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.app.metrics import Metrics
from byoc_agents.durable.checkpoint import Checkpointed
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolError
from byoc_agents.ledger.recent import RecentSend, newest_sent
from byoc_agents.message import Message
from byoc_agents.state.message import MessageKind, Position


class BuildMessage(Protocol):
    """Returns the message of a kind with this position and the interval that it states."""

    def __call__(  # noqa: D102
        self, kind: MessageKind, *, position: Position, heartbeat_seconds: float, now_ms: int
    ) -> Message: ...


class _StreamState(NamedTuple):
    """The state that a commit stores together with its message."""

    position: Position
    extra: bytes | None


class MessageStream:
    """Publishes changes at once, and an unchanged state as a heartbeat.

    A heartbeat is due when the time that the last message stated is over. A change, the start of
    the process and a change that was lost make the stated time short again.
    """

    def __init__(  # noqa: PLR0913  its collaborators
        self,
        daemon: str,
        key: str,
        *,
        intervals: HeartbeatIntervals,
        spool: Spool,
        clock: Clock,
        metrics: Metrics,
        sent: Callable[[], Sequence[RecentSend]] = tuple,
    ) -> None:
        """`key` names the stream. `sent` may block; it returns the recent sends of the ledger."""
        self._daemon = daemon
        self._key = key
        self._keys = (f"{key}/position", f"{key}/more")
        self._intervals = intervals
        self._spool = spool
        self._checkpoint = Checkpointed(spool, self._read)
        self._clock = clock
        self._metrics = metrics
        self._sent = sent
        self._changed_at_ns = clock.boot_ns()  # last change, or start of the process
        self._due_at_ns: int | None = None  # of the next heartbeat; None: the first message is due
        self._published_key = ""  # state key of the last message
        self._pending_change = ""  # state key of the last change for which there was no room
        self._lost_changes = 0  # earlier changes for which there was no room
        self._log = structlog.get_logger().bind(daemon=daemon, stream=key)

    async def load(self) -> bytes | None:
        """Return the bytes that the last commit stored as `extra`. Raises SpoolError."""
        return (await self._checkpoint.load()).extra

    async def _read(self) -> _StreamState:
        """Read the position and the bytes stored with it.

        Starts an epoch if the next number may have been sent before: the spool was rolled back.
        """
        position_key, extra_key = self._keys
        stored = await self._spool.state(f"{self._key}/")
        position = _decode_position(stored.get(position_key))
        if position is None:
            if position_key in stored:  # another version's: its numbers must not be used again
                position = await self._start_epoch()
            else:
                position = Position(epoch=(await self._spool.info()).epoch)
        newest = newest_sent(await asyncio.to_thread(self._sent), self._key)
        if newest and newest >= (position.epoch, position.sequence):
            self._log.error(
                "state.rollback_detected", epoch=position.epoch, sequence=position.sequence
            )
            position = await self._start_epoch(newest.epoch + 1)
        self._published_key = position.published
        if self._pending_change == self._published_key:  # the failed commit was made after all
            self._pending_change = ""
        return _StreamState(position, stored.get(extra_key))

    async def publish(self, state_key: str, build: BuildMessage, extra: bytes = b"") -> bool:
        """Commit a message to the spool if one is due. Return False if the spool failed.

        A change of `state_key` makes the message a transition. `extra` is stored with the position.
        An error of the spool is logged and counted here.
        """
        try:
            position = (await self._checkpoint.load()).position
            return await self._commit_message(position, state_key, build, extra)
        except SpoolError as error:
            self._record_failed_write(error, state_key)
            return False

    async def _start_epoch(self, least_ms: int = 0) -> Position:
        now_ms = self._clock.wall_ns() // 1_000_000
        return Position(epoch=await self._spool.later_epoch(max(now_ms, least_ms)))

    async def _commit_message(
        self, position: Position, state_key: str, build: BuildMessage, extra: bytes
    ) -> bool:
        now_ns = self._clock.boot_ns()
        kind: MessageKind = "heartbeat" if state_key == position.published else "transition"
        if kind == "heartbeat" and self._due_at_ns is not None and now_ns < self._due_at_ns:
            return True
        lost = self._lost_changes + (self._pending_change not in {"", state_key})
        if kind == "transition" or lost:
            self._changed_at_ns = now_ns
        position = msgspec.structs.replace(position, lost=position.lost + lost)
        heartbeat_seconds = self._intervals.after(now_ns - self._changed_at_ns)
        message = msgspec.structs.replace(
            build(
                kind,
                position=position,
                heartbeat_seconds=heartbeat_seconds,
                now_ms=self._clock.wall_ns() // 1_000_000,
            ),
            stream=self._key,
            epoch=position.epoch,
            sequence=position.sequence,
        )
        after = msgspec.structs.replace(
            position,
            sequence=position.sequence + 1,
            transitions=position.transitions + (kind == "transition"),
            published=state_key,
        )
        state = dict(zip(self._keys, (msgspec.json.encode(after), extra), strict=True))
        batch = WriteBatch(messages=[message], state=state)
        due_at_ns = now_ns + int(heartbeat_seconds * 1e9)
        if self._due_at_ns is not None:  # a commit that fails may have been made
            self._due_at_ns = min(self._due_at_ns, due_at_ns)
        await self._checkpoint.commit(batch, _StreamState(after, extra))
        self._due_at_ns, self._published_key = due_at_ns, state_key
        self._lost_changes, self._pending_change = 0, ""
        self._log.info(
            "state.published", kind=kind, sequence=position.sequence, state_key=state_key
        )
        return True

    def _record_failed_write(self, error: SpoolError, state_key: str) -> None:
        """Count a change that could not be stored, once."""
        change = state_key if state_key != self._published_key else ""
        if change != self._pending_change:
            self._lost_changes += bool(self._pending_change)
            self._pending_change = change
        self._metrics.spool_errors.labels(self._daemon, error.reason).inc()
        self._log.error(
            "state.write_failed", error=str(error), state_key=state_key, lost=self._lost_changes
        )


def _decode_position(stored: bytes | None) -> Position | None:
    if stored is None:
        return None
    try:
        return msgspec.json.decode(stored, type=Position)
    except msgspec.DecodeError:  # written by another version
        return None
