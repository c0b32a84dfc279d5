"""The optional objects of the chart for access: the ingress and the engineers' ClusterRole."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

from byoc_agents.app.cli import main
from byoc_agents.app.run import configure
from byoc_agents.policy import ingress
from lab.real.chart import render
from lab.real.chart.render import CI, Manifest
from lab.real.parts import helm, install, manifests

DEFAULT = CI[[render.name(one) for one in CI].index("default")]
ON = (
    *("--set", "ingress.enabled=true", "--set", "ingress.hosts={ch.svc-1.example.com}"),
    *("--set", "ingress.allowFrom={203.0.113.0/24}", "--set", "ingress.issuer.name=letsencrypt"),
)
PRIVATE = (*ON, "--set", "ingress.variant=private")
SUPPORT = ("--set", "supportView.enabled=true")
OURS = {"Service", "Certificate", "Gateway", "VirtualService", "AuthorizationPolicy"}


def added(*flags: str, version: str = helm.VERSIONS[0]) -> list[Manifest]:
    """Return the documents that the flags add to a render."""
    without = render.manifests(DEFAULT, version=version)
    return [one for one in render.manifests(DEFAULT, *flags, version=version) if one not in without]


@pytest.mark.parametrize("version", helm.VERSIONS)
@pytest.mark.parametrize("flags", [ON, PRIVATE], ids=["public", "private"])
def test_the_check_accepts_the_ingress(
    version: str, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = added(*flags, version=version)
    assert {one["kind"] for one in made} == OURS
    file = tmp_path / "rendered.yaml"
    file.write_text(render.text(DEFAULT, *flags, version=version))
    assert (main(["policy", "ingress", "--check", str(file)]), capsys.readouterr().out) == (0, "")


def test_a_render_without_the_filters_is_not_accepted() -> None:
    made = added(*ON)
    service = next(one for one in made if one["kind"] == "Service")
    del service["spec"]["loadBalancerSourceRanges"]
    assert len(ingress.judge(made)) == 1
    assert len(ingress.judge([one for one in made if one["kind"] != "AuthorizationPolicy"])) == 2


def test_the_variants_differ_in_the_scheme_alone() -> None:
    public, private = ({one["kind"]: one for one in added(*flags)} for flags in (ON, PRIVATE))
    name = "service.beta.kubernetes.io/aws-load-balancer-scheme"
    notes = (
        public["Service"]["metadata"]["annotations"],
        private["Service"]["metadata"]["annotations"],
    )
    assert [one.pop(name) for one in notes] == ["internet-facing", "internal"]
    assert public == private


def test_every_other_object_is_the_same_with_and_without() -> None:
    """With all off, the golden renders of the chart show that nothing changed."""
    without = render.manifests(DEFAULT)
    assert [one for one in without if one not in render.manifests(DEFAULT, *ON, *SUPPORT)] == []
    for values in CI:
        text = render.text(values)
        assert "LoadBalancer" not in text
        assert "byoc-support-view" not in text
        assert "-ingress" not in text


REFUSED = {
    "ingress.hosts: is required": {"hosts": []},
    "ingress.allowFrom: is required": {"allowFrom": []},
    "ingress.issuer.name: is required": {"issuer": {"name": ""}},
    "ingress.clickhouseHost: is required": {"owner": "other"},
    "ingress.allowFrom": {"allowFrom": ["0.0.0.0/0"]},
    "ingress.variant": {"variant": "open"},
}


@pytest.mark.parametrize(("text", "changes"), REFUSED.items(), ids=REFUSED)
def test_a_value_that_opens_too_much_or_is_missing_is_refused(
    text: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    usual: dict[str, Any] = {
        "enabled": True,
        "hosts": ["ch.svc-1.example.com"],
        "allowFrom": ["203.0.113.0/24"],
        "issuer": {"name": "letsencrypt"},
    }
    owner = changes.get("owner", "chart")
    given = usual | {name: value for name, value in changes.items() if name != "owner"}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"ingress": given, "clickhouse": {"owner": owner}}))
    where = [str(render.CHART), "-f", str(DEFAULT), "-f", str(file)]
    done = render.run(helm.VERSIONS[0], "template", "x", *where)
    assert done.returncode != 0
    assert text in done.stderr


# --- the schemas of Istio and cert-manager ---


def schema(document: Manifest) -> dict[str, Any] | None:
    """Return the projects' own schema of a document, closed: an unknown field fails."""
    group, _, version = document["apiVersion"].partition("/")
    for file in install.resource_definitions():
        for definition in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader):
            spec: dict[str, Any] = definition["spec"] if definition else {"group": ""}
            if spec["group"] == group and spec["names"]["kind"] == document["kind"]:
                (one,) = (one for one in spec["versions"] if one["name"] == version)
                found: dict[str, Any] = close(one["schema"]["openAPIV3Schema"])
                found["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
                return found
    return None


def close(node: Any) -> Any:
    if isinstance(node, list):
        return [close(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: close(value) for key, value in node.items()}
    preserved = node.get("x-kubernetes-preserve-unknown-fields")
    if node.get("type") == "object" and "properties" in node and not preserved:
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("kind", sorted(OURS - {"Service"}))
def test_the_projects_own_schema_knows_every_field(kind: str) -> None:
    (document,) = (one for one in added(*ON) if one["kind"] == kind)
    known = schema(document)
    assert known
    assert [error.message for error in Draft7Validator(known).iter_errors(document)] == []
    misspelled = copy.deepcopy(document)
    misspelled["spec"]["selecter"] = {}
    assert not Draft7Validator(known).is_valid(misspelled)


def test_kubernetes_knows_every_field_of_the_rest() -> None:
    own = {"Service", "ClusterRole", "ClusterRoleBinding"}
    documents = [one for one in added(*ON, *SUPPORT) if one["kind"] in own]
    assert {one["kind"] for one in documents} == own
    assert manifests.mistakes([("1.29.0", one) for one in documents]) == ["", "", ""]


# --- the ClusterRole ---

FORBIDDEN = {
    *("secrets", "configmaps", "pods/exec", "pods/attach", "pods/log", "pods/portforward"),
    *("pods/proxy", "nodes/proxy", "services/proxy", "serviceaccounts/token", "users", "groups"),
    *("serviceaccounts", "roles", "clusterroles", "rolebindings", "clusterrolebindings"),
}


def test_the_engineers_role_reads_health_and_nothing_that_holds_a_secret() -> None:
    role, binding = added(*SUPPORT)
    assert (role["kind"], binding["kind"]) == ("ClusterRole", "ClusterRoleBinding")
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}, "no URL and no name"
        assert set(rule["verbs"]) <= {"get", "list", "watch"}
        assert not FORBIDDEN & set(rule["resources"])
        assert all("*" not in one and "/" not in one for one in rule["resources"])
        assert "*" not in rule["apiGroups"]
    read = {name for rule in role["rules"] for name in rule["resources"]}
    assert read >= {"nodes", "pods", "events", "persistentvolumeclaims", "volumeattachments"}
    assert "aggregationRule" not in role
    assert not any("aggregate-to" in label for label in role["metadata"]["labels"])
    assert binding["subjects"] == [
        {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "byoc-support-view"}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"] == "byoc-support-view"


# The access broker.

BROKER = """
accessBroker:
  enabled: true
  image: registry.example.com/byoc-agents-access:1
  servers: {r0: "https://ch-0.shop.svc:8443", r1: "https://ch-1.shop.svc:8443"}
  eventsUrl: https://control.example.com/v1/events
  requestsUrl: https://control.example.com/v1/access
  secretName: broker
  caSecretName: broker-ca
  policy: |
    version: 1
"""


@pytest.fixture
def broker(tmp_path: Path) -> tuple[str, ...]:
    file = tmp_path / "broker.yaml"
    file.write_text(BROKER)
    return ("-f", str(file))


@pytest.mark.parametrize("version", helm.VERSIONS)
def test_the_broker_adds_its_own_objects_and_changes_no_other(
    version: str, broker: tuple[str, ...]
) -> None:
    before = render.manifests(DEFAULT, version=version)
    after = render.manifests(DEFAULT, *broker, version=version)
    made = [one for one in after if one not in before]
    assert [one for one in before if one not in after] == []
    assert sorted(one["kind"] for one in made) == [
        *("ConfigMap", "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "ServiceAccount")
    ]
    assert {one["metadata"]["name"].endswith("-access-broker") for one in made} == {True}


def deployment(broker: tuple[str, ...]) -> Manifest:
    return next(one for one in added(*broker) if one["kind"] == "Deployment")


def test_the_broker_has_no_rights_and_no_token_in_the_cluster(broker: tuple[str, ...]) -> None:
    pod = deployment(broker)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not any("subPath" in mount for mount in container["volumeMounts"])
    assert "hostNetwork" not in pod


def test_the_program_accepts_the_settings_of_its_container(
    broker: tuple[str, ...], tmp_path: Path
) -> None:
    """The files of the Secret are other ones here; every other setting is as rendered."""
    (container,) = deployment(broker)["spec"]["template"]["spec"]["containers"]
    environ = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    for name, text in (
        ("PASSWORD", "x"),
        ("TOKEN", "token"),
        ("SIGNING_SECRET", "whsec_" + "c2VjcmV0" * 5),
    ):
        file = tmp_path / name
        file.write_text(text)
        environ[f"BYOC_ACCESS_{name}_FILE"] = str(file)
    found = configure(container["args"][1:], environ)
    assert {(d.host, d.port) for d in found.destinations} == {
        *(("ch-0.shop.svc", 8443), ("ch-1.shop.svc", 8443), ("control.example.com", 443))
    }
    policy = next(one for one in added(*broker) if one["kind"] == "NetworkPolicy")
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 8443}
    (comer,) = policy["spec"]["ingress"]
    assert [port["port"] for port in comer["ports"]] == [container["ports"][0]["containerPort"]]


def test_the_kill_switch_is_on_until_a_person_sets_it_off(broker: tuple[str, ...]) -> None:
    for flags, text in (((), "on"), (("--set-string", "accessBroker.killSwitch=off"), "off")):
        found = next(one for one in added(*broker, *flags) if one["kind"] == "ConfigMap")
        assert found["data"]["kill-switch"] == text
        assert found["data"]["policy.yaml"] == "version: 1\n"


@pytest.mark.parametrize("field", ["image", "policy", "secretName", "caSecretName", "eventsUrl"])
def test_a_broker_without_a_required_value_is_refused(broker: tuple[str, ...], field: str) -> None:
    done = render.run(
        *(helm.VERSIONS[0], "template", "x", str(render.CHART), "-f", str(DEFAULT)),
        *(*broker, "--set", f"accessBroker.{field}="),
    )
    assert done.returncode
    assert f"accessBroker.{field}: is required" in done.stderr
