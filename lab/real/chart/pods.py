"""Find pods, our containers and their environment in rendered documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.real.chart import render
from lab.real.chart.render import Manifest

DOWNWARD = {  # what the kubelet would put in place of a fieldRef or a resourceFieldRef
    "metadata.name": "chi-events-0-0-0",
    "metadata.uid": "0b8f6a3e-6f0c-4a53-9d0e-0a4a4b1f7c11",
    "limits.cpu": "1000",
    "limits.memory": "4294967296",
}
OURS = frozenset({"billing-scraper", "state-exporter", "alert-forwarder", "byoc-agents"})


@dataclass(frozen=True)
class Pod:
    """A pod template: its owner, spec and labels."""

    owner: str  # kind/name
    spec: dict[str, Any]
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def ours(self) -> list[dict[str, Any]]:
        """Return the project's containers."""
        return ours(self.spec)

    @property
    def with_clickhouse(self) -> bool:
        """Return whether ClickHouse is in this pod."""
        return "byoc-agents/sidecars" in self.labels


def ours(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the project's containers of a pod, native sidecars and plain ones."""
    every = [*spec.get("initContainers", []), *spec["containers"]]
    return [one for one in every if one["name"] in OURS]


def pods(documents: list[Manifest]) -> Iterator[Pod]:
    """Yield every pod template of StatefulSets, Deployments and Altinity's templates."""
    for document in documents:
        owner = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] in {"StatefulSet", "Deployment"}:
            yield _pod(owner, document["spec"]["template"])
        elif document["kind"] == "ClickHouseInstallationTemplate":
            for template in document["spec"]["templates"]["podTemplates"]:
                yield _pod(owner, template)


def printed_pod(values: Path, kubernetes: str = render.NEW) -> Pod:
    """Return a pod of another owner with the output of `sidecars.print` inserted."""
    given = yaml.safe_load(render.printed(values, kubernetes=kubernetes))
    clickhouse = {"name": "clickhouse", "image": "example.com/clickhouse:1"}
    if "spec" in given:
        plain = given["spec"].get("containers", [])
        spec = given["spec"] | {"containers": [clickhouse, *plain]}
        return _pod("Pod/printed", {"metadata": given["metadata"], "spec": spec})
    spec = {  # where Bitnami's chart puts these values, in addition to its own
        "automountServiceAccountToken": False,
        "securityContext": {"fsGroup": 1001},
        "serviceAccountName": given["serviceAccount"]["name"],
        "terminationGracePeriodSeconds": given["terminationGracePeriodSeconds"],
        "initContainers": given.get("initContainers", []),
        "containers": [clickhouse, *given.get("sidecars", [])],
        "volumes": given["extraVolumes"],
    }
    return _pod("Pod/printed", {"metadata": {"labels": given["podLabels"]}, "spec": spec})


def environment(container: dict[str, Any]) -> dict[str, str]:
    """Return a container's environment as the kubelet would set it."""
    return {one["name"]: _value(one) for one in container.get("env", [])}


def as_manifest(pod: Pod) -> Manifest:
    """Return the template as a Pod, for the schema of Pods."""
    metadata = {"name": "pod", "labels": pod.labels, "annotations": pod.annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}


def _pod(owner: str, template: dict[str, Any]) -> Pod:
    metadata = template["metadata"]
    return Pod(owner, template["spec"], metadata["labels"], metadata.get("annotations", {}))


def _value(variable: dict[str, Any]) -> str:
    if "value" in variable:
        return str(variable["value"])
    source = variable["valueFrom"]
    if "secretKeyRef" in source:
        return f"{source['secretKeyRef']['key']} of {source['secretKeyRef']['name']}"
    if "fieldRef" in source:
        return DOWNWARD[source["fieldRef"]["fieldPath"]]
    return DOWNWARD[source["resourceFieldRef"]["resource"]]
