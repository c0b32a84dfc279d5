"""The gate for the whole process, including code that opens its own sockets.

botocore's container-credential fetcher opens its own session, and other libraries might. An audit
hook (PEP 578) sees every connection and every name look-up of Python code, in every thread, under
asyncio and uvloop, and cannot be removed.
"""

import socket
import sys
from typing import Any

from byoc_agents.egress.addresses import is_internet
from byoc_agents.egress.destinations import ip_literal
from byoc_agents.egress.gate import Gate, Refusal

QUIET = frozenset(
    {socket.AF_UNIX, getattr(socket, "AF_NETLINK", socket.AF_UNIX)}
)  # stay on the machine
OWN_NAMES = frozenset({"", "localhost"})  # to listen on; resolved without a packet


def enforce_process(gate: Gate) -> None:
    """Refuse every further connection of this process that the gate does not allow.

    Covers `connect`, `sendto`, `sendmsg` and name look-ups, which then raise EgressRefusedError.
    Cannot be undone; a second call adds a second guard. Does not cover sockets that C code opens
    without Python, and child processes.
    """

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
            _check_socket(gate, args[0], args[1])
        elif event in {"socket.getaddrinfo", "socket.gethostbyname"}:
            _check_lookup(gate, args[0])

    sys.addaudithook(hook)


def _check_socket(gate: Gate, sock: socket.socket, address: Any) -> None:
    if sock.family in QUIET or address is None:  # None: a datagram on a connected socket
        return
    named = is_internet(sock.family) and ip_literal(str(address[0]).split("%", 1)[0]) is None
    if named:  # connect((name, port)) resolves the name in C
        raise gate.deny(Refusal.HOST, f"{address[0]} was not resolved through the gate")
    gate.check_address(sock.family, address)


def _check_lookup(gate: Gate, host: Any) -> None:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host or ""
    if name in OWN_NAMES or ip_literal(name.split("%", 1)[0]):
        return
    gate.check_name(name)
