"""The chart's default address on IPv4, IPv6 and dual-stack pods, and without IPv6 in the kernel."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.real.chart import render
from lab.real.parts import install
from lab.real.scraper import eventually

IPV4, IPV6 = "10.42.0.10", "fd00:42::10"  # of the pod, as the kubelet and Alertmanager reach it
NO_IPV6 = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
ADDRESSES = {IPV4: f"ip address add {IPV4}/32 dev lo", IPV6: f"ip address add {IPV6}/128 dev lo"}
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 4).close()"
HEALTH_CHECK = str(install.ROOT / "images" / "healthcheck.py")
WITHOUT_IPV6 = (sys.executable, "-m", "lab.real.without_ipv6")


def listen_settings() -> dict[str, str]:
    """Return the addresses that the chart gives the forwarder by default."""
    (deployment,) = [
        one
        for one in render.manifests(render.CHART / "ci" / "default-values.yaml")
        if one["kind"] == "Deployment" and one["metadata"]["name"].endswith("alert-forwarder")
    ]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    given = {one["name"]: one.get("value", "") for one in container["env"]}
    return {name: given[name] for name in ("BYOC_LISTEN", "BYOC_ALERTS_LISTEN")}


@contextmanager
def pod(directory: Path, setup: str, *prefix: str) -> Iterator[int]:
    """Run the forwarder in a network of its own, made by `setup`. Give its process id."""
    daemon = [*prefix, sys.executable, "-m", "byoc_agents.app.cli", "run", "alert-forwarder"]
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()
    environment = os.environ | {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REGION": "eu-west-1",
        "BYOC_STATE_DIR": str(directory),
        "BYOC_SHUTDOWN_GRACE_SECONDS": "1",
        "BYOC_ALERTS_URL": "http://127.0.0.1:9/v1/events",
        "BYOC_ALERTS_TOKEN": "token",
        "BYOC_ALERTS_SIGNING_SECRET": secret,
        "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
        "BYOC_ALERTS_NAMESPACE": "clickhouse",
        "BYOC_ALERTS_WEBHOOK_TOKEN": "hook",
    }
    command = ["unshare", "--net", "sh", "-ec", f'ip link set lo up; {setup}; exec "$@"', "sh"]
    process = subprocess.Popen(
        [*command, *daemon], env=environment | listen_settings(), cwd=install.ROOT
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(timeout=20)


def inside(pid: int, *command: str, **environment: str) -> bool:
    """Run a program in the pod's network; return whether it ends with 0."""
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net", *command]
    done = subprocess.run(
        enter, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return done.returncode == 0


@pytest.mark.parametrize(
    ("addresses", "setup", "prefix"),
    [
        ([IPV4], NO_IPV6, ()),
        ([IPV4], "true", WITHOUT_IPV6),
        ([IPV6], "true", ()),
        ([IPV4, IPV6], "true", ()),
    ],
    ids=["IPv4", "kernel without IPv6", "IPv6", "dual stack"],
)
def test_the_charts_default_address_serves_every_family(
    addresses: list[str], setup: str, prefix: tuple[str, ...], tmp_path: Path
) -> None:
    own = listen_settings()
    port, webhook_port = (value.rpartition(":")[2] for value in own.values())
    with pod(tmp_path, "; ".join([setup, *(ADDRESSES[a] for a in addresses)]), *prefix) as pid:
        eventually(lambda: inside(pid, sys.executable, HEALTH_CHECK, **own))
        for address in addresses:
            asked = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            assert inside(pid, sys.executable, HEALTH_CHECK, BYOC_LISTEN=asked)
            assert inside(pid, sys.executable, "-c", CONNECT, address, webhook_port)


def test_without_ipv6_there_is_no_such_socket() -> None:
    program = "import socket; socket.socket(socket.AF_INET).close(); socket.socket(socket.AF_INET6)"
    done = subprocess.run(
        [*WITHOUT_IPV6, sys.executable, "-c", program],
        cwd=install.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Address family not supported" in done.stderr
