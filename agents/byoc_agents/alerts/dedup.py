"""Reported facts: event id -> fact, stored in the spool together with the messages.

A fact is the beginning or the end of an episode. Its key is written in the same commit as its
message, so after a crash either both or neither are stored. Forgetting a fact is safe: it is
reported again with the same id, which the receiver deduplicates. The bounds only limit memory and
disk space. Keys begin with the time, so facts that are reported together are stored in one page of
the file, and are forgotten together. Version 0.1.0 stored only the time, under another prefix,
which is still read.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Self

import msgspec

from byoc_agents.alerts import budget
from byoc_agents.alerts.budget import DailyBytes
from byoc_agents.alerts.events import AlertEvent
from byoc_agents.alerts.identity import RECEIVER_KEY_DIGITS, Identity
from byoc_agents.alerts.payload import Status
from byoc_agents.app.cloudevents import rfc3339, stable_id
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolCorruptError

PREFIX = "fact/"
OLD_PREFIX = "told/"  # of 0.1.0
UNCONFIRMED = "unconfirmed/"
MAX_FACTS = 10_000  # about 4 MiB of memory; an alert that began and ended takes two
MAX_AGE_MS = 7 * 24 * 3600 * 1000  # since its last report, which may be a reminder
MAX_FORGOTTEN = 64  # per commit; the rest are forgotten in later commits
FINGERPRINT_DIGITS = 16


class Episode(msgspec.Struct, frozen=True, array_like=True):
    """A time during which one alert fired."""

    alert: str  # the alert's key, which ends with its fingerprint; see `Identity.alert_key`
    starts_at_ms: int
    follows_ms: int | None = None  # end of the previous episode, if that has the same start

    @property
    def age(self) -> tuple[int, int]:
        """Return a sort key that is larger for a later episode of the same alert."""
        return self.starts_at_ms, self.follows_ms or 0


class Fact(msgspec.Struct, frozen=True, array_like=True):
    """A beginning or an end that was reported."""

    at_ms: int  # when it was last reported, milliseconds since 1970
    status: Status | None = None  # None with `episode`: stored by 0.1.0
    episode: Episode | None = None
    ends_at_ms: int | None = None  # of an end, if the sender stated it
    waited: bool = False  # a beginning that was not retracted in time, without a reminder since


class Unconfirmed(msgspec.Struct, frozen=True, array_like=True):
    """An alert that fires with the start of a reported end: a new fact or an out-of-date copy."""

    due_ms: int  # when it becomes a new fact, unless Alertmanager retracts it before
    episode: Episode
    event: AlertEvent


class OpenEpisodes:
    """The latest episode of each alert, and the episodes that have not ended."""

    def __init__(self) -> None:
        self.latest: dict[str, Episode] = {}
        self.receivers: set[str] = set()  # keys of the receivers of all alerts so far
        self._open: dict[str, int] = {}  # alert -> when its latest beginning was last reported

    def apply(self, facts: Iterable[Fact]) -> None:
        """Apply facts in the order in which they are reported."""
        for fact in facts:
            if fact.episode and fact.status == "firing":
                self._begin(fact.episode, fact.at_ms)
            elif fact.episode and self.latest.get(fact.episode.alert) == fact.episode:
                self._open.pop(fact.episode.alert, None)

    def forget(self, fact: Fact) -> None:
        """Drop the latest episode of an alert if its beginning is forgotten."""
        episode = fact.episode
        if episode and fact.status == "firing" and self.latest.get(episode.alert) == episode:
            del self.latest[episode.alert]
            self._open.pop(episode.alert, None)

    def copy(self) -> "OpenEpisodes":
        """Return a copy, for facts that are not stored yet."""
        other = OpenEpisodes()
        other.latest, other._open = dict(self.latest), dict(self._open)
        return other

    def summary(self, now_ms: int) -> tuple[int, str]:
        """Return the number of open episodes with an event in the last 7 days, and their digest."""
        return summarize(
            (alert[-FINGERPRINT_DIGITS:], rfc3339(self.latest[alert].starts_at_ms))
            for alert, at_ms in self._open.items()
            if at_ms >= now_ms - MAX_AGE_MS
        )

    def _begin(self, episode: Episode, at_ms: int) -> None:
        latest = self.latest.get(episode.alert)
        if latest is None or episode.age >= latest.age:
            self.latest[episode.alert] = episode
            self.receivers.add(episode.alert[:RECEIVER_KEY_DIGITS])
            self._open[episode.alert] = at_ms


def summarize(episodes: Iterable[tuple[str, str]]) -> tuple[int, str]:
    """Return the number and the digest of open episodes, given as (fingerprint, starts_at).

    The digest is the first 32 hex digits of the SHA-256 of the lines `FINGERPRINT STARTS_AT`,
    sorted, with line ends between them.
    """
    lines = sorted({f"{fingerprint} {starts_at}" for fingerprint, starts_at in episodes})
    return len(lines), stable_id(*lines)


class AlertMemory:
    """The facts that one forwarder has reported; see `byoc_agents.durable.checkpoint`."""

    def __init__(self, *, max_facts: int = MAX_FACTS) -> None:
        self._max_facts = max_facts
        self._facts: OrderedDict[str, Fact] = OrderedDict()  # oldest first
        self.episodes = OpenEpisodes()
        self.unconfirmed: dict[str, Unconfirmed] = {}  # by alert
        self.has_facts_of_0_1_0 = False  # then some do not name their episode
        self.stored = DailyBytes()
        self._forgetting: set[str] = set()  # by a commit in progress

    def __len__(self) -> int:
        """Return the number of remembered facts."""
        return len(self._facts)

    async def load(self, spool: Spool) -> Self:
        """Load the facts from the spool. Return this object. Raises SpoolUnavailableError."""
        try:
            stored = await spool.state(OLD_PREFIX)
        except SpoolCorruptError:  # the damaged file has been replaced
            stored = await spool.state(OLD_PREFIX)
        self.has_facts_of_0_1_0 = bool(stored)
        stored |= await spool.state(PREFIX)
        waiting = await spool.state(UNCONFIRMED)
        for value in (await spool.state(budget.KEY)).values():
            # After a failed commit or with a new file, the count in memory may be the higher one.
            self.stored = max(self.stored, msgspec.json.decode(value, type=DailyBytes))
        found: dict[str, Fact] = {}
        for key, value in stored.items():
            fact, event_id = _read(value), _id_of(key)
            if event_id not in found or fact.at_ms > found[event_id].at_ms:
                found[event_id] = fact
        self._facts = OrderedDict(sorted(found.items(), key=lambda item: item[1].at_ms))
        self.episodes = OpenEpisodes()
        for status in ("firing", "resolved"):
            self.episodes.apply(fact for fact in found.values() if fact.status == status)
        self.unconfirmed = {
            key.removeprefix(UNCONFIRMED): msgspec.json.decode(value, type=Unconfirmed)
            for key, value in waiting.items()
        }
        return self

    def fact(self, event_id: str) -> Fact | None:
        """Return the fact that was reported under this id, or None."""
        return self._facts.get(event_id)

    def may_know(self, identity: Identity) -> bool:
        """Return whether alerts with this identity may have been reported."""
        return self.has_facts_of_0_1_0 or identity.receiver_key in self.episodes.receivers

    def state(
        self, new: Mapping[str, Fact], unconfirmed: Mapping[str, Unconfirmed | None], now_ms: int
    ) -> dict[str, bytes | None]:
        """Return key -> value to write for `new` and `unconfirmed`; None removes a key.

        Every call needs one of `end_commit` with the same value.
        """
        replaced = [event_id for event_id in new if event_id in self._facts]
        forgotten = self._find_old(new, now_ms)
        self._forgetting.update(forgotten)
        state: dict[str, bytes | None] = {}
        for event_id in (*forgotten, *replaced):
            state[_key(event_id, self._facts[event_id].at_ms)] = None
            if self.has_facts_of_0_1_0:
                state[OLD_PREFIX + event_id] = None
        state |= {_key(i, fact.at_ms): msgspec.json.encode(fact) for i, fact in new.items()}
        for alert, value in unconfirmed.items():
            state[UNCONFIRMED + alert] = msgspec.json.encode(value) if value else None
        return state

    def apply_commit(
        self,
        new: Mapping[str, Fact],
        unconfirmed: Mapping[str, Unconfirmed | None],
        state: Mapping[str, bytes | None],
    ) -> None:
        """Apply the facts and the returned value of `state` after they are committed."""
        removed = {_id_of(key) for key, value in state.items() if value is None and _is_fact(key)}
        for event_id in removed - new.keys():
            if fact := self._facts.pop(event_id, None):
                self.episodes.forget(fact)
        for event_id, fact in new.items():
            self._facts[event_id] = fact
            self._facts.move_to_end(event_id)
        self.episodes.apply(new.values())
        if len(self.episodes.receivers) > 2 * self._max_facts:  # most are of forgotten alerts
            known = (fact.episode for fact in self._facts.values())
            self.episodes.receivers = {one.alert[:RECEIVER_KEY_DIGITS] for one in known if one}
        for alert, value in unconfirmed.items():
            if value:
                self.unconfirmed[alert] = value
            else:
                self.unconfirmed.pop(alert, None)

    def end_commit(self, state: Mapping[str, bytes | None]) -> None:
        """Take note that the commit of the returned value of `state` was made, or has failed."""
        if self._forgetting:
            self._forgetting -= {_id_of(key) for key, value in state.items() if value is None}

    def _find_old(self, new: Mapping[str, Fact], now_ms: int) -> list[str]:
        """Return the ids of facts to forget, because they are too old or too many.

        Those that a commit in progress forgets are left to it.
        """
        excess = len(self._facts) + len(new) - self._max_facts - len(self._forgetting)
        old: list[str] = []
        left = (item for item in self._facts.items() if item[0] not in self._forgetting)
        for number, (key, fact) in enumerate(islice(left, MAX_FORGOTTEN)):
            if number >= excess and fact.at_ms >= now_ms - MAX_AGE_MS:
                break  # the oldest come first
            if key not in new:
                old.append(key)
        return old


def _read(value: bytes) -> Fact:
    stored = msgspec.json.decode(value, type=int | Fact)
    return Fact(stored) if isinstance(stored, int) else stored


def _key(event_id: str, at_ms: int) -> str:
    return f"{PREFIX}{at_ms:015d}/{event_id}"


def _is_fact(key: str) -> bool:
    return key.startswith((PREFIX, OLD_PREFIX))


def _id_of(key: str) -> str:
    return key.rpartition("/")[2]
