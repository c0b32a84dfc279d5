"""The programs of a cluster with one node, started in the namespaces that `machine` made.

| program | here |
|---|---|
| etcd | without fsync: nothing outlives the cluster |
| kube-apiserver | on the node's address, with RBAC and the default admission plugins |
| kube-controller-manager, kube-scheduler | one of each, so no leader is elected |
| containerd, runc | a directory of their own; overlayfs |
| kubelet | control groups below a group of its own |
| kube-router | NetworkPolicies only: no routes to other nodes, no Services' addresses |

Pods get their network from the plugin `ptp`: all their traffic is routed by the node, where
iptables sees it. There is no kube-proxy, so only headless Services work.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.cluster import parts
from lab.cluster.inside import NODE
from lab.real.parts import helm, install
from lab.real.parts.process import Program

NODE_NAME = "node"
PODS = "10.77.0.0/24"
RESOLVER = "10.77.0.2"  # the first pod's address; `environment` starts the resolver first
SERVICES = "10.79.0.0/24"
SERVER = f"https://{NODE}:6443"


def make(directory: Path, group: str) -> dict[str, Program]:
    """Write every program's configuration; return them by name, in the order of their start."""
    for name in ("log", "pki", "cni", "pods-log", "plugins"):
        (directory / name).mkdir()
    config = _Configuration(directory, group)
    return {
        name: Program(name, command, directory / "log" / f"{name}.log", parts.environment())
        for name, command in config.commands().items()
    }


@dataclass(frozen=True)
class _Configuration:
    directory: Path
    group: str

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    def commands(self) -> dict[str, list[str]]:
        """Return name -> command."""
        self._write_keys()
        etcd = "http://127.0.0.1:2379"
        built, pki, kubeconfig = parts.kubernetes(), self.directory / "pki", self.kubeconfig
        return {
            "etcd": [
                "etcd",
                "--unsafe-no-fsync",
                f"--data-dir={self.directory}/etcd",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
            ],
            "kube-apiserver": [
                str(built / "kube-apiserver"),
                f"--etcd-servers={etcd}",
                f"--bind-address={NODE}",
                f"--advertise-address={NODE}",
                f"--cert-dir={pki}",
                f"--token-auth-file={pki}/tokens.csv",
                "--authorization-mode=RBAC",
                f"--service-cluster-ip-range={SERVICES}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={pki}/accounts.key",
                f"--service-account-signing-key-file={pki}/accounts.key",
                "--kubelet-preferred-address-types=InternalIP",  # the node's name has no address
            ],
            "containerd": ["containerd", f"--config={self._containerd()}"],
            "kube-controller-manager": [
                str(built / "kube-controller-manager"),
                f"--kubeconfig={kubeconfig}",
                f"--service-account-private-key-file={pki}/accounts.key",
                f"--root-ca-file={pki}/apiserver.crt",
                "--allocate-node-cidrs",
                f"--cluster-cidr={PODS}",
                "--node-cidr-mask-size=24",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--cert-dir={pki}/controllers",
            ],
            "kube-scheduler": [
                str(built / "kube-scheduler"),
                f"--kubeconfig={kubeconfig}",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--cert-dir={pki}/scheduler",
            ],
            "kubelet": [
                str(built / "kubelet"),
                f"--config={self._kubelet()}",
                f"--kubeconfig={kubeconfig}",
                f"--root-dir={self.directory}/kubelet",
                f"--cert-dir={pki}/kubelet",
                f"--hostname-override={NODE_NAME}",
                f"--node-ip={NODE}",
            ],
            "kube-router": [
                str(parts.kube_router() / "kube-router"),
                "--run-firewall=true",
                "--run-router=false",
                "--run-service-proxy=false",
                f"--kubeconfig={kubeconfig}",
                f"--hostname-override={NODE_NAME}",
                "--iptables-sync-period=10s",
                "--health-port=0",
            ],
        }

    def _write_keys(self) -> None:
        pki, token = self.directory / "pki", secrets.token_hex(16)
        install.run_command(["openssl", "genrsa", "-out", str(pki / "accounts.key"), "2048"])
        (pki / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        cluster = {"server": SERVER, "certificate-authority": f"{pki}/apiserver.crt"}
        self._write(
            "kubeconfig",
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "lab", "cluster": cluster}],
                "users": [{"name": "admin", "user": {"token": token}}],
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
                "current-context": "lab",
            },
        )
        self.kubeconfig.chmod(0o600)

    def _containerd(self) -> Path:
        """Write its configuration and that of the pods' network; return the former."""
        plugins = parts.debian() / "usr/lib/cni"
        ranges = {"ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}
        addresses = {"type": "host-local", "dataDir": f"{self.directory}/addresses", **ranges}
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}],
        }
        self._write("cni/pods.conflist", network)
        path = self.directory / "containerd.toml"
        # A negative oom_score_adj needs CAP_SYS_RESOURCE on the machine itself.
        path.write_text(f"""version = 2
root = "{self.directory}/containerd"
state = "{self.directory}/containerd-state"
[grpc]
  address = "{socket(self.directory)}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{parts.PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{self.directory}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
""")
        return path

    def _kubelet(self) -> Path:
        return self._write(
            "kubelet.yaml",
            {
                "apiVersion": "kubelet.config.k8s.io/v1beta1",
                "kind": "KubeletConfiguration",
                "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
                "authorization": {"mode": "AlwaysAllow"},
                "address": NODE,
                "cgroupDriver": "cgroupfs",
                "cgroupRoot": f"/{self.group}",
                "enforceNodeAllocatable": [],
                "failSwapOn": False,
                "failCgroupV1": False,
                "clusterDNS": [RESOLVER],
                "clusterDomain": "cluster.local",
                "resolvConf": "",
                "containerRuntimeEndpoint": f"unix://{socket(self.directory)}",
                "volumePluginDir": f"{self.directory}/plugins",
                "podLogsDir": f"{self.directory}/pods-log",
                "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
                "imageGCHighThresholdPercent": 100,  # never: no registry has these images
                "syncFrequency": "10s",
            },
        )

    def _write(self, name: str, content: Mapping[str, object]) -> Path:
        """Write a configuration; JSON is YAML as well."""
        path = self.directory / name
        path.write_text(json.dumps(content, indent=1))
        return path


def socket(directory: Path) -> Path:
    """Return containerd's socket."""
    return directory / "containerd.sock"


def import_images(directory: Path, archive: Path | None = None) -> None:
    """Load all images, or those of an archive, into containerd, which the kubelet asks."""
    command = ["ctr", f"--address={socket(directory)}", "--namespace=k8s.io", "images", "import"]
    settings = [f"{name}={value}" for name, value in parts.environment().items()]
    install.run_command(["env", *settings, *command, str(archive or parts.image_archive())])


def programs() -> dict[str, Path]:
    """Return the clients: kubectl and helm."""
    return {"kubectl": helm.kubectl(), "helm": helm.helm(parts.HELM)}
