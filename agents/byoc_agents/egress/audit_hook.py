"""The gate for the whole process, including code that opens its own sockets or starts programs.

An audit hook (PEP 578) is called before each action of Python code, in every thread, and cannot be
removed. It is a guard against accidents and not a boundary: code in this process can change the
gate that the hook asks, and native code raises no events. The filter of `seccomp.py` and the rules
of the network are outside the reach of such code.

`python -m lab.bench.audit_hook` measures the cost: about 1 us per allowed event, of which an idle
daemon has a few per second.
"""

import _socket
import socket
import sys
from collections.abc import Callable, Container, Iterable
from typing import Any

from byoc_agents.egress.audit_events import ALLOWED, DENIED, GUARDED
from byoc_agents.egress.destinations import ip_literal
from byoc_agents.egress.gate import Gate, Refusal

Check = Callable[[tuple[Any, ...]], None]

# Their sockets and name look-ups are not Python's, so no event would show them. The import fails as
# if they were not installed: libraries that can use them then do without.
NATIVE_CLIENTS = frozenset(
    {
        *("_cffi_backend", "_ctypes", "ctypes", "cffi", "awscrt", "grpc", "pycares", "aiodns"),
        *("curl_cffi", "pycurl", "uvloop", "winloop", "rloop", "zmq"),
    }
)
ALIASES = {"localhost": ("127.0.0.1", "::1"), "": ("0.0.0.0", "::"), "::": ("::", "0.0.0.0")}  # noqa: S104
INTERNET = frozenset({int(socket.AF_INET), int(socket.AF_INET6)})
UNIX, STREAM = int(socket.AF_UNIX), int(socket.SOCK_STREAM)  # of `socketpair`; never connected
SOCKET_FLAGS = getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0)  # Linux
OPEN = -1  # the family and type of a descriptor that is open already
PAIR = 2
OWN_NAMES = frozenset({"localhost"})  # resolved without a packet


def enforce_process(
    gate: Gate,
    listeners: Iterable[tuple[str, int]] = (),
    callable_addresses: Container[int] = frozenset(),
) -> None:
    """Refuse from now on what the gate does not allow, and what no daemon does.

    Connections, datagrams and name look-ups are checked against the destinations, `bind` against
    `listeners` (host, port). Programs, native code, reverse look-ups and sockets of other families
    are refused: EgressRefusedError is raised, and the gate reports it. The import of a native
    client raises ImportError. `audit_events.py` has the whole table. Cannot be undone.

    `callable_addresses` has the C functions that may be called by ctypes, which CPython 3.14
    reports: those of the installer of the seccomp filter, until it is done.
    """
    checks = _checks(gate, frozenset(_bindable(listeners)), callable_addresses)
    allowed, denied, guarded, deny = ALLOWED, DENIED, GUARDED, gate.deny

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in allowed:
            return
        check = checks.get(event)
        if check is not None:
            check(args)
        elif event in denied or event.partition(".")[0] in guarded:
            raise deny(denied.get(event, Refusal.OPERATION), event)

    sys.addaudithook(hook)


def _bindable(listeners: Iterable[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    return ((each, port) for host, port in listeners for each in ALIASES.get(host, (host,)))


def _checks(
    gate: Gate, listeners: frozenset[tuple[str, int]], callable_addresses: Container[int]
) -> dict[str, Check]:
    """Return the check of each event. Everything that they use is bound here, not when they run.

    Types are compared exactly: a subclass of `str` may print another address than the one that C
    code reads, and a subclass of `socket` may have another `family`.
    """
    place, bare, literal, deny = _place_of(gate), _without_scope, ip_literal, gate.deny
    check_address, family_of = gate.check_address, _socket.socket.family.__get__
    own_ports = {("127.0.0.1", 0), ("::1", 0)}  # urllib3 finds out so whether there is IPv6

    def check_connect(args: tuple[Any, ...]) -> None:
        host, _ = place(args[0], args[1])
        if literal(bare(host)) is None:  # connect((name, port)) resolves the name in C
            raise deny(Refusal.HOST, f"{host} was not resolved through the gate")
        check_address(family_of(args[0]), args[1])

    def check_send(args: tuple[Any, ...]) -> None:
        if args[1] is not None:  # None: on a connected socket
            raise deny(Refusal.OPERATION, "a datagram, or TCP Fast Open")

    def check_bind(args: tuple[Any, ...]) -> None:
        host, port = place(args[0], args[1])
        if (host, port) not in listeners and (host, port) not in own_ports:
            raise deny(Refusal.LISTEN, f"{host} port {port} is not an address to listen on")

    def check_call(args: tuple[Any, ...]) -> None:
        if not args or type(args[0]) is not int or args[0] not in callable_addresses:
            raise deny(Refusal.OPERATION, "ctypes.call_function")

    lookup = _lookup_check(gate)
    return {
        "ctypes.call_function": check_call,
        "import": _check_import,
        "socket.__new__": _new_socket_check(gate),
        "socket.bind": check_bind,
        "socket.connect": check_connect,
        "socket.getaddrinfo": lookup,
        "socket.gethostbyname": lookup,
        "socket.sendmsg": check_send,
        "socket.sendto": check_send,
    }


def _place_of(gate: Gate) -> Callable[[Any, Any], tuple[str, int]]:
    deny, internet, stream, flags = gate.deny, INTERNET, STREAM, SOCKET_FLAGS
    family_of, kind_of = _socket.socket.family.__get__, _socket.socket.type.__get__

    def place(sock: Any, address: Any) -> tuple[str, int]:
        """Return the host and port of a TCP socket's address."""
        if family_of(sock) not in internet or kind_of(sock) & ~flags != stream:
            raise deny(Refusal.OPERATION, "a socket that is not TCP")
        if type(address) is tuple and len(address) >= PAIR:
            host, port = address[:2]
            if type(host) is str and type(port) is int:
                return host, port
        raise deny(Refusal.ADDRESS, "an address that is not a tuple of a str and an int")

    return place


def _new_socket_check(gate: Gate) -> Check:
    deny, families, stream, flags = gate.deny, INTERNET | {UNIX, OPEN}, STREAM, SOCKET_FLAGS

    def check(args: tuple[Any, ...]) -> None:
        _, family, kind, *_ = args
        if family not in families or (kind != OPEN and kind & ~flags != stream):
            raise deny(Refusal.OPERATION, f"a socket of family {family} and type {kind}")

    return check


def _lookup_check(gate: Gate) -> Check:
    deny, check_name, literal, bare = gate.deny, gate.check_name, ip_literal, _without_scope

    def check(args: tuple[Any, ...]) -> None:
        host = args[0]
        if type(host) is bytes:
            host = host.decode("ascii", "replace")
        if host is not None and type(host) is not str:
            raise deny(Refusal.HOST, f"a name of type {type(host).__name__}")
        if host and host not in OWN_NAMES and literal(bare(host)) is None:
            check_name(host)

    return check


def _check_import(args: tuple[Any, ...], modules: frozenset[str] = NATIVE_CLIENTS) -> None:
    """Raise ImportError for a native client. Not reported: libraries try such imports in vain."""
    if args[0].partition(".")[0] in modules:
        raise ImportError(f"{args[0]} is not allowed: the gate cannot check its sockets")


def _without_scope(host: str) -> str:
    """Return the host without the scope of an IPv6 address: `fe80::1` of `fe80::1%eth0`."""
    head, percent, _ = host.partition("%")
    return head if percent and ":" in head else host
