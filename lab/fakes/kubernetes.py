"""The scale of Deployments in the Kubernetes API, over HTTP.

As the API server of Kubernetes 1.34 does: a merge patch of `deployments/NAME/scale` is answered
with a Scale of autoscaling/v1, whose `spec` is empty for 0 replicas. `status.replicas` is the
number of pods, which follows later. Every other request is refused, as the chart's Role has it: 401
without the token, 403 for another verb, 404 for another Deployment.
"""

import json
import re
import ssl

from lab.fakes.http import FakeHttp, Reply, Request

SCALE = re.compile(r"/apis/apps/v1/namespaces/([^/]+)/deployments/([^/]+)/scale")
JSON = {"content-type": "application/json"}


class FakeKubernetes:
    """Deployments by NAMESPACE/NAME. Tests change `replicas` and `pods`."""

    def __init__(
        self,
        *deployments: str,
        token: str = "token-of-the-account",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.replicas = dict.fromkeys(deployments, 0)
        self.pods = dict.fromkeys(deployments, 0)
        self.token = token
        self.instant = True  # whether pods come and go with the patch
        self.http = FakeHttp(apply=self._apply, tls=tls)

    def _apply(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401)
        found = SCALE.fullmatch(request.target)
        if request.method != "PATCH" or not found:
            return Reply(403)
        if request.headers.get("content-type") != "application/merge-patch+json":
            return Reply(415)
        name = f"{found[1]}/{found[2]}"
        if name not in self.replicas:
            return Reply(404)
        before = self.pods[name]
        self.replicas[name] = json.loads(request.body)["spec"]["replicas"]
        if self.instant:
            self.pods[name] = self.replicas[name]
        spec = {"replicas": self.replicas[name]} if self.replicas[name] else {}
        scale = {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {"name": found[2], "namespace": found[1]},
            "spec": spec,
            "status": {"replicas": before, "selector": "app.kubernetes.io/name=byoc-agents"},
        }
        return Reply(200, JSON, json.dumps(scale).encode())

    def patches(self) -> list[tuple[str, int]]:
        """Return the Deployment and the replicas of each request, in order."""
        found = []
        for request in self.http.requests:
            name = request.target.split("/")[-2]
            found.append((name, int(json.loads(request.body)["spec"]["replicas"])))
        return found
