"""What the rendered policies open for ClickHouse's container, over all owners and placements."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.real.chart import render
from lab.real.chart.pods import pods
from lab.real.parts import helm

CIDRS = {name: ["192.0.2.0/24"] for name in ("s3", "sqs", "sts", "control-plane")}
# ClickHouse's own traffic, which the customer names with or without the agents.
OWN = {
    "to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}],
    "ports": [{"protocol": "TCP", "port": 443}],
}
SERVERS = {"a": "https://a.clickhouse.svc:8443"}
PLACEMENTS = {
    "sidecars": ("sidecar", "sidecar"),
    "one-sidecar": ("deployment", "sidecar"),
    "deployments": ("deployment", "deployment"),
}
KINDS = {  # which policies are enabled
    "none": {"enabled": False, "cilium": False},
    "networkpolicy": {"enabled": True, "cilium": False},
    "cilium": {"enabled": False, "cilium": True},
    "both": {"enabled": True, "cilium": True},
}
OWNERS = ("chart", "altinity", "bitnami", "other")
REASON = "networkPolicy.selectClickHouse: is required for clickhouse.owner chart with sidecars"


def write_values(
    file: Path, owner: str, placement: str, kind: str, *, rules: bool, select: bool
) -> None:
    scraper, exporter = PLACEMENTS[placement]
    values: dict[str, Any] = {
        "organizationId": "org-1",
        "serviceId": "svc-1",
        "region": "eu-central-1",
        "aws": {"roleArn": "arn:aws:iam::111122223333:role/byoc-agents"},
        "clickhouse": {"owner": owner, "allowTo": [OWN]},
        "billingScraper": {
            "bucket": "vendor-usage",
            "placement": scraper,
            "meter": "clickhouse",
            "servers": SERVERS if scraper == "deployment" else {},
        },
        "stateExporter": {
            "queueUrl": "https://sqs.eu-central-1.amazonaws.com/444455556666/state.fifo",
            "placement": exporter,
            "servers": SERVERS if exporter == "deployment" else {},
        },
        "alertForwarder": {"url": "https://control.example.com/v1", "secretName": "byoc-alerts"},
        "networkPolicy": {"cidrs": CIDRS, **KINDS[kind], "selectClickHouse": select},
    }
    if owner == "altinity":
        values["clickhouse"]["serviceAccountName"] = "clickhouse"
    if rules:
        values["sidecars"] = {
            "egressRules": {"enabled": True, "image": "nft:1", "dns": ["10.96.0.10/32"]}
        }
    file.write_text(yaml.safe_dump(values))


def rules_of_clickhouse(documents: list[dict[str, Any]]) -> tuple[list[str], list[Any]]:
    """Return the names of the policies that select ClickHouse's pod, and their egress."""
    labels = {"byoc-agents/sidecars": "byoc-agents"}  # what the owner of other pods has to add
    for pod in pods(documents):
        if pod.with_clickhouse:
            labels = pod.labels
    names, rules = [], []
    for one in documents:
        if one["kind"] not in {"NetworkPolicy", "CiliumNetworkPolicy"}:
            continue
        selector = one["spec"].get("podSelector") or one["spec"].get("endpointSelector") or {}
        assert set(selector) <= {"matchLabels"}
        if selector.get("matchLabels", {}).items() <= labels.items():
            names.append(one["metadata"]["name"])
            rules += one["spec"]["egress"]
    return names, rules


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("owner", OWNERS)
def test_nothing_is_open_for_clickhouse_unless_a_value_permits_it(
    owner: str, placement: str, tmp_path: Path
) -> None:
    """A case is refused with its reason, permitted by a value, or opens nothing for ClickHouse."""
    values = tmp_path / "values.yaml"
    for kind, rules, select in itertools.product(KINDS, (False, True), (False, True)):
        if rules and placement == "deployments":
            continue  # refused: no daemon is a sidecar
        write_values(values, owner, placement, kind, rules=rules, select=select)
        done = render.run(
            *(helm.VERSIONS[0], "template", "byoc-agents", str(render.CHART), "-f", str(values)),
            *("--kube-version", render.NEW),
        )
        case = (owner, placement, kind, rules, select)
        policy = kind != "none"
        sidecars = placement != "deployments"
        refused = owner == "chart" and sidecars and policy and not rules and not select
        assert (done.returncode != 0) == refused, (case, done.stderr)
        if refused:
            assert REASON in done.stderr, case
            continue
        documents = [one for one in yaml.safe_load_all(done.stdout) if one]
        names, opened = rules_of_clickhouse(documents)
        beyond = [rule for rule in opened if rule != OWN]
        loaded = rules and ("byoc-egress-rules" in done.stdout or owner in {"bitnami", "other"})
        assert loaded == rules, case
        if not (select or rules):
            assert beyond == [], case
        # The policies are there where they are expected: the assertion above can fail.
        selects = policy and (owner == "chart" or select)
        assert bool(names) == selects, case
        assert bool(beyond) == (selects and (sidecars or owner != "chart")), case


def test_each_choice_renders_and_the_refusal_names_it(tmp_path: Path) -> None:
    values = render.CHART / "ci" / "default-values.yaml"
    alone = ("--set", "networkPolicy.selectClickHouse=false")
    done = render.run(
        helm.VERSIONS[0], "template", "x", str(render.CHART), "-f", str(values), *alone
    )
    assert f"{REASON} (billing-scraper, state-exporter)" in done.stderr
    for choice in ("expected true", "sidecars.egressRules.enabled: true", "placement: deployment"):
        assert choice in done.stderr
    for kind in ("networkpolicy", "cilium"):
        for placement, rules, select in (
            ("sidecars", False, True),
            ("sidecars", True, False),
            ("deployments", False, False),
        ):
            chosen = tmp_path / f"{kind}-{placement}-{rules}.yaml"
            write_values(chosen, "chart", placement, kind, rules=rules, select=select)
            assert render.manifests(chosen)


def test_the_ingress_of_the_charts_clickhouse_stays_restricted_without_sidecars(
    tmp_path: Path,
) -> None:
    values = tmp_path / "values.yaml"
    write_values(values, "chart", "deployments", "networkpolicy", rules=False, select=False)
    (policy,) = [
        one
        for one in render.manifests(values)
        if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "byoc-agents-clickhouse"
    ]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    ports = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert sorted(ports) == [8123, 9000, 9363]
    assert policy["spec"]["egress"] == [OWN]
