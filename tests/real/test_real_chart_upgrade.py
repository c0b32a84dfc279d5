"""Tests of upgrade and uninstall with volumes, by real Helm and an API server's responses."""

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
CLAIM = "PersistentVolumeClaim"
EMPTY_DIR, CLAIMS = CI / "default-values.yaml", CI / "pod-identity-claims-values.yaml"
RESOURCES = {  # API -> (resource, kind) of what the chart renders by default
    "v1": [
        *(("configmaps", "ConfigMap"), ("services", "Service"), ("pods", "Pod")),
        *(("serviceaccounts", "ServiceAccount"), ("persistentvolumeclaims", CLAIM)),
    ],
    "apps/v1": [("statefulsets", "StatefulSet"), ("deployments", "Deployment")],
    "networking.k8s.io/v1": [("networkpolicies", "NetworkPolicy")],
}


class ApiServer:
    """An API server with one object, for `lookup`: the discovery of its kinds, and a GET of it."""

    def __init__(self, present: Manifest) -> None:
        name, namespace = present["metadata"]["name"], render.NAMESPACE
        resources = {
            api: {
                "kind": "APIResourceList",
                "groupVersion": api,
                "resources": [
                    {"name": n, "kind": k, "namespaced": True, "verbs": ["get"]} for n, k in kinds
                ],
            }
            for api, kinds in RESOURCES.items()
        }
        groups = []
        for api in filter(lambda one: "/" in one, RESOURCES):
            version = {"groupVersion": api, "version": "v1"}
            name_of = api.partition("/")[0]
            groups.append({"name": name_of, "versions": [version], "preferredVersion": version})
        self.asked: set[str] = set()
        api, kind = present["apiVersion"], present["kind"]
        resource = {k: n for n, k in RESOURCES[api]}[kind]
        self.object = f"{self._root(api)}/namespaces/{namespace}/{resource}/{name}"
        self.answers: dict[str, Any] = {
            "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "groups": groups},
            **{self._root(api): listed for api, listed in resources.items()},
            self.object: present,
        }

    @staticmethod
    def _root(api: str) -> str:
        return f"/apis/{api}" if "/" in api else f"/api/{api}"

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


@pytest.mark.parametrize(("release", "accepted"), [("byoc-agents", True), ("other", False)])
def test_a_new_release_of_the_same_name_takes_a_kept_claim_over(
    release: str, accepted: bool, tmp_path: Path
) -> None:
    """Helm compares the annotations that it wrote when the claim was made."""
    (claim,) = [d for d in render.manifests(EMPTY_DIR) if d["kind"] == CLAIM]
    claim["metadata"] |= {"namespace": render.NAMESPACE}
    claim["metadata"]["annotations"] |= {
        "meta.helm.sh/release-name": release,
        "meta.helm.sh/release-namespace": render.NAMESPACE,
    }
    server = ApiServer(claim)
    with server.serving(tmp_path) as kubeconfig:
        done = render.run(
            helm.VERSIONS[1], "install", render.RELEASE, str(render.CHART), "-f", str(EMPTY_DIR),
            "--namespace", render.NAMESPACE, "--kubeconfig", str(kubeconfig),
            "--dry-run=server", "--disable-openapi-validation",
        )  # fmt: skip
    assert server.object in server.asked
    assert (done.returncode == 0) == accepted
    assert ("invalid ownership metadata" in done.stderr) != accepted
