"""Detects a spool that was rolled back, by the object keys that the ledger has announced.

See `byoc_agents.ledger.recent`. An object's key contains the epoch and the sequences of
its records. In all functions `sent` maps each announced key to whether the object is known to be
stored.
"""

from collections.abc import Mapping, Sequence

import msgspec

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.billing.objects import ObjectKey, parse_key
from byoc_agents.billing.record import UsageRecord


def announced_epochs(sent: Mapping[str, bool]) -> set[int]:
    """Return the epochs of the announced objects."""
    return {key.epoch for key in filter(None, map(parse_key, sent))}


def uncertain_since_ms(sent: Mapping[str, bool]) -> int | None:
    """Return the time from which usage may be missing, milliseconds since 1970.

    Objects are sent in order, so it is the hour of the newest object that is stored. If none is
    known to be stored, it is the hour of the oldest announced object. None if there is no object.
    """
    keys = [(key, stored) for one, stored in sent.items() if (key := parse_key(one))]
    stored = [_hour_ms(key) for key, stored in keys if stored]
    return max(stored) if stored else min((_hour_ms(key) for key, _ in keys), default=None)


def _hour_ms(key: ObjectKey) -> int:
    return parse_rfc3339(f"{key.date}T{key.hour}:00:00Z")


def is_rolled_back(epoch: int, sequence: int, sent: Mapping[str, bool]) -> bool:
    """Return whether a record of this epoch, with this sequence or a later one, was announced."""
    keys = filter(None, map(parse_key, sent))
    return any(key.epoch == epoch and key.last >= sequence for key in keys)


def count_stored_lines(lines: Sequence[bytes], sent: Mapping[str, bool]) -> int:
    """Return how many of the oldest staged lines are in an object that is already stored."""
    keys = list(filter(None, (parse_key(one) for one, stored in sent.items() if stored)))
    for number, line in enumerate(lines):
        usage = msgspec.json.decode(line, type=UsageRecord).data
        here = (key for key in keys if key.epoch == usage.epoch)
        if not any(key.first <= usage.sequence <= key.last for key in here):
            return number
    return len(lines)
