"""The broker: the rows of fates that need more than the table of states.

The servers follow a script (see `broker_world`); store and ledger are real files.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509

from byoc_agents.access.broker import MAX_PENDING
from byoc_agents.access.documents import utc_text
from byoc_agents.access.events import message_of
from byoc_agents.access.machine import State
from byoc_agents.access.orders import Approve, Deny, Forget, Revoke, Submit
from byoc_agents.access.replicas import user_of
from lab.fakes.core import START_MS
from tests.unit.access.access_world import (
    APPROVER,
    GRANT_ID,
    HOUR_MS,
    SECOND_APPROVER,
    STRANGER,
    approval_envelope,
    grant_id,
    request_envelope,
    withdrawal_envelope,
)
from tests.unit.access.broker_world import World, account_of, touch

USER = user_of(GRANT_ID)
NOBODY: dict[str, list[str]] = {"r0": [], "r1": []}
BOTH = {"r0": [USER], "r1": [USER]}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    async with world.running():
        yield world
    assert world.ledger_problems() == []


# Requests.


async def test_the_whole_story(world: World) -> None:
    grant = await world.open_grant()
    assert world.users == BOTH
    assert world.servers["r0"].users[USER] == account_of(grant)
    found = x509.load_pem_x509_certificate(grant.certificate.encode())
    assert int(found.not_valid_after_utc.timestamp()) * 1000 == grant.end_ms
    await world.order(Revoke(id=GRANT_ID, by="anna", comment="done"))
    assert world.users == NOBODY
    await world.passes(1)
    assert world.broker.grants == []
    assert world.named() == [
        *("pending", "approved", "opening", "certificate", "open", "closing", "collecting"),
        *("collected", "collected", "closed"),
    ]
    stored = await world.stored()
    assert (stored.state, stored.ended_because) == (State.CLOSED, "revoked: done (by anna)")
    states = [event["state"] for event in await world.events()]
    assert states == ["pending", "approved", "opening", "open", "closing", "collecting", "closed"]


async def test_every_effect_on_a_server_follows_its_durable_line(world: World) -> None:
    await world.open_grant()
    await world.order(Revoke(id="all"))
    steps = world.steps
    assert steps.index("fact.opening") < steps.index("r0.create_user")
    assert steps.index("fact.certificate") < steps.index("r0.create_user")
    first_store = steps.index("store", steps.index("fact.opening"))
    assert first_store < steps.index("r0.create_user")
    assert steps.index("fact.closing") < steps.index("r0.drop_user")


async def test_a_request_of_a_stranger_leaves_no_trace(world: World) -> None:
    forged = request_envelope(("vendor-1", STRANGER))
    answer = await world.order(Submit(envelope=forged))
    assert answer.startswith("refused: too_few_signatures")
    assert (world.named(), world.broker.grants) == ([], [])
    await world.open_grant()  # the id is not used up


async def test_a_request_for_another_service_is_refused(world: World) -> None:
    audience = {"organization": "org-1", "service": "svc-2"}
    answer = await world.order(Submit(envelope=request_envelope(audience=audience)))
    assert answer == "refused: the audience is another service"


async def test_the_same_request_again_changes_nothing(world: World) -> None:
    raw = request_envelope()
    await world.order(Submit(envelope=raw))
    assert await world.order(Submit(envelope=raw)) == f"{GRANT_ID}: known"
    assert world.named() == ["pending"]


async def test_an_id_with_other_bytes_is_a_conflict(world: World) -> None:
    await world.order(Submit(envelope=request_envelope()))
    answer = await world.order(Submit(envelope=request_envelope(duration_seconds=600)))
    assert answer == "refused: the id was used by another request"


async def test_an_ended_id_cannot_be_used_again_after_a_restart(tmp_path: Path) -> None:
    world, raw = World(tmp_path), request_envelope()
    async with world.running():
        await world.order(Submit(envelope=raw))
        await world.order(Deny(id=GRANT_ID, by="anna", comment="no"))
    async with world.running():
        assert await world.order(Submit(envelope=raw)) == f"{GRANT_ID}: known"
        assert world.broker.grants == []


async def test_a_request_from_before_a_lost_store_is_refused(tmp_path: Path) -> None:
    world, raw = World(tmp_path), request_envelope()
    async with world.running():
        await world.order(Submit(envelope=raw))
    world.lose_state()
    await world.clock.advance(1)
    async with world.running():
        answer = await world.order(Submit(envelope=raw))
    assert answer == "refused: the request is older than the broker's store"


async def test_the_policy_refuses_and_the_vendor_gets_the_rule_only(world: World) -> None:
    answer = await world.order(Submit(envelope=request_envelope(duration_seconds=7200)))
    assert answer == f"{GRANT_ID}: rejected: duration"
    (event,) = await world.events()
    assert (event["state"], event["reason"]) == ("rejected", "duration")


async def test_a_csr_that_cannot_be_signed_is_refused_at_once(world: World) -> None:
    answer = await world.order(Submit(envelope=request_envelope(csr="none")))
    assert answer == f"{GRANT_ID}: rejected: csr"


async def test_too_many_pending_requests_are_refused(world: World) -> None:
    for number in range(MAX_PENDING):
        await world.order(Submit(envelope=request_envelope(id=grant_id(number))))
    answer = await world.order(Submit(envelope=request_envelope(id=grant_id(MAX_PENDING))))
    assert answer.endswith("rejected: too_many")


# Answers.


async def test_nobody_answers(world: World) -> None:
    await world.order(Submit(envelope=request_envelope()))
    await world.passes(4 * 3600)
    assert (await world.stored()).state is State.LAPSED


async def test_an_approver_may_give_less(world: World) -> None:
    await world.order(Submit(envelope=request_envelope()))
    order = Approve(id=GRANT_ID, by="anna", duration_seconds=600, role="system-metrics")
    await world.order(order)
    grant = world.grant()
    assert (grant.duration_seconds, grant.end_ms) == (600, START_MS + 600_000)
    assert world.servers["r0"].users[USER].role == "byoc_access_metrics"


async def test_an_approval_of_more_is_refused_and_the_request_stays(world: World) -> None:
    await world.order(Submit(envelope=request_envelope(duration_seconds=600)))
    order = Approve(id=GRANT_ID, by="anna", duration_seconds=1200)
    assert await world.order(order) == "refused: duration: expected no more than the request"
    assert world.grant().state is State.PENDING
    assert world.facts()[-1].reason.startswith("approval_refused: duration")


async def test_two_persons_must_approve_a_role_that_states_two(world: World) -> None:
    await world.order(Submit(envelope=request_envelope(role="query-text")))
    for _ in range(2):  # one person does not count twice
        answer = await world.order(Approve(id=GRANT_ID, by="anna"))
        assert answer == f"{GRANT_ID}: approved_in_part"
    assert world.users == NOBODY
    await world.order(Approve(id=GRANT_ID, by="ben"))
    assert world.grant().state is State.OPEN


async def test_in_mode_signed_only_a_key_of_the_customer_approves(world: World) -> None:
    world.write_policy(approval="signed")
    request = request_envelope()
    await world.order(Submit(envelope=request))
    assert (await world.order(Approve(id=GRANT_ID, by="anna"))).startswith("refused: not_an_env")
    forged = approval_envelope(request, STRANGER)
    answer = await world.order(Approve(id=GRANT_ID, envelope=forged))
    assert answer.startswith("refused: too_few_signatures")
    other = approval_envelope(request, request_sha256="a" * 64)
    answer = await world.order(Approve(id=GRANT_ID, envelope=other))
    assert answer == "refused: the approval is of another request"
    assert world.users == NOBODY
    await world.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
    grant = world.grant()
    assert (grant.state, [one.by for one in grant.approvals]) == (State.OPEN, ["sec-1"])
    assert "approval_1" in world.facts()[-1].sha256


async def test_in_mode_signed_two_signatures_are_two_approvals(world: World) -> None:
    world.write_policy(approval="signed", approvals_needed=2)
    request = request_envelope()
    await world.order(Submit(envelope=request))
    await world.order(Approve(id=GRANT_ID, envelope=approval_envelope(request, APPROVER)))
    assert world.grant().state is State.PENDING
    second = approval_envelope(request, SECOND_APPROVER, "sec-2")
    await world.order(Approve(id=GRANT_ID, envelope=second))
    assert world.grant().state is State.OPEN


async def test_a_denial_that_is_signed_denies(world: World) -> None:
    world.write_policy(approval="signed")
    request = request_envelope()
    await world.order(Submit(envelope=request))
    denial = approval_envelope(request, decision="deny", comment="not now")
    await world.order(Approve(id=GRANT_ID, envelope=denial))
    stored = await world.stored()
    assert (stored.state, stored.reason) == (State.DENIED, "denied: not now (by sec-1)")
    sent = msgspec.json.decode(message_of(stored, "org", "service", {}).body)["data"]
    assert sent["reason"] == "denied"


async def test_a_vendor_key_cannot_approve(world: World) -> None:
    world.write_policy(approval="signed")
    request = request_envelope()
    await world.order(Submit(envelope=request))
    answer = await world.order(Submit(envelope=approval_envelope(request)))
    assert answer.startswith("refused: wrong_type")
    assert world.grant().state is State.PENDING


async def test_transparency_opens_without_an_approval_and_records_it(world: World) -> None:
    world.write_policy(approval="transparency")
    await world.order(Submit(envelope=request_envelope()))
    assert world.grant().state is State.OPEN
    assert world.named()[:2] == ["approved", "opening"]


# Waiting.


@pytest.mark.parametrize(
    ("policy", "request_"),
    [
        ({"hours": {"days": "tue", "from": "00:00", "to": "24:00", "zone": "UTC"}}, {}),
        ({}, {"not_before": utc_text(START_MS + 2 * HOUR_MS)}),
    ],
)
async def test_an_approved_grant_waits_until_it_may_begin_and_lapses(
    world: World, policy: dict[str, Any], request_: dict[str, Any]
) -> None:
    world.write_policy(**policy)
    await world.order(Submit(envelope=request_envelope(**request_)))
    await world.order(Approve(id=GRANT_ID, by="anna"))
    assert (world.grant().state, world.users) == (State.APPROVED, NOBODY)
    await world.passes(4 * 3600)
    assert (await world.stored()).state is State.LAPSED


async def test_one_engineer_has_one_grant_at_a_time(world: World) -> None:
    await world.open_grant()
    second = grant_id(2)
    await world.order(Submit(envelope=request_envelope(id=second)))
    await world.order(Approve(id=second, by="anna"))
    assert world.grant(second).state is State.APPROVED
    await world.order(Revoke(id=GRANT_ID))
    await world.passes(1)
    assert world.grant(second).state is State.OPEN


async def test_nothing_opens_while_the_ledger_fails_and_it_opens_later(world: World) -> None:
    await world.order(Submit(envelope=request_envelope()))
    world.ledger_error = "disk full"
    assert await world.order(Approve(id=GRANT_ID, by="anna")) == ""  # the order waits
    assert (world.grant().state, world.users) == (State.PENDING, NOBODY)
    world.ledger_error = ""
    await world.passes(31, 2)
    assert world.grant().state is State.OPEN


async def test_nothing_opens_while_the_store_fails(world: World) -> None:
    await world.order(Submit(envelope=request_envelope()))
    world.store_error = "read-only"
    await world.order(Approve(id=GRANT_ID, by="anna"))
    await world.passes(31, 3)
    assert (world.grant().state, world.users) == (State.PENDING, NOBODY)


async def test_nothing_opens_without_room_for_its_events(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.spool_bytes = 200 * 1024
    async with world.running():
        await world.order(Submit(envelope=request_envelope()))
        await world.order(Approve(id=GRANT_ID, by="anna"))
        assert (world.grant().state, world.users) == (State.APPROVED, NOBODY)
        await world.passes(4 * 3600)
        assert (await world.stored()).reason == "record_failed: spool_full"


async def test_a_request_that_lapses_while_the_ledger_fails_sends_no_text_of_its_error(
    world: World,
) -> None:
    await world.order(Submit(envelope=request_envelope(not_before=utc_text(START_MS + HOUR_MS))))
    await world.order(Approve(id=GRANT_ID, by="anna"))
    world.ledger_error = "No space left on device (ledger-1.jsonl)"
    await world.passes(4 * 3600 - 10)
    await world.passes(11)
    world.ledger_error = ""
    await world.passes(31, 2)
    stored = await world.stored()
    assert stored.state is State.LAPSED
    assert stored.reason == "record_failed: ledger: No space left on device (ledger-1.jsonl)"
    (sent,) = [one for one in await world.events() if one["state"] == "lapsed"]
    assert sent["reason"] == "record_failed"


# Opening.


async def approve(world: World) -> None:
    await world.order(Submit(envelope=request_envelope()))
    await world.order(Approve(id=GRANT_ID, by="anna"))


async def failed(world: World) -> str:
    await approve(world)
    await world.passes(1)
    stored = await world.stored()
    assert stored.state is State.FAILED
    assert world.users == NOBODY
    assert "open" not in world.named()
    return stored.ended_because


async def test_a_server_that_fails_a_check_is_not_opened(world: World) -> None:
    world.servers["r0"].problems = ["role_remote"]
    await approve(world)
    assert (world.grant().state, world.users) == (State.OPEN, {"r0": [], "r1": [USER]})


async def test_a_server_is_checked_for_what_the_policy_allows(world: World) -> None:
    await world.open_grant()
    assert world.servers["r0"].allowed == (False, False)
    world.write_policy(tables="plain", allow_open_system=True)
    await world.passes(31)
    assert world.servers["r0"].allowed == (True, True)


async def test_it_fails_if_every_server_fails_a_check(world: World) -> None:
    for server in world.servers.values():
        server.problems = ["role_remote"]
    assert await failed(world) == "role_remote"


async def test_it_fails_if_every_clock_is_wrong(world: World) -> None:
    for server in world.servers.values():
        server.skew_ms = -30_001
    assert await failed(world) == "skew"


async def test_all_replicas_are_needed_if_the_policy_says_so(world: World) -> None:
    world.write_policy(replicas="all")
    world.servers["r1"].broken["create_user"] = "before"
    assert await failed(world) == "users"


async def test_an_unreachable_replica_is_opened_later(world: World) -> None:
    world.servers["r1"].reachable = False
    await approve(world)
    assert (world.grant().state, world.users) == (State.OPEN, {"r0": [USER], "r1": []})
    world.servers["r1"].reachable = True
    await world.passes(31)
    assert world.users == BOTH


async def test_a_create_without_an_answer_is_dropped_like_the_others(world: World) -> None:
    world.servers["r1"].broken["create_user"] = "after"
    await approve(world)
    assert world.users == BOTH
    await world.order(Revoke(id=GRANT_ID))
    assert world.users == NOBODY


async def test_a_user_that_reads_back_otherwise_is_dropped(world: World) -> None:
    await world.order(Submit(envelope=request_envelope()))
    foreign = account_of(world.grant(), role="default", end_ms=2**40)
    server = world.servers["r0"]

    def plant(step: str) -> None:
        if step == "fact.certificate":
            server.users[USER] = foreign

    world.on_step = plant
    await world.order(Approve(id=GRANT_ID, by="anna"))
    assert world.users == {"r0": [], "r1": [USER]}
    assert [f.detail["differences"] for f in world.facts() if f.fact == "drift"] == ["role, end_ms"]


async def test_a_ca_that_cannot_be_read_fails_the_opening(world: World) -> None:
    (world.directory / "ca" / "access-ca.key").unlink()
    assert (await failed(world)).startswith("authority:")


@pytest.mark.parametrize("step", ["fact.opening", "r0.find_problems", "fact.certificate", "store"])
@pytest.mark.parametrize("how", ["revoke", "kill switch", "withdrawal"])
async def test_an_end_during_the_opening_is_noticed(world: World, step: str, how: str) -> None:
    await world.order(Submit(envelope=request_envelope()))
    done: list[str] = []

    def end(found: str) -> None:
        if found != step or done or world.grant().state is State.PENDING:
            return
        done.append(found)
        if how == "kill switch":
            touch(world.kill_file)
        elif how == "revoke":
            world.orders.place("2", Revoke(id=GRANT_ID))
        else:
            world.orders.place("2", Submit(envelope=withdrawal_envelope()))

    world.on_step = end
    await world.order(Approve(id=GRANT_ID, by="anna"))
    await world.passes(1)
    assert done
    assert "open" not in world.named()
    assert "r1.create_user" not in world.steps
    assert world.users == NOBODY


async def test_the_certificate_leaves_only_with_the_open_grant(world: World) -> None:
    def fail(step: str) -> None:
        if step == "r1.find_differences":
            world.ledger_error = "disk full"

    world.on_step = fail
    await approve(world)
    assert world.users == NOBODY
    assert not any(event["certificate"] for event in await world.events())


async def test_an_opening_whose_last_line_is_not_written_is_closed_at_once(world: World) -> None:
    def fail(step: str) -> None:
        if step == "r1.find_differences":
            world.ledger_error = "hangs"  # noticed only by the line `open` itself

    world.on_step = fail
    await approve(world)
    assert "r1.create_user" in world.steps
    assert world.users == NOBODY


async def test_a_step_without_its_line_is_not_stored(world: World) -> None:
    await world.order(Submit(envelope=request_envelope()))
    world.ledger_error = "disk full"
    await world.order(Approve(id=GRANT_ID, by="anna"))
    assert (await world.stored()).state is State.PENDING


async def test_an_order_stays_until_its_effect_is_stored(world: World) -> None:
    await world.open_grant()
    world.store_error = "read-only"
    assert await world.order(Revoke(id=GRANT_ID)) == ""
    assert world.users == NOBODY
    assert [one.name for one in world.orders.read()] == ["1"]  # a crash now would repeat it
    world.store_error = ""
    await world.passes(1)
    assert world.orders.read() == []


# Open.


async def test_the_certificate_is_in_the_event_while_it_is_open(world: World) -> None:
    grant = await world.open_grant()
    sent = {event["state"]: event["certificate"] for event in await world.events()}
    assert {state for state, pem in sent.items() if pem} == {"open"}
    assert sent["open"] == grant.certificate


async def test_it_ends_at_its_end(world: World) -> None:
    await world.open_grant()
    await world.passes(3599)
    assert world.users == BOTH
    await world.passes(1)
    assert world.users == NOBODY
    assert world.grant().ended_because == "expired"


async def test_the_vendor_can_end_it(world: World) -> None:
    await world.open_grant()
    await world.order(Submit(envelope=withdrawal_envelope()))
    assert (world.users, world.grant().ended_because) == (NOBODY, "withdrawn (by vendor)")


async def test_a_stranger_cannot_end_it(world: World) -> None:
    await world.open_grant()
    await world.order(Submit(envelope=withdrawal_envelope(STRANGER)))
    assert world.users == BOTH


async def test_the_kill_switch_closes_within_one_pass(world: World) -> None:
    await world.open_grant()
    touch(world.kill_file)
    await world.passes(1)
    assert (world.users, world.grant().ended_because) == (NOBODY, "kill_switch: kill-switch")


@pytest.mark.parametrize("content", [None, "roles: [", "version: 1\n"])
async def test_a_policy_that_cannot_be_read_counts_as_the_kill_switch(
    world: World, content: str | None
) -> None:
    await world.open_grant()
    world.policy_file.unlink() if content is None else world.policy_file.write_text(content)
    await world.passes(1)
    assert world.users == NOBODY
    assert world.grant().ended_because == "kill_switch: the policy cannot be read"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enabled": False}, "kill_switch: the policy is disabled"),
        ({"max_duration": "30m"}, "policy_changed: duration"),
        ({"approvals_needed": 2}, "policy_changed: approvals"),
        ({"roles": {"other": {"clickhouse_role": "r"}}}, "policy_changed: role"),
    ],
)
async def test_a_tightened_policy_closes(world: World, changes: Any, reason: str) -> None:
    await world.open_grant()
    world.write_policy(**changes)
    await world.passes(1)
    assert (world.users, world.grant().ended_because) == (NOBODY, reason)


@pytest.mark.parametrize("error", ["disk full", "hangs"])
async def test_a_failing_ledger_closes_at_once_and_the_lines_follow(
    world: World, error: str
) -> None:
    await world.open_grant()
    world.ledger_error = error
    await world.order(Revoke(id=GRANT_ID))  # `hangs` is not seen before a line is written
    assert world.users == NOBODY
    assert "closing" not in world.named()
    world.ledger_error = ""
    await world.passes(1, 2)
    assert world.named()[5:] == ["closing", "collecting", "collected", "collected", "closed"]


async def test_a_failing_store_closes_within_one_sweep(world: World) -> None:
    await world.open_grant()
    world.store_error = "read-only"
    await world.passes(31)
    await world.passes(1)
    assert world.users == NOBODY
    world.store_error = ""
    await world.passes(1, 2)
    assert (await world.stored()).state is State.CLOSED
    states = [event["state"] for event in await world.events()]
    assert states[-3:] == ["closing", "collecting", "closed"]


async def test_a_missing_user_is_created_again_with_the_same_end(world: World) -> None:
    grant = await world.open_grant()
    world.servers["r0"].users.clear()  # the server restarted, and had it in memory
    await world.passes(31)
    assert world.servers["r0"].users[USER] == account_of(grant)


async def test_a_changed_user_is_dropped_and_the_grant_closes_without_any(world: World) -> None:
    grant = await world.open_grant()
    for server in world.servers.values():
        server.users[USER] = account_of(grant, end_ms=grant.end_ms + 3600_000)
    await world.passes(31)
    await world.passes(1)
    assert world.users == NOBODY
    assert (await world.stored()).ended_because == "users_lost"


async def test_a_server_that_fails_a_check_later_loses_the_user(world: World) -> None:
    await world.open_grant()
    world.servers["r0"].problems = ["role_remote"]
    await world.passes(31)
    assert world.users == {"r0": [], "r1": [USER]}
    assert world.facts()[-1].detail["differences"] == "role_remote"


async def test_a_clock_that_is_set_back_closes(world: World) -> None:
    await world.open_grant()
    await world.passes(120)
    world.clock.step_wall(-61)
    await world.broker.run_pass()
    assert (world.users, world.grant().ended_because) == (NOBODY, "clock_stepped")


async def test_boot_time_ends_it_although_the_wall_clock_stands_still(world: World) -> None:
    await world.open_grant()
    for _ in range(59):
        await world.clock.advance(61.1)
        world.clock.step_wall(-59)
        await world.broker.run_pass()
    assert (world.users, world.grant().ended_because) == (NOBODY, "expired")


async def test_an_unknown_user_of_a_grant_is_dropped_by_the_sweep(world: World) -> None:
    await world.broker.run_pass()
    world.servers["r1"].users["byoc_grant_orphan"] = account_of(await world.open_grant())
    await world.passes(31)
    assert world.users == BOTH
    fact = next(fact for fact in world.facts() if fact.reason == "orphan")
    assert fact.detail == {"replica": "r1", "user": "byoc_grant_orphan"}


# Closing and collecting.


async def test_an_unreachable_server_is_tried_until_it_answers(world: World) -> None:
    await world.open_grant()
    world.servers["r1"].reachable = False
    await world.order(Revoke(id=GRANT_ID))
    await world.passes(31, 10)
    assert (world.users, world.grant().touched) == ({"r0": [], "r1": [USER]}, ("r1",))
    assert world.broker.status()["grants"] == {GRANT_ID: "closing"}
    world.servers["r1"].reachable = True
    await world.passes(31)
    await world.passes(31)
    assert (await world.stored()).state is State.CLOSED


async def test_a_user_that_is_still_listed_is_not_gone(world: World) -> None:
    await world.open_grant()
    world.servers["r1"].keeps_users = True
    await world.order(Revoke(id=GRANT_ID))
    await world.passes(31, 3)
    assert (world.grant().state, world.grant().touched) == (State.CLOSING, ("r1",))
    world.servers["r1"].keeps_users = False
    await world.passes(31, 2)
    assert (await world.stored()).state is State.CLOSED


async def test_attempts_become_rarer_up_to_thirty_seconds(world: World) -> None:
    await world.open_grant()
    server = world.servers["r1"]
    server.broken["drop_user"] = "before"
    await world.order(Revoke(id=GRANT_ID))
    await world.passes(1, 130)
    tried = [second for method, second in server.attempts if method == "drop_user"]
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_replica_that_is_given_up_makes_the_record_incomplete(world: World) -> None:
    await world.open_grant()
    world.servers["r1"].reachable = False
    await world.order(Revoke(id=GRANT_ID))
    answer = await world.order(Forget(replica="r1", by="anna", comment="node destroyed"))
    assert answer == f"{GRANT_ID}: r1 is given up"
    await world.passes(31, 2)
    stored = await world.stored()
    assert (stored.state, stored.forgotten) == (State.CLOSED_INCOMPLETE, ("r1",))
    assert stored.reason == "revoked (by unnamed); r1: given up"


async def test_queries_that_survive_are_stated_and_collecting_waits(world: World) -> None:
    await world.open_grant()
    server = world.servers["r0"]
    server.running[USER], server.stubborn = ["query-1"], True
    await world.order(Revoke(id=GRANT_ID))
    await world.passes(31, 3)
    assert world.grant().state is State.CLOSING
    running = [f for f in world.facts() if f.fact == "queries_running"]
    assert [f.detail["queries"] for f in running] == ["query-1"]
    server.stubborn = False
    await world.passes(31, 2)
    assert (await world.stored()).state is State.CLOSED


async def test_the_logs_are_collected_into_files_that_the_ledger_names(world: World) -> None:
    await world.open_grant()
    await world.order(Revoke(id=GRANT_ID))
    await world.passes(1)
    folder = world.state / "logs" / GRANT_ID
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{r}-{kind}.jsonl" for r in ("r0", "r1") for kind in ("queries", "sessions")]
    collected = [f.detail for f in world.facts() if f.fact == "collected"]
    assert [one["queries"] for one in collected] == ["3", "3"]
    (closed,) = [e for e in await world.events() if e["state"] == "closed"]
    assert (closed["counts"], closed["record"]) == ({"queries": 6, "failed_logins": 0}, "complete")


async def test_logs_that_cannot_be_read_until_the_deadline_are_a_gap(world: World) -> None:
    await world.open_grant()
    world.servers["r1"].broken["collect"] = "before"
    await world.order(Revoke(id=GRANT_ID))
    await world.passes(31, 10)
    assert world.grant().state is State.COLLECTING
    await world.passes(3600)
    stored = await world.stored()
    assert stored.state is State.CLOSED_INCOMPLETE
    assert stored.reason == "revoked (by unnamed); r1: r1 does not answer"
    (closed,) = [e for e in await world.events() if e["state"] == "closed_incomplete"]
    assert (closed["record"], closed["reason"]) == ("gap", "revoked")


async def test_logs_with_a_gap_are_never_complete(world: World) -> None:
    await world.open_grant()
    world.servers["r0"].gap = "query_log was truncated"
    await world.order(Revoke(id=GRANT_ID))
    await world.passes(1)
    assert (await world.stored()).state is State.CLOSED_INCOMPLETE


# Stopping and starting.


async def test_it_stays_open_over_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.running() as broker:
        await world.open_grant()
        await broker.finish()
    async with world.running() as broker:
        await broker.run_pass()
        assert (world.grant().state, world.users) == (State.OPEN, BOTH)


async def test_it_closes_at_the_stop_if_the_settings_say_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.limits = type(world.limits)(close_on_stop=True)
    async with world.running() as broker:
        await world.open_grant()
        ending = asyncio.create_task(broker.finish())
        while not ending.done():
            await world.clock.advance(1)
        assert world.users == NOBODY


async def test_a_lost_state_directory_closes_everything_within_one_sweep(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.running():
        await world.open_grant()
    world.lose_state()
    async with world.running() as broker:
        await broker.run_pass()
        assert world.users == NOBODY


async def test_an_order_that_is_not_one_is_answered(world: World) -> None:
    world.orders.create()
    (world.state / "orders" / "x.json").write_text('{"type":"open"}')
    await world.broker.run_pass()
    assert (world.orders.take_answer("x") or "").startswith("not an order: Invalid value 'open'")


async def test_events_have_counts_and_nothing_of_the_customer(world: World) -> None:
    await world.open_grant()
    await world.order(Revoke(id=GRANT_ID, by="anna-secret", comment="comment-secret"))
    await world.passes(1)
    bodies = b"".join(m.body for m in await world.spool.head(1000, 1 << 24))
    for text in (b"SELECT", b"comment-secret", b"CS-[0-9]"):
        assert text not in bodies
