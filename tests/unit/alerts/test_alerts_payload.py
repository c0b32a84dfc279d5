"""Decoding of notifications: real bodies, newer versions, and invalid ones."""

import contextlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.alerts.payload import (
    SLICE_ALERTS,
    SMALL_BODY_BYTES,
    NotAWebhookError,
    read,
    read_slices,
)

DATA = Path(__file__).parent / "data"
START_MS = 1795460754988  # 2026-11-23T19:05:54.988Z


def alert(**changes: Any) -> dict[str, Any]:
    return {
        "status": "firing",
        "labels": {"alertname": "Down", "severity": "critical"},
        "annotations": {"summary": "it is down"},
        "startsAt": "2026-11-23T19:05:54.988Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph",
        "fingerprint": "b0aa59dc5775f441",
    } | changes


def body(*alerts: Any, **changes: Any) -> bytes:
    whole = {"version": "4", "receiver": "byoc", "alerts": list(alerts), "truncatedAlerts": 0}
    return json.dumps(whole | changes).encode()


@pytest.mark.parametrize(
    ("name", "statuses", "truncated"),
    [
        ("firing-group3", ["firing"] * 3, 0),
        ("firing-truncated-max_alerts2", ["firing"] * 2, 1),
        ("resolved-group", ["resolved"] * 2, 0),
    ],
)
def test_reads_bodies_of_a_real_alertmanager(
    name: str, statuses: list[str], truncated: int
) -> None:
    group = read((DATA / f"alertmanager-webhook-{name}.json").read_bytes())
    assert [a.status for a in group.alerts] == statuses
    assert (group.invalid, group.truncated) == (0, truncated)
    assert {a.starts_at_ms for a in group.alerts} == {START_MS}
    assert {a.labels["alertname"] for a in group.alerts} == {"ClickHouseDown"}
    ends = {a.ends_at_ms for a in group.alerts}
    assert ends == ({START_MS + 260_000} if statuses[0] == "resolved" else {None})


def test_unknown_fields_are_ignored() -> None:
    newer = body(alert(notification_reason="repeat"), notification_reason={"a": [1]}, version="5")
    assert read(newer) == read(body(alert()))


@pytest.mark.parametrize(
    "invalid",
    [
        None,
        7,
        [],
        {},
        alert(status="unknown"),
        alert(labels=None),
        alert(labels="x"),
        alert(startsAt="soon"),
        alert(startsAt="2026-11-23T19:05:54"),
        alert(startsAt="0001-01-01T00:00:00Z"),
        alert(startsAt="0001-01-01T00:00:00+14:00"),
        alert(startsAt=5),
        alert(labels={"alertname": "half a \ud800 pair"}),
    ],
    ids=repr,
)
def test_an_invalid_alert_does_not_affect_its_group(invalid: Any) -> None:
    group = read(body(invalid, alert()))
    assert (len(group.alerts), group.invalid) == (1, 1)


def test_an_alert_with_invalid_bytes_does_not_affect_its_group() -> None:
    broken = body(alert(), alert(labels={"a": "MARK"})).replace(b"MARK", b"\xff\xfe")
    assert (len(read(broken).alerts), read(broken).invalid) == (1, 1)


def test_invalid_optional_fields_are_ignored() -> None:
    invalid = alert(labels={"a": "x", "n": 7}, annotations=[1], endsAt=None, fingerprint="X" * 99)
    (read_alert,) = read(body(invalid, receiver=7, truncatedAlerts="many")).alerts
    assert read_alert.labels == {"a": "x"}
    assert read_alert.annotations == {}
    assert len(read_alert.fingerprint) == 16
    (other,) = read(body(alert(labels={"a": "y"}, fingerprint=None))).alerts
    assert other.fingerprint != read_alert.fingerprint


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-11-23T19:05:54.988Z", START_MS),
        ("2026-11-23T19:05:54.988123456Z", START_MS),
        ("2026-11-23T20:05:54.988+01:00", START_MS),
    ],
)
def test_a_start_is_the_same_in_every_notation(text: str, milliseconds: int) -> None:
    (read_alert,) = read(body(alert(startsAt=text))).alerts
    assert read_alert.starts_at_ms == milliseconds


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b'{"alerts":{}}',
        b'{"alerts":null}',
        b'{"alerts":[',
        b"alerts=1",
        b'{"alerts":[' + b"[" * 200_000,
        b"\xff\xfe",
    ],
    ids=lambda raw: raw[:20],
)
def test_a_body_that_is_not_a_webhook_is_refused(raw: bytes) -> None:
    with pytest.raises(NotAWebhookError):
        read(raw)


def test_a_group_without_alerts_is_accepted() -> None:
    assert read(body()).alerts == []


@given(st.binary(max_size=60))
def test_any_body_is_read_or_raises_not_a_webhook_error(raw: bytes) -> None:
    for given_body in (raw, body(alert()).replace(b"critical", raw)):
        with contextlib.suppress(NotAWebhookError):
            read(given_body)


@given(
    st.lists(
        st.one_of(
            st.builds(lambda text: alert(labels={"alertname": text}), st.text()),
            st.sampled_from([None, 7, [], {}, "text", alert(status="x"), alert(labels=None)]),
        )
    ),
    st.sampled_from(["byoc", 'quo"te\\', None, 7]),
)
def test_a_large_body_is_read_as_a_small_one(alerts: list[Any], receiver: Any) -> None:
    raw = body(*alerts, receiver=receiver, truncatedAlerts=3, common={"a": [{"alerts": [1]}]})
    at_once = read(raw)
    slices = [group for group in read_slices(raw.ljust(SMALL_BODY_BYTES + 1)) if group]
    assert [one for group in slices for one in group.alerts] == at_once.alerts
    assert sum(group.invalid for group in slices) == at_once.invalid
    assert {group.receiver for group in slices} == {at_once.receiver}
    assert [group.first for group in slices] == [True] + [False] * (len(slices) - 1)


def test_a_slice_holds_a_bounded_number_of_alerts() -> None:
    groups = [group for group in read_slices(body(*[alert()] * 1000)) if group]
    assert [len(group.alerts) for group in groups] == [SLICE_ALERTS] * 4


@pytest.mark.parametrize(
    "raw",
    [
        b'{"alerts":[' + b"0," * 40_000 + b"0]}",
        b'{"alerts":[' + b"{}," * 40_000 + b"{}]}",
        b'{"alerts":' + b"[" * 40_000,
        b'{"alerts":[]}x'.ljust(40_000, b"x"),
        b'{"alerts":[{} {}]}'.ljust(40_000),
        b'{"alerts":["'.ljust(40_000, b"x"),
        b'{"receiver":"x"}'.ljust(40_000),
    ],
    ids=lambda raw: raw[:20],
)
def test_a_large_malformed_body_needs_no_memory(raw: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(NotAWebhookError):
            list(read_slices(raw))
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_an_alert_with_too_many_labels_is_invalid_and_not_decoded() -> None:
    labels = {f"l{number}": "v" for number in range(40_000)}
    (group,) = [g for g in read_slices(body(alert(labels=labels), alert())) if g]
    assert (len(group.alerts), group.invalid) == (1, 1)
