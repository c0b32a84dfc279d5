"""A pod's network namespace and one other, which answers at many addresses of both families.

pod --- far     the default routes of the pod lead to far
"""

import socket
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from lab.real.netlab.namespaces import PREFIX, Namespace, made, run
from lab.real.parts.install import ROOT
from lab.real.parts.process import PartError

INSIDE, FAR = "inside", "far"
POD = ("10.42.0.10", "fd00:42::10")
GATEWAY = ("10.42.0.1", "fd00:42::1")
# RFC 5737 and RFC 3849: addresses for documentation, which no network routes.
S3 = ("198.51.100.10", "2001:db8:51::10")
SQS = ("203.0.113.10", "2001:db8:13::10")
RESOLVER = ("203.0.113.53", "2001:db8:13::53")
OTHER = ("192.0.2.10", "2001:db8:2::10")  # what ClickHouse uses and no daemon
HELLO = b"hello\n"
PORTS = (443, 9000)
PROGRAM = (sys.executable, "-m", "lab.real.netlab.pair")
READY = "ready\n"


@contextmanager
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    """Make both, with servers in far: TCP on PORTS and UDP on 53, at every address."""
    with made(INSIDE, FAR) as found:
        _wire()
        process: subprocess.Popen[str] = found[FAR].run(
            lambda: subprocess.Popen(PROGRAM, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        )
        with process:
            try:
                if not process.stdout or process.stdout.readline() != READY:
                    raise PartError(f"{' '.join(PROGRAM)}: not ready")
                yield found[INSIDE], found[FAR]
            finally:
                process.kill()


def main() -> None:
    """Answer until the end of the process."""
    for server in _servers():
        Thread(target=server.serve_forever).start()
    sys.stdout.write(READY)
    sys.stdout.flush()


class _Hello(socketserver.BaseRequestHandler):
    """Greets, then sends back what it receives."""

    def handle(self) -> None:
        self.request.sendall(HELLO)
        while data := self.request.recv(1024):
            self.request.sendall(data)


class _Echo(socketserver.BaseRequestHandler):
    """Sends a datagram back."""

    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(data, self.client_address)


class _Tcp(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6  # a socket of IPv6 takes IPv4 too
    allow_reuse_address = True
    daemon_threads = True


class _Udp(socketserver.UDPServer):
    def __init__(self, address: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 53), _Echo)


def _servers() -> list[socketserver.BaseServer]:
    """Bind a UDP socket per address: it answers from the address that was asked."""
    tcp: list[Any] = [_Tcp(("::", port), _Hello) for port in PORTS]
    return [*tcp, *(_Udp(address) for address in (*RESOLVER, *OTHER))]


def _wire() -> None:
    names = (PREFIX + INSIDE, PREFIX + FAR)
    ends = ("type", "veth", "peer", "name", "eth0", "netns", names[1])
    run("ip", "link", "add", "eth0", "netns", names[0], *ends)
    for name, own in zip(names, (POD, GATEWAY), strict=True):
        for address, bits in zip(own, ("24", "64"), strict=True):
            _add(name, f"{address}/{bits}", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", name, "link", "set", device, "up")
    for gateway in GATEWAY:
        run("ip", "-n", names[0], "route", "add", "default", "via", gateway)
    for four, six in (S3, SQS, RESOLVER, OTHER):
        _add(names[1], f"{four}/32", "lo")
        _add(names[1], f"{six}/128", "lo")


def _add(name: str, address: str, device: str) -> None:
    now = ["nodad"] if ":" in address else []  # usable at once
    run("ip", "-n", name, "address", "add", address, "dev", device, *now)


if __name__ == "__main__":
    main()
