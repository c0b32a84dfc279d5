"""The daily budget of the webhook: the bytes of events that it may store per UTC day.

Stored events are sent, so the budget bounds the bytes that a client with the token can make leave.
The count is in the spool, in the commit of the events that it counts: a killed process loses none.
"""

from collections.abc import Iterable
from typing import Self

import msgspec

from byoc_agents.errors import ByocError
from byoc_agents.message import Message

KEY = "budget/day"
DAY_MS = 24 * 3600 * 1000
# A slice of a notification holds at most 1 MiB and 800 alerts. An alert gives at most three events,
# with its labels and some 800 other bytes each: below 5 MiB. A budget must allow one slice.
MIN_BYTES = 8 * 1024**2
# 1,000 alerts that fire all day make 96,000 reminders of some 920 bytes, 88 MB; Watchdogs are 1 MB.
DEFAULT_BYTES = 100 * 1024**2


class BudgetSpentError(ByocError):
    """The events do not fit in the rest of the day's budget. Nothing of them was stored."""


class DailyBytes(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The bytes of the events that were stored on one UTC day."""

    day: int = 0  # days since 1970-01-01
    used_bytes: int = 0

    def at(self, now_ms: int) -> Self:
        """Return the count at a time, in milliseconds since 1970.

        It is 0 on a later day. A clock that is set back to an earlier day keeps the count.
        """
        day = now_ms // DAY_MS
        used_bytes = 0 if day > self.day else self.used_bytes
        return type(self)(day, used_bytes)

    def plus(self, more_bytes: int) -> Self:
        """Return the count with these bytes added."""
        return type(self)(self.day, self.used_bytes + more_bytes)


def resets_at_ms(now_ms: int) -> int:
    """Return the begin of the next UTC day, in milliseconds since 1970."""
    return (now_ms // DAY_MS + 1) * DAY_MS


def count_bytes(messages: Iterable[Message]) -> int:
    """Return the bytes of these events."""
    return sum(len(message.body) for message in messages)
