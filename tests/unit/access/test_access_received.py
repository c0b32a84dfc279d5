"""What the broker takes from the vendor: times, fields, and a withdrawal that comes first."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from byoc_agents.access import documents
from byoc_agents.access.orders import Submit
from byoc_agents.envelope import sign
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import VENDOR, request_envelope, request_fields
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
