"""Turn a notification into messages in the spool: select, deduplicate, build, commit.

Each fact (receiver, fingerprint, start, beginning or end) is reported once. The beginning is always
reported before the end; if only the end was received, the beginning is derived from it. An alert
has at most one open episode: a later start ends the earlier episode. A firing alert that is
received again after `reminder_seconds` is a reminder. Before that it is a duplicate: a retry, a
copy from the other peer, or a group that was sent again because of another alert.

A firing alert with the start of an episode whose end was reported is either a new fact or an out-
of-date copy from an Alertmanager peer. The body does not show which. After such a copy,
Alertmanager corrects itself: its next flush sends `resolved` again, with the reported `endsAt` (the
retraction of the copy). The content of a body is at most `group_interval` old, plus the peer
timeout times the position of the peer. `reopen_seconds` is longer than that. A firing alert that
arrives at least `reopen_seconds` after the end is therefore a new fact. One that arrives earlier is
unconfirmed: it becomes a new fact if it is not retracted within the same time. If it is retracted
after that, the retraction is reported as its end.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import structlog

from byoc_agents.alerts import budget
from byoc_agents.alerts.budget import BudgetSpentError, DailyBytes
from byoc_agents.alerts.counts import AlertOutcome, Counts
from byoc_agents.alerts.dedup import FINGERPRINT_DIGITS, AlertMemory, Episode, Fact, Unconfirmed
from byoc_agents.alerts.events import (
    AlertEvent,
    Allowed,
    Notification,
    Origin,
    Sighting,
    alert_id,
    build_alert,
    build_watchdog,
    reminder_id,
)
from byoc_agents.alerts.identity import identities
from byoc_agents.alerts.matchers import Selector
from byoc_agents.alerts.payload import Group, Received, Status, read_slices
from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import Event, encode, parse_rfc3339, rfc3339
from byoc_agents.durable.checkpoint import Checkpointed
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.message import Message


class Rules(msgspec.Struct, frozen=True):
    """Which alerts are relayed, with which fields, and the intervals of reports."""

    origin: Origin
    selector: Selector
    watchdog: Selector
    allowed: Allowed
    reminder_seconds: float
    reopen_seconds: float
    fingerprint_secrets: Sequence[str] = ()  # newest first
    daily_bytes: int = budget.DEFAULT_BYTES  # of events, Watchdogs included, heartbeats not


class Plan(msgspec.Struct):
    """The messages and state changes of one notification, before they are durable."""

    memory: AlertMemory
    messages: list[Message] = msgspec.field(default_factory=list)
    facts: dict[str, Fact] = msgspec.field(default_factory=dict)  # by event id
    latest: dict[str, Episode] = msgspec.field(default_factory=dict)  # by alert
    unconfirmed: dict[str, Unconfirmed | None] = msgspec.field(default_factory=dict)  # by alert
    outcomes: list[AlertOutcome] = msgspec.field(default_factory=list)
    watchdogs: int = 0

    def fact(self, event_id: str) -> Fact | None:
        """Return the fact that was reported, or is planned, under this id."""
        return self.facts.get(event_id) or self.memory.fact(event_id)

    def latest_episode(self, alert: str) -> Episode | None:
        """Return the latest episode of an alert."""
        return self.latest.get(alert) or self.memory.episodes.latest.get(alert)

    def unconfirmed_of(self, alert: str) -> Unconfirmed | None:
        """Return the unconfirmed beginning of an alert, or None."""
        known = self.memory.unconfirmed
        return self.unconfirmed[alert] if alert in self.unconfirmed else known.get(alert)

    def add_fact(self, event_id: str, fact: Fact, episode: Episode) -> None:
        """Plan to report a fact. A beginning makes its episode the latest."""
        self.facts[event_id] = fact
        latest = self.latest_episode(episode.alert)
        if fact.status == "firing" and (latest is None or episode.age >= latest.age):
            self.latest[episode.alert] = episode

    def alerts(self) -> set[str]:
        """Return the alerts whose state the plan changes. Its commit locks them."""
        changed = {fact.episode.alert for fact in self.facts.values() if fact.episode}
        return changed | self.unconfirmed.keys()


class Relay:
    """Accepts notifications; returns when their messages are durable.

    Several notifications may be in progress at once. A plan is made in memory without waiting, and
    is committed only if no commit in progress changes one of its alerts. Otherwise the plan is
    dropped: the relay waits for these commits (`_in_flight`) and plans again, on the state that
    they left. From the plan to `_in_flight` nothing is awaited, so two commits in progress never
    change the same alert, and each alert is reported as if the notifications came one by one.
    A failed commit changes nothing: those who waited for it plan again on the old state.
    """

    def __init__(self, rules: Rules, spool: Spool, clock: Clock, counts: Counts) -> None:
        self.last_notification_ms: int | None = None
        self.last_watchdog_ms: int | None = None
        self.changed_at_ns = clock.boot_ns()  # last report of a beginning or end; at first: start
        self._rules = rules
        self._clock = clock
        self._counts = counts
        self._memory = AlertMemory()
        self._checkpoint = Checkpointed(spool, lambda: self._memory.load(spool))
        self._in_flight: dict[str, asyncio.Future[None]] = {}  # alert -> done after its commit
        self._uncommitted: dict[asyncio.Future[None], Plan] = {}  # in the order of their commits
        self._uncommitted_bytes = 0
        self._refused_day = -1  # the last day on which the budget refused something
        self._log = structlog.get_logger().bind()  # once, not at each line as by the proxy

    async def accept(self, body: bytes | bytearray) -> int:
        """Return the number of messages stored for the body, all of them durable.

        A large body is committed in slices, which bounds the memory. May be called again with the
        same body, even concurrently. Raises NotAWebhookError. Raises SpoolError if a slice could
        not be stored; a call with the same body then adds only the missing messages. So does one
        after BudgetSpentError, which is raised if a slice does not fit in the day's budget.
        """
        at_ms = self._now_ms()
        written = 0
        for group in read_slices(body):
            if group is None:
                await asyncio.sleep(0)
            else:
                written += await self._accept_group(group, at_ms)
        return written

    async def _accept_group(self, group: Group, at_ms: int) -> int:
        await self._checkpoint.load()
        plan = self._make_plan(group, at_ms)
        while commits := {self._in_flight[key] for key in plan.alerts() if key in self._in_flight}:
            await asyncio.wait(commits)  # a copy from the other peer is being committed
            plan = self._make_plan(group, at_ms)
        await self._commit(plan, at_ms)
        truncated = group.truncated if group.first else 0
        self._record_outcomes(plan, at_ms, invalid=group.invalid, truncated=truncated)
        return len(plan.messages)

    async def confirm_reopened(self) -> int:
        """Report the beginnings that were not retracted in time. Return their number.

        Raises SpoolError; a later call then reports them. So does one after the end of a day whose
        budget they do not fit in: then the result is 0.
        """
        await self._checkpoint.load()
        now_ms = self._now_ms()
        self._counts.budget(self.budget().used_bytes, self._rules.daily_bytes)
        plan = Plan(self._memory)
        for alert, waiting in self._memory.unconfirmed.items():
            if waiting.due_ms <= now_ms and alert not in self._in_flight:
                self._report_unconfirmed(plan, waiting, now_ms)
        try:
            await self._commit(plan, now_ms)
        except BudgetSpentError:
            return 0
        return len(plan.messages)

    def budget(self) -> DailyBytes:
        """Return today's count of bytes, those of commits in progress included."""
        return self._memory.stored.at(self._now_ms()).plus(self._uncommitted_bytes)

    def open_episodes(self) -> tuple[int, str]:
        """Return the number and the digest of the episodes that are open after all commits.

        Pending commits are included. The caller must not await anything before it stores the
        result: then the spool stores it after these commits.
        """
        episodes = self._memory.episodes
        if self._uncommitted:
            episodes = episodes.copy()
            for plan in self._uncommitted.values():
                episodes.apply(plan.facts.values())
        return episodes.summary(self._now_ms())

    def _now_ms(self) -> int:
        return self._clock.wall_ns() // 1_000_000

    async def _commit(self, plan: Plan, at_ms: int) -> None:
        """Store messages and state in one commit, after which the facts count as reported."""
        alerts = plan.alerts()
        if not plan.messages and not alerts:
            return
        size_bytes = budget.count_bytes(plan.messages)
        used = self.budget().plus(size_bytes)
        if size_bytes and used.used_bytes > self._rules.daily_bytes:
            self._refuse()
        state = self._memory.state(plan.facts, plan.unconfirmed, at_ms)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_flight |= dict.fromkeys(alerts, done)
        self._uncommitted[done] = plan
        self._uncommitted_bytes += size_bytes
        try:
            counted = {budget.KEY: msgspec.json.encode(used)} if size_bytes else {}
            batch = WriteBatch(messages=plan.messages, state=state | counted)
            await self._checkpoint.commit(batch, self._memory)
            self._memory.apply_commit(plan.facts, plan.unconfirmed, state)
            self._memory.stored = self._memory.stored.at(self._now_ms()).plus(size_bytes)
            if any(not message.replaces for message in plan.messages):  # no reminder or Watchdog
                self.changed_at_ns = self._clock.boot_ns()
        finally:
            self._uncommitted_bytes -= size_bytes
            self._counts.budget(self.budget().used_bytes, self._rules.daily_bytes)
            self._memory.end_commit(state)
            done.set_result(None)
            del self._uncommitted[done]
            for alert in alerts:
                del self._in_flight[alert]

    def _refuse(self) -> None:
        """Count and log that the budget is used up, and raise BudgetSpentError."""
        used = self.budget()
        self._counts.add_refusal_by_budget()
        if used.day != self._refused_day:  # webhook.refused has a line for each notification
            self._refused_day = used.day
            self._log.error(
                "alerts.budget_spent",
                used_bytes=used.used_bytes,
                daily_bytes=self._rules.daily_bytes,
                resets_at=rfc3339(budget.resets_at_ms(self._now_ms())),
            )
        raise BudgetSpentError("the bytes of the day are used up")

    def status(self) -> dict[str, Any]:
        """Return the fields of the budget in /status."""
        return {
            "budget_used_bytes": self.budget().used_bytes,
            "budget_bytes": self._rules.daily_bytes,
            "budget_resets_at": rfc3339(budget.resets_at_ms(self._now_ms())),
        }

    def _make_plan(self, group: Group, at_ms: int) -> Plan:
        plan = Plan(self._memory)
        current, *earlier = identities(self._rules.fingerprint_secrets, group.receiver)
        known = [current, *filter(self._memory.may_know, earlier)]
        sightings = [Sighting(identity, at_ms, group.truncated) for identity in known]
        for alert in group.alerts:
            plan.outcomes.append(self._plan_alert(plan, alert, sightings))
        return plan

    def _resolve_identity(
        self, plan: Plan, received: Received, sightings: Sequence[Sighting]
    ) -> tuple[Received, Sighting, Episode | None]:
        """Return the alert with the identity that is sent, and its latest episode.

        An episode that was reported with an earlier secret, or by 0.1.0 without a secret, keeps
        that identity until its end, so beginning and end have the same identity. If the alert has a
        later start, this method plans that end.
        """
        current: tuple[Received, Sighting, Episode | None] | None = None
        for seen in sightings:
            fingerprint = seen.identity.fingerprint_of(received)
            alert = msgspec.structs.replace(received, fingerprint=fingerprint)
            latest = plan.latest_episode(seen.identity.alert_key(fingerprint))
            if latest is None and seen.identity.keyed is None and self._memory.has_facts_of_0_1_0:
                latest = self._episode_of_0_1_0(plan, alert, seen)
            if latest is not None and _is_sighting_of(alert, latest):
                return alert, seen, latest
            if current is None:
                current = (alert, seen, latest)
            elif latest is not None and latest.starts_at_ms < alert.starts_at_ms:
                self._plan_inferred_end(plan, alert, seen, latest)
        assert current is not None  # noqa: S101  there is always a current identity
        return current

    def _plan_alert(
        self, plan: Plan, alert: Received, sightings: Sequence[Sighting]
    ) -> AlertOutcome:
        if self._rules.watchdog.matches(alert.labels):
            plan.watchdogs += 1
            alert, seen, _ = self._resolve_identity(plan, alert, sightings)
            return self._plan_watchdog(plan, alert, seen)
        if not self._rules.selector.matches(alert.labels):
            return "not_selected"
        alert, seen, latest = self._resolve_identity(plan, alert, sightings)
        if latest is None or not _is_sighting_of(alert, latest):
            return self._plan_start(plan, alert, seen, latest)
        alert = msgspec.structs.replace(alert, starts_at_ms=latest.starts_at_ms)
        ended = plan.fact(self._id_of(latest, seen, "resolved"))
        if ended is None:
            return self._plan_open(plan, alert, seen, latest)
        return self._plan_ended(plan, alert, seen, latest, ended)

    def _episode_of_0_1_0(self, plan: Plan, alert: Received, seen: Sighting) -> Episode | None:
        """Return the episode with this start. 0.1.0 stored only ids, so it is added to the plan."""
        episode = Episode(seen.identity.alert_key(alert.fingerprint), alert.starts_at_ms)
        for status in ("firing", "resolved"):
            event_id = self._id_of(episode, seen, status)
            if stored := plan.fact(event_id):
                plan.add_fact(event_id, Fact(stored.at_ms, status, episode), episode)
        return plan.latest_episode(episode.alert)

    def _plan_start(
        self, plan: Plan, alert: Received, seen: Sighting, latest: Episode | None
    ) -> AlertOutcome:
        """Plan an episode with another start. A later start ends the latest episode."""
        episode = Episode(seen.identity.alert_key(alert.fingerprint), alert.starts_at_ms)
        if latest and latest.starts_at_ms < alert.starts_at_ms:
            self._plan_inferred_end(plan, alert, seen, latest)
            if plan.unconfirmed_of(latest.alert):
                plan.unconfirmed[latest.alert] = None
        before = len(plan.messages)
        for status in _statuses(alert):
            self._plan_fact(plan, alert, seen, episode, status)
        return "relayed" if len(plan.messages) > before else "duplicate"

    def _plan_inferred_end(
        self, plan: Plan, alert: Received, seen: Sighting, episode: Episode
    ) -> None:
        earlier = msgspec.structs.replace(alert, starts_at_ms=episode.starts_at_ms, ends_at_ms=None)
        self._plan_fact(plan, earlier, seen, episode, "resolved", end_inferred=True)

    def _plan_open(
        self, plan: Plan, alert: Received, seen: Sighting, episode: Episode
    ) -> AlertOutcome:
        """Plan the report of an alert whose latest episode is open."""
        if alert.status == "firing":
            return self._plan_reminder(plan, alert, seen, episode)
        first = plan.fact(self._id_of(episode, seen, "firing"))
        if not _is_later(alert.ends_at_ms, episode.follows_ms) and not (first and first.waited):
            return "duplicate"  # an old copy of the end before this beginning
        self._plan_fact(plan, alert, seen, episode, "resolved")
        return "relayed"

    def _plan_ended(
        self, plan: Plan, alert: Received, seen: Sighting, episode: Episode, ended: Fact
    ) -> AlertOutcome:
        """Plan the report of an alert whose latest episode has ended.

        The cases, where `waiting` is the unconfirmed beginning after that end, if there is one:

        - `resolved`, none waits: a duplicate of the end.
        - `resolved` with the reported end, one waits: it was an out-of-date copy, and is dropped.
        - `resolved` with a later end, one waits: both its beginning and this end are new facts.
        - `firing`, early: unconfirmed. It is stored if none waits.
        - `firing`, late enough: a new fact. If one waits, that one is reported, as it was received.

        Late enough is `reopen_seconds` after the end was reported, or, if one waits, after it came.
        """
        reported_ms = ended.at_ms  # the end was not stated, or is a late retraction
        if ended.ends_at_ms is not None and _is_later(ended.ends_at_ms, episode.follows_ms):
            reported_ms = ended.ends_at_ms
        next_episode = Episode(episode.alert, episode.starts_at_ms, reported_ms)
        waiting = plan.unconfirmed_of(episode.alert)
        wait_ms = int(self._rules.reopen_seconds * 1000)
        if alert.status == "resolved":
            if waiting is None:
                return "duplicate"
            if not _is_later(alert.ends_at_ms, ended.ends_at_ms or reported_ms):
                plan.unconfirmed[episode.alert] = None  # the beginning was an out-of-date copy
                return "duplicate"
            self._report_unconfirmed(plan, waiting, seen.at_ms)
            self._plan_fact(plan, alert, seen, next_episode, "resolved")
            return "relayed"
        if seen.at_ms >= (waiting.due_ms if waiting else ended.at_ms + wait_ms):
            if waiting:
                self._report_unconfirmed(plan, waiting, seen.at_ms)
            else:
                self._plan_fact(plan, alert, seen, next_episode, "firing")
            return "relayed"
        if waiting is None:
            event = self._build(
                alert, seen, status="firing", event_id=self._id_of(next_episode, seen, "firing")
            )
            due_ms = seen.at_ms + wait_ms
            plan.unconfirmed[episode.alert] = Unconfirmed(due_ms, next_episode, event)
        return "unconfirmed"

    def _report_unconfirmed(self, plan: Plan, waiting: Unconfirmed, now_ms: int) -> None:
        """Plan the report of a beginning as it was received."""
        received_ms = parse_rfc3339(waiting.event.data.received_at)
        fact = Fact(received_ms, "firing", waiting.episode, waited=True)
        plan.add_fact(waiting.event.id, fact, waiting.episode)
        plan.unconfirmed[waiting.episode.alert] = None
        plan.messages.append(build_message(waiting.event, now_ms))

    def _plan_reminder(
        self, plan: Plan, alert: Received, seen: Sighting, episode: Episode
    ) -> AlertOutcome:
        first_id = self._id_of(episode, seen, "firing")
        first = plan.fact(first_id)
        window_ms = int(self._rules.reminder_seconds * 1000)
        if first is None or seen.at_ms - first.at_ms < window_ms:
            return "duplicate"
        plan.add_fact(first_id, Fact(seen.at_ms, "firing", episode), episode)
        period = (seen.at_ms - alert.starts_at_ms) // window_ms
        event = self._build(
            alert,
            seen,
            status="firing",
            event_id=reminder_id(first_id, period),
            notification="reminder",
        )
        plan.messages.append(build_message(event, seen.at_ms, replaces=f"reminder/{first_id}"))
        return "reminder"

    def _plan_watchdog(self, plan: Plan, alert: Received, seen: Sighting) -> AlertOutcome:
        event = build_watchdog(self._rules.origin, self._rules.allowed, alert, seen)
        plan.messages.append(
            build_message(event, seen.at_ms, replaces=f"watchdog/{alert.fingerprint}")
        )
        return "watchdog"

    def _plan_fact(  # noqa: PLR0913  the alert, its context, and the fact to report
        self,
        plan: Plan,
        alert: Received,
        seen: Sighting,
        episode: Episode,
        status: Status,
        *,
        end_inferred: bool = False,
    ) -> None:
        """Plan to report a fact, unless it was reported or is planned."""
        event_id = self._id_of(episode, seen, status)
        if plan.fact(event_id) is not None:
            return
        ends_at_ms = alert.ends_at_ms if status == "resolved" else None
        plan.add_fact(event_id, Fact(seen.at_ms, status, episode, ends_at_ms), episode)
        event = self._build(
            alert, seen, status=status, event_id=event_id, end_inferred=end_inferred
        )
        plan.messages.append(build_message(event, seen.at_ms))

    def _id_of(self, episode: Episode, seen: Sighting, status: Status) -> str:
        fingerprint = episode.alert[-FINGERPRINT_DIGITS:]
        return alert_id(
            self._rules.origin,
            seen.identity.receiver,
            fingerprint,
            starts_at_ms=episode.starts_at_ms,
            status=status,
            follows_ms=episode.follows_ms,
        )

    def _build(  # noqa: PLR0913  the alert, its context, and the fact to report
        self,
        alert: Received,
        seen: Sighting,
        *,
        status: Status,
        event_id: str,
        notification: Notification = "transition",
        end_inferred: bool = False,
    ) -> AlertEvent:
        return build_alert(
            self._rules.origin,
            self._rules.allowed,
            alert,
            seen,
            status=status,
            event_id=event_id,
            notification=notification,
            end_inferred=end_inferred,
        )

    def _record_outcomes(self, plan: Plan, at_ms: int, *, invalid: int, truncated: int) -> None:
        self.last_notification_ms = at_ms
        if plan.watchdogs:
            self.last_watchdog_ms = at_ms
        outcomes = {one: plan.outcomes.count(one) for one in dict.fromkeys(plan.outcomes)}
        if invalid:
            outcomes["invalid"] = invalid
        for outcome, number in outcomes.items():
            self._counts.alerts(outcome, number)
        if truncated:
            self._counts.add_truncated(truncated)
        write = self._log.warning if invalid or truncated else self._log.info
        write("webhook.accepted", truncated=truncated, **outcomes)


def _is_sighting_of(alert: Received, latest: Episode) -> bool:
    """Return whether an alert belongs to the latest episode.

    Alertmanager merges overlapping alerts and keeps the earliest start. An alert with an earlier
    start than the reported one therefore belongs to the episode, unless it ended before.
    """
    if alert.starts_at_ms < latest.starts_at_ms:
        return alert.status == "firing" or _is_later(alert.ends_at_ms, latest.starts_at_ms)
    return alert.starts_at_ms == latest.starts_at_ms


def _is_later(ends_at_ms: int | None, than_ms: int | None) -> bool:
    """Return whether an end is later than another time, which it is if either is unknown."""
    return ends_at_ms is None or than_ms is None or ends_at_ms > than_ms


def _statuses(alert: Received) -> Iterator[Status]:
    """Yield the facts that an alert implies, in order: an ended alert also began."""
    yield "firing"
    if alert.status == "resolved":
        yield "resolved"


def build_message(event: Event, at_ms: int, *, replaces: str = "") -> Message:
    """Return the message that carries the event."""
    kind = str(getattr(event, "type", ""))
    return Message(
        id=event.id,
        type=kind,
        body=encode(event),
        created_at_ms=at_ms,
        content_type="application/cloudevents+json",
        group=event.subject,
        replaces=replaces,
    )
