"""The chart's policies against `byoc-agents policy --check` in the environment it renders."""

import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from byoc_agents.policy import cli as policy_cli
from lab.real.chart import render
from lab.real.chart.pods import Pod, environment, pods
from lab.real.chart.render import Manifest

IDENTITY = {"irsa": "irsa", "podIdentity": "pod-identity", "secret": "environment"}
KINDS = {"networkpolicy": "NetworkPolicy", "cilium": "CiliumNetworkPolicy"}
# ClickHouse's own traffic, which no table of ours knows; the pods of `helm test` have none.
OTHERS = {"byoc-agents-clickhouse", "byoc-agents-test", "byoc-agents-access-broker-end"} | {
    f"byoc-agents-tailnet-{name}" for name in ("clickhouse", "kubernetes", "metrics", "nginx")
}


def _values(file: Path) -> dict[str, Any]:
    """Return the values that matter here, with the chart's defaults under them."""
    own = yaml.safe_load(file.read_text())
    usual = yaml.safe_load((render.CHART / "values.yaml").read_text())
    policy = usual["networkPolicy"] | own.get("networkPolicy", {})
    identity = own.get("aws", {}).get("identity", "irsa")
    return {"identity": identity, "policy": policy, "openshift": own.get("openshift", False)}


def _asked(kind: str, pod: Pod, container: dict[str, Any], file: Path) -> list[str]:
    """Return the arguments of `byoc-agents policy` that say what no environment knows."""
    given = _values(file)
    policy = given["policy"]
    flags = [f"--identity={IDENTITY[given['identity']]}"]
    who = ("prometheus", "alertmanager")
    flags += [f"--{one}={policy[one]['namespace']}/{policy[one]['label']}" for one in who]
    flags += [
        f"--cidr={name}={cidr}" for name, all_of in policy["cidrs"].items() for cidr in all_of
    ]
    flags += [f"--dns={cidr}" for cidr in policy["dns"]]
    flags += ["--dns=openshift"] if given["openshift"] else []
    flags += [f"--family={policy['family']}"]
    ours = ("byoc-agents/", "app.kubernetes.io/")  # a policy selects by these, not by podLabels
    labels = {name: value for name, value in pod.labels.items() if name.startswith(ours)}
    flags += [f"--pod={name}={value}" for name, value in labels.items()]
    return [kind, *container["args"][1:], *flags]


class Policy:
    """`byoc-agents policy` in the environment of a rendered container."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, printed: pytest.CaptureFixture[str], directory: Path
    ) -> None:
        self._patch, self._printed, self._manifest = monkeypatch, printed, directory / "policy.yaml"

    def __call__(self, asked: list[str], container: dict[str, Any]) -> tuple[int, str]:
        """Return (exit code, standard output)."""
        with self._patch.context() as patch:
            for name in [one for one in os.environ if one.startswith(("BYOC_", "AWS_"))]:
                patch.delenv(name)
            for name, value in environment(container).items():
                patch.setenv(name, value)
            code = policy_cli.main(asked)
        return code, self._printed.readouterr().out

    def check(
        self, asked: list[str], container: dict[str, Any], document: Manifest
    ) -> tuple[int, str]:
        """Compare a manifest with the table. Helm's `-n` puts it into its namespace."""
        placed = document | {"metadata": document["metadata"] | {"namespace": "clickhouse"}}
        self._manifest.write_text(yaml.safe_dump(placed))
        flags = ["--namespace=clickhouse", f"--check={self._manifest}"]
        return self([*asked, *flags], container)


@pytest.fixture
def policy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Policy:
    return Policy(monkeypatch, capsys, tmp_path)


def _policies(documents: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", render.CI, ids=render.name)
def test_no_policy_says_more_or_less_than_the_table(
    values: Path, kind: str, policy: Policy
) -> None:
    """Each container's policy, and nothing but them."""
    documents = render.manifests(values)
    left = _policies(documents, KINDS[kind])
    wanted = kind == "networkpolicy" or _values(values)["policy"]["cilium"]
    for pod in pods(documents):
        broker = [one for one in pod.spec["containers"] if one["name"] == "access-broker"]
        for container in (*pod.ours, *broker) if wanted else ():
            document = left.pop(f"byoc-agents-{container['name']}")
            asked = _asked(kind, pod, container, values)
            assert policy.check(asked, container, document) == (0, "")
    assert set(left) <= OTHERS


def test_a_rule_too_much_is_noticed(policy: Policy) -> None:
    """The check above can fail."""
    values = render.CHART / "ci" / "default-values.yaml"
    documents = render.manifests(values)
    (pod,) = [one for one in pods(documents) if one.with_clickhouse]
    scraper = pod.ours[0]
    document = _policies(documents, "NetworkPolicy")["byoc-agents-billing-scraper"]
    document["spec"]["egress"].append({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]})
    code, said = policy.check(_asked("networkpolicy", pod, scraper, values), scraper, document)
    assert code == 1
    assert "10.0.0.0/8" in said


def test_another_owners_pods_are_left_alone_unless_asked() -> None:
    """Selecting ClickHouse's pods denies them all that no other policy allows."""
    for called, wanted in (("bitnami", False), ("altinity", True), ("default", True)):
        documents = render.manifests(render.CHART / "ci" / f"{called}-values.yaml")
        selectors = [
            str(one["spec"]["podSelector"])
            for one in _policies(documents, "NetworkPolicy").values()
        ]
        assert any("byoc-agents/sidecars" in one for one in selectors) == wanted


def test_the_values_of_the_installation_page_hold_the_sidecars(tmp_path: Path) -> None:
    page = (render.CHART.parents[1] / "docs" / "install-kubernetes.md").read_text()
    values = tmp_path / "values.yaml"
    values.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    policies = _policies(render.manifests(values), "NetworkPolicy")
    for daemon in ("billing-scraper", "state-exporter"):
        spec = policies[f"byoc-agents-{daemon}"]["spec"]
        assert "byoc-agents/sidecars" in spec["podSelector"]["matchLabels"]
        assert "Egress" in spec["policyTypes"]
    assert "0.0.0.0/0" not in str(policies)


def test_every_address_is_allowed_only_if_asked_for() -> None:
    """Without `wide` each rule to a host outside the cluster has the addresses of the values."""
    for values in render.CI:
        wide = _values(values)["policy"].get("wide", False)
        documents = render.manifests(values)
        policies = _policies(documents, "NetworkPolicy").values()
        anywhere = [cidr for cidr in ("0.0.0.0/0", "::/0") if f"'{cidr}'" in str(list(policies))]
        assert bool(anywhere) == wide
    values = render.CHART / "ci" / "default-values.yaml"
    wide_flags = ("--set", "networkPolicy.wide=true,networkPolicy.cidrs=null")
    documents = render.manifests(values, *wide_flags)
    scraper = _policies(documents, "NetworkPolicy")["byoc-agents-billing-scraper"]
    assert "0.0.0.0/0" in str(scraper)


def test_cilium_alone_needs_no_addresses() -> None:
    values = render.CHART / "ci" / "closed-network-values.yaml"
    flags = ("--set", "networkPolicy.enabled=false,networkPolicy.cidrs=null")
    documents = render.manifests(values, *flags)
    assert set(_policies(documents, "NetworkPolicy")) == {"byoc-agents-clickhouse"}, (
        "its own traffic"
    )
    policies = _policies(documents, "CiliumNetworkPolicy")
    assert "toFQDNs" in str(policies["byoc-agents-billing-scraper"])


def test_clickhouse_of_the_chart_asks_no_host_although_its_pod_may() -> None:
    """The sidecars' rules select its pod, so ClickHouse itself refuses every host."""
    documents = render.manifests(render.CHART / "ci" / "default-values.yaml")
    (settings,) = [d["data"] for d in documents if "server.xml" in d.get("data", {})]
    server = ET.fromstring(settings["server.xml"])
    hosts = server.find("remote_url_allow_hosts")
    assert hosts is not None
    assert list(hosts) == []


def test_the_mesh_lets_out_the_same_hosts(policy: Policy) -> None:
    """ServiceEntries and Sidecars name the hosts of the table, and nothing else is reachable."""
    values = render.CHART / "ci" / "mesh-operator-values.yaml"
    documents = render.manifests(values)
    entries = [d["spec"] for d in documents if d["kind"] == "ServiceEntry"]
    hosts = {host for one in entries for host in one["hosts"]}
    table = set()
    for pod in pods(documents):
        for container in pod.ours:
            _, said = policy(_asked("table", pod, container, values), container)
            table |= set(re.findall(r"^(\S+\.\S+) +443 ", said, re.MULTILINE))
    assert hosts == table
    sidecars = [d["spec"] for d in documents if d["kind"] == "Sidecar"]
    reachable = {host for one in sidecars for host in one["egress"][0]["hosts"]}
    assert reachable == {"istio-system/*", *(f"./{host}" for host in hosts)}
    assert len(sidecars) == 3


def test_the_mesh_leaves_the_pages_and_the_nodes_agent_alone() -> None:
    for pod in pods(render.manifests(render.CHART / "ci" / "mesh-operator-values.yaml")):
        ports = {environment(one)["BYOC_LISTEN"].rpartition(":")[2] for one in pod.ours}
        excluded = pod.annotations["traffic.sidecar.istio.io/excludeInboundPorts"]
        assert set(excluded.split(",")) == ports
        outside = pod.annotations.get("traffic.sidecar.istio.io/excludeOutboundIPRanges")
        assert outside == ("169.254.170.23/32" if pod.with_clickhouse else None)
