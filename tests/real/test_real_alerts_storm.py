"""5,000 alerts in one group reach the control plane, with each receiver that we print."""

import asyncio
import datetime as dt
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.real.alerts_lab import HOOK, control_plane, daemon, metric, post
from lab.real.chart import render
from lab.real.parts import install
from lab.real.parts.process import RealProcess

Started = Callable[[str], RealProcess]
ALERTS, POSTED_TOGETHER = 5000, 500
PATIENCE_SECONDS = 180  # the group waits 30 s first, which is Alertmanager's default
VALUES = render.CHART / "ci" / "default-values.yaml"
URL = re.compile(r"https?://[\w.-]+:9095/v1/alerts")


def of_the_documentation() -> str:
    """Return the first YAML block of docs/contracts/alerts.md."""
    text = (install.ROOT / "docs" / "contracts" / "alerts.md").read_text()
    return text.split("```yaml\n", 1)[1].split("```", 1)[0]


def of_the_config_map() -> str:
    """Return the configuration for an Alertmanager without the operator, from the chart."""
    (found,) = [
        one["data"]["alertmanager.yml"]
        for one in _rendered("receiverConfigMap")
        if one["kind"] == "ConfigMap" and "alertmanager.yml" in one["data"]
    ]
    return str(found)


def of_the_operator() -> str:
    """Return what the operator makes of the chart's AlertmanagerConfig."""
    (found,) = [
        one["spec"]
        for one in _rendered("alertmanagerConfig")
        if one["kind"] == "AlertmanagerConfig"
    ]
    receivers = [_snake(one) for one in found["receivers"]]
    for receiver in receivers:
        for webhook in receiver.get("webhook_configs", []):  # the operator copies the secret's text
            webhook["http_config"]["authorization"] = {"type": "Bearer", "credentials": HOOK}
    route = {"receiver": "null", "routes": [_snake(found["route"])]}
    return yaml.safe_dump({"route": route, "receivers": [{"name": "null"}, *receivers]})


def _rendered(kind: str) -> list[render.Manifest]:
    return render.manifests(VALUES, "--set", f"monitoring.{kind}=true")


def _snake(value: Any) -> Any:
    """Return the operator's names as Alertmanager's, and its matchers as text."""
    if isinstance(value, list):
        return [_snake(one) for one in value]
    if not isinstance(value, dict):
        return value
    if {"name", "matchType", "value"} == value.keys():
        return f'{value["name"]}{value["matchType"]}"{value["value"]}"'
    return {re.sub(r"([A-Z])", r"_\1", key).lower(): _snake(one) for key, one in value.items()}


def storm(starts: dt.datetime) -> list[dict[str, Any]]:
    """Return alerts of a usual size, about 1 KiB each, which differ in their table."""
    common = {
        "alertname": "ClickHouseTooManyParts",
        "severity": "warning",
        "namespace": "clickhouse",
        "container": "clickhouse",
        "instance": "10.0.0.1:9363",
        "job": "clickhouse/byoc-agents-clickhouse",
        "prometheus": "monitoring/kube-prometheus-stack-prometheus",
    }
    return [
        {
            "labels": common | {"pod": f"chi-main-{number % 6}-0", "table": f"events_{number:05d}"},
            "annotations": {
                "summary": "A partition holds more than a hundred parts.",
                "description": "x" * 200,
                "runbook_url": "https://runbooks.example.com/clickhouse/too-many-parts",
            },
            "startsAt": starts.isoformat(),
            "endsAt": (starts + dt.timedelta(minutes=30)).isoformat(),
            "generatorURL": "http://prometheus.example:9090/graph?g0.expr=" + "y" * 80,
        }
        for number in range(ALERTS)
    ]


@pytest.mark.parametrize(
    "printed",
    [of_the_documentation, of_the_config_map, of_the_operator],
    ids=["documentation", "ConfigMap", "AlertmanagerConfig"],
)
async def test_a_storm_in_one_group_is_delivered(
    printed: Callable[[], str], alertmanager: Started, tmp_path: Path
) -> None:
    """Use the printed text; only the address and the file of the token are replaced."""
    token = tmp_path / "webhook-token"
    await asyncio.to_thread(token.write_text, HOOK)
    async with (
        control_plane() as plane,
        daemon(plane.url, tmp_path, BYOC_ALERTS_LABELS="alertname,severity,table") as forwarder,
    ):
        here = f"http://127.0.0.1:{forwarder.webhook_port}/v1/alerts"
        config, replaced = URL.subn(here, await asyncio.to_thread(printed))
        assert replaced == 1
        config = re.sub(r"credentials_file: [^\s}]+", f"credentials_file: {token}", config)
        sender = alertmanager(config)
        alerts = storm(dt.datetime.now(tz=dt.UTC))
        for first in range(0, ALERTS, POSTED_TOGETHER):
            some = alerts[first : first + POSTED_TOGETHER]
            await asyncio.to_thread(post, f"{sender.url}/api/v2/alerts", some)
        await plane.until(lambda: len(plane.of("byoc.alert.v1")) >= ALERTS, PATIENCE_SECONDS)
        tables = {data["labels"]["table"] for data in plane.of("byoc.alert.v1")}
        assert tables == {alert["labels"]["table"] for alert in alerts}
        assert metric(forwarder, "byoc_alerts_truncated_total") == 0
        assert metric(forwarder, 'byoc_webhook_requests_total{code="200",daemon="alert-forwarder"}')
        assert {data["group_truncated_alerts"] for data in plane.of("byoc.alert.v1")} == {0}
        assert plane.receiver.mismatches == {}
