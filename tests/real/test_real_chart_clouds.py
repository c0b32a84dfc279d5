"""The values for GKE and AKS: the pods get a token of the cluster's own issuer for the role."""

from pathlib import Path
from typing import Any

import pytest

from lab.real.chart import render
from lab.real.parts.install import ROOT

pytestmark = pytest.mark.real

EXAMPLES = ROOT / "docs" / "examples"
TOKEN = {"audience": "byoc-agents", "expirationSeconds": 3600, "path": "token"}


def templates(values: Path) -> list[dict[str, Any]]:
    """Return the templates of all pods."""
    documents = render.manifests(values)
    return [
        one["spec"]["template"]["spec"] for one in documents if "template" in one.get("spec", {})
    ]


@pytest.mark.parametrize("cloud", ["gke", "aks"])
def test_the_pods_have_a_token_for_the_vendors_role(cloud: str) -> None:
    found = 0
    for pod in templates(EXAMPLES / f"{cloud}-values.yaml"):
        sources = [
            source["serviceAccountToken"]
            for volume in pod.get("volumes", ())
            for source in volume.get("projected", {}).get("sources", ())
            if "serviceAccountToken" in source
        ]
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            environ = {one["name"]: one.get("value") for one in container.get("env", ())}
            if role := environ.get("AWS_ROLE_ARN"):
                assert role == "arn:aws:iam::444455556666:role/org-1"
                assert environ["AWS_WEB_IDENTITY_TOKEN_FILE"].endswith("/token")
                assert environ["AWS_EC2_METADATA_DISABLED"] == "true"
                assert sources == [TOKEN]
                found += 1
    assert found
