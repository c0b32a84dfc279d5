"""The broker: the rows of the table of effects that need more than the table of states.

The servers follow a script (see `scripted_broker`); store and ledger are real files.
"""

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509

from byoc_agents.access.broker import LEASE_SECONDS, MAX_PENDING, REFUSED_DOCUMENTS
from byoc_agents.access.clickhouse_admin import user_of
from byoc_agents.access.control_facts import BURST_FACTS, CONFLICT, REFILL_SECONDS
from byoc_agents.access.documents import sha256, utc_text
from byoc_agents.access.events import message_of
from byoc_agents.access.machine import ENDS, State
from byoc_agents.access.orders import Approve, Deny, Forget, Order, Revoke, Submit
from byoc_agents.durable.spool import Spool
from byoc_agents.envelope import MAX_ENVELOPE_BYTES
from byoc_agents.errors import SpoolUnusableError
from byoc_agents.ledger.format import FactLine
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import (
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
from tests.unit.access.scripted_broker import Harness, account_of, touch

USER = user_of(GRANT_ID)
NOBODY: dict[str, list[str]] = {"r0": [], "r1": []}
BOTH = {"r0": [USER], "r1": [USER]}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    async with harness.running():
        yield harness
    assert harness.ledger_problems() == []


def conflicts(harness: Harness) -> list[FactLine]:
    return [fact for fact in harness.facts() if fact.fact == CONFLICT]


def payload_hash(envelope: bytes) -> str:
    return sha256(base64.b64decode(msgspec.json.decode(envelope)["payload"]))


# Requests.


async def test_a_grant_from_request_to_closing(harness: Harness) -> None:
    grant = await harness.open_grant()
    assert harness.users == BOTH
    assert harness.servers["r0"].users[USER] == account_of(grant)
    found = x509.load_pem_x509_certificate(grant.certificate.encode())
    assert int(found.not_valid_after_utc.timestamp()) * 1000 == grant.end_ms
    await harness.order(Revoke(id=GRANT_ID, by="anna", comment="done"))
    assert harness.users == NOBODY
    await harness.passes(1)
    assert harness.broker.grants == []
    assert harness.named() == [
        *("pending", "approved", "opening", "certificate", "open", "closing", "collecting"),
        *("collected", "collected", "closed"),
    ]
    stored = await harness.stored()
    assert (stored.state, stored.ended_because) == (State.CLOSED, "revoked: done (by anna)")
    states = [event["state"] for event in await harness.events()]
    assert states == ["pending", "approved", "opening", "open", "closing", "collecting", "closed"]


async def test_every_effect_on_a_server_follows_its_durable_line(harness: Harness) -> None:
    await harness.open_grant()
    await harness.order(Revoke(id="all"))
    steps = harness.steps
    assert steps.index("fact.opening") < steps.index("r0.create_user")
    assert steps.index("fact.certificate") < steps.index("r0.create_user")
    first_store = steps.index("store", steps.index("fact.opening"))
    assert first_store < steps.index("r0.create_user")
    assert steps.index("fact.closing") < steps.index("r0.drop_user")


async def test_a_request_of_a_stranger_leaves_no_trace(harness: Harness) -> None:
    forged = request_envelope(("vendor-1", STRANGER))
    answer = await harness.order(Submit(envelope=forged))
    assert answer.startswith("refused: too_few_signatures")
    assert (harness.named(), harness.broker.grants) == ([], [])
    await harness.open_grant()  # the id is not used up


async def test_a_request_for_another_service_is_refused(harness: Harness) -> None:
    audience = {"organization": "org-1", "service": "svc-2"}
    answer = await harness.order(Submit(envelope=request_envelope(audience=audience)))
    assert answer == "refused: the audience is another service"


async def test_the_same_request_again_changes_nothing(harness: Harness) -> None:
    raw = request_envelope()
    await harness.order(Submit(envelope=raw))
    assert await harness.order(Submit(envelope=raw)) == f"{GRANT_ID}: known"
    assert harness.named() == ["pending"]


async def test_an_id_with_other_bytes_is_a_conflict(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    other = request_envelope(duration_seconds=600)
    for _ in range(3):
        answer = await harness.order(Submit(envelope=other))
        assert answer == "refused: the id was used by another request"
    (fact,) = conflicts(harness)
    assert fact.detail == {"request": GRANT_ID}
    assert fact.sha256 == {
        "known": payload_hash(request_envelope()),
        "refused": payload_hash(other),
    }
    assert harness.broker.refused_documents["conflict"] == 3


async def test_a_conflict_is_stated_once_also_over_a_restart(tmp_path: Path) -> None:
    harness, other = Harness(tmp_path), request_envelope(duration_seconds=600)
    for _ in range(2):
        async with harness.running():
            await harness.order(Submit(envelope=request_envelope()))
            await harness.order(Submit(envelope=other))
            await harness.passes(1)
    assert len(conflicts(harness)) == 1


async def test_conflicts_do_not_fill_the_ledger(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    for seconds in range(600, 700):
        await harness.order(Submit(envelope=request_envelope(duration_seconds=seconds)))
    assert len(conflicts(harness)) == BURST_FACTS
    await harness.passes(REFILL_SECONDS)
    await harness.order(Submit(envelope=request_envelope(duration_seconds=700)))
    assert int(conflicts(harness)[-1].detail["not_stated"]) == 100 - BURST_FACTS
    assert harness.broker.refused_documents["conflict"] == 101
    assert harness.grant().state is State.PENDING


REFUSED = {
    "not_an_envelope": b"{}",
    "too_large": b" " * (MAX_ENVELOPE_BYTES + 1),
    "wrong_type": request_envelope(payload_type="application/json"),
    "too_few_signatures": request_envelope(("vendor-1", STRANGER)),
    "not_valid": request_envelope(role=""),
    "wrong_audience": request_envelope(audience={"organization": "org-1", "service": "svc-2"}),
    "conflict": request_envelope(duration_seconds=600),
    "older_than_store": request_envelope(
        start_ms=START_MS - HOUR_MS, id=grant_id(2), not_before=utc_text(START_MS)
    ),
    "issued_in_future": request_envelope(start_ms=START_MS + HOUR_MS, id=grant_id(3)),
}


@pytest.mark.parametrize("reason", REFUSED)  # `too_many_withdrawals`: test_access_received.py
async def test_a_document_that_is_not_taken_is_counted_by_its_reason(
    harness: Harness, reason: str
) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    assert (await harness.order(Submit(envelope=REFUSED[reason]))).startswith("refused: ")
    assert set(REFUSED_DOCUMENTS) - set(REFUSED) == {"too_many_withdrawals"}
    counts = {one: int(one == reason) for one in REFUSED_DOCUMENTS}
    assert harness.broker.refused_documents == counts
    assert harness.named() == ["pending"]


async def test_an_ended_id_cannot_be_used_again_after_a_restart(tmp_path: Path) -> None:
    harness, raw = Harness(tmp_path), request_envelope()
    async with harness.running():
        await harness.order(Submit(envelope=raw))
        await harness.order(Deny(id=GRANT_ID, by="anna", comment="no"))
    async with harness.running():
        assert await harness.order(Submit(envelope=raw)) == f"{GRANT_ID}: known"
        assert harness.broker.grants == []


async def test_a_request_from_before_a_lost_store_is_refused(tmp_path: Path) -> None:
    harness, raw = Harness(tmp_path), request_envelope()
    async with harness.running():
        await harness.order(Submit(envelope=raw))
    harness.lose_state()
    await harness.clock.advance(1)
    async with harness.running():
        answer = await harness.order(Submit(envelope=raw))
    assert answer == "refused: the request is older than the broker's store"


async def test_the_policy_refuses_and_the_vendor_gets_the_rule_only(harness: Harness) -> None:
    answer = await harness.order(Submit(envelope=request_envelope(duration_seconds=7200)))
    assert answer == f"{GRANT_ID}: rejected: duration"
    (event,) = await harness.events()
    assert (event["state"], event["reason"]) == ("rejected", "duration")


async def test_a_csr_that_cannot_be_signed_is_refused_at_once(harness: Harness) -> None:
    answer = await harness.order(Submit(envelope=request_envelope(csr="none")))
    assert answer == f"{GRANT_ID}: rejected: csr"


async def test_too_many_pending_requests_are_refused(harness: Harness) -> None:
    for number in range(MAX_PENDING):
        await harness.order(Submit(envelope=request_envelope(id=grant_id(number))))
    answer = await harness.order(Submit(envelope=request_envelope(id=grant_id(MAX_PENDING))))
    assert answer.endswith("rejected: too_many")


# Answers.


async def test_nobody_answers(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    await harness.passes(4 * 3600)
    assert (await harness.stored()).state is State.LAPSED


async def test_an_approver_may_give_less(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    order = Approve(id=GRANT_ID, by="anna", duration_seconds=600, role="system-metrics")
    await harness.order(order)
    grant = harness.grant()
    assert (grant.duration_seconds, grant.end_ms) == (600, START_MS + 600_000)
    assert harness.servers["r0"].users[USER].role == "byoc_access_metrics"


async def test_an_approval_of_more_is_refused_and_the_request_stays(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope(duration_seconds=600)))
    order = Approve(id=GRANT_ID, by="anna", duration_seconds=1200)
    assert await harness.order(order) == "refused: duration: expected no more than the request"
    assert harness.grant().state is State.PENDING
    assert harness.facts()[-1].reason.startswith("approval_refused: duration")


async def test_two_persons_must_approve_a_role_that_states_two(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope(role="query-text")))
    for _ in range(2):  # one person does not count twice
        answer = await harness.order(Approve(id=GRANT_ID, by="anna"))
        assert answer == f"{GRANT_ID}: approved_in_part"
    assert harness.users == NOBODY
    await harness.order(Approve(id=GRANT_ID, by="ben"))
    assert harness.grant().state is State.OPEN


async def test_in_mode_signed_only_a_key_of_the_customer_approves(harness: Harness) -> None:
    harness.write_policy(approval="signed")
    request = request_envelope()
    await harness.order(Submit(envelope=request))
    assert (await harness.order(Approve(id=GRANT_ID, by="anna"))).startswith("refused: not_an_env")
    forged = approval_envelope(request, STRANGER)
    answer = await harness.order(Approve(id=GRANT_ID, envelope=forged))
    assert answer.startswith("refused: too_few_signatures")
    other = approval_envelope(request, request_sha256="a" * 64)
    answer = await harness.order(Approve(id=GRANT_ID, envelope=other))
    assert answer == "refused: the approval is of another request"
    assert harness.users == NOBODY
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
    grant = harness.grant()
    assert (grant.state, [one.by for one in grant.approvals]) == (State.OPEN, ["sec-1"])
    assert "approval_1" in harness.facts()[-1].sha256


async def test_an_approval_of_a_request_that_has_ended_is_refused(harness: Harness) -> None:
    """A signed approval that was not used in time opens nothing later."""
    harness.write_policy(approval="signed")
    request = request_envelope()
    approval = Approve(id=GRANT_ID, envelope=approval_envelope(request))
    await harness.order(Submit(envelope=request))
    await harness.order(Deny(id=GRANT_ID, by="anna", comment="no"))
    assert await harness.order(approval) == f"{GRANT_ID}: not pending"
    await harness.order(Submit(envelope=request))
    assert await harness.order(approval) == f"{GRANT_ID}: not pending"
    assert harness.users == NOBODY


async def test_in_mode_signed_two_signatures_are_two_approvals(harness: Harness) -> None:
    harness.write_policy(approval="signed", approvals_needed=2)
    request = request_envelope()
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request, APPROVER)))
    assert harness.grant().state is State.PENDING
    second = approval_envelope(request, SECOND_APPROVER, "sec-2")
    await harness.order(Approve(id=GRANT_ID, envelope=second))
    assert harness.grant().state is State.OPEN


async def test_a_denial_that_is_signed_denies(harness: Harness) -> None:
    harness.write_policy(approval="signed")
    request = request_envelope()
    await harness.order(Submit(envelope=request))
    denial = approval_envelope(request, decision="deny", comment="not now")
    await harness.order(Approve(id=GRANT_ID, envelope=denial))
    stored = await harness.stored()
    assert (stored.state, stored.reason) == (State.DENIED, "denied: not now (by sec-1)")
    sent = msgspec.json.decode(message_of(stored, "org", "service", {}).body)["data"]
    assert sent["reason"] == "denied"


async def test_a_vendor_key_cannot_approve(harness: Harness) -> None:
    harness.write_policy(approval="signed")
    request = request_envelope()
    await harness.order(Submit(envelope=request))
    answer = await harness.order(Submit(envelope=approval_envelope(request)))
    assert answer.startswith("refused: wrong_type")
    assert harness.grant().state is State.PENDING


async def test_transparency_opens_without_an_approval_and_records_it(harness: Harness) -> None:
    harness.write_policy(approval="transparency")
    await harness.order(Submit(envelope=request_envelope()))
    assert harness.grant().state is State.OPEN
    assert harness.named()[:2] == ["approved", "opening"]


async def test_break_glass_opens_without_an_approval_and_is_stated_and_counted(
    harness: Harness,
) -> None:
    reason = {"kind": "break_glass", "ticket": "CS-1234", "text": ""}
    request = request_envelope(reason=reason, duration_seconds=1800)
    assert "rejected: break_glass" in await harness.order(Submit(envelope=request))
    harness.write_policy(break_glass=True)
    assert harness.broker.break_glass_openings == 0
    request = request_envelope(reason=reason, duration_seconds=1800, id=grant_id(2))
    await harness.order(Submit(envelope=request))
    grant = harness.grant(grant_id(2))
    assert (grant.state, grant.approvals) == (State.OPEN, ())
    assert grant.end_ms - grant.since_ms <= 1_800_000
    kinds = {fact.fact: fact.detail.get("kind") for fact in harness.facts() if fact.subject}
    assert kinds["opening"] == "break_glass"
    assert harness.broker.break_glass_openings == 1
    await harness.passes(1, 3)
    assert harness.broker.break_glass_openings == 1


async def test_a_usual_opening_states_its_kind_and_is_not_counted(harness: Harness) -> None:
    await harness.open_grant()
    (opening,) = [fact for fact in harness.facts() if fact.fact == "opening"]
    assert opening.detail["kind"] == "incident"
    assert harness.broker.break_glass_openings == 0


async def test_a_disabled_policy_ends_and_opens_nothing_until_it_is_enabled(
    harness: Harness,
) -> None:
    await harness.open_grant()
    second = request_envelope(id=grant_id(2), engineer={"id": "eng-2", "name": "B"})
    await harness.order(Submit(envelope=second))
    harness.write_policy(enabled=False)
    await harness.order(Approve(id=grant_id(2), by="anna"))
    assert harness.users == NOBODY
    assert (await harness.stored()).ended_because == "kill_switch: the policy is disabled"
    third = await harness.order(Submit(envelope=request_envelope(id=grant_id(3))))
    assert third == f"{grant_id(3)}: rejected: disabled"
    await harness.passes(31, 2)
    assert harness.grant(grant_id(2)).state is State.PENDING
    harness.write_policy()
    await harness.order(Approve(id=grant_id(2), by="anna"))
    assert harness.grant(grant_id(2)).state is State.OPEN


# Waiting.


@pytest.mark.parametrize(
    ("policy", "request_"),
    [
        ({"hours": {"days": "tue", "from": "00:00", "to": "24:00", "zone": "UTC"}}, {}),
        ({}, {"not_before": utc_text(START_MS + 2 * HOUR_MS)}),
    ],
)
async def test_an_approved_grant_waits_until_it_may_begin_and_lapses(
    harness: Harness, policy: dict[str, Any], request_: dict[str, Any]
) -> None:
    harness.write_policy(**policy)
    await harness.order(Submit(envelope=request_envelope(**request_)))
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    assert (harness.grant().state, harness.users) == (State.APPROVED, NOBODY)
    await harness.passes(4 * 3600)
    assert (await harness.stored()).state is State.LAPSED


async def test_one_engineer_has_one_grant_at_a_time(harness: Harness) -> None:
    await harness.open_grant()
    second = grant_id(2)
    await harness.order(Submit(envelope=request_envelope(id=second)))
    await harness.order(Approve(id=second, by="anna"))
    assert harness.grant(second).state is State.APPROVED
    await harness.order(Revoke(id=GRANT_ID))
    await harness.passes(1)
    assert harness.grant(second).state is State.OPEN


async def test_nothing_opens_while_the_ledger_fails_and_it_opens_later(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    harness.ledger_error = "disk full"
    assert await harness.order(Approve(id=GRANT_ID, by="anna")) == ""  # the order waits
    assert (harness.grant().state, harness.users) == (State.PENDING, NOBODY)
    harness.ledger_error = ""
    await harness.passes(31, 2)
    assert harness.grant().state is State.OPEN


async def test_nothing_opens_while_the_store_fails(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    harness.store_error = "read-only"
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    await harness.passes(31, 3)
    assert (harness.grant().state, harness.users) == (State.PENDING, NOBODY)


async def test_nothing_opens_without_room_for_its_events(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.spool_bytes = 200 * 1024
    async with harness.running():
        await harness.order(Submit(envelope=request_envelope()))
        await harness.order(Approve(id=GRANT_ID, by="anna"))
        assert (harness.grant().state, harness.users) == (State.APPROVED, NOBODY)
        await harness.passes(4 * 3600)
        assert (await harness.stored()).reason == "record_failed: spool_full"


async def test_a_request_that_lapses_while_the_ledger_fails_sends_no_text_of_its_error(
    harness: Harness,
) -> None:
    await harness.order(Submit(envelope=request_envelope(not_before=utc_text(START_MS + HOUR_MS))))
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    harness.ledger_error = "No space left on device (ledger-1.jsonl)"
    await harness.passes(4 * 3600 - 10)
    await harness.passes(11)
    harness.ledger_error = ""
    await harness.passes(31, 2)
    stored = await harness.stored()
    assert stored.state is State.LAPSED
    assert stored.reason == "record_failed: ledger: No space left on device (ledger-1.jsonl)"
    (sent,) = [one for one in await harness.events() if one["state"] == "lapsed"]
    assert sent["reason"] == "record_failed"


# Opening.


async def approve(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    await harness.order(Approve(id=GRANT_ID, by="anna"))


async def failed(harness: Harness) -> str:
    await approve(harness)
    await harness.passes(1)
    stored = await harness.stored()
    assert stored.state is State.FAILED
    assert harness.users == NOBODY
    assert "open" not in harness.named()
    return stored.ended_because


async def test_a_server_that_fails_a_check_is_not_opened(harness: Harness) -> None:
    harness.servers["r0"].problems = ["role_remote"]
    await approve(harness)
    assert (harness.grant().state, harness.users) == (State.OPEN, {"r0": [], "r1": [USER]})


async def test_a_server_is_checked_for_what_the_policy_allows(harness: Harness) -> None:
    await harness.open_grant()
    assert harness.servers["r0"].allowed == (False, False)
    harness.write_policy(tables="plain", allow_open_system=True)
    await harness.passes(31)
    assert harness.servers["r0"].allowed == (True, True)


async def test_it_fails_if_every_server_fails_a_check(harness: Harness) -> None:
    for server in harness.servers.values():
        server.problems = ["role_remote"]
    assert await failed(harness) == "role_remote"


async def test_it_fails_if_every_clock_is_wrong(harness: Harness) -> None:
    for server in harness.servers.values():
        server.skew_ms = -30_001
    assert await failed(harness) == "skew"


async def test_a_server_whose_clock_is_wrong_is_left_out(harness: Harness) -> None:
    harness.servers["r1"].skew_ms = 30_001
    await approve(harness)
    assert (harness.grant().state, harness.users) == (State.OPEN, {"r0": [USER], "r1": []})


async def test_all_replicas_are_needed_if_the_policy_says_so(harness: Harness) -> None:
    harness.write_policy(replicas="all")
    harness.servers["r1"].broken["create_user"] = "before"
    assert await failed(harness) == "users"


async def test_an_unreachable_replica_is_opened_later(harness: Harness) -> None:
    harness.servers["r1"].reachable = False
    await approve(harness)
    assert (harness.grant().state, harness.users) == (State.OPEN, {"r0": [USER], "r1": []})
    harness.servers["r1"].reachable = True
    await harness.passes(31)
    assert harness.users == BOTH


async def test_a_create_without_a_response_is_dropped_like_the_others(harness: Harness) -> None:
    harness.servers["r1"].broken["create_user"] = "after"
    await approve(harness)
    assert harness.users == BOTH
    await harness.order(Revoke(id=GRANT_ID))
    assert harness.users == NOBODY


async def test_a_user_that_reads_back_otherwise_is_dropped(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    foreign = account_of(harness.grant(), role="default", end_ms=2**40)
    server = harness.servers["r0"]

    def plant(step: str) -> None:
        if step == "fact.certificate":
            server.users[USER] = foreign

    harness.on_step = plant
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    assert harness.users == {"r0": [], "r1": [USER]}
    assert [f.detail["differences"] for f in harness.facts() if f.fact == "drift"] == [
        "role, end_ms"
    ]


async def test_a_ca_that_cannot_be_read_fails_the_opening(harness: Harness) -> None:
    (harness.directory / "ca" / "access-ca.key").unlink()
    assert (await failed(harness)).startswith("authority:")


@pytest.mark.parametrize("step", ["fact.opening", "r0.find_problems", "fact.certificate", "store"])
@pytest.mark.parametrize("how", ["revoke", "kill switch", "withdrawal"])
async def test_an_end_during_the_opening_is_noticed(harness: Harness, step: str, how: str) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    done: list[str] = []

    def end(found: str) -> None:
        if found != step or done or harness.grant().state is State.PENDING:
            return
        done.append(found)
        if how == "kill switch":
            touch(harness.kill_file)
        elif how == "revoke":
            harness.orders.place("2", Revoke(id=GRANT_ID))
        else:
            harness.orders.place("2", Submit(envelope=withdrawal_envelope()))

    harness.on_step = end
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    await harness.passes(1)
    assert done
    assert "open" not in harness.named()
    assert "r1.create_user" not in harness.steps
    assert harness.users == NOBODY


async def test_the_certificate_leaves_only_with_the_open_grant(harness: Harness) -> None:
    def fail(step: str) -> None:
        if step == "r1.find_differences":
            harness.ledger_error = "disk full"

    harness.on_step = fail
    await approve(harness)
    assert harness.users == NOBODY
    assert not any(event["certificate"] for event in await harness.events())


async def test_an_opening_whose_last_line_is_not_written_is_closed_at_once(
    harness: Harness,
) -> None:
    def fail(step: str) -> None:
        if step == "r1.find_differences":
            harness.ledger_error = "hangs"  # noticed only by the line `open` itself

    harness.on_step = fail
    await approve(harness)
    assert "r1.create_user" in harness.steps
    assert harness.users == NOBODY


async def test_a_step_without_its_line_is_not_stored(harness: Harness) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    harness.ledger_error = "disk full"
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    assert (await harness.stored()).state is State.PENDING


async def test_an_order_stays_until_its_effect_is_stored(harness: Harness) -> None:
    await harness.open_grant()
    harness.store_error = "read-only"
    assert await harness.order(Revoke(id=GRANT_ID)) == ""
    assert harness.users == NOBODY
    assert [one.name for one in harness.orders.read()] == ["1"]  # a crash now would repeat it
    harness.store_error = ""
    await harness.passes(1)
    assert harness.orders.read() == []


# Open.


async def test_the_certificate_is_in_the_event_while_it_is_open(harness: Harness) -> None:
    grant = await harness.open_grant()
    sent = {event["state"]: event["certificate"] for event in await harness.events()}
    assert {state for state, pem in sent.items() if pem} == {"open"}
    assert sent["open"] == grant.certificate


async def test_it_ends_at_its_end(harness: Harness) -> None:
    await harness.open_grant()
    await harness.passes(3599)
    assert harness.users == BOTH
    await harness.passes(1)
    assert harness.users == NOBODY
    assert harness.grant().ended_because == "expired"


async def test_the_vendor_can_end_it(harness: Harness) -> None:
    await harness.open_grant()
    await harness.order(Submit(envelope=withdrawal_envelope()))
    assert (harness.users, harness.grant().ended_because) == (NOBODY, "withdrawn (by vendor)")


async def test_a_stranger_cannot_end_it(harness: Harness) -> None:
    await harness.open_grant()
    await harness.order(Submit(envelope=withdrawal_envelope(STRANGER)))
    assert harness.users == BOTH


async def test_the_kill_switch_closes_within_one_pass(harness: Harness) -> None:
    await harness.open_grant()
    touch(harness.kill_file)
    await harness.passes(1)
    assert (harness.users, harness.grant().ended_because) == (NOBODY, "kill_switch: kill-switch")


async def test_a_volume_that_hangs_ends_access(harness: Harness) -> None:
    """The kill switch, the orders, the ledger and the store are all on it."""
    await harness.open_grant()
    harness.hang()
    try:
        async with asyncio.timeout(60):  # a pass that waits for the volume never ends
            while harness.users != NOBODY:
                await harness.passes(1)
        # Either the switch or the store is noticed first.
        assert harness.grant().ended_because.split(":")[0] in {"kill_switch", "record_failed"}
        async with asyncio.timeout(60):
            while not harness.broker.controls_unreadable:
                await harness.passes(1)
    finally:
        harness.recover()
    async with asyncio.timeout(60):
        while harness.broker.kill_switch or harness.broker.grants:
            await harness.passes(31)
    assert (await harness.stored()).state is State.CLOSED
    again = await harness.order(Submit(envelope=request_envelope(id=grant_id(2))))
    assert "pending" in again


async def test_a_policy_that_cannot_be_stored_in_time_delays_no_end(harness: Harness) -> None:
    """The copy is for the evidence: it is tried again, and named by its SHA-256 meanwhile."""
    await harness.open_grant()
    harness.accepts_files.clear()
    harness.write_policy(max_duration="30m")
    try:
        async with asyncio.timeout(60):
            await harness.passes(1, 2)
    finally:
        harness.accepts_files.set()
    assert harness.users == NOBODY
    copy = harness.state / "policies" / f"{harness.broker.policy_sha256}.yaml"
    async with asyncio.timeout(60):
        while not copy.exists():
            await harness.passes(1)


@pytest.mark.parametrize("content", [None, "roles: [", "version: 1\n"])
async def test_a_policy_that_cannot_be_read_counts_as_the_kill_switch(
    harness: Harness, content: str | None
) -> None:
    await harness.open_grant()
    harness.policy_file.unlink() if content is None else harness.policy_file.write_text(content)
    await harness.passes(1)
    assert harness.users == NOBODY
    assert harness.grant().ended_because == "kill_switch: the policy cannot be read"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enabled": False}, "kill_switch: the policy is disabled"),
        ({"max_duration": "30m"}, "policy_changed: duration"),
        ({"approvals_needed": 2}, "policy_changed: approvals"),
        ({"roles": {"other": {"clickhouse_role": "r"}}}, "policy_changed: role"),
    ],
)
async def test_a_tightened_policy_closes(harness: Harness, changes: Any, reason: str) -> None:
    await harness.open_grant()
    harness.write_policy(**changes)
    await harness.passes(1)
    assert (harness.users, harness.grant().ended_because) == (NOBODY, reason)


@pytest.mark.parametrize("error", ["disk full", "hangs"])
async def test_a_failing_ledger_closes_at_once_and_the_lines_follow(
    harness: Harness, error: str
) -> None:
    await harness.open_grant()
    harness.ledger_error = error
    await harness.order(Revoke(id=GRANT_ID))  # `hangs` is not seen before a line is written
    assert harness.users == NOBODY
    assert "closing" not in harness.named()
    harness.ledger_error = ""
    await harness.passes(1, 2)
    assert harness.named()[5:] == ["closing", "collecting", "collected", "collected", "closed"]


async def test_a_failing_store_closes_within_one_sweep(harness: Harness) -> None:
    await harness.open_grant()
    harness.store_error = "read-only"
    await harness.passes(31)
    await harness.passes(1)
    assert harness.users == NOBODY
    harness.store_error = ""
    await harness.passes(1, 2)
    assert (await harness.stored()).state is State.CLOSED
    states = [event["state"] for event in await harness.events()]
    assert states[-3:] == ["closing", "collecting", "closed"]


async def test_a_missing_user_is_created_again_with_the_same_end(harness: Harness) -> None:
    grant = await harness.open_grant()
    harness.servers["r0"].users.clear()  # the server restarted, and had it in memory
    await harness.passes(31)
    assert harness.servers["r0"].users[USER] == account_of(grant)


async def test_a_user_that_somebody_drops_is_restored_after_its_line(harness: Harness) -> None:
    await harness.open_grant()
    for _ in range(2):
        del harness.servers["r0"].users[USER]
        del harness.steps[:]
        await harness.passes(31)
        steps = harness.steps
        assert steps.index("fact.restored") < steps.index("r0.create_user")
        assert harness.users == BOTH
    restored = [fact for fact in harness.facts() if fact.fact == "restored"]
    assert [fact.subject for fact in restored] == [GRANT_ID, GRANT_ID]
    assert {fact.detail["replica"] for fact in restored} == {"r0"}


@pytest.mark.parametrize("part", ["ledger", "store"])
async def test_a_user_is_not_restored_without_its_line(harness: Harness, part: str) -> None:
    await harness.open_grant()
    harness.servers["r0"].users.clear()
    created = harness.steps.count("r0.create_user")

    def fail(step: str) -> None:
        if step == "r0.read_clock_ms":  # after the pass has looked at ledger and store
            setattr(harness, f"{part}_error", "disk full")

    harness.on_step = fail
    await harness.passes(31)
    assert harness.steps.count("r0.create_user") == created
    await harness.passes(1)
    assert harness.users == NOBODY
    assert harness.broker.record_failed


async def test_an_end_between_the_line_and_the_user_restores_nothing(harness: Harness) -> None:
    await harness.open_grant()
    harness.servers["r0"].users.clear()
    created = harness.steps.count("r0.create_user")

    def end(step: str) -> None:
        if step == "fact.restored":
            harness.orders.place("2", Revoke(id=GRANT_ID))

    harness.on_step = end
    await harness.passes(31)
    assert harness.steps.count("r0.create_user") == created
    await harness.passes(1)
    assert harness.users == NOBODY


async def test_a_server_that_refuses_a_user_does_not_fill_the_ledger(harness: Harness) -> None:
    await harness.open_grant()
    server = harness.servers["r0"]
    server.users.clear()
    server.broken["create_user"] = "before"
    await harness.passes(31, 5)
    assert [method for method, _ in server.attempts].count("create_user") == 6
    assert harness.named().count("restored") == 1
    del server.broken["create_user"]
    await harness.passes(31)
    server.users.clear()
    await harness.passes(31)
    assert (harness.named().count("restored"), harness.users) == (2, BOTH)


async def test_a_changed_user_is_dropped_and_the_grant_closes_without_any(harness: Harness) -> None:
    grant = await harness.open_grant()
    for server in harness.servers.values():
        server.users[USER] = account_of(grant, end_ms=grant.end_ms + 3600_000)
    await harness.passes(31)
    await harness.passes(1)
    assert harness.users == NOBODY
    assert (await harness.stored()).ended_because == "users_lost"


async def test_a_server_that_fails_a_check_later_loses_the_user(harness: Harness) -> None:
    await harness.open_grant()
    harness.servers["r0"].problems = ["role_remote"]
    await harness.passes(31)
    assert harness.users == {"r0": [], "r1": [USER]}
    assert harness.facts()[-1].detail["differences"] == "role_remote"


async def test_a_clock_that_is_set_back_closes(harness: Harness) -> None:
    await harness.open_grant()
    await harness.passes(120)
    harness.clock.step_wall(-61)
    await harness.broker.run_pass()
    assert (harness.users, harness.grant().ended_because) == (NOBODY, "clock_stepped")


async def test_a_clock_that_is_set_back_by_a_restart_of_the_machine_closes(tmp_path: Path) -> None:
    """The boot time of another boot says nothing: the highest wall time that was stored does."""
    harness = Harness(tmp_path)
    async with harness.running() as broker:
        await harness.open_grant()
        await harness.passes(120)
        await broker.finish()
    harness.clock.step_wall(-91)
    harness.clock.boot_id = "boot-2"
    async with harness.running() as broker:
        await broker.run_pass()
        assert (harness.users, harness.grant().ended_because) == (NOBODY, "clock_stepped")


async def test_boot_time_ends_it_although_the_wall_clock_stands_still(harness: Harness) -> None:
    await harness.open_grant()
    for _ in range(59):
        await harness.clock.advance(61.1)
        harness.clock.step_wall(-59)
        await harness.broker.run_pass()
    assert (harness.users, harness.grant().ended_because) == (NOBODY, "expired")


async def test_an_unknown_user_of_a_grant_is_dropped_by_the_sweep(harness: Harness) -> None:
    await harness.broker.run_pass()
    harness.servers["r1"].users["byoc_grant_orphan"] = account_of(await harness.open_grant())
    await harness.passes(31)
    assert harness.users == BOTH
    fact = next(fact for fact in harness.facts() if fact.reason == "orphan")
    assert fact.detail == {"replica": "r1", "user": "byoc_grant_orphan"}


# Closing and collecting.


async def test_an_unreachable_server_is_tried_until_it_answers(harness: Harness) -> None:
    await harness.open_grant()
    harness.servers["r1"].reachable = False
    await harness.order(Revoke(id=GRANT_ID))
    await harness.passes(31, 10)
    assert (harness.users, harness.grant().touched) == ({"r0": [], "r1": [USER]}, ("r1",))
    assert harness.broker.status()["grants"] == {GRANT_ID: "closing"}
    harness.servers["r1"].reachable = True
    await harness.passes(31)
    await harness.passes(31)
    assert (await harness.stored()).state is State.CLOSED


async def test_a_user_after_its_end_is_overdue_until_it_is_gone(harness: Harness) -> None:
    """The right to drop was taken away: the metric rises, and the next attempts go on."""
    await harness.open_grant()
    harness.servers["r1"].broken["drop_user"] = "before"
    await harness.passes(3600)
    assert harness.broker.overdue_seconds == 0
    await harness.passes(30, 3)
    assert harness.broker.overdue_seconds == 90
    assert harness.broker.status()["overdue_seconds"] == 90
    del harness.servers["r1"].broken["drop_user"]
    await harness.passes(31, 2)
    assert (harness.broker.overdue_seconds, harness.users) == (0, NOBODY)


@pytest.mark.parametrize("failure", ["unreachable", "no right to drop"])
@pytest.mark.parametrize("how", ["revoke", "kill switch", "policy", "withdrawal"])
async def test_an_ordered_end_that_a_server_does_not_confirm_is_overdue(
    harness: Harness, how: str, failure: str
) -> None:
    """The agreed end is almost an hour away; what counts is the end that was ordered."""
    await harness.open_grant()
    server = harness.servers["r1"]
    if failure == "unreachable":
        server.reachable = False
    else:
        server.broken["drop_user"] = "before"
    match how:
        case "revoke":
            await harness.order(Revoke(id=GRANT_ID))
        case "kill switch":
            touch(harness.kill_file)
        case "policy":
            harness.write_policy(enabled=False)
        case "withdrawal":
            await harness.order(Submit(envelope=withdrawal_envelope()))
    await harness.passes(1)
    began = harness.broker.overdue_seconds
    assert began <= 1
    await harness.passes(30, 4)
    assert harness.broker.overdue_seconds == began + 120
    assert harness.users == {"r0": [], "r1": [USER]}
    server.reachable = True
    server.broken.clear()
    await harness.passes(31, 2)
    assert (harness.broker.overdue_seconds, harness.users) == (0, NOBODY)


async def test_a_user_that_is_still_listed_is_not_gone(harness: Harness) -> None:
    await harness.open_grant()
    harness.servers["r1"].keeps_users = True
    await harness.order(Revoke(id=GRANT_ID))
    await harness.passes(31, 3)
    assert (harness.grant().state, harness.grant().touched) == (State.CLOSING, ("r1",))
    harness.servers["r1"].keeps_users = False
    await harness.passes(31, 2)
    assert (await harness.stored()).state is State.CLOSED


async def test_attempts_become_rarer_up_to_thirty_seconds(harness: Harness) -> None:
    await harness.open_grant()
    server = harness.servers["r1"]
    server.broken["drop_user"] = "before"
    await harness.order(Revoke(id=GRANT_ID))
    await harness.passes(1, 130)
    tried = [second for method, second in server.attempts if method == "drop_user"]
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_replica_that_is_given_up_makes_the_record_incomplete(harness: Harness) -> None:
    await harness.open_grant()
    harness.servers["r1"].reachable = False
    await harness.order(Revoke(id=GRANT_ID))
    answer = await harness.order(Forget(replica="r1", by="anna", comment="node destroyed"))
    assert answer == f"{GRANT_ID}: r1 is given up"
    await harness.passes(31, 2)
    stored = await harness.stored()
    assert (stored.state, stored.forgotten) == (State.CLOSED_INCOMPLETE, ("r1",))
    assert stored.reason == "revoked (by unnamed); r1: given up"


async def test_queries_that_survive_are_stated_and_collecting_waits(harness: Harness) -> None:
    await harness.open_grant()
    server = harness.servers["r0"]
    server.running[USER], server.stubborn = ["query-1"], True
    await harness.order(Revoke(id=GRANT_ID))
    await harness.passes(31, 3)
    assert harness.grant().state is State.CLOSING
    running = [f for f in harness.facts() if f.fact == "queries_running"]
    assert [f.detail["queries"] for f in running] == ["query-1"]
    server.stubborn = False
    await harness.passes(31, 2)
    assert (await harness.stored()).state is State.CLOSED


async def test_the_logs_are_collected_into_files_that_the_ledger_names(harness: Harness) -> None:
    await harness.open_grant()
    await harness.order(Revoke(id=GRANT_ID))
    await harness.passes(1)
    folder = harness.state / "logs" / GRANT_ID
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{r}-{kind}.jsonl" for r in ("r0", "r1") for kind in ("queries", "sessions")]
    collected = [f.detail for f in harness.facts() if f.fact == "collected"]
    assert [one["queries"] for one in collected] == ["3", "3"]
    (closed,) = [e for e in await harness.events() if e["state"] == "closed"]
    assert (closed["counts"], closed["record"]) == ({"queries": 6, "failed_logins": 0}, "complete")


async def test_logs_that_cannot_be_read_until_the_deadline_are_a_gap(harness: Harness) -> None:
    await harness.open_grant()
    harness.servers["r1"].broken["collect"] = "before"
    await harness.order(Revoke(id=GRANT_ID))
    await harness.passes(31, 10)
    assert harness.grant().state is State.COLLECTING
    await harness.passes(3600)
    stored = await harness.stored()
    assert stored.state is State.CLOSED_INCOMPLETE
    assert stored.reason == "revoked (by unnamed); r1: r1 does not respond"
    (closed,) = [e for e in await harness.events() if e["state"] == "closed_incomplete"]
    assert (closed["record"], closed["reason"]) == ("gap", "revoked")


async def test_logs_with_a_gap_are_never_complete(harness: Harness) -> None:
    await harness.open_grant()
    harness.servers["r0"].gap = "query_log was truncated"
    await harness.order(Revoke(id=GRANT_ID))
    await harness.passes(1)
    assert (await harness.stored()).state is State.CLOSED_INCOMPLETE


# Stopping and starting.


async def test_it_stays_open_over_a_restart(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    async with harness.running() as broker:
        await harness.open_grant()
        await broker.finish()
    async with harness.running() as broker:
        await broker.run_pass()
        assert (harness.grant().state, harness.users) == (State.OPEN, BOTH)


async def test_it_closes_at_the_stop_if_the_settings_say_so(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.limits = type(harness.limits)(close_on_stop=True)
    async with harness.running() as broker:
        await harness.open_grant()
        ending = asyncio.create_task(broker.finish())
        while not ending.done():
            await harness.clock.advance(1)
        assert harness.users == NOBODY


async def test_a_lost_state_directory_closes_everything_within_one_sweep(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    async with harness.running():
        await harness.open_grant()
    harness.lose_state()
    async with harness.running() as broker:
        await broker.run_pass()
        assert harness.users == NOBODY


async def test_a_second_broker_in_the_same_directory_does_not_start(harness: Harness) -> None:
    second = Spool(harness.state, max_bytes=1 << 24, clock=harness.clock)
    with pytest.raises(SpoolUnusableError):
        async with second:
            pass


async def test_a_second_broker_with_another_directory_drops_the_users_of_the_first(
    tmp_path: Path, harness: Harness
) -> None:
    """Safe and visible: both have lines about it, and access is never wider than one of them."""
    await harness.open_grant()
    second = Harness(tmp_path / "second")
    second.servers = harness.servers
    async with second.running() as broker:
        await broker.run_pass()
        assert harness.users == NOBODY
        dropped = [fact.detail["user"] for fact in second.facts() if fact.reason == "orphan"]
        assert dropped == [USER, USER]
    await harness.passes(31)
    assert harness.users == BOTH


async def test_an_order_that_is_not_one_is_answered(harness: Harness) -> None:
    harness.orders.create()
    (harness.state / "orders" / "x.json").write_text('{"type":"open"}')
    await harness.broker.run_pass()
    assert (harness.orders.take_answer("x") or "").startswith("not an order: Invalid value 'open'")


async def test_events_have_counts_and_nothing_of_the_customer(harness: Harness) -> None:
    await harness.open_grant()
    await harness.order(Revoke(id=GRANT_ID, by="anna-secret", comment="comment-secret"))
    await harness.passes(1)
    bodies = b"".join(m.body for m in await harness.spool.peek(1000, 1 << 24))
    for text in (b"SELECT", b"comment-secret", b"CS-[0-9]"):
        assert text not in bodies


async def test_counts_of_one_server_are_sent_if_another_has_no_such_log(harness: Harness) -> None:
    harness.servers["r0"].failed_logins, harness.servers["r1"].failed_logins = 1, None
    await harness.open_grant()
    await harness.order(Revoke(id=GRANT_ID, by="anna"))
    await harness.passes(1, 2)
    assert (await harness.events())[-1]["counts"] == {"queries": 6, "failed_logins": 1}


# Leases: the policy lets access end if the control plane does not respond.


async def test_access_ends_five_minutes_after_the_last_response_of_the_control_plane(
    harness: Harness,
) -> None:
    harness.write_policy(leases=True)
    await harness.open_grant()
    await harness.passes(200)
    harness.contact_boot_ns = harness.clock.boot_ns()  # a response, also one that is not changed
    await harness.passes(LEASE_SECONDS - 1)
    assert harness.grant().state is State.OPEN
    await harness.passes(1, 2)
    grant = await harness.stored()
    assert (grant.state, grant.reason) == (State.CLOSED, "contact_lost: no response for 300 s")
    assert harness.users == {"r0": [], "r1": []}
    assert (await harness.events())[-1]["reason"] == "contact_lost"


async def test_without_leases_access_runs_to_its_end_although_nobody_answers(
    harness: Harness,
) -> None:
    await harness.open_grant()
    await harness.passes(LEASE_SECONDS + 60)
    assert harness.grant().state is State.OPEN


async def test_with_leases_nothing_opens_while_nobody_answers(harness: Harness) -> None:
    harness.write_policy(leases=True)
    await harness.passes(LEASE_SECONDS)
    await harness.order(Submit(envelope=request_envelope()))
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    await harness.passes(1)
    assert harness.grant().state is State.APPROVED
    harness.contact_boot_ns = harness.clock.boot_ns()
    await harness.passes(1)
    assert harness.grant().state is State.OPEN


async def test_leases_need_a_control_plane_that_is_polled(tmp_path: Path) -> None:
    """With files only, nobody could ever extend the lease."""
    harness = Harness(tmp_path)
    harness.contact_boot_ns = None
    async with harness.running():
        await harness.open_grant()
        harness.write_policy(leases=True)
        await harness.passes(1, 2)
        assert (await harness.stored()).reason == "contact_lost: no control plane is polled"


# Orders that come too late.

LATE = {
    "revoke": Revoke(id=GRANT_ID),
    "deny": Deny(id=GRANT_ID, by="anna", comment="no"),
    "approve": Approve(id=GRANT_ID, by="anna"),
}


class CrashError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("order", LATE.values(), ids=LATE)
@pytest.mark.parametrize("approved", [False, True], ids=["pending", "approved"])
async def test_a_crash_before_the_end_is_stored_leaves_one_end_whatever_is_ordered(
    tmp_path: Path, order: Order, approved: bool
) -> None:
    def crash(step: str) -> None:
        if step == "fact.lapsed":
            raise CrashError

    harness = Harness(tmp_path)
    async with harness.running():
        later = utc_text(START_MS + HOUR_MS)
        await harness.order(Submit(envelope=request_envelope(not_before=later)))
        if approved:
            await harness.order(Approve(id=GRANT_ID, by="anna"))
            harness.kill_file.write_text("on")  # it waits
        harness.on_step = crash
        with pytest.raises(CrashError):
            await harness.passes(5 * 3600)
    harness.on_step = lambda _: None
    async with harness.running():
        await harness.order(order)
        assert (await harness.stored()).state is State.LAPSED
    ends = {fact for fact in harness.named() if fact in set(ENDS)}
    assert ends == {"lapsed"}


async def test_an_approval_that_is_read_too_late_does_not_count(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    async with harness.running():
        await harness.order(Submit(envelope=request_envelope()))
    await harness.clock.advance(4 * 3600)
    async with harness.running():
        await harness.order(Approve(id=GRANT_ID, by="anna"))
        assert (await harness.stored()).state is State.LAPSED
    assert "approved" not in harness.named()
