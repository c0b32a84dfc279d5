"""Would a cluster admit the pods, and let ClickHouse talk: Pod Security, OpenShift, policies."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.real.chart import render
from lab.real.chart.altinity_operator import (
    RELEASES,
    build_pod_spec,
    find_password_hash,
    find_problems,
)
from lab.real.chart.pods import environment, pods, printed_pod
from lab.real.chart.render import Manifest

CI, ALTINITY = render.CHART / "ci", render.CHART / "examples" / "altinity"
EVERY = [*render.CI, *render.EXAMPLES]
NAMES = [f"{one.parent.name}-{render.name(one)}" for one in EVERY]
NATIVE = ("0.24.5", "0.25.6")
# https://kubernetes.io/docs/concepts/security/pod-security-standards/, profile restricted.
VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
    *("projected", "secret"),
}


def chit(*flags: str, values: Path = ALTINITY / "values.yaml") -> Manifest:
    """Return the template that the chart renders for Altinity's operator."""
    documents = render.manifests(values, *flags)
    (found,) = [d for d in documents if d["kind"] == "ClickHouseInstallationTemplate"]
    return found


def chi() -> Manifest:
    """Return the example's installation."""
    found: Manifest = yaml.safe_load((ALTINITY / "chi.yaml").read_text())
    return found


def specs(values: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (owner, spec) of each pod of the chart, of `helm test` and of the operator."""
    documents = render.manifests(values)
    found = [(one.owner, one.spec) for one in pods(documents)]
    found += [(f"Pod/{d['metadata']['name']}", d["spec"]) for d in documents if d["kind"] == "Pod"]
    if "owner: bitnami" in values.read_text():
        spec = printed_pod(values).spec  # ClickHouse's own container is that chart's
        found.append(("printed", spec | {"containers": spec["containers"][1:]}))
    altinity = [i for i, (owner, _) in enumerate(found) if "InstallationTemplate" in owner]
    for index in altinity:
        found[index] = ("altinity", build_pod_spec(chit(values=values), chi(), "0.25.6")[0])
    return found


def find_violations(spec: dict[str, Any]) -> list[str]:
    """Return what the profile `restricted` forbids in a pod."""
    pod = spec.get("securityContext", {})
    found = [f"{k}" for k in ("hostNetwork", "hostPID", "hostIPC") if spec.get(k)]
    for volume in spec.get("volumes", []):
        found += [f"volume {kind}" for kind in volume if kind not in {"name", *VOLUMES}]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        own = pod | container.get("securityContext", {})
        rules = {
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities", {}).get("drop") == ["ALL"]
            and not own.get("capabilities", {}).get("add"),
            "runAsNonRoot": own.get("runAsNonRoot") is True,
            "runAsUser": own.get("runAsUser") != 0,
            "seccompProfile": own.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "hostPort": not [p for p in container.get("ports", []) if "hostPort" in p],
        }
        found += [f"{container['name']}: {name}" for name, kept in rules.items() if not kept]
    return found


@pytest.mark.parametrize("values", EVERY, ids=NAMES)
def test_pod_security_restricted_admits_every_pod(values: Path) -> None:
    found = specs(values)
    assert found
    for owner, spec in found:
        assert find_violations(spec) == [], owner


def test_a_pod_that_is_not_restricted_is_noticed() -> None:
    """The check above can fail."""
    (_, spec), *_ = specs(CI / "default-values.yaml")
    loose = spec | {"containers": [{"name": "a"}], "hostPID": True}
    assert "a: capabilities" in find_violations(loose)
    assert "hostPID" in find_violations(loose)


def test_restricted_forbids_the_container_of_the_egress_rules_and_no_other() -> None:
    """It loads rules as root, so it is off unless it is asked for."""
    rules = "enabled=true,image=registry.example.com/nft:1,dns[0]=10.96.0.10/32"
    flags = ",".join(f"sidecars.egressRules.{one}" for one in rules.split(","))
    documents = render.manifests(CI / "default-values.yaml", "--set", flags)
    found = [problem for one in pods(documents) for problem in find_violations(one.spec)]
    forbidden = ("capabilities", "runAsNonRoot", "runAsUser")
    assert found == [f"byoc-egress-rules: {one}" for one in forbidden]


def test_openshifts_restricted_v2_sets_the_ids_itself() -> None:
    """Its range is the namespace's: a uid, gid or fsGroup of the chart's would be refused."""
    for owner, spec in specs(CI / "openshift-values.yaml"):
        for key in ("runAsUser", "runAsGroup", "fsGroup"):
            assert f"'{key}':" not in str(spec), owner
        assert find_violations(spec) == []
    documents = render.manifests(CI / "openshift-values.yaml")
    policies = [d for d in documents if d["kind"] == "NetworkPolicy"]
    asking = [d for d in policies if "dns" in str(d["spec"])]
    assert asking
    assert all("5353" in str(d) and "'port': 53}" not in str(d) for d in asking)


def test_a_cluster_of_ipv6_asks_its_own_agent_and_no_address_of_ipv4() -> None:
    documents = render.manifests(CI / "ipv6-values.yaml")
    text = str([d for d in documents if "Policy" in d["kind"]])
    assert "fd00:ec2::23/128" in text
    assert "::/0" in text
    assert "0.0.0.0" not in text
    assert "169.254." not in text
    (pod,) = [one for one in pods(documents) if one.with_clickhouse]
    outside = pod.annotations["traffic.sidecar.istio.io/excludeOutboundIPRanges"]
    assert outside == "fd00:ec2::23/128"
    for pod in pods(documents):
        hosts = {environment(one)["BYOC_LISTEN"].rpartition(":")[0] for one in pod.ours}
        assert hosts == {"[::]"}
    services = [d["spec"] for d in documents if d["kind"] == "Service"]
    assert not [one for one in services if "ipFamilies" in one], "the cluster's own default"


def test_dual_stack_lets_out_both_families() -> None:
    text = str([d for d in render.manifests(CI / "openshift-values.yaml") if "Policy" in d["kind"]])
    assert "'0.0.0.0/0'" in text
    assert "'::/0'" in text


def allowed(
    policies: list[dict[str, Any]], direction: str, peer: dict[str, Any], port: int
) -> bool:
    """Return whether any policy of a pod allows a connection with a peer.

    `peer` has `labels`, `namespace` (of ClickHouse's own: clickhouse) or nothing for an address.
    """
    end = {"ingress": "from", "egress": "to"}[direction]
    for policy in policies:
        for rule in policy.get(direction) or []:
            ports = [one["port"] for one in rule.get("ports", [])]
            if ports and port not in ports:
                continue
            if any(_matches(one, peer) for one in rule.get(end, [])):
                return True
    return False


def _matches(rule: dict[str, Any], peer: dict[str, Any]) -> bool:
    if "ipBlock" in rule or not peer:
        return False
    namespaces = rule.get("namespaceSelector")
    wanted = (namespaces or {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
    here = peer["namespace"] == (render.NAMESPACE if namespaces is None else wanted)
    labels = rule.get("podSelector", {}).get("matchLabels", {})
    return (here or namespaces == {}) and labels.items() <= peer["labels"].items()


REPLICA = {"namespace": "clickhouse", "labels": {"byoc-agents/sidecars": "byoc-agents"}}
CLIENT = {"namespace": "clickhouse", "labels": {"app": "web"}}
OPERATOR = {"namespace": "kube-system", "labels": {"app": "clickhouse-operator"}}
STRANGER = {"namespace": "elsewhere", "labels": {}}
# (direction, peer, port, whether ClickHouse needs it)
TRAFFIC = [
    ("ingress", CLIENT, 8123, True),
    ("ingress", CLIENT, 9000, True),
    ("ingress", REPLICA, 9000, True),
    ("ingress", REPLICA, 9009, True),
    ("ingress", OPERATOR, 8123, True),
    ("egress", REPLICA, 9000, True),
    ("egress", REPLICA, 9009, True),
    ("egress", CLIENT | {"labels": {"app": "keeper"}}, 2181, True),
    ("egress", {"namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}, 53, True),
    ("ingress", STRANGER, 8123, False),
    ("ingress", CLIENT, 9009, False),
    ("ingress", STRANGER, 9464, False),
    ("egress", STRANGER, 9000, False),
    ("egress", OPERATOR, 8123, False),
]


@pytest.mark.parametrize("values", [ALTINITY / "values.yaml", CI / "altinity-values.yaml"])
@pytest.mark.parametrize(("direction", "peer", "port", "needed"), TRAFFIC)
def test_the_altinity_example_does_not_cut_clickhouse_off(
    values: Path, direction: str, peer: dict[str, Any], port: int, needed: bool
) -> None:
    """By all policies that select its pods: they add up."""
    documents = render.manifests(values)
    (labels,) = [one.labels for one in pods(documents) if one.with_clickhouse]
    policies = [
        d["spec"]
        for d in documents
        if d["kind"] == "NetworkPolicy"
        and d["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    ]
    assert len(policies) == 3
    assert allowed(policies, direction, peer, port) == needed


def test_bitnamis_own_policy_lets_prometheus_in() -> None:
    """It is on by default and opens ClickHouse's ports only."""
    printed = yaml.safe_load(render.printed(CI / "bitnami-values.yaml"))
    rules = printed["networkPolicy"]["extraIngress"]
    assert [p["port"] for rule in rules for p in rule["ports"]] == [9464, 9465]
    assert all("monitoring" in str(rule["from"]) for rule in rules)


@pytest.mark.parametrize("release", NATIVE)
def test_altinitys_operator_starts_clickhouse_with_native_sidecars(release: str) -> None:
    """With a claim, and with the installation's own image, resources and mounts."""
    spec, claims = build_pod_spec(chit(), chi(), release)
    assert find_problems(spec, claims) == []
    assert claims == ["data", "byoc-spool"]
    (clickhouse,) = spec["containers"]
    (own,) = chi()["spec"]["templates"]["podTemplates"]
    (given,) = own["spec"]["containers"]
    for key in ("name", "image", "resources", "volumeMounts"):
        assert clickhouse[key] == given[key]
    names = [mount["name"] for one in spec["initContainers"] for mount in one["volumeMounts"]]
    assert "data" not in names, "a sidecar must not have ClickHouse's files"
    assert spec["securityContext"]["fsGroup"] == 101, "the mode 0440 of secrets needs it"


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("kind", ["claim", "emptyDir"])
def test_plain_containers_start_with_every_release(release: str, kind: str) -> None:
    flags = ("--set", f"sidecars.native=never,sidecars.spool.kind={kind}")
    installation = chi()
    if kind == "emptyDir":
        (template,) = installation["spec"]["templates"]["podTemplates"]
        template["spec"]["containers"][0]["volumeMounts"].pop()
    spec, claims = build_pod_spec(chit(*flags), installation, release)
    assert find_problems(spec, claims) == []


def test_what_the_documentation_warns_of_does_not_start() -> None:
    """Old releases, a claim that ClickHouse's container does not mount, an image of nobody."""
    old = find_problems(*build_pod_spec(chit(), chi(), "0.24.4"))
    assert "billing-scraper: an init container that never ends" in old
    unmounted = chi()
    (template,) = unmounted["spec"]["templates"]["podTemplates"]
    template["spec"]["containers"][0]["volumeMounts"].pop()
    assert "billing-scraper: no volume byoc-spool" in find_problems(
        *build_pod_spec(chit(), unmounted, "0.25.6")
    )
    del template["spec"]["containers"][0]["image"]
    assert "clickhouse: no image" in find_problems(*build_pod_spec(chit(), unmounted, "0.25.6"))
    mixed = chi()
    (template,) = mixed["spec"]["templates"]["podTemplates"]
    template["spec"]["volumes"] = [{"name": "own", "configMap": {"name": "own"}}]
    assert find_problems(*build_pod_spec(chit(), mixed, "0.25.6"))


def test_an_operator_that_accepts_no_containers_needs_none() -> None:
    """ClickHouse, Inc.'s: PodTemplateSpec of clickhouse-operator v0.0.2 has no containers."""
    values = CI / "replicas-values.yaml"
    settings = (
        "stateExporter.enabled=true,stateExporter.placement=deployment",
        "stateExporter.queueUrl=https://sqs.eu-central-1.amazonaws.com/444455556666/s.fifo",
        "stateExporter.servers.a=https://a.clickhouse.svc:8443,networkPolicy.cidrs.sqs[0]=10.0.4.0/24",
    )
    flags = [argument for one in settings for argument in ("--set", one)]
    found = list(pods(render.manifests(values, *flags)))
    assert {one.owner.split("/")[0] for one in found} == {"Deployment"}
    assert not [one for one in found if one.with_clickhouse]


def test_the_exporters_user_has_the_password_that_the_exporter_sends() -> None:
    """None. For an empty `password` the operator sets its default one."""
    users = chi()["spec"]["configuration"]["users"]
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert find_password_hash("byoc_state_exporter", users) == nothing
    assert find_password_hash("a", {"a/password": ""}) != nothing
    (pod,) = [
        one for one in pods(render.manifests(ALTINITY / "values.yaml")) if one.with_clickhouse
    ]
    sent = [environment(one) for one in pod.ours]
    assert not [one for one in sent if "BYOC_CLICKHOUSE_PASSWORD_FILE" in one]
