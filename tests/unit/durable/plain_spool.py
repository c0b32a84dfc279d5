"""A model of a spool in plain lists, with the effect and the result of each operation."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.store import ROW_OVERHEAD_BYTES
from byoc_agents.errors import SpoolError, SpoolFullError
from byoc_agents.message import Message


@dataclass
class Model:
    """The content of a spool."""

    queue: list[Message] = field(default_factory=list)
    staged: list[bytes] = field(default_factory=list)
    state: dict[str, bytes] = field(default_factory=dict)
    dead: list[Message] = field(default_factory=list)

    def copy(self) -> "Model":
        return Model(list(self.queue), list(self.staged), dict(self.state), list(self.dead))

    def bytes(self) -> int:
        sizes = [len(m.body) for m in self.queue + self.dead] + [len(x) for x in self.staged]
        return sum(sizes) + len(sizes) * ROW_OVERHEAD_BYTES

    def events(self) -> int:
        return sum(m.events for m in self.queue) + len(self.staged)

    def put(self, message: Message) -> None:
        if any(m.id == message.id for m in self.queue):
            return
        if message.replaces:
            self.queue = [m for m in self.queue if m.replaces != message.replaces]
        self.queue.append(message)

    def commit(self, change: WriteBatch, max_bytes: int) -> None:
        """Do all of it; on an error the model must be thrown away. Raises SpoolError."""
        before = self.bytes()
        if change.unstage > len(self.staged):
            raise SpoolError
        self.staged = self.staged[change.unstage :] + list(change.stage)
        for message in change.messages:
            self.put(message)
        state = {**self.state, **change.state}
        self.state = {key: value for key, value in state.items() if value is not None}
        if self.bytes() > max(max_bytes, before):
            raise SpoolFullError

    def remove(self, ids: Sequence[str]) -> None:
        self.queue = [m for m in self.queue if m.id not in ids]

    def dead_letter(self, message: Message) -> None:
        found = self._take(message.id, self.queue)
        if found:
            same = {message.replaces} - {""}
            self.dead = [m for m in self.dead if m.id != found.id and m.replaces not in same]
            self.dead.append(found)

    def requeue(self, message_id: str) -> bool:
        found = self._take(message_id, self.dead)
        if found:  # it replaces nothing any more
            self.put(Message(found.id, found.type, found.body, found.created_at_ms, found.events))
        return found is not None

    def _take(self, message_id: str, shelf: list[Message]) -> Message | None:
        found = next((m for m in shelf if m.id == message_id), None)
        if found:
            shelf.remove(found)
        return found
