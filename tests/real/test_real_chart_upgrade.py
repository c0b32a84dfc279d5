"""What an upgrade and an uninstall do to volumes, by real Helm and an API server's answers."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.real.chart import render
from lab.real.chart.render import Manifest
from lab.real.parts import helm

CI = render.CHART / "ci"
EMPTY_DIR, CLAIMS = CI / "default-values.yaml", CI / "pod-identity-claims-values.yaml"
RESOURCES = {
    "v1": [("configmaps", "ConfigMap"), ("services", "Service")],
    "apps/v1": [("statefulsets", "StatefulSet")],
}


class ApiServer:
    """An API server with one object, for `lookup`: the discovery of its kinds, and a GET of it."""

    def __init__(self, present: Manifest) -> None:
        name, namespace = present["metadata"]["name"], render.NAMESPACE
        resources = {
            version: {
                "kind": "APIResourceList",
                "groupVersion": version,
                "resources": [
                    {"name": n, "kind": k, "namespaced": True, "verbs": ["get"]} for n, k in kinds
                ],
            }
            for version, kinds in RESOURCES.items()
        }
        version = {"groupVersion": "apps/v1", "version": "v1"}
        group = {"name": "apps", "versions": [version], "preferredVersion": version}
        self.asked: set[str] = set()
        self.object = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"
        self.answers: dict[str, Any] = {
            "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "groups": [group]},
            "/api/v1": resources["v1"],
            "/apis/apps/v1": resources["apps/v1"],
            self.object: present,
        }

    @contextmanager
    def serving(self, directory: Path) -> Iterator[Path]:
        """Serve on loopback; yield a kubeconfig."""
        answers, asked = self.answers, self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                asked.add(path)
                found = answers.get(path)
                body = json.dumps(found or {"kind": "Status", "code": 404}).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            file = directory / "kubeconfig"
            file.write_text(
                yaml.safe_dump(
                    {
                        "apiVersion": "v1",
                        "kind": "Config",
                        "current-context": "a",
                        "clusters": [{"name": "a", "cluster": {"server": url}}],
                        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
                        "users": [{"name": "a", "user": {}}],
                    }
                )
            )
            yield file
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def installed(values: Path, *flags: str) -> Manifest:
    """Return the StatefulSet that these values made, with sizes as an API server writes them."""
    (found,) = [d for d in render.manifests(values, *flags) if d["kind"] == "StatefulSet"]
    for claim in found["spec"]["volumeClaimTemplates"]:
        requests = claim["spec"]["resources"]["requests"]
        requests["storage"] = {"1024Mi": "1Gi"}.get(requests["storage"], requests["storage"])
    return found


def upgrade(version: str, present: Manifest, directory: Path, *flags: str) -> str:
    """Return what the chart refuses in an upgrade of `present`, "" if nothing.

    The server knows one object only, so Helm itself fails later, after it has rendered the chart.
    """
    server = ApiServer(present)
    with server.serving(directory) as kubeconfig:
        done = render.run(
            version, "template", render.RELEASE, str(render.CHART), "--dry-run=server",
            "--namespace", render.NAMESPACE, "--kubeconfig", str(kubeconfig), *flags,
        )  # fmt: skip
    assert server.object in server.asked
    return done.stderr if "cannot be installed with these values" in done.stderr else ""


@pytest.mark.parametrize("version", helm.VERSIONS)
def test_a_change_of_the_spools_kind_is_refused_with_the_command_that_helps(
    version: str, tmp_path: Path
) -> None:
    flags = ("-f", str(EMPTY_DIR), "--set", "sidecars.spool.kind=claim")
    said = upgrade(version, installed(EMPTY_DIR), tmp_path, *flags)
    assert "sidecars.spool: an upgrade cannot change the claim byoc-spool" in said
    assert "from no claim to 2147483648 bytes" in said
    command = "kubectl -n clickhouse delete statefulset byoc-agents-clickhouse --cascade=orphan"
    assert command in said


@pytest.mark.parametrize(
    ("values", "change", "named"),
    [
        (CLAIMS, "sidecars.spool.kind=emptyDir", "sidecars.spool"),
        (CLAIMS, "sidecars.spool.size=6Gi", "sidecars.spool"),
        (CLAIMS, "sidecars.spool.storageClassName=gp2", "sidecars.spool"),
        (EMPTY_DIR, "clickhouse.storage.size=30Gi", "clickhouse.storage"),
    ],
)
def test_every_change_of_a_claim_is_refused(
    values: Path, change: str, named: str, tmp_path: Path
) -> None:
    flags = ("-f", str(values), "--set", change)
    said = upgrade(helm.VERSIONS[1], installed(values), tmp_path, *flags)
    assert f"- {named}: an upgrade cannot change the claim" in said


@pytest.mark.parametrize(
    ("values", "change"),
    [
        (EMPTY_DIR, "sidecars.spool.size=3Gi"),  # of an emptyDir
        (EMPTY_DIR, "clickhouse.storage.size=20480Mi"),  # the same size
        (CLAIMS, "clickhouse.replicas=2"),
    ],
)
def test_an_upgrade_that_keeps_the_claims_is_accepted(
    values: Path, change: str, tmp_path: Path
) -> None:
    flags = ("-f", str(values), "--set", change)
    assert upgrade(helm.VERSIONS[1], installed(values), tmp_path, *flags) == ""


@pytest.mark.parametrize("values", render.CI, ids=render.name)
def test_every_claim_outlives_an_uninstall(values: Path) -> None:
    """A StatefulSet's claims are not part of the release. All others have Helm's annotation."""
    for document in render.manifests(values):
        if document["kind"] == "PersistentVolumeClaim":
            assert document["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        if document["kind"] == "StatefulSet":
            assert "persistentVolumeClaimRetentionPolicy" not in document["spec"]
