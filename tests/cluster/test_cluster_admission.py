"""Every example of the chart is accepted by a real API server, in a namespace `restricted`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.cluster import environment, parts
from lab.cluster.cluster import Cluster, Manifest
from lab.cluster.environment import NAMESPACE
from lab.real.chart import render

pytestmark = pytest.mark.cluster
EVERY = [*render.CI, *render.EXAMPLES]
NAMES = [f"{one.parent.name}-{render.name(one)}" for one in EVERY]
# Kinds whose definitions no registry has; tests/real/test_real_chart_manifests.py has schemas.
PLACED = render.CHART / "ci" / "placed-values.yaml"
FOREIGN = {"cilium.io", "networking.istio.io", "clickhouse.altinity.com"}


def priorities() -> list[Manifest]:
    """Return the priorities that an example names."""
    names = set(re.findall(r"priorityClassName: (\w+)", PLACED.read_text()))
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
    return [kind | {"metadata": {"name": name}} for name in sorted(names)]


@pytest.fixture(scope="module", autouse=True)
def definitions(cluster: Cluster) -> Iterator[None]:
    """Define the Prometheus operator's kinds, as the operator's own manifests do."""
    cluster.apply(priorities())
    files = [argument for path in sorted(parts.crds().iterdir()) for argument in ("-f", str(path))]
    cluster.kubectl("apply", "--server-side", *files)
    cluster.wait(lambda: len(established(cluster)) == len(parts.CRDS), "the definitions")
    yield
    cluster.kubectl("delete", *files)


def established(cluster: Cluster) -> list[str]:
    """Return the kinds that are defined and served."""
    return [
        one["metadata"]["name"]
        for one in cluster.items("customresourcedefinitions", NAMESPACE)
        for condition in one.get("status", {}).get("conditions") or []
        if condition["type"] == "Established" and condition["status"] == "True"
    ]


def native(documents: list[Manifest]) -> list[Manifest]:
    """Return the documents whose kinds this cluster knows.

    Without the fixed addresses of Services: those of the examples are in another cluster's range.
    """
    known = [one for one in documents if one["apiVersion"].split("/")[0] not in FOREIGN]
    for one in known:
        if one["kind"] == "Service" and one["spec"].get("clusterIP") != "None":
            one["spec"].pop("clusterIP", None)
    return known


@pytest.mark.parametrize("values", EVERY, ids=NAMES)
def test_every_example_is_accepted_without_a_warning(values: Path, cluster: Cluster) -> None:
    """A pod that Pod Security would reject is a warning of its StatefulSet or Deployment."""
    flags = ("--dry-run=server", "--validate=strict", "-n", NAMESPACE)
    said = cluster.apply(native(render.manifests(values)), *flags)
    assert "Warning" not in said
    assert "created (server dry run)" in said


def test_a_pod_that_is_not_restricted_is_a_warning(cluster: Cluster) -> None:
    """The control of the test before."""
    documents = native(render.manifests(render.CHART / "ci" / "default-values.yaml"))
    (found,) = [one for one in documents if one["kind"] == "StatefulSet"]
    container, *_ = found["spec"]["template"]["spec"]["containers"]
    container["securityContext"]["allowPrivilegeEscalation"] = True
    said = cluster.apply([found], "--dry-run=server", "-n", NAMESPACE)
    assert "would violate PodSecurity" in said


MONITORING = {"podMonitor": True, "prometheusRules": True, "alertmanagerConfig": True}


def test_the_operators_objects_are_stored_as_rendered(cluster: Cluster, tmp_path: Path) -> None:
    """Real definitions drop unknown fields and refuse wrong ones; nothing of ours is lost."""
    values = tmp_path / "values.json"
    values.write_text(json.dumps({**environment.values(), "monitoring": MONITORING}))
    rendered = render.manifests(values, "--api-versions", "monitoring.coreos.com/v1")
    ours = [one for one in rendered if "monitoring.coreos.com" in one["apiVersion"]]
    assert {one["kind"] for one in ours} == {"PodMonitor", "PrometheusRule", "AlertmanagerConfig"}
    said = cluster.apply(ours, "--validate=strict", "-n", NAMESPACE)
    assert "Warning" not in said
    try:
        for one in ours:
            found = cluster.get(one["kind"].lower(), one["metadata"]["name"], NAMESPACE)
            assert found["spec"] == one["spec"]
    finally:
        cluster.kubectl("-n", NAMESPACE, "delete", "-f", "-", given=yaml.safe_dump_all(ours))


def test_a_wrong_field_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    values = tmp_path / "values.json"
    values.write_text(json.dumps({**environment.values(), "monitoring": MONITORING}))
    rendered = render.manifests(values)
    monitor, *_ = [one for one in rendered if one["kind"] == "PodMonitor"]
    monitor["spec"]["podMetricsEndpoints"][0]["intervall"] = "30s"
    with pytest.raises(Exception, match="intervall"):
        cluster.apply([monitor], "--validate=strict", "--dry-run=server", "-n", NAMESPACE)
