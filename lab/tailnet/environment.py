"""Start the whole path in network namespaces: pods as the kubelet would, and both sides of them."""

import datetime as dt
import fcntl
import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lab.real.chart import render
from lab.real.netlab.namespaces import LOCK, PREFIX, _need, run
from lab.real.parts import install
from lab.real.parts.install import ROOT
from lab.real.parts.process import POLL_SECONDS, PartError
from lab.tailnet import certificates, parts, policies
from lab.tailnet.engineer import Engineer, Held
from lab.tailnet.policies import (
    CLUSTER_DNS,
    NODE_DNS,
    POD,
    PROMETHEUS,
    PROXY,
    PROXY_SERVICE,
    PUBLIC,
    SERVERS,
)

CONTROL, RELAY = "203.0.113.10", "203.0.113.20"  # RFC 5737, as all public addresses here
ADMIN_PORT = 9912
ABSENCE_SECONDS = 6.0  # after which the coordination server removes an ephemeral node
ENGINEER, STRANGER = "198.51.100.10", "192.0.2.10"
ROUTER = f"{PREFIX}tn-router"
WIRES = {  # the namespaces, and their addresses
    "pod": (POD,),
    "proxy": (PROXY,),
    "servers": (SERVERS, PROMETHEUS, CLUSTER_DNS),
    "vendor": (CONTROL, RELAY),
    "engineer": (ENGINEER,),
    "stranger": (STRANGER,),
}
SERVICE = "svc-1"
REPLICA, METRICS, API = "r0.ch.svc-1.byoc", "metrics.svc-1.byoc", "api.svc-1.byoc"
HOSTS = {name: f"{name}-{SERVICE}" for name in ("clickhouse", "metrics", "kubernetes")}
ENDPOINT_TAG, ENGINEER_TAG = "tag:byoc-endpoint", "tag:vendor-oncall"
RULES = [{"From": ENGINEER_TAG, "To": ENDPOINT_TAG, "Ports": [9441, 8444, 9443, 6443]}]
CLUSTER_NAME = "kubernetes.default.svc.cluster.local"
PEM_END = "-----END CERTIFICATE-----"
READY_SECONDS = 60.0  # a busy machine; each wait ends as soon as it may
UID = 65532
# A pod has its own /etc, a read-only root and a small /tmp; the programs come from /opt.
POD_SCRIPT = """
set -e
mount --bind "$PROGRAMS" /opt
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/tailnet
mount --bind "$FILES" /mnt/tailnet
mount --rbind /mnt /etc
echo "nameserver $NAMESERVER" >/etc/resolv.conf
echo "hosts: files dns" >/etc/nsswitch.conf
mount -o remount,ro,bind /etc/tailnet
mount -o remount,ro,bind /etc
mount -t tmpfs -o size=16m,mode=1777,nosuid,nodev,noexec tmpfs /tmp
mount -o remount,bind,ro /
cd /
exec env -i "$@"
"""
UNPRIVILEGED = (
    *("/usr/bin/setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
    *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
)


def values(mode: str = "relay", login_server: str = f"http://{CONTROL}:443") -> dict[str, Any]:
    """Return the chart's values for these namespaces, on top of the set `tailnet` in `ci`."""
    given: dict[str, Any] = yaml.safe_load((render.CHART / "ci/tailnet-values.yaml").read_text())
    given["networkPolicy"]["wide"] = mode == "direct"
    given["allowInsecureEndpoints"] = True  # the control server of the tests speaks plain http
    given["tailnet"] |= {
        "mode": mode,
        "cidrs": [] if mode == "direct" else ["203.0.113.0/24"],
        "loginServer": login_server,
        "nginx": given["tailnet"]["nginx"] | {"address": PROXY_SERVICE, "resolver": CLUSTER_DNS},
        "dns": [f"{NODE_DNS}/32"],
        "kubernetes": {
            "enabled": True, "serverName": API, "address": f"{SERVERS}:8444",
            "cidrs": [f"{SERVERS}/32"],
        },
        "clickhouse": {"enabled": True, "replicas": {REPLICA: SERVERS}},
        "metrics": {
            "enabled": True, "serverName": METRICS, "address": f"{PROMETHEUS}:9090",
            "tlsSecretName": "metrics-tls",
        },
    }  # fmt: skip
    return given


@dataclass(eq=False)
class Program:
    """A program in a namespace, with its output in a file. Stopped by its process id."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, number: signal.Signals = signal.SIGTERM, grace_seconds: float = 15.0) -> None:
        """Send the signal, and SIGKILL after the grace."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_seconds)
            self.process.kill()
            self.process.wait()

    def wait_for(self, happened: Callable[[], bool], what: str) -> None:
        """Poll until it happened. Raises PartError with the log if it does not."""
        deadline = time.monotonic() + READY_SECONDS
        while not happened():
            if self.process.poll() is not None or time.monotonic() > deadline:
                end = self.log.read_text(errors="replace")[-3000:]
                raise PartError(f"{self.name}: {what} did not happen:\n{end}")
            time.sleep(POLL_SECONDS)


@dataclass
class Environment:
    """Everything that runs. Files of the test are in `directory`."""

    directory: Path
    programs: Path
    stack: ExitStack
    running: dict[str, Program] = field(default_factory=dict)
    listener: Sequence[str] = ("lab.tailnet.listener",)  # the module, and arguments after the files

    # --- the cluster ---

    def start_pod(self, endpoint: str, documents: Sequence[Mapping[str, Any]]) -> str:
        """Start the chart's pod of one endpoint; return its address in the tailnet."""
        policies.load(ROUTER, documents, endpoint)
        self.start_endpoint(endpoint, documents)
        self.running["pod"].wait_for(self.healthy, "health")
        return self.address_of(HOSTS[endpoint])

    def start_endpoint(self, endpoint: str, documents: Sequence[Mapping[str, Any]]) -> None:
        """Start the pod of one endpoint, without waiting."""
        called = f"byoc-agents-tailnet-{endpoint}"
        (container,) = pod_of(documents, called)["containers"]
        files = self.directory / "files-pod"
        serve = files / "serve" / "serve.json"
        serve.parent.mkdir(parents=True, exist_ok=True)
        serve.write_text(config_of(documents, called)["serve.json"])
        (files / "key").mkdir(exist_ok=True)
        key = files / "key" / "authkey"
        key.write_text((self.directory / "auth-key").read_text())
        os.chown(key, 0, UID)
        key.chmod(0o440)
        given = {one["name"]: one.get("value", POD) for one in container["env"]}
        given = {name: text.replace("$(POD_IP)", POD) for name, text in given.items()}
        given |= {"KUBERNETES_SERVICE_HOST": "10.100.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        self._start_unprivileged("pod", NODE_DNS, given | {"PATH": "/opt"}, ["containerboot"])

    def stop_pod(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop the pod's first process, as the kubelet does after a scaling to 0, then the rest."""
        self.running.pop("pod").stop(number)
        for pid in run("ip", "netns", "pids", f"{PREFIX}tn-pod").split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def peak_memory_bytes(self) -> int:
        """Return the largest resident size that the pod's tailscaled has had."""
        for pid in run("ip", "netns", "pids", f"{PREFIX}tn-pod").split():
            status = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines())
            if fields["Name"] == "tailscaled":
                return int(fields["VmHWM"].split()[0]) * 1024
        raise PartError("the pod has no tailscaled")

    def healthy(self) -> bool:
        """Return whether the pod's health page answers 200, asked from the node."""
        url = f"http://{POD}:9002/healthz"
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "2", url]
        return self.output("pod", *command, check=False).strip() == "200"

    def start_proxy(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Start nginx with the chart's configuration; Debian's has `stream` as a module."""
        called, place = "byoc-agents-tailnet-nginx", parts.nginx()
        (container,) = pod_of(documents, called)["containers"]
        files = self.directory / "files-proxy"
        (files / "nginx").mkdir(parents=True)
        (files / "nginx/nginx.conf").write_text(config_of(documents, called)["nginx.conf"])
        certificates.install(self.directory, files)
        module = "/opt/usr/lib/nginx/modules/ngx_stream_module.so"
        command = [*container["command"]]
        command[0] = "/opt/usr/sbin/nginx"
        command[-1] = f"load_module {module}; {command[-1]}"
        libraries = install.library_path(place)["LD_LIBRARY_PATH"].replace(str(place), "/opt")
        environment = {"LD_LIBRARY_PATH": libraries}
        self._start_unprivileged("proxy", CLUSTER_DNS, environment, command, place)
        check = ["curl", "-s", "-f", "-m", "2", f"http://{PROXY}:8081/healthz"]
        self.running["proxy"].wait_for(lambda: self.call("proxy", *check).returncode == 0, "health")

    def proxy_log(self) -> list[dict[str, Any]]:
        """Return nginx's lines about connections and requests."""
        lines = (self.directory / "proxy.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def start_servers(self) -> None:
        """Start ClickHouse's listener, a Prometheus and the two resolvers."""
        python = [sys.executable, "-m"]
        module, *more = self.listener
        own = [SERVERS, *certificates.server_files(self.directory), *more]
        self._start("listener", "servers", [*python, module, *own])
        self._start("prometheus", "servers", [*python, "lab.tailnet.prometheus", PROMETHEUS])
        for name, host, known in (
            ("cluster-dns", CLUSTER_DNS, {CLUSTER_NAME: "10.100.0.1"}),
            ("node-dns", NODE_DNS, {}),
        ):
            log = self.directory / f"{name}.asked"
            log.touch()
            pairs = [f"{known_name}={address}" for known_name, address in known.items()]
            resolver = [*python, "lab.tailnet.resolver", host, str(log), *pairs]
            self._start(name, "servers", resolver)
        for name in ("listener", "prometheus", "cluster-dns", "node-dns"):
            self.running[name].wait_for(partial(self._said_ready, name), "start")

    def _said_ready(self, name: str) -> bool:
        return b"ready" in self.running[name].log.read_bytes()

    def asked_names(self, resolver: str) -> set[str]:
        """Return the names that the pod asked a resolver for."""
        lines = (self.directory / f"{resolver}.asked").read_text().splitlines()
        return {name for asker, name in map(str.split, lines) if asker == POD}

    # --- the vendor ---

    def start_relay(self) -> None:
        """Start the relay; write the map with the digest of its own certificate."""
        place = self.directory / "derp"
        place.mkdir(exist_ok=True)
        listen = ["-a", f"{RELAY}:443", "-http-port", "-1", "-stun-port", "3478"]
        own = ["-hostname", RELAY, "-certmode", "manual", "-certdir", str(place)]
        program = [str(self.programs / "derper"), *own, *listen, "-c", str(place / "derper.key")]
        self._start("relay", "vendor", program, {"TS_NO_LOGS_NO_SUPPORT": "true"})
        certificate = place / f"{RELAY}.crt"

        def written() -> bool:  # completely: the program makes the file and then writes it
            return certificate.exists() and PEM_END in certificate.read_text()

        self.running["relay"].wait_for(written, "its certificate")
        der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        node = {
            "Name": "1a", "RegionID": 1, "HostName": RELAY, "IPv4": RELAY, "IPv6": "none",
            "CertName": f"sha256-raw:{hashlib.sha256(der).hexdigest()}",
            "DERPPort": 443, "STUNPort": 3478, "CanPort80": False,
        }  # fmt: skip
        region = {"RegionID": 1, "RegionCode": "lab", "RegionName": "lab", "Nodes": [node]}
        text = json.dumps({"OmitDefaultRegions": True, "Regions": {"1": region}})
        (self.directory / "derp-map.json").write_text(text)

    def start_control(self) -> None:
        """Start the coordination server. Nodes that it knew before are unknown to it."""
        record = self.directory / "record"
        shutil.rmtree(record, ignore_errors=True)  # the numbers of the messages begin again
        record.mkdir()
        options = {
            "listen": f"{CONTROL}:443", "admin": f"{CONTROL}:{ADMIN_PORT}",
            "derp-map": self.directory / "derp-map.json", "policy": self.directory / "policy.json",
            "auth-key": self.directory / "auth-key", "record": record,
            "absence": f"{ABSENCE_SECONDS:g}s",
        }  # fmt: skip
        flags = [f"-{name}={value}" for name, value in options.items()]
        self._start("control", "vendor", [str(self.programs / "control"), *flags])
        self.running["control"].wait_for(lambda: self._order("GET", "ready"), "start")

    @contextmanager
    def silent_control(self) -> Iterator[None]:
        """Let the coordination server answer nothing, while its connections stay."""
        process = self.running["control"].process
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def allow(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Give the tailnet another policy."""
        (self.directory / "policy.json").write_text(json.dumps(rules))
        self.order("reload")

    def order(self, path: str) -> None:
        """Send the coordination server an order. Raises PartError."""
        if not self._order("POST", path):
            raise PartError(f"the coordination server refused {path}")

    def _order(self, method: str, path: str) -> bool:
        url = f"http://{CONTROL}:{ADMIN_PORT}/{path}"
        return self.call("vendor", "curl", "-s", "-f", "-m", "5", "-X", method, url).returncode == 0

    def requests_of_pods(self) -> list[dict[str, Any]]:
        """Return the requests of the pods to the coordination server, in order.

        They come from the cluster's public address. lab/tailnet/control has their keys.
        """
        files = sorted((self.directory / "record").glob(f"*-{PUBLIC}.json"))
        return [json.loads(file.read_text()) for file in files]

    def nodes(self, host: str) -> list[dict[str, Any]]:
        """Return the nodes of this name that the coordination server has now."""
        url = f"http://{CONTROL}:{ADMIN_PORT}/nodes"
        found = json.loads(self.output("vendor", "curl", "-s", "-f", "-m", "5", url))
        return [one for one in found if one["Name"] == host]

    def start_engineer(self, place: str = "engineer", tag: str = ENGINEER_TAG) -> None:
        """Join the tailnet with an engineer's machine: a TUN device, and shields up."""
        state, sock = self.directory / f"state-{place}", self.socket(place)
        state.mkdir(exist_ok=True)
        daemon = ["--state=mem:", f"--statedir={state}", f"--socket={sock}"]
        tailscaled = [str(self.programs / "tailscaled"), *daemon]
        self._start(f"node-{place}", place, tailscaled, {"TS_NO_LOGS_NO_SUPPORT": "true"})
        program = self.running[f"node-{place}"]
        program.wait_for(sock.exists, "its socket")
        up = [
            "up", f"--login-server=http://{CONTROL}:443", f"--advertise-tags={tag}",
            f"--authkey=file:{self.directory / 'auth-key'}", f"--hostname={place}",
            "--accept-dns=false", "--accept-routes=false", "--netfilter-mode=off", "--shields-up",
            "--timeout=30s",
        ]  # fmt: skip
        self.tailscale(place, *up)

    def stop_engineer(self, place: str = "engineer") -> None:
        """Leave the tailnet."""
        program = self.running.pop(f"node-{place}")
        program.stop()
        self.socket(place).unlink(missing_ok=True)

    def socket(self, place: str) -> Path:
        """Return the control socket of an engineer's tailscaled: its path is short."""
        return self.directory / f"{place}.sock"

    def tailscale(self, place: str, *arguments: str) -> str:
        """Run the command line of an engineer's node."""
        program = str(self.programs / "tailscale")
        return self.output(place, program, f"--socket={self.socket(place)}", *arguments)

    def peers(self, place: str = "engineer") -> list[dict[str, Any]]:
        """Return the peers that a node sees, as it reports them."""
        status = json.loads(self.tailscale(place, "status", "--json"))
        return list((status["Peer"] or {}).values())

    def peer(self, host: str) -> dict[str, Any] | None:
        """Return the newest peer of this name that is connected."""
        found = [one for one in self.peers() if one["HostName"] == host and one["Online"]]
        return found[-1] if found else None

    def address_of(self, host: str) -> str:
        """Wait until the engineer sees the endpoint; return its address."""
        self.running["node-engineer"].wait_for(lambda: self.peer(host) is not None, host)
        found = self.peer(host)
        assert found is not None
        return str(found["TailscaleIPs"][0])

    # --- what the engineer does ---

    def ask(self, address: str, port: int = 9441, **options: Any) -> dict[str, Any]:
        """Send one line over TLS; return the client's line: `answer` or `error`."""
        return self.engineer(options.pop("place", "engineer")).ask(address, port, **options)

    def dial(self, address: str, port: int, place: str = "engineer", seconds: float = 3) -> str:
        """Connect only; return "open" or the error."""
        return self.engineer(place).dial(address, port, seconds)

    def download(self, address: str, size_bytes: int) -> float:
        """Receive this many bytes through an endpoint of ClickHouse; return the seconds."""
        return self.engineer().download(address, 8444, size_bytes, timeout=60.0)

    @contextmanager
    def hold(self, address: str, port: int = 9441, **options: Any) -> Iterator[Held]:
        """Keep a connection open, with a line every 100 ms; the first answer has come."""
        with self.engineer().hold(address, port, **options) as held:
            yield held

    def engineer(self, place: str = "engineer") -> Engineer:
        """Return the engineer in a namespace."""
        return Engineer(self.directory, inside(place))

    # --- processes ---

    def output(self, place: str, *command: str, check: bool = True) -> str:
        """Run a command in a namespace; return its output. Raises PartError with its error."""
        done = self.call(place, *command)
        if check and done.returncode:
            raise PartError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def call(self, place: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace to its end."""
        return subprocess.run(
            [*inside(place), *command], cwd=ROOT, capture_output=True, text=True, check=False
        )

    def _start(
        self,
        name: str,
        place: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.running[name] = launch(
            name, [*inside(place), *command], self.directory, {**os.environ, **(environment or {})}
        )

    def _start_unprivileged(
        self,
        place: str,
        nameserver: str,
        environment: Mapping[str, str],
        command: Sequence[str],
        programs: Path | None = None,
    ) -> None:
        pairs = [f"{name}={text}" for name, text in environment.items()]
        script = ["unshare", "--mount", "--propagation=private", "sh", "-c", POD_SCRIPT, "sh"]
        given = {
            "PROGRAMS": str(programs or self.programs),
            "FILES": str(self.directory / f"files-{place}"),
            "NAMESERVER": nameserver,
        }
        self._start(place, place, [*script, *pairs, *UNPRIVILEGED, *command], given)

    def stop(self) -> None:
        """Stop what still runs, the newest first."""
        for program in reversed([*self.running.values()]):
            program.stop(grace_seconds=5)


def launch(
    name: str, command: Sequence[str], directory: Path, environment: Mapping[str, str]
) -> Program:
    """Start a program; its output is the file NAME.log of the directory."""
    log = directory / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
    log.chmod(0o666)  # nginx opens its standard output again, as another user
    return Program(name, process, log)


@contextmanager
def built(
    directory: Path,
    documents: Sequence[Mapping[str, Any]],
    listener: Sequence[str] = ("lab.tailnet.listener",),
) -> Iterator[Environment]:
    """Make the namespaces and start all but the pod: servers, nginx, the vendor, the engineer."""
    programs = parts.programs()
    with ExitStack() as stack:
        stack.enter_context(network())
        environment = Environment(directory, programs, stack, listener=listener)
        stack.callback(environment.stop)
        certificates.make(directory, SERVICE, dt.datetime.now(dt.UTC))
        (directory / "policy.json").write_text(json.dumps(RULES))
        (directory / "auth-key").write_text(f"tskey-auth-lab-{os.urandom(24).hex()}\n")
        policies.load(ROUTER, documents, "clickhouse")
        environment.start_servers()
        environment.start_proxy(documents)
        environment.start_relay()
        environment.start_control()
        environment.start_engineer()
        yield environment


@contextmanager
def network() -> Iterator[None]:
    """Make the namespaces and their wires, and delete them at the end. One lab per machine."""
    _need("ip", "nft", "curl")
    with LOCK.open("w") as lock, ExitStack() as stack:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep()  # what an earlier run left that was killed
        stack.callback(_sweep)
        run("ip", "netns", "add", ROUTER)
        run(*inside("router"), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        run("ip", "-n", ROUTER, "link", "set", "lo", "up")
        for name, addresses in WIRES.items():
            _wire(name, addresses)
        run("ip", "-n", ROUTER, "route", "add", f"{NODE_DNS}/32", "via", SERVERS)
        run("ip", "-n", f"{PREFIX}tn-servers", "address", "add", f"{NODE_DNS}/32", "dev", "lo")
        yield


def _wire(name: str, addresses: Sequence[str]) -> None:
    place, gateway = f"{PREFIX}tn-{name}", addresses[0].rpartition(".")[0] + ".1"
    run("ip", "netns", "add", place)
    off = "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 >$f; done"
    run(*inside(name), "sh", "-c", off)
    ends = ("type", "veth", "peer", "name", "eth0", "netns", place)
    run("ip", "link", "add", f"{name}0", "netns", ROUTER, *ends)
    run("ip", "-n", ROUTER, "address", "add", f"{gateway}/24", "dev", f"{name}0")
    run("ip", "-n", ROUTER, "link", "set", f"{name}0", "up")
    for address in addresses:
        run("ip", "-n", place, "address", "add", f"{address}/24", "dev", "eth0")
    for link in ("lo", "eth0"):
        run("ip", "-n", place, "link", "set", link, "up")
    run("ip", "-n", place, "route", "add", "default", "via", gateway)


def inside(place: str) -> tuple[str, ...]:
    """Return the command before one that runs in a namespace."""
    return ("ip", "netns", "exec", f"{PREFIX}tn-{place}")


def pod_of(documents: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return the pod's spec of a Deployment."""
    (found,) = (
        one["spec"]["template"]["spec"]
        for one in documents
        if (one["kind"], one["metadata"]["name"]) == ("Deployment", name)
    )
    return dict(found)


def config_of(documents: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """Return the files of a ConfigMap."""
    (found,) = (
        one["data"]
        for one in documents
        if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", name)
    )
    return dict(found)


def _sweep() -> None:
    """Kill the processes in the lab's namespaces, by pid, and delete the namespaces."""
    existing = {line.split()[0] for line in run("ip", "netns", "list").splitlines()}
    for name in sorted(one for one in existing if one.startswith(f"{PREFIX}tn-")):
        for pid in run("ip", "netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "delete", name)
