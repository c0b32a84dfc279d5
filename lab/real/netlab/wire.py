"""Capture every packet at the router's interfaces by AF_PACKET, as tcpdump does."""

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from lab.real.netlab.namespaces import WIRES, Namespace

ETH_P_ALL, ETH_P_IP, ETH_P_ARP = 0x0003, 0x0800, 0x0806  # linux/if_ether.h
SOL_PACKET, PACKET_STATISTICS = 263, 6  # linux/socket.h, linux/if_packet.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
BUFFER_BYTES = 32 * 1024 * 1024
HEAD_BYTES = 128  # IPv4 with options, and the ports and flags after it
SYN, ACK = 0x02, 0x10


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet at an interface, received or sent."""

    interface: str
    leaving: bool  # by this interface, away from the router
    kind: int  # EtherType
    source: str = ""
    target: str = ""
    protocol: str = ""  # tcp, udp or the number
    source_port: int = 0
    target_port: int = 0
    opens: bool = False  # a SYN without ACK: someone opens a new connection


@dataclass
class Wire:
    """The capture. `packets` grows while the loop runs; `lost` must stay 0."""

    sockets: list[socket.socket]
    packets: list[Packet] = field(default_factory=list)

    def catch_up(self) -> int:
        """Read the pending packets; return the number of all so far, as a mark."""
        for sock in self.sockets:
            self.read(sock)
        return len(self.packets)

    def lost(self) -> int:
        """Return the number of packets that the capture missed since the last call."""
        counts = [s.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8) for s in self.sockets]
        return sum(int(struct.unpack("II", count)[1]) for count in counts)

    def read(self, sock: socket.socket) -> None:
        """Read the pending packets of one socket."""
        while True:
            try:
                head, (interface, kind, direction, *_) = sock.recvfrom(HEAD_BYTES)
            except BlockingIOError:
                return
            self.packets.append(_parsed(interface, direction == socket.PACKET_OUTGOING, kind, head))


@contextmanager
def capture(router: Namespace) -> Iterator[Wire]:
    """Capture at all interfaces of the router, within the running loop."""
    loop = asyncio.get_running_loop()
    wire = Wire([router.run(_open, link) for link, _ in WIRES.values()])
    try:
        for sock in wire.sockets:
            loop.add_reader(sock, wire.read, sock)
        yield wire
    finally:
        for sock in wire.sockets:
            loop.remove_reader(sock)
            sock.close()


def _open(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)  # nothing before the bind
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    sock.settimeout(0)
    sock.bind((interface, ETH_P_ALL))
    return sock


def _parsed(interface: str, leaving: bool, kind: int, head: bytes) -> Packet:
    if kind != ETH_P_IP:
        return Packet(interface, leaving, kind)
    payload = head[(head[0] & 0x0F) * 4 :]
    source, target = str(IPv4Address(head[12:16])), str(IPv4Address(head[16:20]))
    protocol = {6: "tcp", 17: "udp"}.get(head[9], str(head[9]))
    if protocol not in {"tcp", "udp"}:
        return Packet(interface, leaving, kind, source, target, protocol)
    source_port, target_port = struct.unpack(">HH", payload[:4])
    opens = protocol == "tcp" and payload[13] & (SYN | ACK) == SYN
    return Packet(
        interface, leaving, kind, source, target, protocol, source_port, target_port, opens
    )


def ends(packets: list[Packet], interface: str, *, leaving: bool) -> set[tuple[str, str, int]]:
    """Return (address, protocol, port) of all packets that the router sends, or receives."""
    there = [p for p in packets if p.interface == interface and p.leaving == leaving]
    return {(p.target, p.protocol, p.target_port) for p in there if p.kind != ETH_P_ARP}


def https(*addresses: str) -> set[tuple[str, str, int]]:
    return {(address, "tcp", 443) for address in addresses}
