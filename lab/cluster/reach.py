"""Connections between pods, and listeners in a pod that a policy selects."""

import json
from datetime import UTC, datetime
from typing import Any

from lab.cluster import environment
from lab.cluster.cluster import Cluster
from lab.cluster.environment import ALERTS, NAMESPACE, RELEASE
from lab.real.parts.docker import BASE
from lab.real.parts.install import ROOT

NOTIFICATION = ROOT / "tests/unit/alerts/data/alertmanager-webhook-firing-group3.json"
FORWARDER = f"http://{RELEASE}-alert-forwarder.{NAMESPACE}.svc:9095/v1/alerts"
DEBUGGER = "debugger"  # a container that joins a pod's network
TRY = """
import json, socket, sys
found = []
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), 3).close()
        found.append(port)
    except OSError:
        pass
print(json.dumps(found))
"""
LISTEN = """
import errno, socket, sys, time
listeners = []
for port in map(int, sys.argv[1:]):
    try:
        listeners.append(socket.create_server(("", port)))
    except OSError as error:  # a newer ClickHouse than that of `make cluster` does already
        assert error.errno == errno.EADDRINUSE, error
print("listening", flush=True)
time.sleep(86400)
"""
POST = """
import sys, urllib.request as u
headers = {"Content-Type": "application/json", "Authorization": f"Bearer {sys.argv[2]}"}
print(u.urlopen(u.Request(sys.argv[1], sys.stdin.buffer.read(), headers), timeout=10).status)
"""


def connect(cluster: Cluster, namespace: str, pod: str, address: str, *ports: int) -> set[int]:
    """Return the ports of an address that a pod reaches within three seconds each."""
    command = ["python3", "-c", TRY, address, *map(str, ports)]
    said = cluster.execute(namespace, pod, _container(cluster, namespace, pod), *command)
    return set(json.loads(said))


def listen_in(cluster: Cluster, pod: str, *ports: int) -> None:
    """Listen on further ports of ClickHouse's pod, from a container that joins its network.

    Such a container stays as long as the pod.
    """
    container = _debugger(["python3", "-c", LISTEN, *map(str, ports)], "listener")
    _add_container(cluster, pod, container)
    cluster.wait(
        lambda: (
            "listening"
            in cluster.attempt(
                "kubectl", "-n", NAMESPACE, "logs", pod, "-c", container["name"]
            ).stdout
        ),
        "listeners",
        NAMESPACE,
    )


def post_alerts(cluster: Cluster, namespace: str, pod: str) -> str:
    """Post a recorded notification of a real Alertmanager from a pod; return the status.

    Its alerts begin now: the forwarder takes those that it knows for a repetition.
    """
    notification = json.loads(NOTIFICATION.read_text())
    for alert in notification["alerts"]:
        alert["startsAt"] = datetime.now(UTC).isoformat()
    arguments = ("-n", namespace, "exec", "-i", pod, "--", "python3", "-c", POST)
    token = ALERTS["webhook-token"]
    return cluster.kubectl(*arguments, FORWARDER, token, given=json.dumps(notification)).strip()


def _container(cluster: Cluster, namespace: str, pod: str) -> str:
    """Return the pod's own container if it has a Python, else a debugger in its network."""
    if not pod.startswith(RELEASE):
        return pod
    found = cluster.get("pod", pod, namespace)["spec"].get("ephemeralContainers", [])
    if DEBUGGER not in {one["name"] for one in found}:
        _add_container(cluster, pod, _debugger(["sleep", "infinity"], DEBUGGER))
    return DEBUGGER


def _debugger(command: list[str], name: str) -> dict[str, Any]:
    return {
        "name": name,
        "image": BASE,
        "imagePullPolicy": "Never",
        "command": command,
        "securityContext": {**environment.RESTRICTED_CONTAINER, "runAsUser": 1000},
    }


def _add_container(cluster: Cluster, pod: str, container: dict[str, Any]) -> None:
    found = cluster.get("pod", pod, NAMESPACE)
    found["spec"].setdefault("ephemeralContainers", []).append(container)
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/ephemeralcontainers"
    cluster.kubectl("replace", "--raw", path, "-f", "-", given=json.dumps(found))

    def running() -> bool:
        statuses = cluster.get("pod", pod, NAMESPACE)["status"].get(
            "ephemeralContainerStatuses", []
        )
        return any(
            one["name"] == container["name"] and "running" in one["state"] for one in statuses
        )

    cluster.wait(running, f"container {container['name']}", NAMESPACE)
