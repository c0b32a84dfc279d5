"""Pods of other owners on a real cluster: Altinity's operator by its model, and a customer's own.

Altinity's operator is not in any registry that a test can use. The StatefulSet here is the one that
its rules make of the chart's template and the example (lab/real/chart/altinity_operator.py).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.cluster import environment
from lab.cluster.cluster import Cluster, Manifest, is_ready
from lab.cluster.environment import NAMESPACE, RELEASE, Received
from lab.cluster.oracle import billing
from lab.real.chart import render
from lab.real.chart.altinity_operator import RELEASES, build_pod_spec

pytestmark = pytest.mark.cluster
CHI = render.CHART / "examples" / "altinity" / "chi.yaml"
CLAIM = {
    "accessModes": ["ReadWriteOnce"],
    "resources": {"requests": {"storage": "1Gi"}},
}
OWNER: dict[str, Any] = {"networkPolicy": {"selectClickHouse": True}}


@pytest.fixture(autouse=True)
def cleared(cluster: Cluster) -> Iterator[None]:
    """Leave nothing of a test in the namespace."""
    yield
    kinds = "statefulset,deployment,service,configmap,serviceaccount,networkpolicy"
    for label in ("owner=customer", f"app.kubernetes.io/instance={RELEASE}"):
        cluster.kubectl("-n", NAMESPACE, "delete", kinds, "-l", label)
    environment.remove_chart(cluster)


def release(cluster: Cluster, owner: str, **changes: Any) -> tuple[Path, list[Manifest]]:
    """Install the chart without a ClickHouse of its own; return the values and all it renders."""
    clickhouse = {"owner": owner, "resources": environment.values()["clickhouse"]["resources"]}
    values = environment.write_values(cluster, {**OWNER, "clickhouse": clickhouse, **changes})
    rendered = render.manifests(values)
    known = [one for one in rendered if "altinity" not in one["apiVersion"]]
    cluster.apply([one for one in known if one["kind"] != "Pod"], "-n", NAMESPACE)
    return values, rendered


def stateful_set(spec: dict[str, Any], labels: dict[str, str], claims: list[str]) -> Manifest:
    """Return a customer's StatefulSet with one pod."""
    labels = {**labels, "app": "customer"}
    metadata = {"name": "customer", "labels": {"owner": "customer"}}
    templates = [{"metadata": {"name": name}, "spec": CLAIM} for name in claims]
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "serviceName": "customer",
            "selector": {"matchLabels": {"app": "customer"}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
            "volumeClaimTemplates": templates,
        },
    }


def shrink(spec: dict[str, Any]) -> None:
    """Ask for as much as this node has; the example's size is a production server's."""
    for container in spec["containers"]:
        if container["name"] == "clickhouse":
            container["resources"] = environment.values()["clickhouse"]["resources"]


def wait_metered(cluster: Cluster, received: Received) -> None:
    """Wait until the pod is ready, and a record of its ClickHouse has arrived."""

    def ready() -> bool:
        found = cluster.items("pods", NAMESPACE, "app=customer")
        return bool(found) and all(is_ready(one) for one in found)

    cluster.wait(ready, "the customer's pod", NAMESPACE)
    cluster.wait(
        lambda: received.bucket.writes() and billing(received).sources == {"process"},
        "a measured record",
        NAMESPACE,
    )
    assert billing(received).findings == []


@pytest.mark.parametrize("version", [one for one in RELEASES if one >= "0.24.5"])
def test_a_pod_of_altinitys_operator_runs_and_is_metered(
    version: str, cluster: Cluster, received: Received
) -> None:
    account = {"name": "byoc-agents"}  # of ClickHouse's pods, which have none of their own
    _, rendered = release(cluster, "altinity", serviceAccount=account)
    (template,) = [one for one in rendered if one["kind"] == "ClickHouseInstallationTemplate"]
    chi = yaml.safe_load(CHI.read_text())
    spec, claims = build_pod_spec(template, chi, version)
    shrink(spec)
    (pod_template,) = template["spec"]["templates"]["podTemplates"]
    labels = pod_template["metadata"]["labels"]
    said = cluster.apply([stateful_set(spec, labels, claims)], "--validate=strict", "-n", NAMESPACE)
    assert "Warning" not in said
    wait_metered(cluster, received)


def test_a_customers_own_stateful_set_runs_with_the_printed_sidecars(
    cluster: Cluster, received: Received
) -> None:
    values, _ = release(
        cluster, "other", sidecars={"spool": {"kind": "claim", "volumeName": "spool"}}
    )
    printed = yaml.safe_load(render.printed(values))
    server = {
        "name": "clickhouse",
        "image": "clickhouse/clickhouse-server:25.8",
        "securityContext": {
            **environment.RESTRICTED_CONTAINER,
            "runAsUser": 101,
            "runAsGroup": 101,
        },
        "volumeMounts": [{"name": "data", "mountPath": "/var/lib/clickhouse"}],
    }
    spec = {**printed["spec"], "containers": [server]}
    shrink(spec)
    labels = printed["metadata"]["labels"]
    document = stateful_set(spec, labels, ["data", "spool"])
    said = cluster.apply([document], "--validate=strict", "-n", NAMESPACE)
    assert "Warning" not in said, json.dumps(document)
    wait_metered(cluster, received)
