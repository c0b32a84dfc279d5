"""`byoc-agents alerts preview`: which alerts of rule files would leave, and which fields."""

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


def run_preview(capsys: pytest.CaptureFixture[str], *paths: Path) -> dict[str, dict[str, object]]:
    assert main(["alerts", "preview", "--json", *map(str, paths)]) == 0
    return {one["alert"]: one for one in json.loads(capsys.readouterr().out)}


def test_by_default_only_the_shipped_rules_leave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    found = run_preview(
        capsys, RULES / "clickhouse.yaml", RULES / "agents.yaml", tmp_path / "own.yaml"
    )
    leaving = {name for name, one in found.items() if one["leaves"] == "yes"}
    assert leaving == {*SHIPPED_RULES, "Watchdog"}
    assert found.keys() - leaving == {"OrdersTableSlow"}
    assert all(one["annotations"] == {} for one in found.values())


def test_the_fields_of_a_customers_rule_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: pytest.MonkeyPatch
) -> None:
    environ.setenv("BYOC_ALERTS_MATCHERS", 'severity="critical"')
    environ.setenv("BYOC_ALERTS_ANNOTATIONS", "summary,runbook_url")
    (tmp_path / "own.yaml").write_text(OWN)
    one = run_preview(capsys, tmp_path / "own.yaml")["OrdersTableSlow"]
    assert one["leaves"] == "yes"
    assert one["annotations"] == {"summary": "Table sales.orders is slow"}
    assert one["withheld"] == ["labels.reason", "annotations.runbook_url"]
    assert one["dropped"] == ["labels.team"]


def test_a_host_under_a_default_label_is_shown_as_withheld(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: pytest.MonkeyPatch
) -> None:
    environ.setenv("BYOC_ALERTS_MATCHERS", 'severity="critical"')
    (tmp_path / "own.yaml").write_text(
        OWN.replace("SELECT name FROM customers", "db1.acme.internal")
    )
    one = run_preview(capsys, tmp_path / "own.yaml")["OrdersTableSlow"]
    assert one["leaves"] == "yes"
    assert one["withheld"] == ["labels.reason"]


def test_a_matcher_on_a_label_of_the_metric_is_marked(
    capsys: pytest.CaptureFixture[str], environ: pytest.MonkeyPatch
) -> None:
    environ.setenv("BYOC_ALERTS_NAMESPACE", "clickhouse")
    found = run_preview(capsys, RULES / "clickhouse.yaml")
    assert found["ClickHouseDown"]["leaves"] == "depends"
    assert found["Watchdog"]["leaves"] == "yes"


def test_the_default_output_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alerts", "preview", str(RULES / "clickhouse.yaml")]) == 0
    text = capsys.readouterr().out
    assert "yes      ClickHouseDown" in text
    assert "not sent: annotations.summary" in text
    assert text.endswith("12 leave, 0 depend on a label of the metric, 0 stay\n")


def test_a_file_without_rules_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text("a: [")
    assert main(["alerts", "preview", str(tmp_path / "x.yaml")]) == 2
    assert "expected a file of Prometheus rules" in capsys.readouterr().err


def test_rules_as_kubectl_prints_them_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = {"name": "own", "rules": [{"alert": "ClickHouseDown", "expr": "up == 0"}]}
    rules = {"kind": "PrometheusRule", "spec": {"groups": [group]}}
    listed = {"apiVersion": "v1", "kind": "List", "items": [rules, rules | {"spec": {}}]}
    (tmp_path / "listed.json").write_text(json.dumps(listed))
    assert run_preview(capsys, tmp_path / "listed.json").keys() == {"ClickHouseDown"}
