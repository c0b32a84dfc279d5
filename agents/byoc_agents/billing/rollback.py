"""Find sent objects in the ledger, in case the spool was rolled back.

See `byoc_agents.ledger.recent`. An object is one message: its position is that of its last record.
Its key contains the hour, and the epoch and the sequences of its records.
"""

from collections.abc import Sequence

import msgspec

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.billing.objects import SHARED_STREAM, STREAM, ObjectKey, parse_key
from byoc_agents.billing.record import UsageRecord
from byoc_agents.ledger.recent import RecentSend, StreamPosition


def read_key(key: str) -> RecentSend | None:
    """Return the numbers in an object's key, for the ledger of 0.1.0, which states only the key."""
    found = parse_key(key)
    if found is None:
        return None
    last = StreamPosition(found.epoch, found.last)
    stream = SHARED_STREAM if found.shared else STREAM
    return RecentSend(key, stream, last, found.last - found.first + 1)


def uncertain_since_ms(sends: Sequence[RecentSend]) -> int | None:
    """Return the time from which usage may be missing, milliseconds since 1970.

    Objects are sent in order, so it is the hour of the newest object that is stored. If none is
    known to be stored, it is the hour of the oldest announced object. None if there is no object.
    """
    hours = [(_hour_ms(key), send.stored) for send in sends if (key := parse_key(send.id))]
    stored = [hour_ms for hour_ms, stored in hours if stored]
    return max(stored) if stored else min((hour_ms for hour_ms, _ in hours), default=None)


def _hour_ms(key: ObjectKey) -> int:
    return parse_rfc3339(f"{key.date}T{key.hour}:00:00Z")


def count_stored_lines(lines: Sequence[bytes], sends: Sequence[RecentSend]) -> int:
    """Return how many of the oldest staged lines are in an object that is already stored."""
    stored = [send for send in sends if send.stored]
    for number, line in enumerate(lines):
        usage = msgspec.json.decode(line, type=UsageRecord).data
        position = StreamPosition(usage.epoch, usage.sequence)
        if not any(send.first <= position <= send.last for send in stored):
            return number
    return len(lines)
