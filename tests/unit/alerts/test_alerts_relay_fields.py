"""The relay sends only allowed fields, and events that match their schema."""

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from byoc_agents.alerts.events import MAX_ANNOTATION, MAX_LABEL
from byoc_agents.alerts.schema import components
from tests.unit.alerts.relay_harness import Harness, Memory, alert

DATA = Path(__file__).parent / "data"


@pytest.fixture
def harness() -> Harness:
    return Harness(Memory())


async def test_an_event_has_only_allowed_fields(harness: Harness) -> None:
    assert await harness.accept(alert()) == 1
    (event,) = await harness.events()
    assert event["source"] == "/organizations/org/services/svc/alerts"
    assert event["time"] == "2026-11-23T19:05:54.988Z"
    assert event["data"] == {
        "organization_id": "org",
        "service_id": "svc",
        "region": "us-east-1",
        "status": "firing",
        "notification": "transition",
        "reconstructed": False,
        "end_inferred": False,
        "fingerprint": alert()["fingerprint"],
        "starts_at": "2026-11-23T19:05:54.988Z",
        "ends_at": None,
        "received_at": "2026-11-23T19:06:24.988Z",
        "labels": {"alertname": "Down", "severity": "critical"},
        "annotations": {"summary": "Down is down"},
        "cut": [],
        "withheld": [],
        "group_truncated_alerts": 0,
    }


async def test_a_truncated_group_is_marked(harness: Harness) -> None:
    await harness.relay.accept(
        (DATA / "alertmanager-webhook-firing-truncated-max_alerts2.json").read_bytes()
    )
    assert [e["data"]["group_truncated_alerts"] for e in await harness.events()] == [1, 1]
    assert (
        'byoc_alerts_truncated_total{daemon="alert-forwarder"} 1.0'
        in generate_latest(harness.registry).decode()
    )


async def test_long_values_are_cut_and_listed(harness: Harness) -> None:
    long = alert(labels={"alertname": "Down", "severity": "critical", "team": "x" * 9999})
    long["annotations"] = {"summary": "é" * 9999}
    await harness.accept(long)
    (event,) = await harness.events()
    assert len(event["data"]["labels"]["team"]) == MAX_LABEL
    assert len(event["data"]["annotations"]["summary"]) == MAX_ANNOTATION
    assert event["data"]["cut"] == ["labels.team", "annotations.summary"]


async def test_an_alert_whose_labels_do_not_match_their_pattern_is_sent_without_them(
    harness: Harness,
) -> None:
    host = {"alertname": "db1.acme.internal", "severity": "critical", "reason": "a/b"}
    assert await harness.accept(alert(labels=host)) == 1
    await harness.accept(alert(labels={"alertname": "Watchdog", "cluster": "a/b"}))
    sent = {event["type"]: event["data"] for event in await harness.events()}
    assert sent["byoc.alert.v1"]["labels"] == {"severity": "critical"}
    assert sent["byoc.alert.v1"]["withheld"] == ["labels.alertname"]
    assert sent["byoc.alert.watchdog.v1"]["labels"] == {"alertname": "Watchdog"}


async def test_every_event_matches_its_schema(harness: Harness) -> None:
    await harness.accept(alert(), alert("Watchdog"), alert("Gone", status="resolved"))
    schemas = {"components": {"schemas": components()}}
    names = {"byoc.alert.v1": "AlertEvent", "byoc.alert.watchdog.v1": "WatchdogEvent"}
    for event in await harness.events():
        reference = {"$ref": f"#/components/schemas/{names[event['type']]}"}
        jsonschema.validate(event, schemas | reference)


SENTINEL = "s3cr3t"
PLANTED = st.recursive(
    st.one_of(
        st.just(SENTINEL), st.text(max_size=3).map(SENTINEL.__add__), st.none(), st.integers()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.just(f"k{SENTINEL}"), inner, max_size=2)
    ),
    max_leaves=3,
)


def planted(valid: dict[str, Any], *extra: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return the valid fields, some of them replaced, and unknown fields."""
    names = [*valid, *extra, f"new{SENTINEL}"]
    return st.dictionaries(st.sampled_from(names), PLANTED, max_size=4).map(valid.__or__)


PLANTED_ALERT = st.builds(
    lambda whole, labels, annotations: whole | {"labels": labels, "annotations": annotations},
    planted(alert(generatorURL=f"http://{SENTINEL}", silenceURL=SENTINEL), "values", "panelURL"),
    planted({"instance": SENTINEL}, "db", "query").map(
        lambda labels: labels | {"alertname": "Down", "severity": "critical"}
    ),
    planted({"description": SENTINEL}, "runbook_url").map(lambda a: a | {"summary": "text"}),
)
PLANTED_BODY = st.builds(
    lambda top, alerts: top | {"alerts": alerts},
    planted({"externalURL": SENTINEL, "groupKey": SENTINEL, "commonLabels": {"a": SENTINEL}},
            "receiver", "truncatedAlerts", "status", "version", "groupLabels"),
    st.lists(PLANTED_ALERT, min_size=1, max_size=3),
)  # fmt: skip


@given(PLANTED_BODY)
def test_no_hidden_input_is_in_any_output(body: dict[str, Any]) -> None:
    """The outputs are the messages, ids, keys on disk, logs and metrics."""
    harness = Harness(Memory())
    with structlog.testing.capture_logs() as logs:
        asyncio.run(harness.relay.accept(json.dumps(body).encode()))
    assert harness.spool.messages or harness.outcomes().get("invalid")
    out = (harness.spool.messages, harness.spool.kept, logs, generate_latest(harness.registry))
    assert SENTINEL not in repr(out)
