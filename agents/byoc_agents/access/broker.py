"""The broker: one pass reads what has changed, moves grants, and does the work of their states.

Every change of a grant is a durable line of the ledger first, then a durable value of the store,
and only then takes effect. Closing is the exception: it never waits for a disk. Its lines and
values are kept in memory until the disk accepts them. The work of a state may be repeated at any
time: after a crash the next broker loads the grants and goes on.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args

import msgspec
import structlog

from byoc_agents.access.authority import Authority, read_signing_request, uri_of_grant
from byoc_agents.access.clickhouse_admin import (
    ClickHouseAdmin,
    CollectedLogs,
    GrantAccount,
    user_of,
)
from byoc_agents.access.control_facts import ControlFacts, StatedControls
from byoc_agents.access.control_files import DISABLED, UNREADABLE, KillSwitch, PolicySource
from byoc_agents.access.counted import count_granted, describe_roles
from byoc_agents.access.documents import (
    APPROVAL,
    BREAK_GLASS,
    CLICKHOUSE,
    MAX_PENDING_SECONDS,
    REQUEST,
    WITHDRAWAL,
    AccessRequest,
    Approval,
    Audience,
    Withdrawal,
    parse_document,
    sha256,
)
from byoc_agents.access.errors import (
    AuthorityError,
    DocumentError,
    PolicyError,
    ServerError,
    TailnetError,
)
from byoc_agents.access.events import message_of
from byoc_agents.access.grants import GrantStore, StoredGrants
from byoc_agents.access.machine import (
    ENDS,
    LIVE,
    WAITING,
    Cause,
    Conditions,
    GivenApproval,
    Grant,
    GrantTime,
    State,
    change,
    find_due,
)
from byoc_agents.access.orders import (
    ALL,
    Approve,
    CheckServers,
    Deny,
    Forget,
    Order,
    OrderFolder,
    Revoke,
    Submit,
)
from byoc_agents.access.policy import (
    Policy,
    find_wait,
    judge_approval,
    judge_approved,
    judge_request,
)
from byoc_agents.access.tailnet import Tailnet
from byoc_agents.app.clock import Clock
from byoc_agents.durable.files import Disk
from byoc_agents.envelope import Verified, open_envelope
from byoc_agents.errors import (
    EnvelopeError,
    EnvelopeReason,
    LedgerError,
    SpoolError,
    SpoolFullError,
)
from byoc_agents.ledger.format import FactLine, clean
from byoc_agents.message import Message

T = TypeVar("T")

MAX_PENDING = 64  # requests that wait for an approval
PASS_SECONDS = 1.0  # between two passes; the longest delay of an order or a kill switch
SWEEP_SECONDS = 30.0  # between two comparisons of the servers' users with the grants
RETRY_SECONDS = 30.0  # between attempts after the disk has refused, and at most between attempts
MAX_AHEAD_SECONDS = 120  # by which the vendor's clock may be ahead of the broker's
MAX_WITHDRAWN = 256  # withdrawals whose requests have not arrived
WITHDRAWN_SECONDS = MAX_PENDING_SECONDS + MAX_AHEAD_SECONDS  # after which their requests expired
LEASE_SECONDS = 300.0  # without a response of the control plane, if the policy has `leases`
STUCK_SECONDS = 60.0  # after which queries that do not end are stated in the ledger
NOT_RECORDED = "it is off, and the line about that is not written"
CHANGES_TOO_OFTEN = "it is off, and has changed too often to be recorded now"
CALL_SECONDS = 2.0  # for a call that uses the broker's directory; a busy machine needs some of it
ORDERS = "orders"
LOGS, POLICIES = "logs", "policies"  # folders of the broker's directory
UNTIMELY = {
    "older_than_store": "the request is older than the broker's store",
    "issued_in_future": "issued_at is in the future",
}
TOO_MANY_WITHDRAWALS = "too_many_withdrawals"
# Why a request or a withdrawal is not taken at all; what the policy refuses is a grant's end.
REFUSED_DOCUMENTS = (
    *get_args(EnvelopeReason),
    *(DocumentError.reason, "wrong_audience", "conflict", TOO_MANY_WITHDRAWALS, *UNTIMELY),
)
RELEASES = frozenset({State.PENDING, State.APPROVED, State.OPENING, State.OPEN})


class FactLedger(Protocol):
    """The broker's side of the ledger."""

    @property
    def last_error(self) -> str:
        """Why the last write failed, or ""."""
        ...

    async def fact(self, line: FactLine) -> int:
        """Write a line, durably; return its number. Raises LedgerError."""
        ...


class BrokerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the broker."""

    max_skew_seconds: float = 30.0  # of a server's clock
    collect_seconds: float = 3600.0  # for reading the logs after the end
    record_seconds: float = 5.0  # for a line or a value to be on disk; then it counts as refused
    close_on_stop: bool = False


class BrokerParts(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker works with."""

    organization_id: str
    service_id: str
    directory: Path  # for collected logs
    store: GrantStore
    ledger: FactLedger
    policy: PolicySource
    kill_switch: KillSwitch
    authority: Authority
    admins: Sequence[ClickHouseAdmin]
    orders: OrderFolder
    clock: Clock
    disk: Disk
    limits: BrokerLimits = BrokerLimits()
    # When the control plane last answered, boot time; 0 = never. None = it is never asked.
    contact: Callable[[], int] | None = None
    tailnet: Tailnet | None = None  # None = the broker scales nothing


class RecordError(Exception):
    """The ledger or the store has refused a step, which therefore must not take effect."""


class ChangedError(Exception):
    """The grant is not in the expected state any more; another step goes on with it."""


class Broker:
    """Holds the grants that have not ended. One task calls its methods."""

    def __init__(self, parts: BrokerParts) -> None:
        self._parts = parts
        self._admins = {admin.name: admin for admin in parts.admins}
        self._active: dict[str, Grant] = {}
        self._seen: dict[str, str] = {}
        self._withdrawn: dict[str, int] = {}  # ids that are not known yet, and since when
        self._created_ms = 0
        self._highest_wall_ms = 0
        self._policy: Policy | None = None
        self._kill_switch = "not read yet"
        self._controls = ControlFacts(StatedControls(), parts.clock.boot_ns())
        self._stored_controls = StatedControls()
        self._off_refused_boot_ns: int | None = None  # when the line `off` was refused last
        self._record_error = ""
        self._record_failed_boot_ns = 0
        self._unwritten: list[FactLine] = []  # lines of closings that the ledger has refused
        self._unsaved: dict[str, Grant] = {}  # ended or closing grants that the store has refused
        self._unsent: dict[str, list[Message]] = {}  # events for which the spool has no room
        self._swept_boot_ns: int | None = None
        self._attempts: dict[str, tuple[int, float]] = {}  # id -> next attempt, seconds after it
        self._stuck: set[str] = set()
        self._restoring: set[tuple[str, str]] = set()  # grants and replicas: the line is written
        self._collected: dict[str, dict[str, CollectedLogs]] = {}
        self._collectors: dict[str, asyncio.Task[dict[str, CollectedLogs | str]]] = {}
        self._calls: dict[str, asyncio.Task[Any]] = {}  # that use the directory and have not ended
        self._problems: dict[str, str] = {}  # of the last check of each server; "" = none
        self._sweep_failures = 0
        self._unexpected_users = 0
        self._break_glass_openings = 0
        self._refused_documents = dict.fromkeys(REFUSED_DOCUMENTS, 0)
        self._stored_policy = ""  # the SHA-256 of the policy whose file was stored last
        self._loaded = False
        self._started_boot_ns = parts.clock.boot_ns()

    # Reading.

    @property
    def grants(self) -> Sequence[Grant]:
        """The grants that have not ended."""
        return list(self._active.values())

    @property
    def kill_switch(self) -> str:
        """Why the kill switch is on, or "" if it is off."""
        return self._kill_switch

    @property
    def policy_sha256(self) -> str:
        """The SHA-256 of the policy in use, or "" if it cannot be read."""
        return self._policy.sha256 if self._policy else ""

    @property
    def problems(self) -> Mapping[str, str]:
        """The first problem of each server at its last check; "" if it had none."""
        return self._problems

    @property
    def sweep_failures(self) -> int:
        """How often the users of a server could not be compared with the grants."""
        return self._sweep_failures

    @property
    def unexpected_users(self) -> int:
        """How often a user of no live grant was found on a server."""
        return self._unexpected_users

    @property
    def break_glass_openings(self) -> int:
        """How often a grant of the kind `break_glass` began to open."""
        return self._break_glass_openings

    @property
    def refused_documents(self) -> Mapping[str, int]:
        """How often a request or a withdrawal was not taken, by reason."""
        return self._refused_documents

    @property
    def controls_unreadable(self) -> bool:
        """Whether the kill switch is on only because it or the policy cannot be read."""
        return self._kill_switch.endswith(UNREADABLE)

    @property
    def record_failed(self) -> bool:
        """Whether the ledger or the store has refused something that is not written yet."""
        return bool(self._record_error or self._unwritten or self._unsaved)

    @property
    def tailnet(self) -> Tailnet | None:
        """The endpoints that the broker scales."""
        return self._parts.tailnet

    @property
    def overdue_seconds(self) -> float:
        """For how long a grant may give access after its end, agreed or ordered.

        It may while a replica has not confirmed that its user is gone, or while one of its
        endpoints other than ClickHouse's may have a pod.
        """
        late = [
            g.end_ms if g.state in LIVE else min(g.end_ms, g.since_ms)
            for g in self._active.values()
            if g.end_ms and _counts_as_open(g) and (g.touched or self._find_up(g))
        ]
        return max(0, *((self._now().wall_ms - end) / 1000 for end in late), 0)

    def status(self) -> dict[str, Any]:
        """Return the broker's fields of /status."""
        return {
            "kill_switch": self._kill_switch or None,
            "policy_sha256": self.policy_sha256 or None,
            "grants": {g.id: g.state.value for g in self._active.values()},
            "servers": {name: problem or None for name, problem in self._problems.items()},
            "overdue_seconds": int(self.overdue_seconds),
            "record_error": self._record_error or None,
            "tailnet": {k: v or None for k, v in self.tailnet.errors.items()}
            if self.tailnet
            else None,
        }

    # One pass.

    async def run(self) -> None:
        """Pass until cancelled. May be called again."""
        while True:
            await self.run_pass()
            await self._parts.clock.sleep(PASS_SECONDS)

    async def close(self) -> None:
        """End the reading of logs, and wait for no call; the next broker repeats them."""
        tasks = [*self._collectors.values(), *self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._collectors.clear()
        self._calls.clear()

    async def finish(self) -> None:
        """Close the open grants if the settings say so. Called after `run` was cancelled."""
        if not self._parts.limits.close_on_stop:
            return
        for grant in list(self._active.values()):
            await self._apply(grant, Cause.STOPPING)
        while any(grant.state is State.CLOSING for grant in self._active.values()):
            self._state_endpoints()
            await self._work()
            await self._flush()
            if self.tailnet is not None:
                await self.tailnet.reconcile()
            await self._parts.clock.sleep(PASS_SECONDS)

    async def run_pass(self) -> None:
        """Read the orders and conditions, move the grants, and do the work of their states."""
        await self._load()
        await self._flush()
        await self._refresh()
        await self._work()
        await self._sweep()

    async def _load(self) -> None:
        """Read the store once. Raises SpoolError: until then nothing else is done."""
        if self._loaded:
            return
        self._parts.orders.create()
        stored: StoredGrants = await self._parts.store.load()
        self._active, self._seen, self._withdrawn = stored.active, stored.seen, stored.withdrawn
        self._highest_wall_ms, self._created_ms = stored.highest_wall_ms, stored.created_ms
        self._controls = ControlFacts(stored.controls, self._parts.clock.boot_ns())
        self._stored_controls = stored.controls
        self._loaded = True

    async def _refresh(self) -> None:
        """Apply everything that can change a grant from outside, and the time."""
        await self._read_controls()
        if self._controls.has_due():
            await self._state_controls()
        await self._end_overdue()
        await self._take_orders()
        for grant in list(self._active.values()):
            await self._apply_due(grant.id)
        now = self._now()
        self._highest_wall_ms = max(self._highest_wall_ms, now.wall_ms)
        self._state_endpoints()

    def _state_endpoints(self) -> None:
        """State which endpoints of the tailnet the live grants need."""
        if self.tailnet is not None:
            live = [grant for grant in self._active.values() if grant.state in LIVE]
            self.tailnet.set_needed({name for g in live for name in g.request.endpoints})

    def _find_up(self, grant: Grant) -> Sequence[str]:
        """Return the grant's endpoints that give access by themselves and may have a pod.

        That of ClickHouse does not: without the user it leads to a login that is refused.
        """
        if self.tailnet is None:
            return ()
        return self.tailnet.find_up(e for e in grant.request.endpoints if e != CLICKHOUSE)

    def _find_unscaled(self, grant: Grant) -> Sequence[str]:
        """Return the endpoints of a grant without a user that the broker does not scale."""
        if grant.needs_user:
            return ()
        names = grant.request.endpoints
        return names if self.tailnet is None else self.tailnet.find_unknown(names)

    async def _read_controls(self) -> None:
        reason, policy = self._parts.kill_switch.find_reason(), None
        try:
            policy = self._parts.policy.load()
        except PolicyError as error:
            reason = reason or f"the policy {UNREADABLE}"
            if self._policy is not None:
                structlog.get_logger().error("access.policy_unreadable", error=str(error))
        if policy is not None and not policy.file.enabled:
            reason = reason or DISABLED
        self._controls.observe(reason, policy.sha256 if policy else "")
        reason = reason or await self._release_switch()
        if reason != self._kill_switch:
            structlog.get_logger().warning("access.kill_switch", reason=reason or None)
        self._policy, self._kill_switch = policy, reason
        if policy is not None and policy.sha256 != self._stored_policy:
            await self._store_policy(policy)

    async def _release_switch(self) -> str:
        """Return why a switch that is off still counts as on, or "": its line is on disk.

        A line that the disk refuses is tried again after RETRY_SECONDS.
        """
        if self._controls.is_stated_off:
            return ""
        now_ns, refused_ns = self._parts.clock.boot_ns(), self._off_refused_boot_ns
        if refused_ns is not None and now_ns - refused_ns < RETRY_SECONDS * 1e9:
            return NOT_RECORDED
        line = self._controls.begin_off(now_ns)
        if line is None:
            return CHANGES_TOO_OFTEN
        refused = await self._write(line, retry=False)
        self._controls.end_off(written=not refused)
        self._off_refused_boot_ns = now_ns if refused else None
        return NOT_RECORDED if refused else ""

    async def _state_controls(self) -> None:
        """Write the lines about the switch and the policy, after the ends that they cause.

        An end waits for no line, and nothing opens before it: see `_write`.
        """
        for grant in self.grants:
            if grant.state in LIVE:
                await self._apply_due(grant.id)
        for line in self._controls.take_due(self._parts.clock.boot_ns()):
            await self._write(line, retry=True)

    async def _store_policy(self, policy: Policy) -> None:
        """Store the file for the evidence of the grants; a failure is tried again, and logged."""

        def store() -> str:
            path = self._parts.directory / POLICIES / f"{policy.sha256}.yaml"
            if not path.exists():
                _place(self._parts.disk, policy.content, path)
            return policy.sha256

        try:
            self._stored_policy = await self._call_within(POLICIES, store)
        except OSError as error:
            structlog.get_logger().error("access.policy_not_stored", error=_text_of(error))

    async def _call_within(self, name: str, call: Callable[[], T]) -> T:
        """Return the value of a call that uses the broker's directory, or raise its error.

        Raises TimeoutError if it has not ended within CALL_SECONDS: on a volume that hangs, nothing
        else must wait. Until it has ended, the next call with this name waits for it and returns
        its value.
        """
        late = self._calls.get(name)
        task = late or asyncio.create_task(asyncio.to_thread(call))
        self._calls[name] = task
        await asyncio.wait([task], timeout=0 if late else CALL_SECONDS)
        if not task.done():
            raise TimeoutError
        del self._calls[name]
        value: T = task.result()
        return value

    def _now(self) -> GrantTime:
        clock = self._parts.clock
        return GrantTime(
            wall_ms=clock.wall_ns() // 1_000_000,
            boot_ns=clock.boot_ns(),
            boot_id=clock.boot_id,
            highest_wall_ms=self._highest_wall_ms,
        )

    # Changes of a grant.

    async def _end_overdue(self) -> None:
        """End the grants whose answer or opening is too late, before an order can change them.

        An order that is read later must not count as in time. And after a crash between the line
        of such an end and the store, the grant ends again in the same state.
        """
        for grant in self.grants:
            due = find_due(grant, self._now(), self._conditions(grant))
            if due is not None and due.cause in {Cause.NOT_ANSWERED, Cause.NOT_OPENED}:
                await self._apply(grant, due.cause, due.reason)

    async def _apply_due(self, grant_id: str) -> None:
        grant = self._active.get(grant_id)
        if grant is None:
            return
        due = find_due(grant, self._now(), self._conditions(grant))
        if due is None:
            return
        replicas = tuple(self._admins) if grant.needs_user else ()
        fields = {"replicas": replicas, "touched": replicas} if due.cause is Cause.MAY_OPEN else {}
        await self._apply(grant, due.cause, due.reason, fields)

    def _conditions(self, grant: Grant) -> Conditions:
        now, policy = self._now(), self._policy
        record = self._find_record_error(grant)
        if policy is None:
            return Conditions(kill_switch=self._kill_switch, record=record)
        granted = count_granted(grant, policy, now.wall_ms)
        rule = judge_approved(policy, grant.request, granted, now.wall_ms)
        if grant.state is State.PENDING and rule == "approvals":
            rule = ""
        others = [g.request.engineer.id for g in self._active.values() if _counts_as_open(g)]
        return Conditions(
            kill_switch=self._kill_switch,
            policy=rule,
            record=record,
            contact=self._find_lost_contact(policy),
            waits=find_wait(policy, grant.request, others, now.wall_ms),
        )

    def _find_lost_contact(self, policy: Policy) -> str:
        """Return for how long the control plane has not answered, if that ends access."""
        if not policy.file.leases:
            return ""
        if self._parts.contact is None:
            return "no control plane is polled"
        since_ns = max(self._started_boot_ns, self._parts.contact())
        seconds = (self._parts.clock.boot_ns() - since_ns) / 1e9
        return f"no response for {seconds:.0f} s" if seconds >= LEASE_SECONDS else ""

    def _find_record_error(self, grant: Grant) -> str:
        """Return why the steps of a grant cannot be recorded, or ""."""
        if self._unwritten or self._unsaved:
            return "unwritten"
        if error := self._record_error or self._parts.ledger.last_error:
            waited_ns = self._parts.clock.boot_ns() - self._record_failed_boot_ns
            if grant.state not in WAITING or waited_ns < RETRY_SECONDS * 1e9:
                return error
        return "" if grant.state in LIVE or self._parts.store.has_room() else "spool_full"

    async def _apply(
        self, grant: Grant, cause: Cause, reason: str = "", fields: Mapping[str, Any] | None = None
    ) -> Grant:
        """Record a change and make it. Return the grant, unchanged if it could not be recorded.

        A change that ends access is made even if it cannot be recorded.
        """
        policy = {"policy_sha256": self._policy.sha256} if self._policy else {}
        after = change(grant, cause, self._now(), reason, {**policy, **(fields or {})})
        if after is None:
            return grant
        try:
            await self._record(after)
        except RecordError as error:
            if after.state in RELEASES:
                structlog.get_logger().error(
                    "access.not_recorded", grant=grant.id, error=str(error)
                )
                return grant
        structlog.get_logger().info(
            "access.grant_changed", grant=after.id, state=after.state.value, reason=after.reason
        )
        if after.state is State.OPENING and after.request.reason.kind == BREAK_GLASS:
            self._break_glass_openings += 1
        self._take_effect(after)
        return after

    def _take_effect(self, grant: Grant) -> None:
        """Use the grant from now on, or drop it if it has ended."""
        self._seen[grant.id] = grant.payload_sha256
        if grant.state in ENDS:
            self._active.pop(grant.id, None)
            self._collected.pop(grant.id, None)
            self._attempts.pop(grant.id, None)
            self._restoring = {one for one in self._restoring if one[0] != grant.id}
        else:
            self._active[grant.id] = grant

    async def _record(
        self, grant: Grant, detail: Mapping[str, str] | None = None, *, fact: str = ""
    ) -> None:
        """Write the line and store the grant. Raises RecordError.

        If access ends with it, both are to be written later before the error is raised.
        """
        line = FactLine(
            fact=fact or grant.state.value,
            subject=grant.id,
            reason=clean(grant.reason),
            detail=_details(grant) | {k: clean(v) for k, v in (detail or {}).items()},
            sha256=_digests(grant),
        )
        ends = grant.state not in RELEASES
        messages = [] if fact else [self._message(grant)]
        error = await self._write(line, retry=ends)
        if error and not ends:
            raise RecordError(error)
        error = await self._save(grant, messages, retry=ends) or error
        if error:
            raise RecordError(error)
        self._record_error = ""

    def _message(self, grant: Grant) -> Message:
        counts: dict[str, int] = {}
        for logs in self._collected.get(grant.id, {}).values():
            counts |= {k: counts.get(k, 0) + v for k, v in logs.counts.items()}
        parts = self._parts
        return message_of(grant, parts.organization_id, parts.service_id, counts)

    async def _write(self, line: FactLine, *, retry: bool) -> str:
        """Write a line after all earlier ones. Return why it was not written, or "".

        With `retry`, a line that was not written is written later.
        """
        error = "earlier lines are not written" if self._unwritten else await self._write_now(line)
        if error and retry:
            self._unwritten.append(line)
        return error

    async def _write_now(self, line: FactLine) -> str:
        try:
            async with asyncio.timeout(self._parts.limits.record_seconds):
                await self._parts.ledger.fact(line)
        except (LedgerError, TimeoutError) as failure:
            return self._fail(f"ledger: {str(failure) or 'no response'}")
        return ""

    async def _save(self, grant: Grant, messages: Sequence[Message], *, retry: bool) -> str:
        """Store a grant and its events. Return why the grant was not stored, or "".

        With `retry`, both are stored later if they were not now. A full spool stores no event, but
        with `retry` it does store the grant: its events follow.
        """
        messages = [*self._unsent.get(grant.id, ()), *messages]
        try:
            await self._store(grant, messages)
        except SpoolFullError as failure:
            if not retry:
                return self._fail(f"store: {failure}")
            self._unsent[grant.id] = messages
            return await self._save_alone(grant)
        except (SpoolError, TimeoutError) as failure:
            if retry:
                self._unsaved[grant.id] = grant
                self._unsent[grant.id] = messages
            return self._fail(f"store: {failure}")
        self._unsaved.pop(grant.id, None)
        self._unsent.pop(grant.id, None)
        return ""

    async def _save_alone(self, grant: Grant) -> str:
        try:
            await self._store(grant, ())
        except (SpoolError, TimeoutError) as failure:
            self._unsaved[grant.id] = grant
            return self._fail(f"store: {failure}")
        self._unsaved.pop(grant.id, None)
        return ""

    async def _store(self, grant: Grant, messages: Sequence[Message]) -> None:
        async with asyncio.timeout(self._parts.limits.record_seconds):
            await self._parts.store.save(grant, messages, self._highest_wall_ms)

    def _fail(self, error: str) -> str:
        self._record_error = error
        self._record_failed_boot_ns = self._parts.clock.boot_ns()
        return error

    async def _flush(self) -> None:
        """Write the lines and store the grants and events that the disk has refused."""
        while self._unwritten:
            if await self._write_now(self._unwritten[0]):
                break
            del self._unwritten[0]
        for grant in list(self._unsaved.values()):
            await self._save(grant, (), retry=True)
        for grant_id, messages in list(self._unsent.items()):
            try:
                async with asyncio.timeout(self._parts.limits.record_seconds):
                    await self._parts.store.send(messages)
            except (SpoolError, TimeoutError):
                break
            self._unsent.pop(grant_id, None)
        await self._save_controls()

    async def _save_controls(self) -> None:
        """Store what the lines on disk say about the controls."""
        stated = self._controls.stated
        if stated == self._stored_controls or self._unwritten:
            return
        try:
            async with asyncio.timeout(self._parts.limits.record_seconds):
                await self._parts.store.save_controls(stated)
        except (SpoolError, TimeoutError) as failure:
            self._fail(f"store: {failure}")
        else:
            self._stored_controls = stated

    # Orders and envelopes.

    async def _take_orders(self) -> None:
        """Carry out the orders. One whose effect could not be recorded stays for the next pass."""
        try:
            files = await self._call_within(ORDERS, self._parts.orders.read)
        except OSError as error:
            structlog.get_logger().error("access.orders_unreadable", error=_text_of(error))
            return
        for name, order, mistake in files:
            try:
                answer = await self._carry_out(order) if order else mistake
            except RecordError as error:
                structlog.get_logger().error("access.order_waits", order=name, error=str(error))
                continue
            if self._unsaved:  # an end that is not stored: a crash would forget it
                continue
            try:
                finish = partial(self._parts.orders.finish, name, answer)
                await self._call_within(f"{ORDERS}/{name}", finish)
            except OSError as error:
                structlog.get_logger().error(
                    "access.order_stays", order=name, error=_text_of(error)
                )

    async def _carry_out(self, order: Order) -> str:
        match order:
            case Submit():
                return await self.submit(order.envelope)
            case Approve():
                return await self._approve(order)
            case Deny():
                reason = f"denied: {order.comment}"
                return await self._end(order.id, Cause.DENIED, reason, order.by)
            case Revoke():
                ids = list(self._active) if order.id == ALL else [order.id]
                reason = f"revoked: {order.comment}" if order.comment else "revoked"
                lines = [await self._end(one, Cause.REVOKED, reason, order.by) for one in ids]
                return "\n".join(lines) or "nothing is open"
            case Forget():
                return await self._forget(order)
            case CheckServers():
                problems = await self.check_servers()
                lines = [f"{name}: {problem or 'ok'}" for name, problem in problems.items()]
                return "\n".join(lines)

    async def submit(self, raw: bytes) -> str:
        """Take an envelope of the vendor. Return what became of it. Raises RecordError.

        An envelope that is not trusted is logged and counted, and leaves nothing else: an unknown
        sender must not be able to use up an id, or to fill the ledger.
        """
        if self._policy is None:
            return "refused: the policy cannot be read"
        policy, now = self._policy, self._now()
        try:
            verified = open_envelope(
                raw, (WITHDRAWAL,), policy.vendor_keys, threshold=1, now_ms=now.wall_ms
            )  # any vendor key may end access
        except EnvelopeError:
            try:
                verified = open_envelope(
                    raw,
                    (REQUEST,),
                    policy.vendor_keys,
                    threshold=policy.file.threshold,
                    now_ms=now.wall_ms,
                )
            except EnvelopeError as error:
                structlog.get_logger().error("access.envelope_refused", reason=str(error))
                self._refused_documents[error.reason] += 1
                return f"refused: {error}"
        try:
            document = parse_document(verified.payload_type, verified.payload)
        except DocumentError as error:
            structlog.get_logger().error("access.document_refused", reason=str(error))
            self._refused_documents[error.reason] += 1
            return f"refused: {error}"
        assert not isinstance(document, Approval)  # noqa: S101  its type is not accepted above
        ours = Audience(organization=self._parts.organization_id, service=self._parts.service_id)
        if document.audience != ours:
            structlog.get_logger().error("access.wrong_audience", grant=document.id)
            self._refused_documents["wrong_audience"] += 1
            return "refused: the audience is another service"
        if isinstance(document, Withdrawal):
            return await self._withdraw(document.id)
        return await self._receive(raw, verified, document, policy)

    async def _withdraw(self, request_id: str) -> str:
        """End a grant, or store a withdrawal that came before its request. Raises RecordError."""
        if request_id in self._seen:
            return await self._end(request_id, Cause.WITHDRAWN, "withdrawn", "vendor")
        now_ms = self._now().wall_ms
        kept = {
            one: since_ms
            for one, since_ms in self._withdrawn.items()
            if now_ms - since_ms < WITHDRAWN_SECONDS * 1000 and one not in self._seen
        }
        if request_id not in kept:
            if len(kept) >= MAX_WITHDRAWN:
                self._refused_documents[TOO_MANY_WITHDRAWALS] += 1
                structlog.get_logger().error(f"access.{TOO_MANY_WITHDRAWALS}", grant=request_id)
                return "refused: too many withdrawals of unknown requests"
            kept[request_id] = now_ms
            try:
                async with asyncio.timeout(self._parts.limits.record_seconds):
                    await self._parts.store.save_withdrawn(kept)
            except (SpoolError, TimeoutError) as error:
                raise RecordError(self._fail(f"store: {error}")) from None
            self._withdrawn = kept
        return f"{request_id}: unknown; its request will not be opened"

    async def _receive(
        self, raw: bytes, verified: Verified, request: AccessRequest, policy: Policy
    ) -> str:
        known, digest, now = self._seen.get(request.id), sha256(verified.payload), self._now()
        if known == digest:
            return f"{request.id}: known"
        if known is not None:
            await self._record_conflict(request.id, known, digest)
            return "refused: the id was used by another request"
        if reason := self._judge_issue(request, now):
            self._refused_documents[reason] += 1
            structlog.get_logger().error(f"access.{reason}", grant=request.id)
            return f"refused: {UNTIMELY[reason]}"
        grant = Grant(
            id=request.id,
            state=State.RECEIVED,
            since_ms=now.wall_ms,
            envelope=raw,
            payload=verified.payload,
            payload_sha256=digest,
            vendor_keys=verified.key_ids,
            role=request.role,
            duration_seconds=request.duration_seconds,
            lapses_ms=min(request.expires_ms, now.wall_ms + policy.pending_ms),
            policy_sha256=policy.sha256,
        )
        cause, reason = self._judge_received(request, policy, now)
        after = await self._apply(grant, cause, reason)
        if after.state is State.RECEIVED:
            raise RecordError("the request was not stored")
        return f"{after.id}: {after.state.value}: {after.reason}"

    def _judge_received(
        self, request: AccessRequest, policy: Policy, now: GrantTime
    ) -> tuple[Cause, str]:
        """Return what becomes of a request that was taken, and why."""
        if request.id in self._withdrawn:
            return Cause.WITHDRAWN, "withdrawn (by vendor)"
        rule = judge_request(policy, request, now.wall_ms)
        if not rule:
            try:
                read_signing_request(request.csr)
            except AuthorityError:
                rule = "csr"
        if rule:
            return Cause.POLICY_REFUSES, rule
        if sum(one.state is State.PENDING for one in self._active.values()) >= MAX_PENDING:
            return Cause.TOO_MANY, ""
        needed = policy.approvals_needed(request)
        return (Cause.NEEDS_APPROVAL if needed else Cause.NEEDS_NO_APPROVAL), ""

    def _judge_issue(self, request: AccessRequest, now: GrantTime) -> str:
        """Return why a request is not taken because of the time when it was issued, or ""."""
        if request.issued_ms < self._created_ms:  # the store may have known it before it was lost
            return "older_than_store"
        # That check and the limit of four days are relative to `issued_at`.
        ahead = request.issued_ms > now.wall_ms + MAX_AHEAD_SECONDS * 1000
        return "issued_in_future" if ahead else ""

    async def _record_conflict(self, request_id: str, known: str, refused: str) -> None:
        """State that a trusted sender has used an id twice. The digests are of both requests."""
        structlog.get_logger().error("access.request_conflict", grant=request_id)
        self._refused_documents["conflict"] += 1
        now_ns = self._parts.clock.boot_ns()
        line = self._controls.take_conflict(request_id, known, refused, now_ns)
        if line is not None:
            await self._write(line, retry=True)

    async def _end(self, grant_id: str, cause: Cause, reason: str, by: str) -> str:
        grant = self._active.get(grant_id)
        if grant is None:
            return f"{grant_id}: {'already ended' if grant_id in self._seen else 'unknown'}"
        after = await self._apply(grant, cause, f"{reason} (by {by})")
        return f"{after.id}: {after.state.value}"

    async def _approve(self, order: Approve) -> str:
        grant, policy = self._active.get(order.id), self._policy
        if grant is None or grant.state is not State.PENDING:
            return f"{order.id}: not pending"
        if policy is None:
            return "refused: the policy cannot be read"
        try:
            approval, given = self._read_approval(grant, order, policy)
            fields = self._judge(grant, approval, given, policy)
        except (EnvelopeError, DocumentError) as error:
            await self._apply(grant, Cause.APPROVAL_REFUSED, f"approval_refused: {error}")
            return f"refused: {error}"
        if approval.decision == "deny":
            reason = f"denied: {approval.comment}"
            return await self._end(grant.id, Cause.DENIED, reason, given[0].by)
        now_ms = self._now().wall_ms
        granted = count_granted(msgspec.structs.replace(grant, **fields), policy, now_ms)
        missing = judge_approved(policy, grant.request, granted, now_ms)
        cause = Cause.APPROVED_IN_PART if missing else Cause.APPROVED
        after = await self._apply(grant, cause, "", fields)
        if after is grant:
            raise RecordError("the approval was not stored")
        return f"{after.id}: {after.reason}"

    def _judge(
        self, grant: Grant, approval: Approval, given: Sequence[GivenApproval], policy: Policy
    ) -> dict[str, Any]:
        """Return the fields of the grant that the approval changes. Raises DocumentError."""
        if rule := judge_approval(policy, grant.request, approval):
            raise DocumentError(f"{rule}: expected no more than the request")
        now_ms = self._now().wall_ms
        roles = describe_roles(policy, grant.request.role)
        given = [msgspec.structs.replace(one, roles=roles) for one in given]
        # An approval that has stopped to count gives way to another one of the same person.
        counted = set(count_granted(grant, policy, now_ms).approvers)
        given = [one for one in given if one.by not in counted]
        again = {one.by for one in given}
        kept = [one for one in grant.approvals if one.by not in again]
        asked = approval.duration_seconds or grant.duration_seconds
        fields = {
            "approvals": (*kept, *given),
            "role": _lesser(policy, grant.role, approval.role),
            "duration_seconds": min(grant.duration_seconds, asked),
        }
        granted = count_granted(msgspec.structs.replace(grant, **fields), policy, now_ms)
        rule = judge_approved(policy, grant.request, granted, now_ms)
        if approval.decision == "approve" and rule not in {"", "approvals"}:
            raise DocumentError(f"{rule}: the policy forbids the grant")
        return fields

    def _read_approval(
        self, grant: Grant, order: Approve, policy: Policy
    ) -> tuple[Approval, list[GivenApproval]]:
        """Return the approval and the persons or keys that gave it. Raises EnvelopeError and more.

        In mode `signed` only keys count. In the others the name is as the command gave it.
        """
        now_ms = self._now().wall_ms
        if policy.file.approval != "signed":
            approval = Approval(
                id=grant.id,
                request_sha256=grant.payload_sha256,
                decision="approve",
                by=order.by,
                at="1970-01-01T00:00:00Z",
                duration_seconds=order.duration_seconds,
                role=order.role,
            )
            return approval, [GivenApproval(by=order.by, at_ms=now_ms, comment=order.comment)]
        verified = open_envelope(
            order.envelope, (APPROVAL,), policy.approver_keys, threshold=1, now_ms=now_ms
        )
        document = parse_document(verified.payload_type, verified.payload)
        assert isinstance(document, Approval)  # noqa: S101  the only accepted type
        if document.request_sha256 != grant.payload_sha256 or document.id != grant.id:
            raise DocumentError("the approval is of another request")
        given = [
            GivenApproval(
                by=key_id, at_ms=now_ms, envelope=order.envelope, comment=document.comment
            )
            for key_id in verified.key_ids
        ]
        return document, given

    async def _forget(self, order: Forget) -> str:
        """Take a replica off all grants that are closing. Live grants keep it."""
        found = []
        for grant in list(self._active.values()):
            if grant.state is State.CLOSING and order.replica in grant.touched:
                after = msgspec.structs.replace(
                    grant,
                    touched=tuple(one for one in grant.touched if one != order.replica),
                    forgotten=(*grant.forgotten, order.replica),
                )
                detail = {"replica": order.replica, "comment": order.comment, "by": order.by}
                await self._record_step(after, "replica_forgotten", detail)
                found.append(f"{grant.id}: {order.replica} is given up")
        return "\n".join(found) or f"{order.replica}: nothing is closing there"

    async def _record_step(self, grant: Grant, fact: str, detail: Mapping[str, str]) -> None:
        """Record a step within a state; it takes effect in memory even if the disk refuses."""
        try:
            await self._record(grant, detail, fact=fact)
        except RecordError as error:
            structlog.get_logger().error("access.not_recorded", grant=grant.id, error=str(error))
        self._take_effect(grant)

    # The work of the states.

    async def _work(self) -> None:
        for grant_id in list(self._active):
            if (grant := self._active.get(grant_id)) and grant.state is State.OPENING:
                await self._open(grant)
        ends = (State.CLOSING, State.COLLECTING)
        await asyncio.gather(
            *(self._finish_grant(g) for g in self.grants if g.state in ends and self._is_due(g))
        )

    async def _finish_grant(self, grant: Grant) -> None:
        if grant.state is State.CLOSING:
            await self._close(grant)
        else:
            await self._collect(grant)

    def _is_due(self, grant: Grant) -> bool:
        return self._parts.clock.boot_ns() >= self._attempts.get(grant.id, (0, 0.0))[0]

    def _try_later(self, grant: Grant) -> None:
        """Wait 1 s before the next attempt, then twice as long each time, at most 30 s."""
        seconds = min(RETRY_SECONDS, 2 * self._attempts.get(grant.id, (0, PASS_SECONDS / 2))[1])
        at_ns = self._parts.clock.boot_ns() + int(seconds * 1e9)
        self._attempts[grant.id] = (at_ns, seconds)

    async def _require(self, grant_id: str, state: State) -> Grant:
        """Return the grant after orders, conditions and the time. Raises ChangedError.

        Called before each effect, so that a revocation is noticed between two of them.
        """
        await self._refresh()
        grant = self._active.get(grant_id)
        if grant is None or grant.state is not state:
            raise ChangedError(grant_id)
        return grant

    async def _open(self, grant: Grant) -> None:
        """Make what the grant's endpoints need, and open the grant."""
        try:
            reason = await self._prepare(grant)
            current = await self._require(grant.id, State.OPENING)
        except ChangedError:
            return
        if reason:
            await self._apply(current, Cause.OPENING_FAILED, reason)
            return
        opened = await self._apply(current, Cause.OPENED)
        if opened.state is State.OPENING:  # not recorded: nobody may get the certificate
            await self._apply(opened, Cause.RECORD_FAILED, f"record_failed: {self._record_error}")

    async def _prepare(self, grant: Grant) -> str:
        """Return why the grant cannot open, or "" if it may. Raises ChangedError."""
        usable: list[ClickHouseAdmin] = []
        if grant.needs_user:
            usable, problems = await self._check_replicas()
            if not usable or (self._needs_all and problems):
                await self._require(grant.id, State.OPENING)
                return next(iter(problems.values()), "no replicas")
        current = await self._require(grant.id, State.OPENING)
        if unscaled := self._find_unscaled(current):
            return f"tailnet: {unscaled[0]}: not scaled by the broker, so it could not end access"
        if current.needs_certificate and not current.certificate:
            try:
                await self._certify(current)
            except (AuthorityError, RecordError) as error:
                return f"authority: {error}"
        if self.tailnet is not None:
            current = await self._require(grant.id, State.OPENING)
            try:
                await self.tailnet.open(current.request.endpoints)
            except TailnetError as error:
                return f"tailnet: {error}"
        return await self._create_users(current, usable) if current.needs_user else ""

    async def _create_users(self, grant: Grant, admins: Sequence[ClickHouseAdmin]) -> str:
        """Create the user on these replicas. Return why too few have it, or "".

        Raises ChangedError.
        """
        made = []
        for admin in admins:
            current = await self._require(grant.id, State.OPENING)
            if await self._create(current, admin):
                made.append(admin.name)
        return "" if made and not (self._needs_all and len(made) < len(self._admins)) else "users"

    @property
    def _needs_all(self) -> bool:
        """Whether the policy requires every replica; without a policy, the kill switch is on."""
        return self._policy is not None and self._policy.file.replicas == "all"

    async def check_servers(self) -> Mapping[str, str]:
        """Return the first problem of each server, as before an opening; "" if it has none."""
        await asyncio.gather(*(self._check_replica(admin) for admin in self._admins.values()))
        return {name: self._problems[name] for name in self._admins}

    async def _check_replicas(self) -> tuple[list[ClickHouseAdmin], dict[str, str]]:
        """Return the replicas on which a user may be created, and why not on the others."""
        found = await asyncio.gather(*(self._check_replica(a) for a in self._admins.values()))
        problems = {name: why for name, why in zip(self._admins, found, strict=True) if why}
        return [a for a in self._admins.values() if a.name not in problems], problems

    async def _check_replica(self, admin: ClickHouseAdmin) -> str:
        problem = await self._find_problem(admin)
        if problem != self._problems.get(admin.name, ""):
            structlog.get_logger().warning(
                "access.server_checked", replica=admin.name, problem=problem or None
            )
        self._problems[admin.name] = problem
        return problem

    async def _find_problem(self, admin: ClickHouseAdmin) -> str:
        if self._policy is None:
            return "unreachable: without a policy nothing is checked"
        file = self._policy.file
        try:
            problems = await admin.find_problems(
                plain_names=file.tables == "plain", allow_open_system=file.allow_open_system
            )
            if problems:
                return problems[0]
            skew_ms = abs(await admin.read_clock_ms() - self._now().wall_ms)
        except ServerError as error:
            return f"unreachable: {error}"
        return "skew" if skew_ms > self._parts.limits.max_skew_seconds * 1000 else ""

    async def _certify(self, grant: Grant) -> None:
        """Sign the engineer's key, and store the certificate. Raises AuthorityError, RecordError.

        It is handed out only after the grant is open.
        """
        made = await asyncio.to_thread(
            self._parts.authority.sign,
            read_signing_request(grant.request.csr),
            grant.id,
            grant.since_ms,
            grant.end_ms,
        )
        after = msgspec.structs.replace(grant, certificate=made.pem)
        await self._record(after, {"serial": made.serial}, fact="certificate")
        self._take_effect(after)

    def _account(self, grant: Grant) -> GrantAccount | None:
        role = self._policy.file.roles.get(grant.role) if self._policy else None
        if role is None or role.clickhouse_role is None:
            return None
        return GrantAccount(
            grant_id=grant.id,
            certificate_uri=uri_of_grant(self._parts.service_id, grant.id),
            role=role.clickhouse_role,
            ticket=grant.request.reason.ticket,
            end_ms=grant.end_ms,
        )

    async def _create(self, grant: Grant, admin: ClickHouseAdmin) -> bool:
        """Create the user on one replica and read it back. Return whether it is as it must be."""
        account = self._account(grant)
        if account is None:
            return False
        try:
            await admin.create_user(account)
            differences = await admin.find_differences(account)
            if not differences:
                return True
            await admin.drop_user(account.user)
        except ServerError as error:
            structlog.get_logger().warning(
                "access.replica_failed", grant=grant.id, replica=admin.name, error=str(error)
            )
            return False
        await self._record_step(
            grant, "drift", {"replica": admin.name, "differences": ", ".join(differences)}
        )
        return False

    async def _close(self, grant: Grant) -> None:
        """Drop the user everywhere and end its queries. Tried until every replica confirms.

        The grant stays in its state until its endpoints other than ClickHouse's have no pod. They
        are scaled by another task, so nothing here waits for the Kubernetes API.
        """
        missing = [name for name in grant.touched if name not in self._admins]
        admins = [self._admins[name] for name in grant.touched if name in self._admins]
        ended = await asyncio.gather(*(self._end_on(admin, grant) for admin in admins))
        left = [admin.name for admin, done in zip(admins, ended, strict=True) if not done]
        current = self._active.get(grant.id)
        if current is None or current.state is not State.CLOSING:
            return
        left = [name for name in (*left, *missing) if name not in current.forgotten]
        if left != list(current.touched):
            current = msgspec.structs.replace(current, touched=tuple(left))
            self._take_effect(current)
        if left:
            self._try_later(current)
            return
        self._attempts.pop(grant.id, None)
        if self._find_up(current):
            return
        gone = Cause.USERS_GONE if current.opened_ms else Cause.USERS_GONE_UNOPENED
        await self._apply(current, gone, current.ended_because)

    async def _end_on(self, admin: ClickHouseAdmin, grant: Grant) -> bool:
        """End a grant on one replica. Return whether the user and its queries are gone."""
        user = user_of(grant.id)
        try:
            await admin.drop_user(user)
            await admin.kill_queries(user)
            if user in await admin.list_users():
                return False
            running = await admin.running_queries(user)
        except ServerError as error:
            structlog.get_logger().error(
                "access.not_closed", grant=grant.id, replica=admin.name, error=str(error)
            )
            return False
        waited_ms = self._now().wall_ms - grant.since_ms
        if running and waited_ms >= STUCK_SECONDS * 1000 and grant.id not in self._stuck:
            self._stuck.add(grant.id)
            detail = {"replica": admin.name, "queries": ", ".join(running)}
            await self._record_step(grant, "queries_running", detail)
        return not running

    async def _collect(self, grant: Grant) -> None:
        """Read the logs of each replica into files. Replicas that fail are tried to a deadline.

        The logs are read in a task of its own: a slow server must not delay other grants.
        """
        found = self._collected.setdefault(grant.id, {})
        wanted = [r for r in grant.replicas if r not in grant.forgotten and r not in found]
        if grant.id not in self._collectors:
            self._collectors[grant.id] = asyncio.create_task(self._read_logs(grant, wanted))
        task = self._collectors[grant.id]
        await asyncio.wait([task], timeout=PASS_SECONDS)
        if not task.done():
            return
        del self._collectors[grant.id]
        errors: dict[str, str] = {}
        for name, logs in task.result().items():
            if isinstance(logs, str):
                errors[name] = logs
                continue
            try:
                found[name] = await self._place_logs(grant, name, logs)
            except OSError as error:
                errors[name] = f"disk: {_text_of(error)}"
        waited_ms = self._now().wall_ms - grant.closed_ms
        if errors and 0 <= waited_ms < self._parts.limits.collect_seconds * 1000:
            self._try_later(grant)
            return
        gaps = errors | {name: logs.gap for name, logs in found.items() if logs.gap}
        gaps |= dict.fromkeys(grant.forgotten, "given up")
        gaps |= dict.fromkeys(self._find_unscaled(grant), "no longer scaled by the broker")
        reason = "; ".join(f"{name}: {why}" for name, why in sorted(gaps.items()))
        if gaps:
            await self._apply(grant, Cause.COLLECTED_IN_PART, f"{grant.ended_because}; {reason}")
        else:
            await self._apply(grant, Cause.COLLECTED, grant.ended_because)

    async def _read_logs(
        self, grant: Grant, replicas: Sequence[str]
    ) -> dict[str, CollectedLogs | str]:
        """Return the logs of each replica, or why they could not be read."""
        found: dict[str, CollectedLogs | str] = {}
        for name in replicas:
            if name not in self._admins:
                found[name] = "the replica is not configured any more"
                continue
            try:
                found[name] = await self._admins[name].collect(user_of(grant.id), grant.opened_ms)
            except ServerError as error:
                found[name] = str(error)
        return found

    async def _place_logs(self, grant: Grant, name: str, logs: CollectedLogs) -> CollectedLogs:
        """Write the lines into files, and return the rest. Raises OSError."""
        folder = self._parts.directory / LOGS / grant.id
        digests = {}
        for kind, content in (("queries", logs.queries), ("sessions", logs.sessions)):
            path = folder / f"{name}-{kind}.jsonl"
            await self._call_within(str(path), partial(_place, self._parts.disk, content, path))
            digests[f"{kind}_sha256"] = sha256(content)
        counts = {key: str(value) for key, value in logs.counts.items()}
        await self._record_step(grant, "collected", {"replica": name, **digests, **counts})
        return msgspec.structs.replace(logs, queries=b"", sessions=b"")

    # The sweep.

    async def _sweep(self) -> None:
        """Compare the users of every server with the grants, and correct the servers."""
        now_ns = self._parts.clock.boot_ns()
        if self._swept_boot_ns is not None and now_ns - self._swept_boot_ns < SWEEP_SECONDS * 1e9:
            return
        self._swept_boot_ns = now_ns
        try:
            async with asyncio.timeout(self._parts.limits.record_seconds):
                await self._parts.store.save_time(self._highest_wall_ms)
            if not self._unwritten and not self._unsaved and not self._parts.ledger.last_error:
                self._record_error = ""
        except (SpoolError, TimeoutError) as error:
            self._fail(f"store: {str(error) or 'no response'}")
        await asyncio.gather(*(self._drop_unknown(admin) for admin in self._admins.values()))
        for endpoint in self.tailnet.take_unexpected() if self.tailnet else ():
            detail = {"endpoint": endpoint}
            line = FactLine(fact="drift", subject="", reason="tailnet", detail=detail)
            await self._write(line, retry=True)
        for grant in self.grants:
            if grant.state is State.OPEN:
                await self._watch(grant)

    async def _drop_unknown(self, admin: ClickHouseAdmin) -> None:
        """Drop every user of a grant that may not exist."""
        try:
            users = await admin.list_users()
        except ServerError as error:
            self._sweep_failures += 1
            structlog.get_logger().warning(
                "access.sweep_failed", replica=admin.name, error=str(error)
            )
            return
        active = self._active.values()
        known = {user_of(g.id) for g in active if _counts_as_open(g) and g.needs_user}
        for user in sorted(set(users) - known):
            self._unexpected_users += 1
            line = FactLine(
                fact="drift",
                subject="",
                reason="orphan",
                detail={"replica": admin.name, "user": user},
            )
            await self._write(line, retry=True)
            try:
                await admin.drop_user(user)
                await admin.kill_queries(user)
            except ServerError as error:
                structlog.get_logger().error("access.orphan", user=user, error=str(error))

    async def _watch(self, grant: Grant) -> None:
        """Make each replica right again. Close the grant if none of them has the user."""
        has_user = []
        try:
            for name in grant.touched:
                current = await self._require(grant.id, State.OPEN)
                has_user.append(await self._correct_on(current, name))
            current = await self._require(grant.id, State.OPEN)
        except ChangedError:
            return
        if current.needs_user and not any(has_user):
            await self._apply(current, Cause.USERS_LOST)

    async def _correct_on(self, grant: Grant, name: str) -> bool:
        """Return whether the replica has the user, or may have it."""
        admin, account = self._admins.get(name), self._account(grant)
        if admin is None or account is None:
            return True
        try:
            return await self._correct(grant, account, admin)
        except ServerError:
            return True

    async def _correct(self, grant: Grant, account: GrantAccount, admin: ClickHouseAdmin) -> bool:
        """Create a missing user again; drop another one, or one on a server that fails a check.

        Return whether the replica has the user now. Raises ServerError: it is unknown.
        """
        problem = await self._check_replica(admin)
        if problem.startswith("unreachable"):
            raise ServerError(problem)
        differences = list(await admin.find_differences(account))
        if differences == ["missing"]:
            return not problem and await self._restore(grant, admin)
        if not problem and not differences:
            self._restoring.discard((grant.id, admin.name))
            return True
        await admin.drop_user(account.user)
        await admin.kill_queries(account.user)
        detail = {"replica": admin.name, "differences": ", ".join(differences) or problem}
        await self._record_step(grant, "drift", detail)
        return False

    async def _restore(self, grant: Grant, admin: ClickHouseAdmin) -> bool:
        """Create a missing user after its line. Return whether the replica has it.

        One line covers the attempts until the replica has the user: a server that refuses CREATE
        USER must not fill the ledger.
        """
        attempt = (grant.id, admin.name)
        if attempt not in self._restoring:
            try:
                await self._record(grant, {"replica": admin.name}, fact="restored")
            except RecordError as error:
                structlog.get_logger().error("access.not_restored", error=str(error))
                return False
            self._restoring.add(attempt)
            structlog.get_logger().warning(
                "access.user_restored", grant=grant.id, replica=admin.name
            )
        current = await self._require(grant.id, State.OPEN)  # an end may have been ordered
        if created := await self._create(current, admin):
            self._restoring.discard(attempt)
        return created


def _counts_as_open(grant: Grant) -> bool:
    """Return whether a grant counts for the limits of open grants: also while it is closed."""
    return grant.state in LIVE or grant.state is State.CLOSING


def _lesser(policy: Policy, one: str, other: str | None) -> str:
    return other if other is not None and policy.is_lesser_role(other, one) else one


def _details(grant: Grant) -> dict[str, str]:
    values = {
        "role": grant.role,
        "endpoints": ", ".join(grant.request.endpoints),
        "duration_seconds": str(grant.duration_seconds),
        "end_ms": str(grant.end_ms) if grant.end_ms else "",
        "vendor_keys": ", ".join(grant.vendor_keys),
        "approvers": ", ".join(approval.by for approval in grant.approvals),
        "touched": ", ".join(grant.touched),
        "kind": grant.request.reason.kind if grant.state is State.OPENING else "",
    }
    return {name: clean(value) for name, value in values.items() if value}


def _digests(grant: Grant) -> dict[str, str]:
    found = {"request": grant.payload_sha256, "policy": grant.policy_sha256}
    if grant.certificate:
        found["certificate_pem"] = sha256(grant.certificate.encode())
    envelopes: Iterable[bytes] = (a.envelope for a in grant.approvals if a.envelope)
    return found | {f"approval_{n}": sha256(raw) for n, raw in enumerate(envelopes, 1)}


def _text_of(error: OSError) -> str:
    return "no response" if isinstance(error, TimeoutError) else error.strerror or str(error)


def _place(disk: Disk, content: bytes, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk.place(content, path)
