"""`byoc-agents alerts preview`: which alerts of rule files would leave, and what of them."""

import json
from pathlib import Path

import pytest

import byoc_agents
from byoc_agents.alerts.settings import SHIPPED_RULES
from byoc_agents.app.cli import main

RULES = Path(byoc_agents.__file__).parents[2] / "helm" / "byoc-agents" / "rules"
OWN = """
groups:
- name: customer
  rules:
  - record: a:b
    expr: 1
  - alert: OrdersTableSlow
    expr: up == 0
    labels: {severity: critical, team: billing, reason: SELECT name FROM customers}
    annotations: {summary: Table sales.orders is slow, runbook_url: "https://internal/x"}
"""


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("BYOC_ALERTS_MATCHERS", raising=False)
    return monkeypatch


def previewed(capsys: pytest.CaptureFixture[str], *paths: Path) -> dict[str, dict[str, object]]:
    assert main(["alerts", "preview", "--json", *map(str, paths)]) == 0
    return {one["alert"]: one for one in json.loads(capsys.readouterr().out)}


def test_by_default_the_shipped_rules_leave_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    found = previewed(
        capsys, RULES / "clickhouse.yaml", RULES / "agents.yaml", tmp_path / "own.yaml"
    )
    leaving = {name for name, one in found.items() if one["leaves"] == "yes"}
    assert leaving == {*SHIPPED_RULES, "Watchdog"}
    assert found.keys() - leaving == {"OrdersTableSlow"}
    assert all(one["annotations"] == {} for one in found.values())


def test_what_would_leave_of_a_customers_rule_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: pytest.MonkeyPatch
) -> None:
    environ.setenv("BYOC_ALERTS_MATCHERS", 'severity="critical"')
    environ.setenv("BYOC_ALERTS_ANNOTATIONS", "summary,runbook_url")
    (tmp_path / "own.yaml").write_text(OWN)
    one = previewed(capsys, tmp_path / "own.yaml")["OrdersTableSlow"]
    assert one["leaves"] == "yes"
    assert one["annotations"] == {"summary": "Table sales.orders is slow"}
    assert one["withheld"] == ["labels.reason", "annotations.runbook_url"]
    assert one["dropped"] == ["labels.team"]


def test_a_matcher_on_a_label_of_the_metric_is_said(
    capsys: pytest.CaptureFixture[str], environ: pytest.MonkeyPatch
) -> None:
    environ.setenv("BYOC_ALERTS_NAMESPACE", "clickhouse")
    found = previewed(capsys, RULES / "clickhouse.yaml")
    assert found["ClickHouseDown"]["leaves"] == "depends"
    assert found["Watchdog"]["leaves"] == "yes"


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alerts", "preview", str(RULES / "clickhouse.yaml")]) == 0
    text = capsys.readouterr().out
    assert "yes      ClickHouseDown" in text
    assert "not sent: annotations.summary" in text
    assert text.endswith("12 leave, 0 depend on a label of the metric, 0 stay\n")


def test_another_file_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("a: [")
    assert main(["alerts", "preview", str(tmp_path / "x.yaml")]) == 2
    assert "expected a file of Prometheus rules" in capsys.readouterr().err
