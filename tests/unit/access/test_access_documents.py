"""The signed documents: their bounds, and texts that must not pass."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.access.documents import (
    APPROVAL,
    REQUEST,
    WITHDRAWAL,
    AccessRequest,
    parse_document,
    parse_time,
    utc_text,
)
from byoc_agents.access.errors import DocumentError
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import AUDIENCE, GRANT_ID, HOUR_MS, request_fields


def refusal(payload_type: str, fields: Any) -> str:
    with pytest.raises(DocumentError) as caught:
        parse_document(payload_type, msgspec.json.encode(fields))
    return str(caught.value)


def test_a_request_is_read_with_its_times() -> None:
    request = parse_document(REQUEST, msgspec.json.encode(request_fields()))
    assert isinstance(request, AccessRequest)
    assert (request.issued_ms, request.expires_ms) == (START_MS, START_MS + 4 * HOUR_MS)
    assert request.not_before_ms == START_MS


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"id": GRANT_ID.replace("-7c3e", "-4c3e")}, "$.id"),  # another version of UUID
    ({"id": GRANT_ID + "\n"}, "$.id"),
    ({"id": "../../etc/passwd"}, "$.id"),
    ({"duration_seconds": 59}, "$.duration_seconds"),
    ({"duration_seconds": 8 * 3600 + 1}, "$.duration_seconds"),
    ({"duration_seconds": "3600"}, "$.duration_seconds"),
    ({"role": "a b"}, "$.role"),
    ({"role": "DROP USER default;"}, "$.role"),
    ({"endpoints": []}, "$.endpoints"),
    ({"endpoints": ["clickhouse", "clickhouse"]}, "endpoints: expected each name once"),
    ({"audience": {"organization": "org-1"}}, "$.audience"),
    ({"reason": {"kind": "curiosity", "ticket": "CS-1"}}, "$.reason.kind"),
    ({"reason": {"kind": "incident", "ticket": "CS-1\n"}}, "$.reason.ticket"),
    ({"reason": {"kind": "incident", "ticket": "CS-1", "text": "x" * 501}}, "$.reason.text"),
    ({"csr": "x" * 4097}, "$.csr"),
    ({"issued_at": "yesterday"}, "expected a time such as"),
    ({"issued_at": "2026-11-23T12:00:00+01:00"}, "expected a time such as"),
    ({"issued_at": "2026-13-23T12:00:00Z"}, "expected a time such as"),
    ({"expires_at": utc_text(START_MS - 1000)}, "expires_at: expected at most"),
    ({"expires_at": utc_text(START_MS + 97 * HOUR_MS)}, "expires_at: expected at most 345600 s"),
    ({"not_before": utc_text(START_MS + 5 * HOUR_MS)}, "not_before: expected a time"),
    ({"sql": "SELECT 1"}, "unknown field `sql`"),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG, ids=lambda value: str(value)[:40])
def test_a_request_outside_its_bounds_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(REQUEST, request_fields(**changes))


@pytest.mark.parametrize("field", list(request_fields()))
def test_every_field_of_a_request_is_required(field: str) -> None:
    fields = {name: value for name, value in request_fields().items() if name != field}
    assert field in refusal(REQUEST, fields)


# C0 and C1 controls, line and paragraph separators, and characters that change the direction.
HOSTILE = [*map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202E, 0x2066, 0xFEFF])]


@pytest.mark.parametrize("character", HOSTILE, ids=lambda c: f"U+{ord(c):04X}")
def test_a_character_that_could_change_a_terminal_is_refused(character: str) -> None:
    text = f"harmless{character}[2J"
    engineer = {"id": "eng-1", "name": text}
    reason = {"kind": "incident", "ticket": "CS-1", "text": text}
    assert "engineer.name: expected printable" in refusal(
        REQUEST, request_fields(engineer=engineer)
    )
    assert "text: expected printable" in refusal(REQUEST, request_fields(reason=reason))


def approval(**changes: Any) -> dict[str, Any]:
    fields = {
        "id": GRANT_ID,
        "request_sha256": "a" * 64,
        "decision": "approve",
        "by": "sec-oncall",
        "at": utc_text(START_MS),
    }
    return fields | changes


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"request_sha256": "A" * 64}, "$.request_sha256"),
        ({"decision": "maybe"}, "$.decision"),
        ({"decision": "deny"}, "comment: expected a reason for the denial"),
        ({"at": ""}, "expected a time"),
        ({"comment": "a\nb"}, "comment: expected printable"),
        ({"by": ""}, "$.by"),
        ({"valid_until": 1}, "unknown field"),
    ],
)
def test_an_approval_outside_its_bounds_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(APPROVAL, approval(**changes))


def test_a_withdrawal_has_an_id_an_audience_and_a_time() -> None:
    fields = {"id": GRANT_ID, "audience": AUDIENCE, "issued_at": utc_text(START_MS)}
    parse_document(WITHDRAWAL, msgspec.json.encode(fields))
    assert "expected a time" in refusal(WITHDRAWAL, fields | {"issued_at": "now"})
    assert "unknown field" in refusal(WITHDRAWAL, fields | {"duration_seconds": 3600})


@given(st.binary(max_size=200) | st.recursive(st.integers(), st.lists).map(msgspec.json.encode))
def test_any_bytes_are_refused_as_a_document(payload: bytes) -> None:
    with pytest.raises(DocumentError):
        parse_document(REQUEST, payload)


def test_a_time_is_utc_and_in_ascii() -> None:
    assert parse_time("2026-11-23T12:00:00.5Z") == START_MS + 500
    for wrong in ("2026-11-23T12:00:00", "２026-11-23T12:00:00Z", "2026-11-23T12:00:00Z "):  # noqa: RUF001
        with pytest.raises(ValueError, match="expected a time such as"):
            parse_time(wrong)
