"""Serve the cluster's DNS for some names, and log every question.

It is a separate process, `python -m lab.real.netlab.names LOG NAME=ADDRESS ...`, because the
tests' own process may not send datagrams.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from struct import pack

from lab.real.netlab.namespaces import DNS_ADDRESS, Namespace
from lab.real.parts.install import ROOT
from lab.real.parts.process import PartError

PORT = 53
MAX_BYTES = 512  # RFC 1035, UDP
A, IN = 1, 1  # RFC 1035
ANSWER, NO_SUCH_NAME = 0x8180, 0x8183  # a response, recursion available; with NXDOMAIN
TTL_SECONDS = 5  # as S3 gives
READY = "ready\n"


@dataclass(frozen=True, slots=True)
class Names:
    """The log of a responder."""

    log: Path

    @property
    def asked(self) -> list[str]:
        """Return every queried name, in order, in lower case."""
        return self.log.read_text().split()


@contextmanager
def answering(router: Namespace, addresses: Mapping[str, str], log: Path) -> Iterator[Names]:
    """Serve DNS in the router."""
    log.touch()
    pairs = [f"{name}={address}" for name, address in addresses.items()]
    process = router.run(_started, [sys.executable, "-m", __name__, str(log), *pairs])
    try:
        yield Names(log)
    finally:
        process.kill()
        process.communicate()


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != READY:
        raise PartError("the DNS responder did not start")
    return process


def answer(query: bytes, addresses: Mapping[str, str]) -> tuple[str, bytes]:
    """Return the name in the question and the response: no AAAA, and NXDOMAIN for other names."""
    name, end = _name(query)
    kind = int.from_bytes(query[end : end + 2], "big")
    question, address = query[12 : end + 4], addresses.get(name)
    flags = ANSWER if address else NO_SUCH_NAME
    if not address or kind != A:
        return name, query[:2] + pack(">5H", flags, 1, 0, 0, 0) + question
    record = pack(">HHHIH", 0xC00C, A, IN, TTL_SECONDS, 4) + IPv4Address(address).packed
    return name, query[:2] + pack(">5H", flags, 1, 1, 0, 0) + question + record


def _name(query: bytes) -> tuple[str, int]:
    """Return the question's name in lower case, and the offset of its end."""
    labels, at = [], 12
    while size := query[at]:
        labels.append(query[at + 1 : at + 1 + size].decode().lower())
        at += 1 + size
    return ".".join(labels), at + 1


def main(log: str, *pairs: str) -> None:
    """Answer until killed. A name is in the log before its answer is sent."""
    addresses = dict(pair.split("=") for pair in pairs)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, Path(log).open("a") as file:
        sock.bind((DNS_ADDRESS, PORT))
        sys.stdout.write(READY)
        sys.stdout.flush()
        while True:
            query, client = sock.recvfrom(MAX_BYTES)
            name, response = answer(query, addresses)
            file.write(f"{name}\n")
            file.flush()
            sock.sendto(response, client)


if __name__ == "__main__":
    main(*sys.argv[1:])
