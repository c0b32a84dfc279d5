"""Tells a spool that is older than what has left, by the keys that the ledger announces.

See `byoc_agents.ledger.recent`. An object's key says of which epoch and which sequences it is.
"""

from collections.abc import Mapping, Sequence

import msgspec

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.billing.objects import ObjectKey, parse_key
from byoc_agents.billing.record import UsageRecord


def announced_epochs(sent: Mapping[str, bool]) -> set[int]:
    """Return the epochs of what was announced."""
    return {key.epoch for key in filter(None, map(parse_key, sent))}


def uncertain_since_ms(sent: Mapping[str, bool]) -> int | None:
    """Return from when on usage can be missing: the hour of the newest object that is stored.

    Milliseconds since 1970. Objects leave in their order. Where none is known to be stored it is
    the hour of the oldest announced one; None where there is none.
    """
    keys = [(key, stored) for one, stored in sent.items() if (key := parse_key(one))]
    stored = [_hour_ms(key) for key, stored in keys if stored]
    return max(stored) if stored else min((_hour_ms(key) for key, _ in keys), default=None)


def _hour_ms(key: ObjectKey) -> int:
    return parse_rfc3339(f"{key.date}T{key.hour}:00:00Z")


def is_rolled_back(epoch: int, sequence: int, sent: Mapping[str, bool]) -> bool:
    """Tell whether a record of this epoch, with this sequence or a later one, was announced."""
    keys = filter(None, map(parse_key, sent))
    return any(key.epoch == epoch and key.last >= sequence for key in keys)


def count_stored_lines(lines: Sequence[bytes], sent: Mapping[str, bool]) -> int:
    """Return how many of the oldest staged lines lie in an object that the receiver has."""
    keys = list(filter(None, (parse_key(one) for one, stored in sent.items() if stored)))
    for number, line in enumerate(lines):
        usage = msgspec.json.decode(line, type=UsageRecord).data
        here = (key for key in keys if key.epoch == usage.epoch)
        if not any(key.first <= usage.sequence <= key.last for key in here):
            return number
    return len(lines)
