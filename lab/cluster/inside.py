"""The first process of a cluster's namespaces: `python -m lab.cluster.inside COMMAND...`.

It prepares the network and the mounts, runs the command, reaps what the command's programs leave
behind, and ends with the command: then the kernel ends everything else in the namespaces.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from lab.cluster.machine import RUN

NODE = "10.78.0.1"  # the node's address: only these namespaces know it
# The kubelet writes these; they belong to the whole machine. It finds its values in copies instead.
TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def prepare(directory: Path) -> None:
    """Make the node's network, and mounts that the kubelet may share with containers."""
    run = subprocess.check_call
    run(["mount", "--make-rshared", "/"])
    # runc, the network plugins, iptables and the kubelet keep files there, wherever they are run.
    run(["mount", "-t", "tmpfs", "tmpfs", "/run"])
    upper, work = directory / "var", directory / "var-work"
    upper.mkdir()
    work.mkdir()
    layers = f"lowerdir=/var,upperdir={upper},workdir={work}"
    run(["mount", "-t", "overlay", "overlay", "-o", layers, "/var"])
    for name, value in TUNABLES.items():
        copy = directory / "tunables" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(f"{value}\n")
        run(["mount", "--bind", str(copy), f"/proc/sys/{name}"])
    run(["ip", "link", "set", "lo", "up"])
    run(["ip", "link", "add", "node0", "type", "veth", "peer", "name", "node1"])
    run(["ip", "addr", "add", f"{NODE}/24", "dev", "node0"])
    for device in ("node0", "node1"):
        run(["ip", "link", "set", device, "up"])
    run(["ip", "route", "add", "default", "dev", "node0"])  # components look for one; it ends there
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def main(command: list[str]) -> int:
    """Return the exit code of the command."""
    prepare(Path(os.environ[RUN]))
    process = subprocess.Popen(command)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command as well
    while True:
        pid, status = os.wait()
        if pid == process.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
