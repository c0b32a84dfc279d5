"""The states of a grant, and everything that can change them. Pure: no input, no output, no clock.

    received -> rejected or withdrawn
    received -> pending -> approved -> opening -> open -> closing -> collecting -> closed

`TABLE` has one row per cause. A cause that has no row for a state changes nothing: what ended a
grant first stays its reason, and nothing leads from `closing` back to `open`. The work of a state
(see `broker`) can be repeated at any time, so after a crash the broker goes on with the stored
state and no list of unfinished effects is needed.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from byoc_agents.access.documents import (
    CLICKHOUSE,
    METRICS,
    REQUEST,
    AccessRequest,
    parse_stored_document,
)

CLOCK_TOLERANCE_MS = 60_000  # NTP steps that are not counted as a clock that was set back


class State(StrEnum):
    """Where a grant is."""

    RECEIVED = "received"  # verified; not yet stored
    PENDING = "pending"  # waits for the customer's approval
    APPROVED = "approved"  # waits until it may open
    OPENING = "opening"  # users are created
    OPEN = "open"
    CLOSING = "closing"  # users are dropped, queries are killed
    COLLECTING = "collecting"  # the logs of the access are read
    REJECTED = "rejected"  # from here on: ends
    DENIED = "denied"
    LAPSED = "lapsed"
    WITHDRAWN = "withdrawn"
    FAILED = "failed"  # it was approved and never opened
    CLOSED = "closed"
    CLOSED_INCOMPLETE = "closed_incomplete"  # closed, and the record of its use has a gap


ENDS = frozenset(list(State)[list(State).index(State.REJECTED) :])
LIVE = frozenset({State.OPENING, State.OPEN})  # an engineer may have access
WAITING = frozenset({State.PENDING, State.APPROVED})


class Cause(StrEnum):
    """What happened."""

    POLICY_REFUSES = "policy_refuses"
    TOO_MANY = "too_many"  # requests are pending
    NEEDS_APPROVAL = "needs_approval"
    NEEDS_NO_APPROVAL = "needs_no_approval"
    APPROVED = "approved"  # by everyone who is needed
    APPROVED_IN_PART = "approved_in_part"  # by one of several
    APPROVAL_REFUSED = "approval_refused"  # bad signature, other request, more than requested
    DENIED = "denied"
    NOT_ANSWERED = "not_answered"
    NOT_OPENED = "not_opened"  # the request expired first
    MAY_OPEN = "may_open"
    OPENED = "opened"
    OPENING_FAILED = "opening_failed"
    WITHDRAWN = "withdrawn"  # by the vendor
    REVOKED = "revoked"  # by the customer
    KILL_SWITCH = "kill_switch"
    POLICY_CHANGED = "policy_changed"
    RECORD_FAILED = "record_failed"  # the ledger or the store cannot be written
    CLOCK_STEPPED = "clock_stepped"
    CONTACT_LOST = "contact_lost"  # to the control plane, and the policy requires it
    EXPIRED = "expired"
    USERS_LOST = "users_lost"  # no replica has the user as it must be
    STOPPING = "stopping"  # the broker stops, and must not leave access open
    USERS_GONE = "users_gone"  # from every replica that may have had the user
    USERS_GONE_UNOPENED = "users_gone_unopened"  # the same, for a grant that never opened
    COLLECTED = "collected"
    COLLECTED_IN_PART = "collected_in_part"


class GrantTransition(NamedTuple):
    """One row of the table: in these states, this cause leads to that state."""

    states: frozenset[State]
    cause: Cause
    to: State | None  # None = the state stays; a ledger line is written


def _row(states: State | frozenset[State], cause: Cause, to: State | None) -> GrantTransition:
    return GrantTransition(
        states if isinstance(states, frozenset) else frozenset({states}), cause, to
    )


TABLE = (
    # A verified request.
    _row(State.RECEIVED, Cause.POLICY_REFUSES, State.REJECTED),
    _row(State.RECEIVED, Cause.TOO_MANY, State.REJECTED),
    _row(State.RECEIVED, Cause.WITHDRAWN, State.WITHDRAWN),  # the withdrawal came first
    _row(State.RECEIVED, Cause.NEEDS_APPROVAL, State.PENDING),
    _row(State.RECEIVED, Cause.NEEDS_NO_APPROVAL, State.APPROVED),
    # The customer's answer, or none.
    _row(State.PENDING, Cause.APPROVED, State.APPROVED),
    _row(State.PENDING, Cause.APPROVED_IN_PART, None),
    _row(State.PENDING, Cause.APPROVAL_REFUSED, None),
    _row(State.PENDING, Cause.DENIED, State.DENIED),
    _row(State.PENDING, Cause.NOT_ANSWERED, State.LAPSED),
    # Before it opens. A kill switch or a failing disk only delays: see `find_due`.
    _row(WAITING, Cause.WITHDRAWN, State.WITHDRAWN),
    _row(WAITING, Cause.REVOKED, State.DENIED),
    _row(WAITING, Cause.POLICY_REFUSES, State.REJECTED),
    _row(State.APPROVED, Cause.DENIED, State.DENIED),
    _row(State.APPROVED, Cause.NOT_OPENED, State.LAPSED),
    _row(State.APPROVED, Cause.MAY_OPEN, State.OPENING),
    # While it opens, and open.
    _row(State.OPENING, Cause.OPENED, State.OPEN),
    _row(State.OPENING, Cause.OPENING_FAILED, State.CLOSING),
    _row(LIVE, Cause.WITHDRAWN, State.CLOSING),
    _row(LIVE, Cause.REVOKED, State.CLOSING),
    _row(LIVE, Cause.KILL_SWITCH, State.CLOSING),
    _row(LIVE, Cause.POLICY_CHANGED, State.CLOSING),
    _row(LIVE, Cause.RECORD_FAILED, State.CLOSING),
    _row(LIVE, Cause.CLOCK_STEPPED, State.CLOSING),
    _row(LIVE, Cause.CONTACT_LOST, State.CLOSING),
    _row(LIVE, Cause.EXPIRED, State.CLOSING),
    _row(LIVE, Cause.STOPPING, State.CLOSING),
    _row(State.OPEN, Cause.USERS_LOST, State.CLOSING),
    # The end.
    _row(State.CLOSING, Cause.USERS_GONE, State.COLLECTING),
    _row(State.CLOSING, Cause.USERS_GONE_UNOPENED, State.FAILED),
    _row(State.COLLECTING, Cause.COLLECTED, State.CLOSED),
    _row(State.COLLECTING, Cause.COLLECTED_IN_PART, State.CLOSED_INCOMPLETE),
)
_ROWS = {(state, row.cause): row for row in TABLE for state in row.states}


class GrantTime(msgspec.Struct, frozen=True, kw_only=True):
    """The time, by two clocks, and the latest wall time that the store has seen."""

    wall_ms: int  # may step
    boot_ns: int  # comparable under one `boot_id`
    boot_id: str
    highest_wall_ms: int = 0

    @property
    def stepped_back(self) -> bool:
        """Whether the wall clock shows a time well before one that has been seen."""
        return self.wall_ms < self.highest_wall_ms - CLOCK_TOLERANCE_MS


class GivenApproval(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One person's approval."""

    by: str  # the id of the key, or in mode `local` the name of a person
    at_ms: int
    envelope: bytes = b""  # as it was signed; empty in mode `local`
    comment: str = ""
    # What the roles meant that the grant could have; empty in grants of earlier versions.
    roles: dict[str, str] = {}


class Grant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request and everything that became of it."""

    id: str
    state: State
    since_ms: int  # of the state
    envelope: bytes  # the request as it was received
    payload: bytes  # the request's bytes, which its signatures cover
    payload_sha256: str
    vendor_keys: tuple[str, ...]  # ids of the keys that have signed it
    role: str  # the approved one
    duration_seconds: int  # the approved one
    lapses_ms: int  # an answer after this comes too late
    policy_sha256: str  # of the policy at the last change of the state
    approvals: tuple[GivenApproval, ...] = ()
    reason: str = ""  # why it is in this state
    ended_because: str = ""  # the first reason to close it
    end_ms: int = 0  # wall time; 0 = not yet opened
    end_boot_ns: int = 0  # the same moment, comparable under `boot_id`
    boot_id: str = ""
    opened_ms: int = 0  # 0 = never
    closed_ms: int = 0  # when no replica had the user any more; 0 = not yet
    certificate: str = ""  # PEM
    replicas: tuple[str, ...] = ()  # on which the user was created, or may have been
    touched: tuple[str, ...] = ()  # those of them on which it may still exist
    forgotten: tuple[str, ...] = ()  # replicas that the customer has declared gone

    @property
    def request(self) -> AccessRequest:
        """The request."""
        document = parse_stored_document(REQUEST, self.payload)
        assert isinstance(document, AccessRequest)  # noqa: S101  its type was signed
        return document

    @property
    def needs_user(self) -> bool:
        """Whether the grant has a user on each replica of ClickHouse.

        Earlier versions created one for every grant, also if it does not name ClickHouse.
        """
        return CLICKHOUSE in self.request.endpoints or bool(self.replicas)

    @property
    def needs_certificate(self) -> bool:
        """Whether one of its endpoints asks for a certificate; the Kubernetes API does not."""
        return self.needs_user or METRICS in self.request.endpoints


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What applies to a grant now, apart from the time."""

    kill_switch: str = ""  # why it is on; "" = off
    policy: str = ""  # the rule that forbids the grant; "" = none
    waits: str = ""  # why an approved grant may not open yet; "" = it may
    contact: str = (
        ""  # for how long the control plane is lost; "" = it is not, or it does not count
    )
    record: str = ""  # why the ledger or the store cannot be written; "" = they can


class Due(NamedTuple):
    """Something that must happen now."""

    cause: Cause
    reason: str = ""


def change(
    grant: Grant,
    cause: Cause,
    moment: GrantTime,
    reason: str = "",
    fields: Mapping[str, Any] | None = None,
) -> Grant | None:
    """Return the grant after a cause, or None if the cause has no row for its state. Pure.

    `reason` is the cause itself by default. `fields` are other fields that change with it.
    """
    row = _ROWS.get((grant.state, cause))
    if row is None:
        return None
    to = row.to or grant.state
    changes: dict[str, Any] = {"reason": reason or cause.value, **(fields or {})}
    if row.to is not None:
        changes |= {"state": to, "since_ms": moment.wall_ms}
    if to is State.OPENING:
        changes |= {
            "end_ms": (moment.wall_ms // 1000 + grant.duration_seconds) * 1000,
            "end_boot_ns": moment.boot_ns + grant.duration_seconds * 1_000_000_000,
            "boot_id": moment.boot_id,
        }
    elif to is State.OPEN:
        changes["opened_ms"] = moment.wall_ms
    elif to is State.CLOSING:
        changes["ended_because"] = changes["reason"]
    elif cause in {Cause.USERS_GONE, Cause.USERS_GONE_UNOPENED}:
        changes["closed_ms"] = moment.wall_ms
    return msgspec.structs.replace(grant, **changes)


def find_due(grant: Grant, moment: GrantTime, conditions: Conditions) -> Due | None:
    """Return what must happen to a grant because of the time or of a condition. Pure.

    The order is that of the reasons: what the customer has ordered comes before a mere end.
    """
    if grant.state in LIVE:
        return _find_end(grant, moment, conditions)
    if grant.state in WAITING and conditions.policy and not conditions.kill_switch:
        return Due(Cause.POLICY_REFUSES, conditions.policy)
    if grant.state is State.PENDING:
        return Due(Cause.NOT_ANSWERED) if moment.wall_ms >= grant.lapses_ms else None
    if grant.state is not State.APPROVED:
        return None
    held = find_hold(moment, conditions)
    if moment.wall_ms >= grant.request.expires_ms:
        return Due(Cause.NOT_OPENED, held or "expired")
    return None if held else Due(Cause.MAY_OPEN)


def find_hold(moment: GrantTime, conditions: Conditions) -> str:
    """Return why an approved grant must not open now, or "". Pure."""
    if conditions.kill_switch:
        return "kill_switch"
    if moment.stepped_back:
        return "clock"
    if conditions.record:
        return f"{Cause.RECORD_FAILED}: {conditions.record}"
    if conditions.contact:
        return f"{Cause.CONTACT_LOST}: {conditions.contact}"
    return conditions.waits


def _find_end(grant: Grant, moment: GrantTime, conditions: Conditions) -> Due | None:
    if conditions.kill_switch:
        return Due(Cause.KILL_SWITCH, f"kill_switch: {conditions.kill_switch}")
    if conditions.policy:
        return Due(Cause.POLICY_CHANGED, f"policy_changed: {conditions.policy}")
    if conditions.record:
        return Due(Cause.RECORD_FAILED, f"record_failed: {conditions.record}")
    if moment.stepped_back:
        return Due(Cause.CLOCK_STEPPED)
    if conditions.contact:
        return Due(Cause.CONTACT_LOST, f"{Cause.CONTACT_LOST}: {conditions.contact}")
    return Due(Cause.EXPIRED) if is_over(grant, moment) else None


def is_over(grant: Grant, moment: GrantTime) -> bool:
    """Return whether a grant's time is over by either clock. Pure.

    The earlier of both ends counts: one clock may stand still or be set back.
    """
    by_boot = grant.boot_id == moment.boot_id and moment.boot_ns >= grant.end_boot_ns
    return by_boot or moment.wall_ms >= grant.end_ms
