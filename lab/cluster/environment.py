"""The chart's environment: volumes, a resolver, S3 and SQS, a control plane, secrets."""

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml
from botocore.config import Config
from botocore.session import get_session

from lab.cluster import components
from lab.cluster.cluster import Cluster, Manifest, is_ready
from lab.real.parts import images, install
from lab.real.parts.docker import BASE
from lab.real.parts.install import ROOT
from lab.real.parts.localstack import CREDENTIALS, REGION
from lab.real.parts.process import DIRECT, PartError
from lab.real.stored import Bucket

CHART = ROOT / "helm" / "byoc-agents"
RELEASE, NAMESPACE = "byoc-agents", "clickhouse"
CLICKHOUSE_POD = f"{RELEASE}-clickhouse-0"
BUCKET, QUEUE = "usage", "state.fifo"
KEYS = "\n".join(["[default]", *(f"{name} = {value}" for name, value in CREDENTIALS.items()), ""])
# The namespaces of the pages: of ClickHouse, of LocalStack, of the control plane, of Prometheus.
NAMESPACES = (NAMESPACE, "localstack", "control-plane", "monitoring")
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
ALERTS = {
    "token": "control",
    "signing-secret": "whsec_" + "A" * 32,
    "webhook-token": "webhook",
    "fingerprint-secret": "f" * 32,
}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
DAEMONS = {"billing-scraper", "state-exporter", "alert-forwarder"}
RECEIVER = ("__init__", "receiver")  # the modules that it is made of
VOLUMES = 28
RESOLVER_SCRIPT = Path(__file__).with_name("resolver.py")


def prepare(cluster: Cluster) -> None:
    """Make everything that is there before the chart; return when all of it is ready."""
    if cluster.components:  # of `make cluster`; other clusters have a resolver and volumes
        _start_resolver(cluster)
        cluster.apply(_volumes(cluster.directory))
    labels = {NAMESPACE: RESTRICTED}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels.get(name, {})},
        }
        for name in NAMESPACES
    )
    for name in NAMESPACES:  # a pod needs the account that a controller makes
        cluster.wait(partial(cluster.items, "serviceaccounts", name), f"an account in {name}")
    localstack = _installed_localstack() if cluster.components else _localstack_of_an_image()
    cluster.apply([*_secrets(), *localstack, *_control_plane(), *_clients()])
    for namespace in NAMESPACES[1:]:
        cluster.wait_ready(namespace)
    cluster.wait_ready(NAMESPACE, "client")


@dataclass(frozen=True)
class Received:
    """What arrived at LocalStack and the control plane, read past all NetworkPolicies."""

    cluster: Cluster
    localstack: str  # URL
    plane: str

    @cached_property
    def bucket(self) -> Bucket:
        """The bucket of usage records."""
        return Bucket(BUCKET, self.localstack, _client("s3", self.localstack))

    @cached_property
    def _sqs(self) -> Any:
        return _client("sqs", self.localstack)

    def make(self) -> None:
        """Make the bucket and the queue."""
        self.bucket.create()
        self._sqs.create_queue(QueueName=QUEUE, Attributes={"FifoQueue": "true"})

    def clear(self) -> None:
        """Remove what has arrived, so that the next release begins with nothing."""
        listed = self.bucket.client.list_object_versions(Bucket=BUCKET).get("Versions", [])
        for one in listed:
            which = {"Key": one["Key"], "VersionId": one["VersionId"]}
            self.bucket.client.delete_object(Bucket=BUCKET, **which)
        self.messages()

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages of the queue, and take them from it."""
        url = f"{self.localstack}/000000000000/{QUEUE}"
        taken = []
        while found := self._sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get(
            "Messages", []
        ):
            for one in found:
                taken.append(json.loads(one["Body"]))
                self._sqs.delete_message(QueueUrl=url, ReceiptHandle=one["ReceiptHandle"])
        return taken

    def events(self) -> list[dict[str, Any]]:
        """Return the events that the control plane has accepted since its start."""
        lines = self.cluster.kubectl("-n", "control-plane", "logs", "control-plane").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@contextmanager
def receiving(cluster: Cluster) -> Iterator[Received]:
    """Connect to LocalStack and the control plane."""
    with (
        cluster.forwarding("localstack", "localstack", 4566) as localstack,
        cluster.forwarding("control-plane", "control-plane", 8080) as plane,
    ):
        yield Received(cluster, localstack, plane)


def values() -> dict[str, Any]:
    """Return the chart's values: those of `ci/trial-values.yaml` with an alert forwarder."""
    return {
        "organizationId": "org-1",
        "serviceId": "svc-1",
        "region": REGION,
        "aws": {
            "identity": "secret",
            "secretName": "localstack-keys",
            "endpointUrl": "http://localstack.localstack.svc:4566",
        },
        "clickhouse": {
            "resources": {
                "requests": {"cpu": "100m", "memory": "512Mi"},
                "limits": {"cpu": "1", "memory": "1Gi"},
            },
            "storage": {"size": "5Gi"},
            "stopSeconds": 10,
        },
        "sidecars": {"spool": {"kind": "claim"}, "resources": SMALL},
        "billingScraper": {
            "bucket": BUCKET,
            "settings": {
                "BYOC_BILLING_SAMPLE_SECONDS": "1",
                "BYOC_BILLING_SEAL_SECONDS": "10",
                "BYOC_BILLING_WINDOW_SECONDS": "5",
            },
        },
        "stateExporter": {
            "queueUrl": f"http://localstack.localstack.svc:4566/000000000000/{QUEUE}",
            "settings": {"BYOC_STATE_POLL_SECONDS": "2", "BYOC_STATE_HEARTBEAT_SECONDS": "10"},
        },
        "alertForwarder": {
            "url": "http://control-plane.control-plane.svc:8080/v1/events",
            "secretName": "byoc-alerts",
            "resources": SMALL,
            "settings": {
                "BYOC_ALERTS_HEARTBEAT_SECONDS": "5",
                "BYOC_ALERTS_MATCHERS": 'alertname=~".+"',  # not of our own rules only
            },
        },
        "networkPolicy": {"selectClickHouse": True},
        "allowInsecureEndpoints": True,
    }


# The chart's limits; a node of two CPUs has not enough for its requests as well.
SMALL = {"requests": {"cpu": "10m", "memory": "96Mi"}, "limits": {"cpu": "200m", "memory": "128Mi"}}


def write_values(cluster: Cluster, changes: Mapping[str, Any] | None = None) -> Path:
    """Write the values with changes merged into them; return the file for Helm."""
    path = cluster.directory / f"values-{secrets.token_hex(4)}.json"
    path.write_text(json.dumps(_merged(values(), changes or {})))
    return path


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _client(service: str, url: str) -> Any:
    config = Config(retries={"total_max_attempts": 1}, proxies={}, read_timeout=60)
    session = get_session()
    return session.create_client(service, REGION, endpoint_url=url, config=config, **CREDENTIALS)


def _start_resolver(cluster: Cluster) -> None:
    """Start the first pod, which gets the first address. Raises PartError if it has another."""
    metadata = {"name": "resolver", "namespace": "kube-system"}
    rules = [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]}
    ]
    subject = {"kind": "ServiceAccount", **metadata}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "resolver"}
    pod = _pod("resolver", "kube-system", ["python3", "/script/resolver.py"], port=0)
    pod["metadata"]["labels"] = {"k8s-app": "kube-dns"}  # as the resolvers of all clusters
    (container,) = pod["spec"]["containers"]
    container["env"] = [{"name": "API_SERVER", "value": components.SERVER}]
    container["volumeMounts"] = [{"name": "script", "mountPath": "/script"}]
    pod["spec"] |= {
        "serviceAccountName": "resolver",
        "automountServiceAccountToken": True,
        "volumes": [{"name": "script", "configMap": {"name": "resolver"}}],
    }
    cluster.apply(
        [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": metadata,
                "data": {"resolver.py": RESOLVER_SCRIPT.read_text()},
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": "resolver"},
                "rules": rules,
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "resolver"},
                "subjects": [subject],
                "roleRef": role,
            },
            pod,
        ]
    )
    cluster.wait_ready("kube-system", "resolver")
    found = cluster.address("resolver", "kube-system")
    assert found == components.RESOLVER, f"the resolver has {found}"


def _volumes(directory: Path) -> Iterator[Manifest]:
    """Yield local volumes: unlike those of a host path they respect the pods' fsGroup.

    Their class is bound with a claim's first pod. If claims are bound at once, a pod that is
    scheduled in the same moment can wait for five minutes.
    """
    yield {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": "local",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [components.NODE_NAME]}
    for number in range(VOLUMES):
        place = directory / "volumes" / str(number)
        place.mkdir(parents=True)
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"volume-{number}"},
            "spec": {
                "storageClassName": "local",
                "capacity": {"storage": "20Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "local": {"path": str(place)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}},
            },
        }


def _secrets() -> Iterator[Manifest]:
    for name, namespace, content in (
        ("localstack-keys", NAMESPACE, {"credentials": KEYS}),
        ("byoc-alerts", NAMESPACE, ALERTS),
        ("byoc-alerts", "control-plane", ALERTS),
    ):
        metadata = {"name": name, "namespace": namespace}
        yield {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content}


def _installed_localstack() -> Iterator[Manifest]:
    """Yield LocalStack as the real part of this machine, which no registry is needed for."""
    python = install.localstack()
    command = [str(python.parent.resolve() / python.name), "-m", "localstack.runtime.main"]
    pod = _localstack(BASE, command)
    (container,) = pod["spec"]["containers"]
    for name in ("FILESYSTEM_ROOT", "LOCALSTACK_VOLUME_DIR", "XDG_CACHE_HOME"):
        container["env"].append({"name": name, "value": "/tmp/localstack"})
    _mount(pod, python.parent.parent.resolve(), python.resolve().parents[1])
    return _with_service(pod, 4566)


def _localstack_of_an_image() -> Iterator[Manifest]:
    """Yield LocalStack from the registry, at the version of `localstack/compose.yaml`."""
    services = yaml.safe_load((ROOT / "localstack" / "compose.yaml").read_text())["services"]
    pod = _localstack(services["localstack"]["image"], [])
    pod["spec"]["containers"][0]["securityContext"] = {}
    return _with_service(pod, 4566)


def _localstack(image: str, command: list[str]) -> Manifest:
    pod = _pod("localstack", "localstack", command, 4566, "/_localstack/health")
    (container,) = pod["spec"]["containers"]
    settings = {
        "GATEWAY_SERVER": "hypercorn",
        "GATEWAY_LISTEN": "0.0.0.0:4566",
        "DNS_ADDRESS": "0",
        "OVERRIDE_IN_DOCKER": "0",
        "SERVICES": "s3,sqs,sts",
        "EAGER_SERVICE_LOADING": "1",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "SQS_ENDPOINT_STRATEGY": "path",
    }
    container["env"] = [{"name": name, "value": value} for name, value in settings.items()]
    container["image"] = image
    return pod


def _control_plane() -> Iterator[Manifest]:
    """Yield the reference receiver, in the image of a daemon, whose packages it needs."""
    files = {f"{name}.py": (ROOT / "lab" / f"{name}.py").read_text() for name in RECEIVER}
    metadata = {"name": "receiver", "namespace": "control-plane"}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files}
    command = ["python3", "-m", "lab.receiver", "--host=0.0.0.0", "--port=8080"]
    command += [f"--{name}-file=/secrets/{name}" for name in ("token", "signing-secret")]
    pod = _pod("control-plane", "control-plane", command, 8080, "/")
    (container,) = pod["spec"]["containers"]
    container["image"] = images.tag("alert-forwarder")
    container["env"] = [
        {"name": "PYTHONPATH", "value": "/opt/byoc-agents/code:/opt/byoc-agents/lib:/srv"}
    ]
    container["volumeMounts"] = [
        {"name": "secrets", "mountPath": "/secrets"},
        {"name": "receiver", "mountPath": "/srv/lab"},
    ]
    pod["spec"]["volumes"] = [
        {"name": "secrets", "secret": {"secretName": "byoc-alerts"}},
        {"name": "receiver", "configMap": {"name": "receiver"}},
    ]
    yield from _with_service(pod, 8080)


def _clients() -> Iterator[Manifest]:
    """Yield pods from which tests connect: Prometheus, a stranger, and one next to ClickHouse."""
    for name, namespace, labels in (
        ("prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
        ("alertmanager", "monitoring", {"app.kubernetes.io/name": "alertmanager"}),
        ("stranger", "monitoring", {}),
        ("client", NAMESPACE, {}),
    ):
        pod = _pod(name, namespace, ["sleep", "infinity"], port=0)
        pod["metadata"]["labels"] = labels
        yield pod


def _pod(
    name: str, namespace: str, command: list[str], port: int, ready_path: str = ""
) -> Manifest:
    """Return a pod of a plain Debian that the Pod Security level `restricted` accepts."""
    container: dict[str, Any] = {
        "name": name,
        "image": BASE,
        "imagePullPolicy": "Never",
        "securityContext": {**RESTRICTED_CONTAINER, "runAsUser": 1000},
        "volumeMounts": [],
    }
    if command:
        container["command"] = command
    if name == "resolver":
        container["securityContext"] = {}  # port 53
    if ready_path:
        container["readinessProbe"] = {
            "httpGet": {"path": ready_path, "port": port},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
        }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "containers": [container],
            "volumes": [],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
        },
    }


def _mount(pod: Manifest, *paths: Path) -> None:
    """Show directories of this machine in a pod, at the same place and read-only."""
    (container,) = pod["spec"]["containers"]
    container["securityContext"] = {}  # directories of root's
    for number, path in enumerate(dict.fromkeys(paths)):
        mount = {"name": f"host-{number}", "mountPath": str(path), "readOnly": True}
        container["volumeMounts"].append(mount)
        host = {"path": str(path), "type": "Directory"}
        pod["spec"]["volumes"].append({"name": f"host-{number}", "hostPath": host})


def _with_service(pod: Manifest, port: int) -> Iterator[Manifest]:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    yield pod
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"port": port}]},
    }


def install_chart(cluster: Cluster, *flags: str) -> str:
    """Install the chart as a person would; return what Helm printed."""
    where = ["-n", NAMESPACE, "-f", str(write_values(cluster))]
    return cluster.helm("install", RELEASE, str(CHART), *where, *flags)


def wait_for_chart(cluster: Cluster) -> None:
    """Wait until ClickHouse with its sidecars and the forwarder are ready."""
    cluster.wait(
        lambda: len(found := chart_pods(cluster)) == 2 and all(is_ready(one) for one in found),
        "the chart's pods",
        NAMESPACE,
    )
    # The sidecars have no readiness probe: one may still be loading its modules.
    every = [(pod, port) for pod in chart_pods(cluster) for port in ports(pod).values()]
    cluster.wait(
        lambda: all(_responds(cluster, pod, port) for pod, port in every),
        "the daemons' pages",
        NAMESPACE,
    )


def _responds(cluster: Cluster, pod: Manifest, port: int) -> bool:
    try:
        return bool(admin_page(cluster, pod, port, "healthz"))
    except (OSError, PartError):  # a kubelet that has just started forwards nothing yet
        return False


def chart_pods(cluster: Cluster) -> list[Manifest]:
    """Return the pods of ClickHouse and of the forwarder, old ones that end included."""
    found = cluster.items("pods", NAMESPACE)
    return [one for one in found if one["metadata"].get("ownerReferences")]


def remove_chart(cluster: Cluster) -> None:
    """Uninstall the chart if it is there, and delete its claims and all that has arrived."""
    cluster.attempt("helm", "uninstall", RELEASE, "-n", NAMESPACE, "--wait")
    cluster.wait(lambda: not chart_pods(cluster), "the end of the chart's pods", NAMESPACE)
    cluster.kubectl("-n", NAMESPACE, "delete", "persistentvolumeclaims", "--all")
    with receiving(cluster) as received:
        received.clear()


def ports(pod: Manifest) -> dict[str, int]:
    """Return daemon -> port of its pages."""
    spec = pod["spec"]
    every = [*spec.get("initContainers", []), *spec["containers"]]
    return {
        one["name"]: one["ports"][0]["containerPort"] for one in every if one["name"] in DAEMONS
    }


def admin_page(cluster: Cluster, pod: Manifest, port: int, page: str) -> str:
    """Return a page of a daemon."""
    with (
        cluster.forwarding(NAMESPACE, pod["metadata"]["name"], port) as url,
        DIRECT.open(f"{url}/{page}", timeout=10) as response,
    ):
        return str(response.read().decode())
