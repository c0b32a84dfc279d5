"""The client of one cluster: kubectl and Helm, and waiting for what they say."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.cluster import components, parts
from lab.cluster.machine import GROUPS, RUN, find_hierarchies
from lab.real.parts import install
from lab.real.parts.process import PartError, Program, responds
from lab.real.scraper import eventually

START_SECONDS = 120.0
WAIT_SECONDS = 240.0  # for pods; some images' first start is slow on a busy machine
COMMAND_SECONDS = 300.0
KUBELET_HEALTH = "http://127.0.0.1:10248/healthz"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """One running cluster. A command that fails raises PartError with all that it printed."""

    directory: Path
    kubeconfig: Path
    components: dict[str, Program] = field(default_factory=dict, repr=False)  # none if not ours

    def kubectl(self, *arguments: str, given: str = "") -> str:
        """Run kubectl with `given` as standard input; return what it printed."""
        return self._run("kubectl", arguments, given)

    def helm(self, *arguments: str) -> str:
        """Run Helm; return what it printed."""
        return self._run("helm", arguments, "")

    def attempt(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run kubectl or Helm; the caller looks at its exit code."""
        command = [str(components.programs()[program]), f"--kubeconfig={self.kubeconfig}"]
        return self._done([*command, *arguments], "")

    def get(self, kind: str, name: str, namespace: str) -> Manifest:
        """Return one object."""
        found: Manifest = json.loads(self.kubectl("-n", namespace, "get", kind, name, "-ojson"))
        return found

    def address(self, pod: str, namespace: str) -> str:
        """Return the address of a pod."""
        return str(self.get("pod", pod, namespace)["status"]["podIP"])

    def items(self, kind: str, namespace: str, label: str = "") -> list[Manifest]:
        """Return all objects of a kind, with a label if one is given."""
        selected = ("-l", label) if label else ()
        said = self.kubectl("-n", namespace, "get", kind, "-ojson", *selected)
        found: list[Manifest] = json.loads(said)["items"]
        return found

    def apply(self, documents: Iterable[Manifest], *flags: str) -> str:
        """Apply documents; return what kubectl printed, warnings included."""
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        return self.kubectl("apply", *flags, "-f", "-", given=json.dumps(bundle))

    def execute(self, namespace: str, pod: str, container: str, *command: str) -> str:
        """Run a command in a container; return what it printed."""
        return self.kubectl("-n", namespace, "exec", pod, "-c", container, "--", *command)

    def wait_ready(self, namespace: str, *pods: str) -> None:
        """Wait until these pods, or all of the namespace, are ready."""

        def ready() -> bool:
            found = self.items("pods", namespace)
            wanted = [one for one in found if not pods or one["metadata"]["name"] in pods]
            return len(wanted) >= max(1, len(pods)) and all(is_ready(one) for one in wanted)

        self.wait(ready, f"ready pods {pods or ''} in {namespace}", namespace)

    def wait(self, check: Callable[[], object], name: str, namespace: str = "") -> None:
        """Wait until a check is true; a component that ends, or the deadline, is a PartError."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not check():
            for component in self.components.values():
                component.check()
            if time.monotonic() > deadline:
                raise PartError(
                    f"{name}: not after {WAIT_SECONDS:.0f} s\n{self.describe(namespace)}"
                )
            time.sleep(0.3)

    def describe(self, namespace: str) -> str:
        """Return pods and events, for a person who looks for a reason."""
        if not namespace:
            return ""
        pods = self.attempt("kubectl", "-n", namespace, "get", "pods", "-owide").stdout
        flags = ("events", "--sort-by=.lastTimestamp")
        events = self.attempt("kubectl", "-n", namespace, "get", *flags).stdout
        return pods + events[-4000:]

    def kill(self, *names: str) -> None:
        """End components with SIGKILL."""
        for name in names:
            self.components[name].kill()

    def start(self, *names: str) -> None:
        """Start components, those that have ended again; containerd and the kubelet answer then."""
        for name in names:
            self.components[name].start()
            if name == "containerd":
                eventually(lambda: _responds_at(components.socket(self.directory)), START_SECONDS)
            if name == "kubelet":
                eventually(self._kubelet_responds, START_SECONDS)

    def _kubelet_responds(self) -> bool:
        """Start it again if it has ended, as a service manager does: containerd may be late."""
        try:
            self.components["kubelet"].check()
        except PartError:
            self.components["kubelet"].start()
        return responds(KUBELET_HEALTH)

    def iptables(self, *arguments: str) -> None:
        """Change the packet filter of the node, past which the kubelet's port-forwards go."""
        settings = [f"{name}={value}" for name, value in parts.environment().items()]
        install.run_command(["env", *settings, "iptables", "--wait", *arguments])

    def end_processes(self, pods: Iterable[Manifest]) -> None:
        """Kill every process of these pods at once, as a power cut of their node would."""
        uids = [one["metadata"]["uid"] for one in pods]
        for hierarchy in find_hierarchies():
            for file in (hierarchy / os.environ[GROUPS]).rglob("cgroup.procs"):
                if any(uid in str(file) for uid in uids):
                    for pid in file.read_text().split():
                        with suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)

    @contextmanager
    def forwarding(self, namespace: str, pod: str, port: int) -> Iterator[str]:
        """Make a pod's port one of this loopback, past NetworkPolicies; yield its URL."""
        command = [str(components.programs()["kubectl"]), f"--kubeconfig={self.kubeconfig}"]
        command += ["-n", namespace, "port-forward", f"pod/{pod}", f":{port}"]
        with (
            (self.directory / "port-forward.log").open("ab") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line:
                    raise PartError(f"port-forward to {pod}:{port} failed, see {log.name}")
                yield "http://" + line.split(" -> ")[0].removeprefix("Forwarding from ")
            finally:
                process.kill()

    def _run(self, program: str, arguments: Sequence[str], given: str) -> str:
        command = [str(components.programs()[program]), f"--kubeconfig={self.kubeconfig}"]
        done = self._done([*command, *arguments], given)
        if done.returncode:
            shown = " ".join([program, *arguments])[:200]
            raise PartError(f"{shown} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + (done.stderr if program == "helm" or "apply" in arguments else "")

    def _done(self, command: Sequence[str], given: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
            env={**os.environ, "HELM_CACHE_HOME": f"{self.directory}/helm"},
        )


def is_ready(pod: Manifest) -> bool:
    """Tell whether a pod is ready and not about to end."""
    conditions = pod["status"].get("conditions", [])
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


@contextmanager
def running(report: Callable[[str], None]) -> Iterator[Cluster]:
    """Start all components in these namespaces; they end with the namespaces.

    Raises PartError if they do not come up.
    """
    directory = Path(os.environ[RUN])
    started = time.monotonic()
    made = components.make(directory, os.environ[GROUPS])
    cluster = Cluster(directory, directory / "kubeconfig", made)
    try:
        cluster.start("etcd", "kube-apiserver", "containerd")
        components.import_images(directory)
        report(f"images loaded after {time.monotonic() - started:.1f} s")
        cluster.wait(lambda: _responds(cluster), "the API server")
        cluster.start("kube-controller-manager", "kube-scheduler", "kubelet")
        cluster.wait(lambda: _node_ready(cluster), "the node")
        cluster.start("kube-router")  # it ends if the node is not known yet
        report(f"node ready after {time.monotonic() - started:.1f} s")
        yield cluster
    finally:
        cluster.kill(*reversed(made))


def _responds_at(path: Path) -> bool:
    """Return whether something listens on a Unix socket; its file outlives a killed program."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _responds(cluster: Cluster) -> bool:
    return cluster.attempt("kubectl", "get", "--raw", "/readyz").stdout == "ok"


def _node_ready(cluster: Cluster) -> bool:
    said = cluster.attempt("kubectl", "get", "nodes", "-ojson").stdout
    return any(is_ready(one) for one in json.loads(said or '{"items": []}')["items"])
