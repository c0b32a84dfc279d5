"""The states of a grant: one test per row of the table, and what holds for any history."""

from typing import Any

import pytest

from byoc_agents.access.machine import (
    ENDS,
    TABLE,
    Cause,
    Conditions,
    Due,
    Grant,
    GrantTime,
    State,
    change,
    find_due,
    find_hold,
)
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import HOUR_MS, grant_of

NOW = GrantTime(wall_ms=START_MS, boot_ns=5 * 10**12, boot_id="boot-1", highest_wall_ms=START_MS)

# Written out here once more, on purpose: a changed row of the table must be changed twice.
EXPECTED = """
received    policy_refuses       rejected
received    too_many             rejected
received    withdrawn            withdrawn
received    needs_approval       pending
received    needs_no_approval    approved
pending     approved             approved
pending     approved_in_part     -
pending     approval_refused     -
pending     denied               denied
pending     not_answered         lapsed
pending     withdrawn            withdrawn
pending     revoked              denied
pending     policy_refuses       rejected
approved    withdrawn            withdrawn
approved    revoked              denied
approved    policy_refuses       rejected
approved    denied               denied
approved    not_opened           lapsed
approved    may_open             opening
opening     opened               open
opening     opening_failed       closing
opening     withdrawn            closing
opening     revoked              closing
opening     kill_switch          closing
opening     policy_changed       closing
opening     record_failed        closing
opening     clock_stepped        closing
opening     contact_lost         closing
opening     expired              closing
opening     stopping             closing
open        withdrawn            closing
open        revoked              closing
open        kill_switch          closing
open        policy_changed       closing
open        record_failed        closing
open        clock_stepped        closing
open        contact_lost         closing
open        expired              closing
open        stopping             closing
open        users_lost           closing
closing     users_gone           collecting
closing     users_gone_unopened  failed
collecting  collected            closed
collecting  collected_in_part    closed_incomplete
"""
ROWS = [tuple(line.split()) for line in EXPECTED.split("\n") if line]


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_a_cause_leads_to_its_state(row: tuple[str, str, str]) -> None:
    state, cause, to = row
    before = grant_of(State(state))
    after = change(before, Cause(cause), NOW, fields={"policy_sha256": "f" * 64})
    assert after is not None
    assert after.state == (state if to == "-" else to)
    assert after.reason == cause
    assert after.policy_sha256 == "f" * 64
    assert after.since_ms == (before.since_ms if to == "-" else START_MS)


@pytest.mark.parametrize("state", list(State))
def test_no_other_cause_changes_a_state(state: State) -> None:
    known = {cause for row_state, cause, _ in ROWS if row_state == state}
    for cause in set(Cause) - {Cause(name) for name in known}:
        assert change(grant_of(state), cause, NOW) is None


def test_nothing_follows_an_end() -> None:
    assert {state for row in TABLE for state in row.states} & ENDS == set()
    assert {row.to for row in TABLE if row.to in ENDS} == set(ENDS)


def test_every_state_is_reached_and_every_cause_is_used() -> None:
    assert {row.to for row in TABLE} - {None} == set(State) - {State.RECEIVED}
    assert {row.cause for row in TABLE} == set(Cause)


def test_no_row_leads_back() -> None:
    order = list(State)
    assert all(
        row.to is None or order.index(row.to) > max(map(order.index, row.states)) for row in TABLE
    )


def test_the_end_is_fixed_when_the_opening_begins() -> None:
    moment = GrantTime(wall_ms=START_MS + 999, boot_ns=7, boot_id="b")
    opening = change(grant_of(State.APPROVED, duration_seconds=600), Cause.MAY_OPEN, moment)
    assert opening is not None
    assert opening.end_ms == START_MS + 600_000  # whole seconds: ClickHouse knows no smaller ones
    assert (opening.end_boot_ns, opening.boot_id) == (7 + 600 * 10**9, "b")
    opened = change(
        opening, Cause.OPENED, GrantTime(wall_ms=START_MS + 5000, boot_ns=9, boot_id="b")
    )
    assert opened is not None
    assert (opened.end_ms, opened.opened_ms) == (opening.end_ms, START_MS + 5000)


def test_the_first_reason_to_close_stays() -> None:
    closing = change(grant_of(State.OPEN), Cause.REVOKED, NOW, reason="revoked: not needed")
    assert closing is not None
    gone = change(closing, Cause.USERS_GONE, NOW)
    assert gone is not None
    assert (gone.ended_because, gone.closed_ms) == ("revoked: not needed", START_MS)


# Due causes. Each line: the state, changes of the moment, the conditions, and the expectation.

Changes = dict[str, Any]
KILL, POLICY, RECORD = {"kill_switch": "file"}, {"policy": "role"}, {"record": "ledger"}
LATE = {"wall_ms": START_MS + 4 * HOUR_MS}  # when the request expires
BACK = {"highest_wall_ms": START_MS + 60_001}
DUE: list[tuple[State, Changes, Changes, Due | None]] = [
    (State.PENDING, {}, {}, None),
    (State.PENDING, {"wall_ms": START_MS + 4 * HOUR_MS - 1}, {}, None),
    (State.PENDING, {"wall_ms": START_MS + 4 * HOUR_MS}, {}, Due(Cause.NOT_ANSWERED)),
    (State.PENDING, {}, POLICY, Due(Cause.POLICY_REFUSES, "role")),
    (State.PENDING, {}, KILL, None),
    (State.PENDING, {}, KILL | POLICY, None),  # an unreadable policy must not reject everything
    (State.PENDING, {}, RECORD, None),
    (State.APPROVED, {}, {}, Due(Cause.MAY_OPEN)),
    (State.APPROVED, {}, KILL, None),
    (State.APPROVED, {}, RECORD, None),
    (State.APPROVED, {}, {"waits": "hours"}, None),
    (State.APPROVED, BACK, {}, None),
    (State.APPROVED, {"highest_wall_ms": START_MS + 60_000}, {}, Due(Cause.MAY_OPEN)),
    (State.APPROVED, {}, POLICY, Due(Cause.POLICY_REFUSES, "role")),
    (State.APPROVED, {"wall_ms": START_MS + 4 * HOUR_MS}, {}, Due(Cause.NOT_OPENED, "expired")),
    (
        State.APPROVED,
        {"wall_ms": START_MS + 4 * HOUR_MS},
        RECORD,
        Due(Cause.NOT_OPENED, "record_failed: ledger"),
    ),
    (
        State.APPROVED,
        {"wall_ms": START_MS + 4 * HOUR_MS},
        KILL,
        Due(Cause.NOT_OPENED, "kill_switch"),
    ),
    (State.PENDING, {}, {"contact": "300 s"}, None),
    (State.APPROVED, {}, {"contact": "300 s"}, None),
    (
        State.APPROVED,
        {"wall_ms": START_MS + 4 * HOUR_MS},
        {"contact": "300 s"},
        Due(Cause.NOT_OPENED, "contact_lost: 300 s"),
    ),
    (State.CLOSING, {}, {"contact": "300 s"}, None),
    (State.CLOSING, {}, KILL, None),
    (State.COLLECTING, {}, KILL, None),
    *((end, {}, KILL | POLICY | RECORD, None) for end in sorted(ENDS)),
]
for live in (State.OPENING, State.OPEN):
    DUE += [
        (live, {}, {}, None),
        (live, {}, {"waits": "hours"}, None),  # hours limit the beginning only
        (live, {}, KILL, Due(Cause.KILL_SWITCH, "kill_switch: file")),
        (live, {}, POLICY, Due(Cause.POLICY_CHANGED, "policy_changed: role")),
        (live, {}, RECORD, Due(Cause.RECORD_FAILED, "record_failed: ledger")),
        (live, {}, KILL | POLICY | RECORD, Due(Cause.KILL_SWITCH, "kill_switch: file")),
        (live, {}, {"contact": "300 s"}, Due(Cause.CONTACT_LOST, "contact_lost: 300 s")),
        (live, BACK, {}, Due(Cause.CLOCK_STEPPED)),
        (live, {"wall_ms": START_MS + HOUR_MS - 1}, {}, None),
        (live, {"wall_ms": START_MS + HOUR_MS}, {}, Due(Cause.EXPIRED)),
        (live, {"boot_ns": NOW.boot_ns + 3600 * 10**9 - 1}, {}, None),
        (live, {"boot_ns": NOW.boot_ns + 3600 * 10**9}, {}, Due(Cause.EXPIRED)),
        # After a restart of the machine its boot time says nothing.
        (live, {"boot_ns": NOW.boot_ns + 3600 * 10**9, "boot_id": "boot-2"}, {}, None),
    ]


@pytest.mark.parametrize(("state", "moment", "conditions", "due"), DUE)
def test_what_is_due(state: State, moment: Changes, conditions: Changes, due: Due | None) -> None:
    fields: Changes = {"wall_ms": NOW.wall_ms, "boot_ns": NOW.boot_ns, "boot_id": "boot-1"} | moment
    found = find_due(grant_of(state), GrantTime(**fields), Conditions(**conditions))
    assert found == due
    if due is not None:
        assert change(grant_of(state), due.cause, NOW) is not None  # the table has a row for it


def test_why_an_approved_grant_is_held() -> None:
    assert find_hold(NOW, Conditions()) == ""
    everything = Conditions(kill_switch="file", record="ledger", waits="hours")
    assert find_hold(NOW, everything) == "kill_switch"
    assert find_hold(NOW, Conditions(record="ledger", waits="hours")) == "record_failed: ledger"
    assert find_hold(NOW, Conditions(contact="300 s", waits="hours")) == "contact_lost: 300 s"


def test_a_grant_has_its_request() -> None:
    grant: Grant = grant_of(State.OPEN)
    assert grant.request.id == grant.id
