"""Try, in a process that has installed the seccomp filter, what it refuses and what it allows.

`python -m lab.seccomp_probes NAME` installs the filter, runs one probe and prints its outcome as
JSON; `--without-filter` leaves the filter out. `expected_outcomes` has the outcome of each probe
with the filter. The unit tests compare on the kernel of this machine, and
`tests/real/test_real_arm64_kernel.py` on a kernel for arm64.
"""

import argparse
import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from byoc_agents.egress.seccomp import (
    DENIED,
    LAST_KNOWN,
    MACHINES,
    PR_SET_NO_NEW_PRIVS,
    Instruction,
    Machine,
    prepare_filter,
)

PR_GET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 39, 22, 2  # linux/prctl.h, seccomp.h
# Arguments of socket(2), and whether the filter allows them.
SOCKETS = {
    (2, 1, 0): True,
    (10, 1 | 0o2000000 | 0o4000, 6): True,  # SOCK_CLOEXEC, SOCK_NONBLOCK
    (2, 2, 0): True,  # the resolver of the C library
    (2, 2, 17): True,
    (1, 1, 0): False,  # AF_UNIX
    (16, 3, 0): False,  # AF_NETLINK
    (17, 3, 768): False,  # AF_PACKET
    (40, 1, 0): False,  # AF_VSOCK
    (38, 5, 0): False,  # AF_ALG
    (2, 3, 1): False,  # SOCK_RAW
    (2, 3 | 0o2000000, 255): False,
    (2, 1, 132): False,  # SCTP
    (2, 1, 262): False,  # MPTCP
    (2, 5, 132): False,
}
CLONE_FORK, CLONE_SPAWN = 0x01200011, 0x00004111  # the flags of fork and of posix_spawn
OPEN = "open"
THREADS = ("before", "after", "main")  # a thread older than the filter, a newer one, the main one

_libc = ctypes.CDLL(None, use_errno=True)


def system_call(number: int, *arguments: int) -> str:
    """Call the kernel as native code does; return `open`, or the name of the error."""
    ctypes.set_errno(0)
    result = _libc.syscall(number, *map(ctypes.c_long, arguments))
    return OPEN if result != -1 else errno.errorcode[ctypes.get_errno()]


def attempt(action: Callable[..., Any], *arguments: Any) -> str:
    """Return `open`, or the name of the error that an action ends with."""
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return OPEN


def this_machine() -> Machine:
    """Return the constants of the architecture that runs this process."""
    return MACHINES[os.uname().machine]


def denied_numbers(machine: Machine) -> dict[str, int]:
    """Return the number of every denied system call that this architecture has."""
    numbers = {name: row[machine.column] for name, row in DENIED.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def call_every_denied() -> dict[str, str]:
    """Call them from native code. These arguments do nothing: the filter looks at none of them."""
    return {
        name: system_call(number, *[-1] * 6)
        for name, number in denied_numbers(this_machine()).items()
    }


def call_the_absent() -> dict[str, str]:
    """Call `clone3`, and the first number that the filter does not know."""
    machine = this_machine()
    return {"clone3": system_call(machine.clone3, 0, 0), "later": system_call(LAST_KNOWN + 1)}


def clone_processes() -> dict[str, str]:
    """Call `clone` with the flags of a new process; the stack is absent, as fork's is."""
    number = this_machine().clone
    return {
        "fork": system_call(number, CLONE_FORK, 0, 0, 0, 0),
        "spawn": system_call(number, CLONE_SPAWN, 0, 0, 0, 0),
    }


def signal_threads() -> dict[str, str]:
    """Send signal 0, which only checks the permission, to this process and to its parent."""
    number, pid, parent = this_machine().tgkill, os.getpid(), os.getppid()
    return {
        "own": system_call(number, pid, threading.get_native_id(), 0),
        "parent": system_call(number, parent, parent, 0),
    }


def open_sockets() -> list[str]:
    """Open one socket for each row of SOCKETS."""
    return [system_call(this_machine().socket, *arguments) for arguments in SOCKETS]


def _spawn() -> None:
    os.posix_spawn("/bin/true", ["true"], {})


def _listen() -> None:
    socket.socket().listen()


def _bind() -> None:
    socket.socket().bind(("127.0.0.1", 0))


def _open(*kind: int) -> None:
    socket.socket(*kind).close()


WAYS: dict[str, tuple[Callable[..., Any], *tuple[Any, ...]]] = {
    "run": (subprocess.run, ["true"]),
    "fork": (os.fork,),
    "spawn": (_spawn,),
    "exec": (os.execv, "/bin/true", ["true"]),
    "listen": (_listen,),
    "bind": (_bind,),
    "unix": (_open, socket.AF_UNIX, socket.SOCK_STREAM),
    "pair": (socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM),
    "packet": (_open, socket.AF_PACKET, socket.SOCK_DGRAM),
    "netlink": (_open, socket.AF_NETLINK, socket.SOCK_RAW),
    "raw": (_open, socket.AF_INET, socket.SOCK_RAW, 255),
    "kill": (os.kill, os.getppid(), 0),
}


class Ways:
    """Tries WAYS in a thread that is older than the filter, in a newer one and in the main one."""

    def __init__(self) -> None:
        self._ended: dict[str, dict[str, str]] = {}
        self._installed = threading.Event()
        self._before = threading.Thread(target=self._wait)
        self._before.start()

    def _wait(self) -> None:
        self._installed.wait()
        self._attempt("before")

    def _attempt(self, thread: str) -> None:
        self._ended[thread] = {name: attempt(*way) for name, way in WAYS.items()}

    def __call__(self) -> dict[str, dict[str, str]]:
        """Try all ways in each thread. To be called with the filter installed."""
        self._installed.set()
        self._before.join()
        after = threading.Thread(target=self._attempt, args=("after",))
        after.start()
        after.join()
        self._attempt("main")
        return self._ended


class DaemonCalls:
    """Does what the daemons do, with a listener that is older than the filter."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __call__(self) -> dict[str, object]:
        """Connect, accept, resolve a name, start a thread."""
        with socket.create_connection(self._listener.getsockname()) as there:
            here, _ = self._listener.accept()
            there.sendall(b"x")
            accepted = here.recv(1).decode()
        port = socket.getaddrinfo("localhost", 80)[0][4][1]
        left, right = socket.socketpair()
        threading.Thread(target=left.sendall, args=(b"y",)).start()
        return {"accepted": accepted, "resolved": port, "thread": right.recv(1).decode()}


def read_state() -> dict[str, object]:
    """Return how the kernel describes the process."""
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    privileges = _libc.prctl(PR_GET_NO_NEW_PRIVS, *[ctypes.c_ulong(0)] * 4)
    return {"seccomp": status["Seccomp"], "no_new_privileges": privileges}


# Name -> a function that prepares a probe before the filter is installed, and returns it.
PROBES: dict[str, Callable[[], Callable[[], Any]]] = {
    "state": lambda: read_state,
    "denied": lambda: call_every_denied,
    "absent": lambda: call_the_absent,
    "processes": lambda: clone_processes,
    "signals": lambda: signal_threads,
    "sockets": lambda: open_sockets,
    "ways": Ways,
    "daemons": DaemonCalls,
}


def expected_outcomes(machine: Machine) -> dict[str, Any]:
    """Return the outcome of each probe with the filter, in JSON's types."""
    return {
        "state": {"seccomp": "2", "no_new_privileges": 1},
        "denied": dict.fromkeys(denied_numbers(machine), "EPERM"),
        "absent": {"clone3": "ENOSYS", "later": "ENOSYS"},
        "processes": {"fork": "EPERM", "spawn": "EPERM"},
        "signals": {"own": OPEN, "parent": "EPERM"},
        "sockets": [OPEN if allowed else "EPERM" for allowed in SOCKETS.values()],
        "ways": {thread: dict.fromkeys(WAYS, "EPERM") for thread in THREADS},
        "daemons": {"accepted": "x", "resolved": 80, "thread": "y"},
    }


def install_program(steps: Sequence[Instruction]) -> None:
    """Install any program with prctl(2), on this thread only. Raises OSError if it is refused."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    program, zero = Program(len(steps), b"".join(map(bytes, steps))), ctypes.c_ulong(0)
    mode = ctypes.c_ulong(SECCOMP_MODE_FILTER)
    for call in (
        (PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero),
        (PR_SET_SECCOMP, mode, ctypes.byref(program), zero, zero),
    ):
        if _libc.prctl(*call):
            raise OSError(ctypes.get_errno(), f"prctl({call[0]})")


def main() -> None:
    """Run one probe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("probe", choices=PROBES)
    parser.add_argument("--without-filter", action="store_true")
    options = parser.parse_args()
    install, probe = prepare_filter(), PROBES[options.probe]()
    if not options.without_filter:
        install()
    json.dump(probe(), sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
