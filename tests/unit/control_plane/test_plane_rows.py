"""Events as rows: every known event becomes one, and nothing that is not an event does."""

import json
from typing import Any

import msgspec
import pytest

from byoc_agents.access.events import message_of
from byoc_agents.access.machine import State
from byoc_agents.app.cloudevents import encode
from byoc_control_plane.rows import InvalidEventError, build_row, build_sent
from lab.control_plane.messages import Replica, heartbeat_event, watch_alert
from tests.unit.access.access_documents import GRANT_ID, grant_of, request_of

NOW_MS = 1_795_435_200_000


def row_of(body: bytes) -> tuple[str, dict[str, Any]]:
    row = build_row(body, NOW_MS)
    return row.table, msgspec.json.decode(row.line)


def test_a_state_message_has_its_fields_and_its_own_text() -> None:
    body = Replica(replica="r-7").message(NOW_MS, "degraded", "DISK_LOW")
    table, row = row_of(body)
    assert table == "byoc_state"
    assert (row["replica"], row["state"], row["reasons"]) == ("r-7", "degraded", ["DISK_LOW"])
    assert row["event"].encode() == body
    assert row["arrived_at"] == "2026-11-23T12:00:00.000Z"
    assert row["stopping"] is False


@pytest.mark.parametrize("how", ["stopping", "AGENT_STOPPING"])
def test_both_ways_to_stop_are_a_stop(how: str) -> None:
    assert row_of(Replica().stop(NOW_MS, how))[1]["stopping"] is True


def test_the_forwarders_events_are_rows_of_alerts() -> None:
    table, alert = row_of(encode(watch_alert(NOW_MS, 3)))
    assert (table, alert["status"], alert["labels"]["alertname"]) == (
        "byoc_alerts",
        "firing",
        "ClickHouseDown",
    )
    assert "ends_at" not in alert  # None is the column's default
    table, beat = row_of(encode(heartbeat_event(NOW_MS, 9, stopping=True)))
    assert (table, beat["sequence"], beat["stopping"]) == ("byoc_alerts", 9, True)


def test_an_event_of_a_later_version_is_kept_as_it_is() -> None:
    event = json.loads(Replica().message(NOW_MS)) | {
        "type": "byoc.alert.later.v9",
        "data": {"organization_id": "org-1", "replica": 7, "new": [1]},
    }
    table, row = row_of(json.dumps(event).encode())
    assert (table, row["organization_id"]) == ("byoc_alerts", "org-1")
    assert "replica" not in row  # a number is not a name
    assert json.loads(row["event"]) == event


GOOD = json.loads(Replica().message(NOW_MS))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"id": 1}',
        json.dumps(GOOD | {"id": ""}).encode(),
        json.dumps(GOOD | {"source": ""}).encode(),
        json.dumps(GOOD | {"time": "yesterday"}).encode(),
        json.dumps(GOOD | {"time": "2026-11-23T12:00:00"}).encode(),
        json.dumps(GOOD | {"time": "9999-11-23T12:00:00Z"}).encode(),
        json.dumps(GOOD | {"time": "1900-11-23T12:00:00Z"}).encode(),
        json.dumps(GOOD | {"data": None}).encode(),
        json.dumps(GOOD | {"data": GOOD["data"] | {"state": "odd"}}).encode(),
        json.dumps({name: GOOD[name] for name in GOOD if name != "subject"}).encode(),
        json.dumps(GOOD).encode().replace(b"24.8.1", b"\xff"),
        json.dumps(GOOD | {"data": GOOD["data"] | {"version": "\ud800"}}).encode(),
        json.dumps(GOOD).encode()[:-1] + b',"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        json.dumps(GOOD).encode()[:-1] + b',"x":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    ],
    ids=range(18),
)
def test_other_bytes_are_an_invalid_event(body: bytes) -> None:
    with pytest.raises(InvalidEventError):
        build_row(body, NOW_MS)


ALERT = json.loads(encode(watch_alert(NOW_MS, 3)))
BEAT = json.loads(encode(heartbeat_event(NOW_MS, 9)))


@pytest.mark.parametrize(
    ("event", "field", "value"),
    [
        *((GOOD, "sequence", number) for number in (-1, 2**64, 2**64 + 1)),
        *((BEAT, "backlog_records", number) for number in (-1, 2**64 + 7)),
        *((ALERT, "starts_at", at) for at in ("", "now", "12:00", "1969-12-31T23:59:59Z")),
        *((ALERT, "received_at", at) for at in ("2100-01-01T00:00:00Z", "1795435200")),
        (BEAT, "started_at", "0001-01-01T00:00:00Z"),
        (GOOD, "state_since", "9999-12-31T23:59:59Z"),
    ],
)
def test_a_value_that_its_column_would_change_is_an_invalid_event(
    event: dict[str, Any], field: str, value: Any
) -> None:
    changed = event | {"data": event["data"] | {field: value}}
    with pytest.raises(InvalidEventError):
        build_row(json.dumps(changed).encode(), NOW_MS)


def test_the_largest_integers_and_times_of_the_columns_are_stored() -> None:
    data = GOOD["data"] | {"sequence": 2**64 - 1, "state_since": "2099-12-31T23:59:59.999Z"}
    _, row = row_of(json.dumps(GOOD | {"data": data}).encode())
    assert (row["sequence"], row["state_since"]) == (2**64 - 1, "2099-12-31T23:59:59.999Z")


def test_times_are_written_in_one_form() -> None:
    """ClickHouse reads fewer forms of RFC 3339 and ISO 8601 than the check does."""
    for text in ("2026-11-23T13:00:00+01:00", "20261123T120000Z", "2026-W48-1T12:00:00Z"):
        _, row = row_of(json.dumps(GOOD | {"time": text}).encode())
        assert row["time"] == "2026-11-23T12:00:00.000Z"


@pytest.mark.parametrize(
    ("part", "twice"),
    [
        (b'"specversion"', b'"id":"another","specversion"'),
        (b'"organization_id"', b'"organization_id":"org-2","organization_id"'),
        (b'"organization_id"', b'"organization\\u005fid":"org-2","organization_id"'),
        (b'"code"', b'"code":"DISK_LOW","code"'),
    ],
)
def test_the_same_key_twice_is_an_invalid_event(part: bytes, twice: bytes) -> None:
    body = Replica().message(NOW_MS, "degraded", "DISK_LOW")
    assert body.count(part) == 1
    with pytest.raises(InvalidEventError, match="the same key twice"):
        build_row(body.replace(part, twice), NOW_MS)
    spaced = json.dumps(json.loads(body), indent=1).encode()  # not as the daemons write it
    assert build_row(spaced, NOW_MS).key == build_row(body, NOW_MS).key


# The broker's events.


def grant_message(state: State, **changes: Any) -> bytes:
    grant = grant_of(state, since_ms=NOW_MS, reason="revoked: done (by anna)", **changes)
    return message_of(grant, "org-1", "svc-1", {"queries": 3, "result_rows": 7}).body


def test_a_state_of_a_grant_has_its_fields_and_its_own_text() -> None:
    body = grant_message(State.CLOSED)
    table, row = row_of(body)
    assert table == "byoc_grants"
    assert (row["organization_id"], row["service_id"], row["grant_id"]) == (
        *("org-1", "svc-1", GRANT_ID),
    )
    assert (row["state"], row["reason"], row["record"]) == ("closed", "revoked", "complete")
    assert row["counts"] == {"queries": 3, "result_rows": 7}
    assert (row["role"], row["duration_seconds"]) == ("system-reader", 3600)
    assert row["event"].encode() == body


@pytest.mark.parametrize("state", [state for state in State if state is not State.RECEIVED])
def test_every_state_of_a_grant_is_a_row(state: State) -> None:
    assert row_of(grant_message(state))[0] == "byoc_grants"


def test_a_request_that_was_sent_is_a_row_without_an_event() -> None:
    row = build_sent(request_of(), NOW_MS)
    again = build_sent(request_of(), NOW_MS + 1000)
    assert (row.table, row.key, row.organization_id) == ("byoc_grants", again.key, "org-1")
    fields = msgspec.json.decode(row.line)
    assert (fields["state"], fields["engineer"], fields["ticket"]) == (
        *("sent", "eng-8841", "CS-1234"),
    )
    assert fields["time"] == msgspec.json.decode(again.line)["time"]
