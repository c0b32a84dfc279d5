"""What has been told already: event id -> when, kept in the spool with the messages themselves.

A key is written in the same commit as its message, so a crash leaves both or neither. Forgetting
is safe: the alert is told again with the same id, and the receiver knows it. The bounds are on
memory and disk only. Keys begin with the time: what is told together lies in one page of the file,
and so does what is forgotten together. Version 0.1.0 had keys without it, which are read as well.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import islice

from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolCorruptError

PREFIX = "told/"
MAX_IDS = 10_000  # about 2 MiB of memory; each alert that began and ended takes two
MAX_AGE_MS = 7 * 24 * 3600 * 1000  # since it was last told; a reminder makes it young again
MAX_FORGOTTEN = 64  # in one commit; more are forgotten in the next ones


class DedupIndex:
    """The memory of one forwarder. `load` must have been called, and again after a spool error."""

    def __init__(self, *, max_ids: int = MAX_IDS) -> None:
        self._max_ids = max_ids
        self._at_ms: OrderedDict[str, int] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._at_ms)

    async def load(self, spool: Spool) -> None:
        """Read what the spool has. Raises SpoolUnavailableError."""
        try:
            stored = await spool.state(PREFIX)
        except SpoolCorruptError:  # an empty file stands there now
            stored = await spool.state(PREFIX)
        found: dict[str, int] = {}
        for key, value in stored.items():
            event_id = _id_of(key)
            found[event_id] = max(int(value), found.get(event_id, 0))
        self._at_ms = OrderedDict(sorted(found.items(), key=lambda item: item[1]))

    def at_ms(self, event_id: str) -> int | None:
        """Return when this was last told, milliseconds since 1970; None = never."""
        return self._at_ms.get(event_id)

    def state(self, new: Mapping[str, int], now_ms: int) -> dict[str, bytes | None]:
        """Return the keys to be written with `new`, and the keys to be forgotten."""
        again = [event_id for event_id in new if event_id in self._at_ms]
        gone = [key for i in [*self._old(new, now_ms), *again] for key in _keys(i, self._at_ms[i])]
        kept: dict[str, bytes | None] = {_keys(i, at)[0]: b"%d" % at for i, at in new.items()}
        return dict.fromkeys(gone) | kept

    def committed(self, new: Mapping[str, int], state: Mapping[str, bytes | None]) -> None:
        """Take over what `state` returned, after the commit."""
        for key, value in state.items():
            if value is None:
                self._at_ms.pop(_id_of(key), None)
        for event_id, at in new.items():
            self._at_ms[event_id] = at
            self._at_ms.move_to_end(event_id)

    def _old(self, new: Mapping[str, int], now_ms: int) -> list[str]:
        excess = len(self._at_ms) + len(new) - self._max_ids
        old: list[str] = []
        for number, (key, at) in enumerate(islice(self._at_ms.items(), MAX_FORGOTTEN)):
            if number >= excess and at >= now_ms - MAX_AGE_MS:
                break  # the oldest come first
            if key not in new:
                old.append(key)
        return old


def _keys(event_id: str, at_ms: int) -> tuple[str, str]:
    """Return the key of this fact, and the one it had in 0.1.0."""
    return f"{PREFIX}{at_ms:015d}/{event_id}", PREFIX + event_id


def _id_of(key: str) -> str:
    return key.rpartition("/")[2]
