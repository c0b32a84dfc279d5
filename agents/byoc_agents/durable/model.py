"""The values that the spool stores and returns."""

from collections.abc import Mapping, Sequence

import msgspec

from byoc_agents.message import Message


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that the receiver rejected for good, with the reason."""

    message: Message
    reason: str
    detail: str
    died_at_ms: int


class WriteBatch(msgspec.Struct, frozen=True):
    """The content of one commit: all of it is stored, or nothing."""

    messages: Sequence[Message] = ()  # a message whose id is already queued is ignored
    state: Mapping[str, bytes | None] = msgspec.field(default_factory=dict)  # None removes the key
    stage: Sequence[bytes] = ()  # lines that wait to be sealed into a message
    unstage: int = 0  # number of the oldest staged lines to delete (now in `messages`)
    dead_letters: Sequence[DeadLetter] = ()  # only when a damaged file is replaced

    @property
    def plain(self) -> bool:
        """Return whether it only adds messages and writes state."""
        return not (self.stage or self.unstage or self.dead_letters)


def merge_batches(changes: Sequence[WriteBatch]) -> WriteBatch:
    """Return one change with the effect of these plain changes, in order."""
    state: dict[str, bytes | None] = {}
    for change in changes:
        state |= change.state
    return WriteBatch([message for change in changes for message in change.messages], state)


UNKNOWN_MS = -(1 << 63)  # the time must be read from the file again


class Totals(msgspec.Struct, frozen=True):
    """The content of the spool. Bytes count bodies and lines, plus an overhead per row."""

    events: int = 0  # in unsent messages, and staged lines: events that are not in a message yet
    bytes: int = 0
    oldest_created_at_ms: int | None = None  # of the oldest unsent message
    dead_letters: int = 0


class SpoolInfo(msgspec.Struct, frozen=True):
    """The origin of the spool's file, and its epoch."""

    epoch: int  # its creation, milliseconds since 1970; later than that of all earlier files here
    replaced: bool  # it replaced a damaged or lost file, so checkpoints were lost
