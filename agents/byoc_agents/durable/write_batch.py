"""The values that go into the spool and come out of it."""

from collections.abc import Mapping, Sequence

import msgspec

from byoc_agents.delivery.sink import Message


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that was refused for good, kept with the reason."""

    message: Message
    reason: str
    detail: str
    died_at_ms: int


class Change(msgspec.Struct, frozen=True):
    """What one commit does: all of it, or nothing."""

    messages: Sequence[Message] = ()  # an id that is already there is left as it is
    state: Mapping[str, bytes | None] = msgspec.field(default_factory=dict)  # None removes the key
    stage: Sequence[bytes] = ()  # lines that wait for their batch
    unstage: int = 0  # how many of the oldest staged lines leave (they are in `messages` now)
    dead_letters: Sequence[DeadLetter] = ()  # only where a damaged file is taken over

    @property
    def plain(self) -> bool:
        """Return whether it only adds messages and keeps state."""
        return not (self.stage or self.unstage or self.dead_letters)


def merged(changes: Sequence[Change]) -> Change:
    """Return one change that does all of these plain ones, in their order."""
    state: dict[str, bytes | None] = {}
    for change in changes:
        state |= change.state
    return Change([message for change in changes for message in change.messages], state)


UNKNOWN_MS = -(1 << 63)  # of an age that has to be asked for anew


class Totals(msgspec.Struct, frozen=True):
    """What lies in the spool. Bytes count bodies and lines, with an overhead for each row."""

    records: int = 0  # events inside unsent messages, and staged lines
    bytes: int = 0
    oldest_created_at_ms: int | None = None  # of the oldest unsent message
    dead_letters: int = 0
