"""One durable stream of numbered messages: about one replica, or about the service.

A message and the position after it are one commit, so a kill between any two steps neither skips
nor repeats a number. If the spool has no room, the latest state is published as soon as there is
room, with the number of changes that were lost in between.
"""

import asyncio
from collections.abc import Callable, Mapping

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.sink import Message
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolError
from byoc_agents.state.message import MessageKind, Position

ROLLBACK_NUMBERS = 500  # numbers that a lost journal (at most 4 MiB) can have held, and more

BuildMessage = Callable[
    [MessageKind, Position, int], Message
]  # of (kind, position, now in milliseconds)


class Stream:
    """Publishes changes at once, and an unchanged state as a heartbeat."""

    def __init__(  # noqa: PLR0913  its collaborators
        self,
        daemon: str,
        key: str,
        *,
        heartbeat_seconds: float,
        spool: Spool,
        clock: Clock,
        metrics: Metrics,
        sent: Callable[[], Mapping[str, bool]] = dict,
    ) -> None:
        """`sent` blocks and returns the ids of recent sends (`byoc_agents.ledger.recent`)."""
        self.position: Position | None = None
        self._daemon = daemon
        self._keys = (f"{key}/position", f"{key}/more")
        self._heartbeat_ns = int(heartbeat_seconds * 1e9)
        self._spool = spool
        self._clock = clock
        self._metrics = metrics
        self._sent = sent
        self._rollback_checked = False
        self._published_at_ns: int | None = None
        self._published_key = ""  # state key of the last message
        self._pending_change = ""  # state key of the last change for which there was no room
        self._lost_changes = 0  # earlier changes for which there was no room
        self._log = structlog.get_logger().bind(daemon=daemon, stream=key)

    async def load(self) -> bytes | None:
        """Read the position; return the bytes stored with it. Raises SpoolError."""
        position_key, extra_key = self._keys
        stored = await self._spool.state(position_key.rpartition("/")[0] + "/")
        self.position = _decode_position(stored.get(position_key))
        if self.position is None:
            if position_key in stored:  # another version's: its numbers must not be used again
                self.position = await self._start_epoch()
            else:
                self.position = await self._read_spool_epoch()
        self._rollback_checked = False
        self._published_key = self.position.published
        if self._pending_change == self._published_key:  # the failed commit was made after all
            self._pending_change = ""
        return stored.get(extra_key)

    async def publish(self, state_key: str, build: BuildMessage, extra: bytes = b"") -> bool:
        """Commit a message to the spool if one is due. Return False if the spool failed.

        A change of `state_key` makes the message a transition. `extra` is stored with the position.
        An error of the spool is logged and counted here.
        """
        try:
            if self.position is None:
                await self.load()
            if not self._rollback_checked:
                await self._check_rollback(build)
            return await self._commit_message(state_key, build, extra)
        except SpoolError as error:
            self._record_failed_write(error, state_key)
            return False

    async def _read_spool_epoch(self) -> Position:
        return Position(epoch=(await self._spool.info()).epoch)

    async def _start_epoch(self, least_ms: int = 0) -> Position:
        now_ms = self._clock.wall_ns() // 1_000_000
        return Position(epoch=await self._spool.later_epoch(max(now_ms, least_ms)))

    async def _check_rollback(self, build: BuildMessage) -> None:
        """Start an epoch if one of the next numbers was sent before: the spool was rolled back."""
        position, sent = self.position, await asyncio.to_thread(self._sent)
        assert position is not None  # noqa: S101  loaded
        now_ms = self._clock.wall_ns() // 1_000_000
        last = position.sequence + ROLLBACK_NUMBERS if sent else 0
        following = (
            msgspec.structs.replace(position, sequence=number)
            for number in range(position.sequence, last)
        )
        if any(build("heartbeat", one, now_ms).id in sent for one in following):
            self._log.error(
                "state.rollback_detected", epoch=position.epoch, sequence=position.sequence
            )
            self.position = await self._start_epoch(position.epoch + 1)
        self._rollback_checked = True

    async def _commit_message(self, state_key: str, build: BuildMessage, extra: bytes) -> bool:
        position, now_ns = self.position, self._clock.boot_ns()
        assert position is not None  # noqa: S101  loaded
        kind: MessageKind = "heartbeat" if state_key == position.published else "transition"
        if kind == "heartbeat" and not self._is_heartbeat_due(now_ns):
            return True
        lost = self._lost_changes + (self._pending_change not in {"", state_key})
        position = msgspec.structs.replace(position, lost=position.lost + lost)
        message = build(kind, position, self._clock.wall_ns() // 1_000_000)
        after = msgspec.structs.replace(
            position,
            sequence=position.sequence + 1,
            transitions=position.transitions + (kind == "transition"),
            published=state_key,
        )
        self.position = None  # unknown until the commit has returned
        stored = dict(zip(self._keys, (msgspec.json.encode(after), extra), strict=True))
        await self._spool.commit(WriteBatch(messages=[message], state=stored))
        self.position, self._published_at_ns, self._published_key = after, now_ns, state_key
        self._lost_changes, self._pending_change = 0, ""
        self._log.info(
            "state.published", kind=kind, sequence=position.sequence, state_key=state_key
        )
        return True

    def _is_heartbeat_due(self, now_ns: int) -> bool:
        published_at_ns = self._published_at_ns
        return published_at_ns is None or now_ns - published_at_ns >= self._heartbeat_ns

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
