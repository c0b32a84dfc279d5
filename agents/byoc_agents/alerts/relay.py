"""From one notification to the messages in the spool: choose, de-duplicate, build, commit.

One fact is told once: (receiver, fingerprint, start, began or ended). The beginning always goes
before the end; where only the end was seen, the beginning is told from it. A firing alert that
comes again after `reminder_seconds` is a reminder; sooner, it is a retry, the other peer's copy, or
its group sent again because of another alert.
"""

import asyncio
from collections.abc import Iterator, Sequence

import msgspec
import structlog

from byoc_agents.alerts.counts import AlertOutcome, Counts
from byoc_agents.alerts.dedup import Told
from byoc_agents.alerts.events import (
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
from byoc_agents.app.cloudevents import Event, encode
from byoc_agents.delivery.sink import Message
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.write_batch import Change
from byoc_agents.errors import SpoolError, SpoolFullError

REOPEN_MS = 5 * 60 * 1000  # Alertmanager's default resolve_timeout and group_interval


class Rules(msgspec.Struct, frozen=True):
    """What is relayed, and what of it."""

    origin: Origin
    selector: Selector
    watchdog: Selector
    allowed: Allowed
    reminder_seconds: float
    fingerprint_secrets: Sequence[str] = ()  # newest first


class Plan(msgspec.Struct):
    """What one notification leads to, before it is durable."""

    messages: list[Message] = msgspec.field(default_factory=list)
    told: dict[str, int] = msgspec.field(default_factory=dict)  # event id -> ms since 1970
    fates: list[AlertOutcome] = msgspec.field(default_factory=list)
    watchdogs: int = 0


class Relay:
    """Takes notifications and answers once they are durable."""

    def __init__(self, rules: Rules, spool: Spool, clock: Clock, counts: Counts) -> None:
        self.last_notification_ms: int | None = None
        self.last_watchdog_ms: int | None = None
        self._rules = rules
        self._spool = spool
        self._clock = clock
        self._counts = counts
        self._told = Told()
        self._loading = asyncio.Lock()
        self._loaded = False
        self._resets = 0
        self._pending: dict[str, asyncio.Future[None]] = {}  # event id -> the end of its commit
        self._log = structlog.get_logger().bind()  # once: a proxy would bind at every line

    async def accept(self, body: bytes | bytearray) -> int:
        """Return how many messages the body led to, all of them durable.

        A large body is committed in slices, which bounds the memory. May be called again with the
        same body, also at the same time. Raises NotAWebhookError, and SpoolError: then a later
        slice is not stored, and the same body again adds only what is missing.
        """
        at_ms = self._clock.wall_ns() // 1_000_000
        written = 0
        for group in read_slices(body):
            if group is None:
                await asyncio.sleep(0)
            else:
                written += await self._accept(group, at_ms)
        return written

    async def _accept(self, group: Group, at_ms: int) -> int:
        seen = Sighting(group.receiver, at_ms, group.truncated)
        await self._load()
        plan = self._planned(group.alerts, seen)
        while rivals := {self._pending[i] for i in plan.told if i in self._pending}:
            await asyncio.wait(rivals)  # the other peer's copy is on its way to the disk
            plan = self._planned(group.alerts, seen)
        await self._commit(plan, seen)
        self._note(plan, seen, odd=group.odd, truncated=group.truncated if group.first else 0)
        return len(plan.messages)

    async def _load(self) -> None:
        """Remember what the file says: at the start, after an error, and in a new file."""
        if self._current():
            return
        async with self._loading:
            if not self._current():
                await self._told.load(self._spool)
                self._loaded, self._resets = True, self._spool.resets

    def _current(self) -> bool:
        return self._loaded and self._resets == self._spool.resets

    async def _commit(self, plan: Plan, seen: Sighting) -> None:
        """Store everything together; what is told counts from the commit on."""
        if not plan.messages:
            return
        state = self._told.state(plan.told, seen.at_ms)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending |= dict.fromkeys(plan.told, over)
        try:
            await self._spool.commit(Change(messages=plan.messages, state=state))
            self._told.committed(plan.told, state)
        except SpoolFullError:
            raise
        except SpoolError:
            self._loaded = False  # what the file holds now is not what we remember
            raise
        finally:
            over.set_result(None)
            for event_id in plan.told:
                del self._pending[event_id]

    def _planned(self, alerts: Sequence[Received], seen: Sighting) -> Plan:
        plan = Plan()
        for alert in alerts:
            plan.fates.append(self._plan(plan, alert, seen))
        return plan

    def _identify(self, alert: Received, seen: Sighting) -> tuple[Received, Sighting]:
        """Return the alert under the identity that leaves.

        An episode that was reported under an earlier secret, or by 0.1.0 without one, keeps that
        identity until its end, so that the end belongs to the beginning.
        """
        current: tuple[Received, Sighting] | None = None
        for identity in identities(self._rules.fingerprint_secrets, alert, seen.receiver):
            known = (
                msgspec.structs.replace(alert, fingerprint=identity.fingerprint),
                msgspec.structs.replace(seen, receiver=identity.receiver),
            )
            current = current or known
            if self._reported_ms(*known, "firing", 0) is not None:
                return known
        return current or (alert, seen)

    def _plan(self, plan: Plan, alert: Received, seen: Sighting) -> AlertOutcome:
        if self._rules.watchdog.matches(alert.labels):
            plan.watchdogs += 1
            return self._plan_watchdog(plan, *self._identify(alert, seen))
        if not self._rules.selector.matches(alert.labels):
            return "not_selected"
        alert, seen = self._identify(alert, seen)
        before = len(plan.messages)
        times = self._count_reopenings(alert, seen)
        for status in _statuses(alert):
            self._plan_fact(plan, alert, seen, status, times)
        fate: AlertOutcome = "relayed"
        if len(plan.messages) == before:
            fate = self._plan_reminder(plan, alert, seen, times)
        if fate != "duplicate":
            self._keep_reopenings(plan, alert, seen, times)
        return fate

    def _keep_reopenings(self, plan: Plan, alert: Received, seen: Sighting, times: int) -> None:
        """Keep the earlier ends as long as the latest fact: without them the count starts over."""
        origin = self._rules.origin
        for number in range(times):
            plan.told[alert_id(origin, seen.receiver, alert, "resolved", number)] = seen.at_ms
            plan.told[alert_id(origin, seen.receiver, alert, "firing", number + 1)] = seen.at_ms

    def _count_reopenings(self, alert: Received, seen: Sighting) -> int:
        """Return how often this start was reported firing again after an end, this alert included.

        A firing alert that arrives less than REOPEN_MS after its end was reported can be an
        out-of-date copy from an Alertmanager peer, so it does not reopen.
        """
        times = 0
        while (ended_ms := self._reported_ms(alert, seen, "resolved", times)) is not None:
            reopened = self._reported_ms(alert, seen, "firing", times + 1) is not None
            late = alert.status == "firing" and seen.at_ms - ended_ms >= REOPEN_MS
            if not reopened and not late:
                break
            times += 1
        return times

    def _reported_ms(
        self, alert: Received, seen: Sighting, status: Status, times: int
    ) -> int | None:
        origin = self._rules.origin
        return self._told.at_ms(alert_id(origin, seen.receiver, alert, status, times))

    def _plan_fact(
        self, plan: Plan, alert: Received, seen: Sighting, status: Status, times: int
    ) -> None:
        event_id = alert_id(self._rules.origin, seen.receiver, alert, status, times)
        if event_id in plan.told or self._told.at_ms(event_id) is not None:
            return
        plan.told[event_id] = seen.at_ms
        self._add_alert(plan, alert, seen, status=status, event_id=event_id)

    def _plan_reminder(
        self, plan: Plan, alert: Received, seen: Sighting, times: int
    ) -> AlertOutcome:
        first_id = alert_id(self._rules.origin, seen.receiver, alert, "firing", times)
        end_id = alert_id(self._rules.origin, seen.receiver, alert, "resolved", times)
        last_ms = self._told.at_ms(first_id)
        window_ms = int(self._rules.reminder_seconds * 1000)
        over = alert.status == "resolved" or self._told.at_ms(end_id) is not None
        if over or first_id in plan.told or last_ms is None or seen.at_ms - last_ms < window_ms:
            return "duplicate"
        plan.told[first_id] = seen.at_ms
        period = (seen.at_ms - alert.starts_at_ms) // window_ms
        reminder = reminder_id(first_id, period)
        self._add_alert(
            plan, alert, seen, status="firing", event_id=reminder, replaces=f"reminder/{first_id}"
        )
        return "reminder"

    def _plan_watchdog(self, plan: Plan, alert: Received, seen: Sighting) -> AlertOutcome:
        event = build_watchdog(self._rules.origin, self._rules.allowed, alert, seen)
        plan.messages.append(message(event, seen.at_ms, replaces=f"watchdog/{alert.fingerprint}"))
        return "watchdog"

    def _add_alert(  # noqa: PLR0913  the alert, where it was seen, and what is told of it
        self,
        plan: Plan,
        alert: Received,
        seen: Sighting,
        *,
        status: Status,
        event_id: str,
        replaces: str = "",
    ) -> None:
        notification: Notification = "reminder" if replaces else "transition"
        event = build_alert(
            self._rules.origin,
            self._rules.allowed,
            alert,
            seen,
            status=status,
            event_id=event_id,
            notification=notification,
        )
        plan.messages.append(message(event, seen.at_ms, replaces=replaces))

    def _note(self, plan: Plan, seen: Sighting, *, odd: int, truncated: int) -> None:
        self.last_notification_ms = seen.at_ms
        if plan.watchdogs:
            self.last_watchdog_ms = seen.at_ms
        fates = {fate: plan.fates.count(fate) for fate in dict.fromkeys(plan.fates)}
        if odd:
            fates["odd"] = odd
        for fate, number in fates.items():
            self._counts.alerts(fate, number)
        if truncated:
            self._counts.truncated(truncated)
        write = self._log.warning if odd or truncated else self._log.info
        write("alerts.accepted", truncated=truncated, **fates)


def _statuses(alert: Received) -> Iterator[Status]:
    """Yield the facts an alert states, in their order: what ended had begun."""
    yield "firing"
    if alert.status == "resolved":
        yield "resolved"


def message(event: Event, at_ms: int, *, replaces: str = "") -> Message:
    """Return the event as it will be sent."""
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
