"""What the broker takes from the vendor: times, fields, and a withdrawal that comes first."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from byoc_agents.access import documents
from byoc_agents.access.broker import MAX_WITHDRAWN, WITHDRAWN_SECONDS
from byoc_agents.access.machine import State
from byoc_agents.access.orders import Submit
from byoc_agents.envelope import sign
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import (
    GRANT_ID,
    VENDOR,
    grant_id,
    request_envelope,
    request_fields,
    withdrawal_envelope,
)
from tests.unit.access.scripted_broker import Harness


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    harness = Harness(tmp_path)
    async with harness.running():
        yield harness
    assert harness.ledger_problems() == []


@pytest.mark.parametrize(("seconds", "taken"), [(120, True), (121, False)])
async def test_a_request_from_the_future_is_refused(
    harness: Harness, seconds: int, taken: bool
) -> None:
    future = request_envelope(start_ms=START_MS + seconds * 1000)
    answer = await harness.order(Submit(envelope=future))
    if taken:
        assert "pending" in answer
    else:
        assert answer == "refused: issued_at is in the future"
        assert harness.broker.refused_documents["issued_in_future"] == 1
        assert harness.broker.grants == []


@pytest.mark.parametrize(
    ("field", "twice"),
    [
        (b'"role":"system-reader"', b'"role":"system-metrics","role":"system-reader"'),
        (b'"ticket":"CS-1234"', b'"ticket":"CS-1","ticket":"CS-1234"'),
    ],
)
async def test_a_request_with_a_field_twice_is_refused(
    harness: Harness, field: bytes, twice: bytes
) -> None:
    payload = msgspec.json.encode(request_fields())
    assert field in payload
    changed = payload.replace(field, twice)
    answer = await harness.order(
        Submit(envelope=sign(documents.REQUEST, changed, [("vendor-1", VENDOR)]))
    )
    assert answer.startswith("refused: ")
    assert "given twice" in answer
    assert harness.broker.grants == []


# Withdrawals.


async def test_a_withdrawal_before_its_request_holds(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    async with harness.running():
        answer = await harness.order(Submit(envelope=withdrawal_envelope()))
        assert answer == f"{GRANT_ID}: unknown; its request will not be opened"
    async with harness.running():
        answer = await harness.order(Submit(envelope=request_envelope()))
        assert "withdrawn" in answer
        assert (await harness.stored()).state is State.WITHDRAWN
        assert [event["state"] for event in await harness.events()] == ["withdrawn"]
    assert harness.ledger_problems() == []


async def test_a_withdrawal_that_cannot_be_stored_is_tried_again(harness: Harness) -> None:
    harness.store_error = "disk full"
    assert not await harness.order(Submit(envelope=withdrawal_envelope()))
    harness.store_error = ""
    await harness.passes(1)
    assert "unknown" in (harness.orders.take_answer("1") or "")
    assert "withdrawn" in await harness.order(Submit(envelope=request_envelope()))


async def test_withdrawals_before_their_requests_are_bounded(harness: Harness) -> None:
    await harness.passes(1)
    for number in range(MAX_WITHDRAWN):
        await harness.broker.submit(withdrawal_envelope(id=grant_id(number)))
    answer = await harness.broker.submit(withdrawal_envelope())
    assert answer == "refused: too many withdrawals of unknown requests"
    assert harness.broker.refused_documents["too_many_withdrawals"] == 1
    await harness.clock.advance(WITHDRAWN_SECONDS)
    assert "unknown" in await harness.broker.submit(withdrawal_envelope())
