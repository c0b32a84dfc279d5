"""Read the latest intents, to detect a spool that is older than the last send.

SQLite handles a damaged end of its journal as if it had never been written. The file is then valid,
but has an earlier state, and its next messages would reuse numbers that were already sent.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from byoc_agents.app.files import open_regular
from byoc_agents.errors import leaves_unknown
from byoc_agents.ledger.format import IntentLine, LedgerLine, LedgerMessage, ReceiptLine, decode
from byoc_agents.ledger.query import STORED
from byoc_agents.ledger.segments import Segments

TAIL_BYTES = 1 << 19  # some 1,000 lines; what a journal of 4 MiB can have held is a few hundred


class StreamPosition(NamedTuple):
    """A place in a numbered stream. Later ones compare greater, because epochs only rise."""

    epoch: int
    sequence: int


class RecentSend(msgspec.Struct, frozen=True):
    """A message of a numbered stream that the ledger has announced: it may have been sent."""

    id: str
    stream: str
    last: StreamPosition  # of its last event
    events: int  # inside, with contiguous sequences
    stored: bool = False  # the receiver confirmed it

    @property
    def first(self) -> StreamPosition:
        """Return the position of its first event."""
        return StreamPosition(self.last.epoch, self.last.sequence - self.events + 1)


def newest_sent(sends: Iterable[RecentSend], stream: str) -> StreamPosition | None:
    """Return the newest position of the stream that may have been sent; None if none is known.

    If it is not before the next position of the stream's checkpoint, the spool was rolled back:
    the stream then continues in a later epoch than this one.
    """
    return max((send.last for send in sends if send.stream == stream), default=None)


def recently_sent(
    directory: Path, read_id: Callable[[str], RecentSend | None] = lambda _id: None
) -> list[RecentSend]:
    """Return the numbered messages of the latest intents, oldest first, each once.

    The lines of 0.1.0 do not state the position of a message. `read_id` returns it if the id
    contains it (an object's key does, the id of a state message does not). Blocks. Returns [] if
    the ledger cannot be read.
    """
    found: dict[str, RecentSend] = {}
    try:
        for line in _tail(directory):
            if isinstance(line, IntentLine):
                for sent in line.messages:
                    if sent.id not in found and (send := _read_position(sent) or read_id(sent.id)):
                        found[sent.id] = send
            elif isinstance(line, ReceiptLine):
                for one in line.outcomes:
                    send = found.get(one.id) or read_id(one.id)  # the intent may be too old
                    if send and one.reason in STORED:
                        found[one.id] = msgspec.structs.replace(send, stored=True)
    except OSError:
        return []
    return list(found.values())


def _read_position(sent: LedgerMessage) -> RecentSend | None:
    if not sent.stream:
        return None
    last = StreamPosition(sent.epoch, sent.sequence)
    return RecentSend(sent.id, sent.stream, last, sent.events)


def unknown_batch(directory: Path) -> tuple[str, ...]:
    """Return the ids, in order, of the last announced batch if its outcome is unknown.

    This is so if any attempt of exactly this batch has no receipt, or one that does not exclude
    it. The messages may be gone from the spool. Blocks. Returns () if the ledger cannot be read.
    """
    batch: tuple[str, ...] = ()
    refused: dict[int, bool] = {}  # intent of an attempt of `batch` -> whether it was refused
    try:
        for line in _tail(directory):
            if isinstance(line, IntentLine):
                ids = tuple(sent.id for sent in line.messages)
                refused = {**(refused if ids == batch else {}), line.sequence: False}
                batch = ids
            elif isinstance(line, ReceiptLine) and line.intent in refused:
                reasons = [one.reason for one in line.outcomes]
                refused[line.intent] = not (leaves_unknown(reasons) or STORED & set(reasons))
    except OSError:
        return ()
    return () if all(refused.values()) else batch


def _tail(directory: Path) -> Iterator[LedgerLine]:
    """Yield the last lines of the last two files, oldest first."""
    segments = Segments(directory)
    for number in segments.numbers()[-2:]:
        with open_regular(segments.path(number)) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")
        yield from filter(None, map(decode, lines))
