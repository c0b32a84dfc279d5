"""Read the latest intents, to detect a spool that is older than the last send.

SQLite handles a damaged end of its journal as if it had never been written. The file is then valid,
but has an earlier state, and its next messages would reuse numbers that were already sent.
"""

from collections.abc import Iterator
from pathlib import Path

from byoc_agents.app.files import open_regular
from byoc_agents.errors import uncertain
from byoc_agents.ledger.format import Intent, LedgerLine, ReceiptLine, decode
from byoc_agents.ledger.query import STORED
from byoc_agents.ledger.segments import Segments

TAIL_BYTES = 1 << 19  # some 1,000 lines; what a journal of 4 MiB can have held is a few hundred


def recently_sent(directory: Path) -> dict[str, bool]:
    """Return id -> whether the receiver confirmed it, for the latest intents.

    Blocks. Returns {} if the ledger cannot be read.
    """
    found: dict[str, bool] = {}
    try:
        for line in _tail(directory):
            if isinstance(line, Intent):
                found |= {sent.id: found.get(sent.id, False) for sent in line.messages}
            elif isinstance(line, ReceiptLine):
                found |= {one.id: True for one in line.outcomes if one.reason in STORED}
    except OSError:
        return {}
    return found


def unfinished_batch(directory: Path) -> tuple[str, ...]:
    """Return the ids, in order, of the last announced batch if the receiver may have stored it.

    This is so if any attempt of exactly this batch has no receipt, or one that does not exclude
    it. The messages may be gone from the spool. Blocks. Returns () if the ledger cannot be read.
    """
    batch: tuple[str, ...] = ()
    certain: dict[int, bool] = {}  # intent of an attempt of `batch` -> whether it was refused
    try:
        for line in _tail(directory):
            if isinstance(line, Intent):
                ids = tuple(sent.id for sent in line.messages)
                certain = {**(certain if ids == batch else {}), line.sequence: False}
                batch = ids
            elif isinstance(line, ReceiptLine) and line.intent in certain:
                reasons = [one.reason for one in line.outcomes]
                certain[line.intent] = not (uncertain(reasons) or STORED & set(reasons))
    except OSError:
        return ()
    return () if all(certain.values()) else batch


def _tail(directory: Path) -> Iterator[LedgerLine]:
    """Yield the last lines of the last two files, oldest first."""
    segments = Segments(directory)
    for number in segments.numbers()[-2:]:
        with open_regular(segments.path(number)) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")
        yield from filter(None, map(decode, lines))
