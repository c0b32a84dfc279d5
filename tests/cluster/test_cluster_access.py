"""The optional parts for engineers on a real API server: ingress, rights, and the access broker."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from byoc_agents.access.authority import create_authority
from lab.cluster import components, environment
from lab.cluster.cluster import Cluster, Manifest
from lab.cluster.environment import NAMESPACE, RELEASE
from lab.fakes.core import START_MS
from lab.real.chart import render
from lab.real.parts import install
from lab.real.parts.process import DIRECT, PartError

pytestmark = pytest.mark.cluster
DEFAULT = render.CHART / "ci" / "default-values.yaml"
INGRESS = (
    *("--set", "ingress.enabled=true", "--set", "ingress.hosts={ch.svc-1.example.com}"),
    *("--set", "ingress.allowFrom={203.0.113.0/24}", "--set", "ingress.issuer.name=letsencrypt"),
)
VARIANTS = {"public": INGRESS, "private": (*INGRESS, "--set", "ingress.variant=private")}
GATEWAYS = "istio-ingress"  # the namespace of the gateway's pods
FOREIGN = ("networking.istio.io", "security.istio.io", "cert-manager.io")
BROKER, ENDPOINT = f"{RELEASE}-access-broker", f"{RELEASE}-tailnet-clickhouse"
API_SERVER = components.SERVER.removeprefix("https://").partition(":")[0]


# --- the ingress ---


@pytest.fixture(scope="module")
def definitions(cluster: Cluster) -> Iterator[set[str]]:
    """Define the kinds of Istio and cert-manager, from their own Go modules; return the kinds."""
    used = {
        (one["apiVersion"].partition("/")[0], one["kind"]) for one in added(*VARIANTS["public"])
    }
    files = [yaml.safe_load_all(file.read_text()) for file in install.resource_definitions()]
    found = [
        # Without its labels: cert-manager's chart would fill them in.
        one | {"metadata": {"name": one["metadata"]["name"]}}
        for documents in files
        for one in documents
        if one and (one["spec"]["group"], one["spec"]["names"]["kind"]) in used
    ]
    place = cluster.directory / "definitions.json"
    place.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": found}))
    cluster.kubectl("apply", "--server-side", "-f", str(place))
    names = [f"crd/{one['metadata']['name']}" for one in found]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": GATEWAYS}}])
    yield {one["spec"]["names"]["kind"] for one in found}
    cluster.kubectl("delete", "namespace", GATEWAYS)
    cluster.kubectl("delete", "-f", str(place))


def added(*flags: str) -> list[Manifest]:
    """Return the documents that the flags add to a render."""
    without = render.manifests(DEFAULT)
    return [one for one in render.manifests(DEFAULT, *flags) if one not in without]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ingress_is_stored_as_rendered(
    cluster: Cluster, definitions: set[str], variant: str
) -> None:
    """Real definitions drop unknown fields and refuse wrong ones; nothing of ours is lost."""
    assert definitions == {"AuthorizationPolicy", "Certificate", "Gateway", "VirtualService"}
    documents = added(*VARIANTS[variant])
    said = cluster.apply(documents, "--validate=strict")
    assert "Warning" not in said
    assert said.count("created") == len(documents) == 5
    try:
        for one in documents:
            found = cluster.get(kind_of(one), one["metadata"]["name"], GATEWAYS)
            assert find_missing(one["spec"], found["spec"]) == [], one["kind"]
            wanted = one["metadata"].get("annotations", {}).items()
            assert wanted <= found["metadata"].get("annotations", {}).items()
    finally:
        cluster.kubectl("delete", "-f", "-", given=yaml.safe_dump_all(documents))


def kind_of(document: Manifest) -> str:
    """Return the kind with its group, as kubectl takes it."""
    group = document["apiVersion"].partition("/")[0]
    return f"{document['kind']}.{group}" if "." in group else str(document["kind"])


def find_missing(wanted: Any, found: Any, where: str = "spec") -> list[str]:
    """Return the places of `wanted` that `found` lacks; the API server may add defaults."""
    if isinstance(wanted, dict):
        return [
            text
            for key, value in wanted.items()
            for text in find_missing(value, (found or {}).get(key), f"{where}.{key}")
        ]
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return [where]
        pairs = enumerate(zip(wanted, found, strict=True))
        return [text for n, (a, b) in pairs for text in find_missing(a, b, f"{where}[{n}]")]
    return [] if wanted == found else [where]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("Gateway", {"selecter": {}}, "selecter"),
        ("Gateway", {"servers": [{"port": {"number": "443"}}]}, r"servers\[0\]"),
        ("Certificate", {"issuerRef": {}}, 'missing required field "name"'),
        ("AuthorizationPolicy", {"action": "PERMIT"}, "PERMIT"),
        ("VirtualService", {"http": [{"rout": []}]}, "rout"),
        ("Service", {"externalTrafficPolicy": "Near"}, "Near"),
    ],
)
def test_a_wrong_field_of_the_ingress_is_refused(
    cluster: Cluster, definitions: set[str], kind: str, change: dict[str, Any], message: str
) -> None:
    """The control of the test before."""
    assert definitions
    (document,) = [one for one in added(*VARIANTS["public"]) if one["kind"] == kind]
    document["spec"] |= change
    with pytest.raises(PartError, match=message):
        cluster.apply([document], "--validate=strict", "--dry-run=server")


# --- the rights of the vendor's engineers ---

GROUP = ("--as=engineer", "--as-group=byoc-support-view")
ALLOWED = (
    *("get nodes", "list pods -A", "watch events -n clickhouse", "list persistentvolumes"),
    *("get persistentvolumeclaims -n clickhouse", "list volumeattachments.storage.k8s.io"),
    *("list deployments.apps -n clickhouse", "list storageclasses.storage.k8s.io"),
)
FORBIDDEN = (
    *("get secrets -A", "list configmaps -n clickhouse", "get pods --subresource=log"),
    *("create pods --subresource=exec", "create pods --subresource=portforward", "delete pods"),
    *("get nodes --subresource=proxy", "create serviceaccounts --subresource=token"),
    *("patch deployments.apps --subresource=scale", "list clusterroles", "impersonate users"),
    *("create pods", "update nodes", "patch persistentvolumes"),
)


@pytest.fixture(scope="module")
def support_view(cluster: Cluster) -> Iterator[None]:
    documents = added("--set", "supportView.enabled=true")
    cluster.apply(documents, "--validate=strict")
    yield
    cluster.kubectl("delete", "-f", "-", given=yaml.safe_dump_all(documents))


def may(cluster: Cluster, question: str, *who: str) -> bool:
    """Ask the API server's own authorizer."""
    done = cluster.attempt("kubectl", "auth", "can-i", *question.split(), *who)
    answer = (done.stdout.split() or [""])[0]
    assert answer in {"yes", "no"}, done
    return answer == "yes"


@pytest.mark.usefixtures("support_view")
def test_the_engineers_may_read_health_and_nothing_else(cluster: Cluster) -> None:
    assert [one for one in ALLOWED if not may(cluster, one, *GROUP)] == []
    assert [one for one in FORBIDDEN if may(cluster, one, *GROUP)] == []


@pytest.mark.usefixtures("support_view")
def test_another_group_may_read_nothing(cluster: Cluster) -> None:
    """The control of the test before: the answers are those of the binding."""
    assert [one for one in ALLOWED if may(cluster, one, "--as=x", "--as-group=others")] == []
    assert may(cluster, "get secrets -A"), "the administrator"


# --- the broker and the endpoints of the tailnet ---


def values_of_broker() -> dict[str, Any]:
    """Return the changes that install the broker, the forwarder, and one endpoint."""
    digest = "sha256:" + "1" * 64
    page = (install.ROOT / "docs" / "access.md").read_text()
    (policy,) = re.findall(r"^```yaml\n(version: 1\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return {
        "clickhouse": {"owner": "other"},
        "sidecars": {"spool": {"kind": "emptyDir"}},
        "billingScraper": {"enabled": False},
        "stateExporter": {"enabled": False},
        "networkPolicy": {
            "selectClickHouse": False,
            "cidrs": {"kubernetes": [f"{API_SERVER}/32"]},
        },
        "accessBroker": {
            "enabled": True,
            "servers": {"r0": f"https://clickhouse.{NAMESPACE}.svc:8443"},
            "eventsUrl": "http://control-plane.control-plane.svc:8080/v1/events",
            "secretName": "access-broker",
            "caSecretName": "access-ca",
            "policy": policy,
            "killSwitch": "off",
            "kubernetesUrl": components.SERVER,
            "uninstallWaitSeconds": 30,
            "resources": environment.SMALL,
        },
        "tailnet": {
            "enabled": True,
            "image": f"tailscale/tailscale@{digest}",
            "nginx": {"image": f"nginx@{digest}", "address": "10.79.0.200"},
            "authKeySecret": {"name": "tailnet-key"},
            "cidrs": ["192.0.2.0/24"],
            "dns": ["10.0.0.2/32"],
            "clickhouse": {"enabled": True, "replicas": {"r0.ch.svc-1.byoc": "clickhouse.x.svc"}},
        },
    }


def secrets_of_broker(directory: Path) -> Iterator[Manifest]:
    """Yield the Secrets that the customer makes."""
    directory.mkdir()
    create_authority(directory, "svc-1", START_MS)
    authority = {path.name: path.read_text() for path in directory.iterdir()}
    login = {"password": "p", "token": "control", "signing-secret": "whsec_" + "A" * 32}
    for name, content in (("access-broker", login), ("access-ca", authority)):
        metadata = {"name": name, "namespace": NAMESPACE}
        yield {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content}


@pytest.fixture(scope="module")
def broker(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Install the chart with the broker; yield the name of its pod. The uninstall is a test."""
    cluster.apply(secrets_of_broker(tmp_path_factory.mktemp("broker") / "ca"))
    where = ["-n", NAMESPACE, "-f", str(environment.write_values(cluster, values_of_broker()))]
    cluster.helm("install", RELEASE, str(environment.CHART), *where)
    try:
        cluster.wait(lambda: "healthz" in pages(cluster), "the broker's pages", NAMESPACE)
        (pod,) = pods(cluster, "access-broker")
        yield str(pod["metadata"]["name"])
    finally:
        environment.remove_chart(cluster)


def pods(cluster: Cluster, component: str) -> list[Manifest]:
    label = f"app.kubernetes.io/component={component}"
    return cluster.items("pods", NAMESPACE, label)


def pages(cluster: Cluster) -> dict[str, str]:
    """Return the broker's pages; none while it does not answer."""
    found = pods(cluster, "access-broker")
    if not found:
        return {}
    name = found[0]["metadata"]["name"]
    try:
        with cluster.forwarding(NAMESPACE, name, 9467) as url:
            return {page: read(url, page) for page in ("healthz", "status", "metrics")}
    except (OSError, PartError):
        return {}


def read(url: str, page: str) -> str:
    with DIRECT.open(f"{url}/{page}", timeout=10) as answer:
        return str(answer.read().decode())


def metric(cluster: Cluster, name: str) -> float | None:
    text = pages(cluster).get("metrics", "")
    found = re.search(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def test_the_broker_scales_with_its_own_account(cluster: Cluster, broker: str) -> None:
    """Through its policy, with its projected token and the cluster's authority, to 0."""
    name = "byoc_access_tailnet_pods"
    cluster.wait(lambda: metric(cluster, name) == 0, "an answer of the Kubernetes API", NAMESPACE)
    status = json.loads(pages(cluster)["status"])["daemons"]["access-broker"]
    assert status["tailnet"] == {"clickhouse": None}, broker
    assert metric(cluster, "byoc_access_tailnet_unexpected_total") == 0


@pytest.mark.usefixtures("broker")
def test_an_endpoint_that_somebody_scales_up_is_scaled_down_and_counted(cluster: Cluster) -> None:
    """Its pod is admitted in a namespace `restricted`; the image is not there, so it never runs."""
    cluster.kubectl("-n", NAMESPACE, "scale", f"deployment/{ENDPOINT}", "--replicas=1")
    look = partial(pods, cluster, "tailnet-clickhouse")
    cluster.wait(look, "a pod that Pod Security admits", NAMESPACE)
    cluster.wait(lambda: not look(), "the end of the pod", NAMESPACE)
    found = cluster.get("deployment", ENDPOINT, NAMESPACE)
    assert found["spec"]["replicas"] == 0
    name = "byoc_access_tailnet_unexpected_total"
    cluster.wait(lambda: metric(cluster, name) == 1, "the count", NAMESPACE)


SCALED = f"deployments.apps/{ENDPOINT} --subresource=scale -n {NAMESPACE}"
REFUSED_TO_BROKER = (
    *(f"get {SCALED}", f"update {SCALED}", f"patch deployments.apps/{ENDPOINT} -n {NAMESPACE}"),
    f"patch deployments.apps/{RELEASE}-tailnet-nginx --subresource=scale -n {NAMESPACE}",
    f"patch deployments.apps/{BROKER} --subresource=scale -n {NAMESPACE}",
    f"patch deployments.apps/{ENDPOINT} --subresource=scale -n monitoring",
    *(f"{verb} {kind} -n {NAMESPACE}" for verb in ("get", "list") for kind in ("secrets", "pods")),
    *(f"list deployments.apps -n {NAMESPACE}", f"create pods -n {NAMESPACE}", "list nodes"),
)


@pytest.mark.usefixtures("broker")
def test_the_brokers_account_may_patch_this_scale_and_nothing_else(cluster: Cluster) -> None:
    who = f"--as=system:serviceaccount:{NAMESPACE}:{BROKER}"
    assert may(cluster, f"patch {SCALED}", who)
    assert [one for one in REFUSED_TO_BROKER if may(cluster, one, who)] == []


def test_an_uninstall_ends_access_first_and_keeps_the_volume(cluster: Cluster, broker: str) -> None:
    """The last test with this release: the hook's pod runs next to the broker's, and ends well."""
    assert broker
    claim = cluster.get("persistentvolumeclaim", BROKER, NAMESPACE)
    assert "uninstalled" in cluster.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
    kept = cluster.get("persistentvolumeclaim", BROKER, NAMESPACE)
    assert kept["spec"]["volumeName"] == claim["spec"]["volumeName"]
    volume = cluster.get("persistentvolume", kept["spec"]["volumeName"], NAMESPACE)
    assert (Path(volume["spec"]["local"]["path"]) / "access-broker" / "kill-switch").exists()
    assert cluster.items("jobs", NAMESPACE) == []
    cluster.wait(lambda: not pods(cluster, "access-broker"), "the end of the pod", NAMESPACE)


def test_a_broker_that_was_never_scheduled_does_not_block_the_uninstall(cluster: Cluster) -> None:
    """On the volume of the release before. No node has the label that the broker's pod asks for."""
    values = values_of_broker()
    values["accessBroker"]["nodeSelector"] = {"example.com/none": "here"}
    where = ["-n", NAMESPACE, "-f", str(environment.write_values(cluster, values))]
    cluster.helm("install", RELEASE, str(environment.CHART), *where)
    try:
        cluster.wait(lambda: pods(cluster, "access-broker"), "a pod", NAMESPACE)
        (pod,) = pods(cluster, "access-broker")
        assert "nodeName" not in pod["spec"]
        assert "uninstalled" in cluster.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
        assert cluster.items("jobs", NAMESPACE) == []
    finally:
        environment.remove_chart(cluster)
