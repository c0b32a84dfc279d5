"""Make the four namespaces and their links, under a lock; clean up before and after."""

import asyncio
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from lab.real.parts.process import PartError

T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # linux/sched.h
PREFIX = "byoc-lab-"
LOCK = Path("/run/byoc-lab.lock")  # namespaces have names for the whole machine
POD, ROUTER, S3, INTERNET = "pod", "router", "s3", "internet"
POD_ADDRESS, DNS_ADDRESS = "10.42.0.10", "10.42.0.1"
WIRES = {POD: ("pod0", "10.42.0"), S3: ("gateway0", "10.43.0"), INTERNET: ("internet0", "10.44.0")}
# RFC 5737: addresses for documentation, which no network routes.
S3_PREFIX = "198.51.100.0/24"
S3_ADDRESS = "198.51.100.10"
SQS_ADDRESS, PLANE_ADDRESS, STRANGER_ADDRESS = "203.0.113.10", "203.0.113.20", "203.0.113.66"
FAR_ADDRESSES = {
    S3: (S3_ADDRESS,),
    INTERNET: (S3_ADDRESS, SQS_ADDRESS, PLANE_ADDRESS, STRANGER_ADDRESS),
}


class Namespace:
    """One namespace, with a thread in it. Its sockets and processes belong to the namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread = ThreadPoolExecutor(1, name, initializer=_enter, initargs=(name,))

    def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Run a function inside and wait for it. Its sockets and processes stay inside."""
        return self._thread.submit(work, *arguments).result()

    async def do(self, work: Callable[..., T], *arguments: object) -> T:
        """Run a function inside, without blocking the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


@contextmanager
def network() -> Iterator[dict[str, Namespace]]:
    """Make the namespaces, and delete them at the end. One lab at a time per machine."""
    with made(POD, ROUTER, S3, INTERNET) as found:
        for namespace in found.values():
            namespace.run(_prepare)
        _wire()
        yield found


@contextmanager
def made(*names: str) -> Iterator[dict[str, Namespace]]:
    """Make empty namespaces, and delete them at the end. One lab at a time per machine."""
    _need("ip", "nft")
    with LOCK.open("w") as lock, ExitStack() as stack:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep()  # what an earlier run left that was killed
        stack.callback(_sweep)
        for name in names:
            run("ip", "netns", "add", PREFIX + name)
        found = {name: Namespace(name) for name in names}
        for namespace in found.values():
            stack.callback(namespace.close)
        yield found


def gateway_route(*, present: bool) -> None:
    """Add or delete the route of the gateway endpoint, as an operator of the VPC does."""
    action = "replace" if present else "delete"
    _ip(ROUTER, "route", action, S3_PREFIX, "via", f"{WIRES[S3][1]}.10")


def run(*command: str, text: str | None = None) -> str:
    """Run a program and return its output. Raises PartError with its error."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartError(f"{' '.join(command)}: {done.stderr.strip()} (root is needed)")
    return done.stdout


def _wire() -> None:
    for name, (link, net) in WIRES.items():
        ends = ("type", "veth", "peer", "name", "eth0", "netns", PREFIX + name)
        run("ip", "link", "add", link, "netns", PREFIX + ROUTER, *ends)
        for place, device, address in (
            (ROUTER, link, f"{net}.1/24"),
            (name, "eth0", f"{net}.10/24"),
        ):
            _ip(place, "address", "add", address, "dev", device)
            _ip(place, "link", "set", device, "up")
        _ip(name, "route", "add", "default", "via", f"{net}.1")
        for far in FAR_ADDRESSES.get(name, ()):
            _ip(name, "address", "add", f"{far}/32", "dev", "lo")
    _ip(ROUTER, "route", "add", "default", "via", f"{WIRES[INTERNET][1]}.10")
    gateway_route(present=True)


def _prepare() -> None:
    """Configure a new namespace: IPv4 only, forwarding, loopback."""
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    run("ip", "link", "set", "lo", "up")


def _enter(name: str) -> None:
    with Path(f"/run/netns/{PREFIX}{name}").open() as place:
        if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {name}")


def _ip(name: str, *arguments: str) -> None:
    run("ip", "-n", PREFIX + name, *arguments)


def _sweep() -> None:
    """Kill the processes in the lab's namespaces, by pid, and delete the namespaces."""
    existing = {line.split()[0] for line in run("ip", "netns", "list").splitlines()}
    for name in sorted(name for name in existing if name.startswith(PREFIX)):
        for pid in run("ip", "netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "delete", name)


def _need(*programs: str) -> None:
    """Install missing programs from Debian. Raises PartError."""
    if all(shutil.which(program) for program in programs):
        return
    packages = ("nftables", "iproute2")
    quiet = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq")
    try:
        run(*quiet, "install", "-y", "--no-install-recommends", *packages)
    except PartError:  # no package lists yet
        run(*quiet, "update")
        run(*quiet, "install", "-y", "--no-install-recommends", *packages)
