"""Rules by promtool, the receiver by amtool, dashboards against the metrics that there are."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from byoc_agents.alerts import matchers
from byoc_agents.alerts.daemon import Settings as AlertsSettings
from byoc_agents.app.metrics import Metrics
from byoc_agents.state.thresholds import ReasonCode
from lab.real.chart import prometheus_operator, render
from lab.real.chart.pods import environment, pods
from lab.real.chart.prometheus_operator import Strategy
from lab.real.chart.render import Manifest
from lab.real.parts import install

RULES = render.CHART / "rules"
CASES = install.ROOT / "lab" / "real" / "chart" / "rules"
DASHBOARDS = sorted((render.CHART / "dashboards").glob("*.json"))
CLICKHOUSE = re.compile(r"ClickHouse(Metrics|AsyncMetrics|ProfileEvents)_(\w+)")
ALERTS = render.CHART / "ci" / "mesh-operator-values.yaml"
# Of system.asynchronous_metrics, which the engine in a process does not fill: ClickHouse's docs.
ASYNCHRONOUS = {
    *("ReplicasMaxAbsoluteDelay", "MaxPartCountForPartition", "NumberOfDetachedParts"),
    *("NumberOfDetachedByUserParts", "FilesystemMainPathAvailableBytes", "MemoryResident"),
    *("FilesystemMainPathTotalBytes", "CGroupMemoryTotal"),
}


def tool(name: str, *arguments: str, directory: Path) -> str:
    """Run promtool or amtool; a failure is the test's, with what it said."""
    place = install.debian()
    done = subprocess.run(
        [str(place / "usr" / "bin" / name), *arguments],
        cwd=directory,
        env={**os.environ, **install.library_path(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(file: str) -> list[dict[str, Any]]:
    """Return the rules of one file."""
    groups = yaml.safe_load((RULES / f"{file}.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def rendered(kind: str, values: Path = ALERTS) -> list[Manifest]:
    """Return the documents of a kind."""
    return [one for one in render.manifests(values) if one["kind"] == kind]


def known_metrics() -> set[str]:
    """Return the names under which the metrics of the three daemons are scraped."""
    families = Metrics().registry.collect()
    return {one.name + ("_total" if one.type == "counter" else "") for one in families}


def metrics_of_the_broker() -> set[str]:
    """Return the names on the page about access; a test of the broker holds the page to it."""
    page = (install.ROOT / "docs" / "access.md").read_text()
    return set(re.findall(r"^\| `(byoc_access_\w+)` \|", page, re.MULTILINE))


@pytest.mark.parametrize("file", ["agents", "clickhouse", "access"])
def test_the_rules_fire_when_they_should(file: str, tmp_path: Path) -> None:
    shutil.copy(RULES / f"{file}.yaml", tmp_path)
    shutil.copy(CASES / f"{file}.test.yaml", tmp_path)
    tool("promtool", "check", "rules", f"{file}.yaml", directory=tmp_path)
    assert "SUCCESS" in tool("promtool", "test", "rules", f"{file}.test.yaml", directory=tmp_path)


@pytest.mark.parametrize("file", ["agents", "clickhouse", "access"])
def test_every_rule_is_tested_firing_and_silent(file: str) -> None:
    firing: set[str] = set()
    silent: set[str] = set()
    for case in yaml.safe_load((CASES / f"{file}.test.yaml").read_text())["tests"]:
        for expected in case["alert_rule_test"]:
            (firing if expected["exp_alerts"] else silent).add(expected["alertname"])
    names = {rule["alert"] for rule in rules(file)}
    assert firing == names
    assert silent == names - {"Watchdog"}


def test_what_is_said_of_clickhouse_is_relayed_with_the_exporters_own_reasons() -> None:
    """The forwarder's default matchers take each of them, and its Watchdog the one."""
    usual = AlertsSettings(
        url="https://a",
        token="t",
        signing_secret="s",
        webhook_token="w",
        fingerprint_secret="f",
        namespace="*",
    )
    selector, watchdog = matchers.parse(usual.selected), matchers.parse(usual.watchdog)
    for rule in rules("clickhouse"):
        labels = rule["labels"] | {"alertname": rule["alert"]}
        if rule["alert"] == "Watchdog":
            assert watchdog.matches(labels)
            assert not selector.matches(labels)
        else:
            assert selector.matches(labels)
            assert rule["labels"]["reason"] in set(ReasonCode)
        assert set(rule["annotations"]) <= {"summary", "action"}


@pytest.mark.parametrize("metrics", ["builtin", "altinity"])
def test_the_wrapped_rules_are_the_files(metrics: str, tmp_path: Path) -> None:
    altinity = metrics == "altinity"
    values = render.CHART / "ci" / "altinity-values.yaml" if altinity else ALERTS
    (document,) = rendered("PrometheusRule", values)
    spec = yaml.safe_dump(document["spec"])
    (tmp_path / "rules.yaml").write_text(spec)
    tool("promtool", "check", "rules", "rules.yaml", directory=tmp_path)
    files = [group for f in ("agents", "clickhouse") for group in _groups(f)]
    if not altinity:
        for group in document["spec"]["groups"]:
            for rule in group["rules"]:
                assert rule["labels"].pop("namespace").endswith("}clickhouse{{ end }}{{ end }}")
        assert document["spec"]["groups"] == files
    assert bool(CLICKHOUSE.search(spec)) == (not altinity)
    assert ("chi_clickhouse_event_RejectedInserts" in spec) == altinity


def _groups(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((RULES / f"{file}.yaml").read_text())["groups"]
    return found


# Labels of alerts of other owners, which must not leave by default.
FOREIGN = (
    {"alertname": "KubePodCrashLooping", "severity": "info", "namespace": "clickhouse"},
    {"alertname": "InfoInhibitor", "severity": "none", "namespace": "clickhouse"},
    {"alertname": "Unlabeled", "namespace": "clickhouse"},
)


def labels_of_rules() -> list[dict[str, str]]:
    """Return the labels of an alert of every rule that is shipped."""
    every = [*rules("agents"), *rules("clickhouse")]
    found = [r["labels"] | {"alertname": r["alert"], "namespace": "clickhouse"} for r in every]
    severities = {labels["severity"] for labels in found if labels["alertname"] != "Watchdog"}
    assert severities == {"critical", "warning"}
    return found


def route(labels: dict[str, str], directory: Path) -> list[str]:
    """Return the receivers that amtool finds for an alert in alertmanager.yml."""
    given = [f"{name}={value}" for name, value in labels.items()]
    flags = ("config", "routes", "test", "--config.file=alertmanager.yml")
    return tool("amtool", *flags, *given, directory=directory).strip().split(",")


@pytest.mark.parametrize("values", [ALERTS, render.CHART / "ci" / "default-values.yaml"])
def test_alertmanager_takes_the_plain_receiver(values: Path, tmp_path: Path) -> None:
    (found,) = [d for d in rendered("ConfigMap", values) if "alertmanager.yml" in d["data"]]
    (tmp_path / "alertmanager.yml").write_text(found["data"]["alertmanager.yml"])
    said = tool("amtool", "check-config", "alertmanager.yml", directory=tmp_path)
    assert "SUCCESS" in said
    for labels in (*labels_of_rules(), *FOREIGN):
        assert route(labels, tmp_path) == (["default"] if labels in FOREIGN else ["byoc"])


def test_the_operators_receiver_says_the_same_as_the_plain_one() -> None:
    (operator,) = rendered("AlertmanagerConfig")
    (plain,) = [d for d in rendered("ConfigMap") if "alertmanager.yml" in d["data"]]
    config = yaml.safe_load(plain["data"]["alertmanager.yml"])
    ours = next(one for one in config["receivers"] if one["name"] == "byoc")["webhook_configs"][0]
    idle, theirs = operator["spec"]["receivers"]
    assert idle == {"name": "byoc-none"}
    assert theirs["name"] == "byoc"
    assert theirs["webhookConfigs"][0]["url"] == ours["url"]
    assert ours["url"].startswith("https://byoc-agents-alert-forwarder.clickhouse.svc:9095/")
    assert theirs["webhookConfigs"][0]["maxAlerts"] == ours["max_alerts"] == 0
    assert theirs["webhookConfigs"][0]["sendResolved"] is ours["send_resolved"] is True


@pytest.mark.parametrize(
    ("strategy", "alertmanager"),
    [
        ("OnNamespace", "monitoring"),
        ("OnNamespaceExceptForAlertmanagerNamespace", "monitoring"),
        ("OnNamespaceExceptForAlertmanagerNamespace", "clickhouse"),
        ("None", "monitoring"),
    ],
)
def test_every_rule_reaches_the_forwarder_with_every_matcher_strategy(
    strategy: Strategy, alertmanager: str, tmp_path: Path
) -> None:
    """By amtool, with the configuration that the operator makes; others fall through."""
    (document,) = rendered("AlertmanagerConfig")
    made = prometheus_operator.build_configuration(
        document, render.NAMESPACE, strategy, alertmanager
    )
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(made))
    assert "SUCCESS" in tool("amtool", "check-config", "alertmanager.yml", directory=tmp_path)
    for labels in (*labels_of_rules(), *FOREIGN):
        reached = route(labels, tmp_path)
        assert reached.count("clickhouse/byoc-agents/byoc") == (labels not in FOREIGN), labels
        assert "default" in reached


def rule_test(
    document: Manifest, series: dict[str, str], expected: list[dict[str, Any]], directory: Path
) -> None:
    """Run the rendered rules over series; compare what ClickHouseDown is after 15 minutes."""
    (directory / "rules.yaml").write_text(yaml.safe_dump(document["spec"]))
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": "15m", "alertname": "ClickHouseDown", "exp_alerts": expected}
        ],
    }
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
    (directory / "down.yaml").write_text(yaml.safe_dump(file))
    assert "SUCCESS" in tool("promtool", "test", "rules", "down.yaml", directory=directory)


def down(**labels: str) -> list[dict[str, Any]]:
    """Return ClickHouseDown with these labels, firing once."""
    summary = "ClickHouse does not answer Prometheus."
    fixed = {"severity": "critical", "reason": "PING_FAILED"}
    return [{"exp_labels": fixed | labels, "exp_annotations": {"summary": summary}}]


@pytest.mark.parametrize("errors", [0, 1])
def test_clickhouse_is_down_if_altinitys_exporter_cannot_fetch(errors: int, tmp_path: Path) -> None:
    """The exporter itself goes on answering, in the operator's namespace."""
    (document,) = rendered("PrometheusRule", render.CHART / "ci" / "altinity-values.yaml")
    own = {"chi": "events", "fetch_type": "system.metrics", "exported_namespace": "clickhouse"}
    labels = ",".join(f'{k}="{v}"' for k, v in (own | {"namespace": "operator"}).items())
    series = {
        'up{job="clickhouse-operator-metrics",namespace="operator"}': "1x20",
        f"chi_clickhouse_metric_fetch_errors{{{labels}}}": f"{errors}x20",
    }
    rule_test(document, series, down(**own, namespace="clickhouse") if errors else [], tmp_path)


@pytest.mark.parametrize("job", ["clickhouse/byoc-agents-clickhouse", "analytics/db"])
def test_clickhouse_is_down_if_a_target_that_had_its_metrics_is(job: str, tmp_path: Path) -> None:
    """Whatever the job of another owner's exporter is called. `web` has none of ClickHouse's."""
    (document,) = rendered("PrometheusRule")
    labels = f'job="{job}",instance="10.0.0.1:9363",namespace="clickhouse"'
    series = {
        f"up{{{labels}}}": "1x5 0x20",
        f"ClickHouseMetrics_Query{{{labels}}}": "1x5 stale",
        'up{job="web",instance="10.0.0.2:80",namespace="clickhouse"}': "1x5 0x20",
    }
    expected = down(job=job, instance="10.0.0.1:9363", namespace="clickhouse")
    rule_test(document, series, expected, tmp_path)


def test_every_port_that_is_scraped_is_there() -> None:
    documents = render.manifests(ALERTS)
    ports = set(re.findall(r"'name': '([\w-]+)'", str([d for d in documents if "spec" in d])))
    monitors = rendered("PodMonitor")
    assert len(monitors) == 4
    for monitor in monitors:
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert endpoint["port"] in ports


def test_prometheus_sends_the_token_that_the_daemons_require() -> None:
    """The PodMonitors name the Secret that the daemons mount; ClickHouse's own has no token."""
    documents = render.manifests(ALERTS)
    for pod in pods(documents):
        for container in pod.ours:
            file = Path(environment(container)["BYOC_METRICS_TOKEN_FILE"])
            (mount,) = [m for m in container["volumeMounts"] if m["mountPath"] == str(file.parent)]
            (volume,) = [v for v in pod.spec["volumes"] if v["name"] == mount["name"]]
            assert volume["secret"]["secretName"] == "byoc-metrics"
            assert volume["secret"]["items"] == [{"key": "token", "path": file.name}]
    found = {
        monitor["metadata"]["name"]: endpoint.get("authorization")
        for monitor in rendered("PodMonitor")
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    }
    given = {"type": "Bearer", "credentials": {"name": "byoc-metrics", "key": "token"}}
    assert found.pop("byoc-agents-clickhouse") is None
    assert list(found.values()) == [given] * 3


def test_without_a_token_nothing_is_mounted_and_nothing_is_sent() -> None:
    documents = render.manifests(ALERTS, "--set", "monitoring.tokenSecret.name=")
    assert "byoc-metrics" not in str(documents)
    assert "BYOC_METRICS_TOKEN" not in str(documents)
    monitors = [one for one in documents if one["kind"] == "PodMonitor"]
    assert len(monitors) == 4
    assert "authorization" not in str(monitors)


def queries(board: dict[str, Any]) -> list[str]:
    """Return the expressions of all panels and variables."""
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    variables = board["templating"]["list"]
    return asked + [one["query"]["query"] for one in variables if isinstance(one["query"], dict)]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda one: one.stem)
def test_a_dashboard_asks_for_metrics_that_exist(file: Path) -> None:
    board = json.loads(file.read_text())
    asked = " ".join(queries(board))
    known = metrics_of_the_broker() if file.stem == "byoc-access" else known_metrics()
    assert set(re.findall(r"byoc_\w+", asked)) <= known
    assert board["uid"] == file.stem
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda one: one.stem)
def test_prometheus_can_read_every_query(file: Path, tmp_path: Path) -> None:
    """As recording rules, with Grafana's variables filled in."""
    asked = [one for one in queries(json.loads(file.read_text())) if "label_values" not in one]
    filled = [q.replace("$__rate_interval", "5m").replace("$namespace", ".*") for q in asked]
    group = {"name": "g", "rules": [{"record": f"q{n}", "expr": q} for n, q in enumerate(filled)]}
    (tmp_path / "board.yaml").write_text(yaml.safe_dump({"groups": [group]}))
    tool("promtool", "check", "rules", "board.yaml", directory=tmp_path)


def test_the_dashboards_leave_no_metric_of_the_daemons_out() -> None:
    asked = " ".join(q for file in DASHBOARDS for q in queries(json.loads(file.read_text())))
    asked_for = set(re.findall(r"byoc_\w+", asked))
    assert (known_metrics() | metrics_of_the_broker()) - asked_for == set()


def test_the_rules_ask_for_metrics_that_exist() -> None:
    for rule in rules("agents"):
        assert set(re.findall(r"byoc_\w+", rule["expr"])) <= known_metrics()
    for rule in rules("access"):
        assert set(re.findall(r"byoc_\w+", rule["expr"])) <= metrics_of_the_broker()


def test_the_brokers_rules_and_dashboard_are_installed_with_the_broker_only() -> None:
    values = render.CHART / "ci" / "access-values.yaml"
    for flags, there in (((), True), (("--set", "accessBroker.enabled=false"), False)):
        documents = render.manifests(values, *flags)
        (rule,) = [one for one in documents if one["kind"] == "PrometheusRule"]
        groups = {group["name"] for group in rule["spec"]["groups"]}
        boards = {
            name
            for one in documents
            if one["kind"] == "ConfigMap"
            for name in one["data"]
            if name.startswith("byoc-")
        }
        monitors = {one["metadata"]["name"] for one in documents if one["kind"] == "PodMonitor"}
        assert ("byoc-access" in groups) is there
        assert boards - {"byoc-access.json"} == {"byoc-agents.json", "byoc-clickhouse.json"}
        assert ("byoc-access.json" in boards) is there
        assert ("byoc-agents-access-broker" in monitors) is there


def test_no_alert_about_access_leaves_by_default() -> None:
    """They are about the vendor's engineers, and for the customer."""
    usual = AlertsSettings(
        url="https://a",
        token="t",
        signing_secret="s",
        webhook_token="w",
        fingerprint_secret="f",
        namespace="*",
    )
    selector = matchers.parse(usual.selected)
    for rule in rules("access"):
        assert not selector.matches(rule["labels"] | {"alertname": rule["alert"]})


def test_clickhouse_has_the_metrics_that_are_asked_for() -> None:
    """By the engine itself, but for the asynchronous ones, which it does not fill."""
    text = (RULES / "clickhouse.yaml").read_text() + "".join(f.read_text() for f in DASHBOARDS)
    asked = set(CLICKHOUSE.findall(text))
    code = (
        "import chdb; print(chdb.query('SELECT metric FROM system.metrics UNION ALL"
        " SELECT event FROM system.events SETTINGS system_events_show_zero_values = 1'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(install.chdb())},
        capture_output=True,
        text=True,
        check=True,
    )
    known = set(re.findall(r"\w+", done.stdout))
    assert {name for kind, name in asked if kind != "AsyncMetrics"} <= known
    assert {name for kind, name in asked if kind == "AsyncMetrics"} == ASYNCHRONOUS
