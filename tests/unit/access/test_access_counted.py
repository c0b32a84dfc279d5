"""What counts as a signature, an approval and a withdrawal, also after a change of the policy."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from byoc_agents.access.documents import utc_text
from byoc_agents.access.grants import GrantStore
from byoc_agents.access.machine import State
from byoc_agents.access.orders import Approve, Submit
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import (
    APPROVER,
    GRANT_ID,
    SECOND_APPROVER,
    STRANGER,
    VENDOR,
    approval_envelope,
    base64_of,
    request_envelope,
)
from tests.unit.access.scripted_broker import Harness

NOBODY: dict[str, list[str]] = {"r0": [], "r1": []}
LATER = utc_text(START_MS + 600_000)
NEW_APPROVERS = [
    {"id": "sec-1", "ed25519": base64_of(STRANGER)},
    {"id": "sec-2", "ed25519": base64_of(SECOND_APPROVER)},
]
EXPIRED_APPROVERS = [
    {"id": "sec-1", "ed25519": base64_of(APPROVER), "not_after": utc_text(START_MS - 1000)},
    {"id": "sec-2", "ed25519": base64_of(SECOND_APPROVER)},
]
NEW_VENDOR = [{"id": "vendor-1", "ed25519": base64_of(STRANGER)}]
EXPIRED_VENDOR = [
    {"id": "vendor-1", "ed25519": base64_of(VENDOR), "not_after": utc_text(START_MS - 1000)}
]
READS_TEXT = {"system-reader": {"clickhouse_role": "byoc_access_text"}}
READS_MORE = {
    "system-reader": {
        "clickhouse_role": "byoc_access_reader",
        "endpoints": ["clickhouse", "metrics"],
    }
}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    async with harness.running():
        yield harness
    assert harness.ledger_problems() == []


async def end_of(harness: Harness) -> tuple[State, str]:
    stored = await harness.stored()
    return stored.state, stored.reason


# Approvals.


async def test_an_unsigned_approval_does_not_count_after_the_policy_asks_for_signed_ones(
    harness: Harness,
) -> None:
    await harness.order(Submit(envelope=request_envelope(not_before=LATER)))
    await harness.order(Approve(id=GRANT_ID, by="sec-1"))
    assert harness.grant().state is State.APPROVED
    harness.write_policy(approval="signed")
    await harness.passes(1)
    assert await end_of(harness) == (State.REJECTED, "approvals")


@pytest.mark.parametrize("approvers", [NEW_APPROVERS, EXPIRED_APPROVERS])
@pytest.mark.parametrize("opens", [False, True])
async def test_a_signed_approval_counts_while_its_key_is_in_the_policy(
    harness: Harness, approvers: list[dict[str, str]], opens: bool
) -> None:
    harness.write_policy(approval="signed")
    request = request_envelope(**({} if opens else {"not_before": LATER}))
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
    assert harness.grant().state is (State.OPEN if opens else State.APPROVED)
    harness.write_policy(approval="signed", approvers=approvers)
    await harness.passes(1, 3)
    stored = await harness.stored()
    if opens:
        assert stored.ended_because == "policy_changed: approvals"
    else:
        assert (stored.state, stored.reason) == (State.REJECTED, "approvals")
    assert harness.users == NOBODY


async def test_a_person_whose_key_was_replaced_can_approve_again(harness: Harness) -> None:
    policy: dict[str, Any] = {"approval": "signed", "approvals_needed": 2}
    harness.write_policy(**policy)
    request = request_envelope()
    await harness.order(Submit(envelope=request))
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
    harness.write_policy(**policy, approvers=NEW_APPROVERS)
    second = approval_envelope(request, SECOND_APPROVER, "sec-2")
    await harness.order(Approve(id=GRANT_ID, envelope=second))
    assert harness.grant().state is State.PENDING
    await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request, STRANGER)))
    assert harness.grant().state is State.OPEN
    assert sorted(one.by for one in harness.grant().approvals) == ["sec-1", "sec-2"]


@pytest.mark.parametrize("roles", [READS_TEXT, READS_MORE])
async def test_an_approval_counts_for_the_role_as_it_was(
    harness: Harness, roles: dict[str, Any]
) -> None:
    await harness.order(Submit(envelope=request_envelope(not_before=LATER)))
    await harness.order(Approve(id=GRANT_ID, by="anna"))
    assert harness.grant().state is State.APPROVED
    harness.write_policy(roles=roles)
    await harness.passes(601, 2)
    assert await end_of(harness) == (State.REJECTED, "approvals")
    assert harness.users == NOBODY


async def test_an_open_grant_ends_if_its_role_is_another_one(harness: Harness) -> None:
    await harness.open_grant()
    harness.write_policy(roles=READS_TEXT)
    await harness.passes(1, 3)
    assert (await harness.stored()).ended_because == "policy_changed: approvals"


async def test_an_approval_without_the_meaning_of_its_role_opens_nothing(tmp_path: Path) -> None:
    """Earlier versions did not store it. A grant that is open then goes on to its end."""
    harness = Harness(tmp_path)
    async with harness.running():
        grant = await harness.open_grant()
        old = tuple(msgspec.structs.replace(one, roles={}) for one in grant.approvals)
        await store_grant(harness, msgspec.structs.replace(grant, approvals=old))
    async with harness.running():
        await harness.passes(1)
        grant = harness.grant()
        assert grant.state is State.OPEN
        await store_grant(harness, msgspec.structs.replace(grant, state=State.APPROVED))
    async with harness.running():
        await harness.passes(1)
        assert await end_of(harness) == (State.REJECTED, "approvals")


async def store_grant(harness: Harness, grant: Any) -> None:
    await GrantStore(harness.spool).save(grant, (), START_MS)


# The vendor's signatures and times.


@pytest.mark.parametrize("keys", [NEW_VENDOR, EXPIRED_VENDOR])
async def test_a_pending_request_needs_a_key_that_is_in_the_policy(
    harness: Harness, keys: list[dict[str, str]]
) -> None:
    await harness.order(Submit(envelope=request_envelope()))
    harness.write_policy(vendor_keys=keys)
    await harness.passes(1)
    assert await end_of(harness) == (State.REJECTED, "vendor_keys")


@pytest.mark.parametrize("keys", [NEW_VENDOR, EXPIRED_VENDOR])
async def test_an_open_grant_needs_a_key_that_is_in_the_policy(
    harness: Harness, keys: list[dict[str, str]]
) -> None:
    await harness.open_grant()
    harness.write_policy(vendor_keys=keys)
    await harness.passes(1, 3)
    assert (await harness.stored()).ended_because == "policy_changed: vendor_keys"
