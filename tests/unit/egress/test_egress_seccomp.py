"""The filter of system calls: its program on both architectures, and the kernel enforcing it."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from byoc_agents.egress.seccomp import (
    ALLOW,
    AND,
    ARCHITECTURE,
    ARGUMENTS,
    DENIED,
    ERRNO,
    JUMP_ANY_BIT,
    JUMP_EQUAL,
    JUMP_GREATER,
    KILL_PROCESS,
    LAST_KNOWN,
    LOAD,
    MACHINES,
    NUMBER,
    RETURN,
    Instruction,
    build_filter,
    prepare_filter,
)

NUMBERS = json.loads(Path(__file__).with_name("system_calls.json").read_text())
REFUSED, ABSENT = ERRNO | 1, ERRNO | 38  # EPERM, ENOSYS
NEWER = {"open_tree_attr"}  # than the headers that the numbers are from
PID = 4711
MACHINE = pytest.mark.parametrize("name", MACHINES)


def decide(program: Sequence[Instruction], architecture: int, number: int, *arguments: int) -> int:
    """Run the program as the kernel does, and return its answer."""
    data = {NUMBER: number, ARCHITECTURE: architecture}
    data |= {ARGUMENTS + 8 * place: value for place, value in enumerate((*arguments, *[0] * 6)[:6])}
    at, accumulator = 0, 0
    while True:
        step = program[at]
        at += 1
        match step.code:
            case code if code == RETURN:
                return step.k
            case code if code == LOAD:
                accumulator = data[step.k] & 0xFFFFFFFF
            case code if code == AND:
                accumulator &= step.k
            case code if code == JUMP_EQUAL:
                at += step.jump_true if accumulator == step.k else step.jump_false
            case code if code == JUMP_GREATER:
                at += step.jump_true if accumulator > step.k else step.jump_false
            case code if code == JUMP_ANY_BIT:
                at += step.jump_true if accumulator & step.k else step.jump_false
            case other:
                raise AssertionError(f"an instruction that the kernel rejects: {other:#x}")


class Filter:
    """The program of one architecture, asked by the names of system calls."""

    def __init__(self, name: str) -> None:
        self.machine = MACHINES[name]
        self.numbers: dict[str, int] = NUMBERS[name]
        self.program = build_filter(self.machine, PID)

    def of(self, call: str | int, *arguments: int) -> int:
        number = self.numbers[call] if isinstance(call, str) else call
        return decide(self.program, self.machine.architecture, number, *arguments)


@MACHINE
def test_the_numbers_are_those_of_the_kernel(name: str) -> None:
    machine, numbers = MACHINES[name], NUMBERS[name]
    for call, row in DENIED.items():
        assert call in NEWER or row[machine.column] == numbers.get(call), call
    named = {call: getattr(machine, call) for call in machine._fields[2:]}
    assert named == {call: numbers[call] for call in named}


@MACHINE
def test_what_is_denied_is_refused_and_the_rest_of_the_kernel_is_allowed(name: str) -> None:
    rules = Filter(name)
    for call in rules.numbers:
        if call in DENIED:
            assert rules.of(call) == REFUSED, call
        elif call not in {"socket", "clone", "clone3", "tgkill"}:
            assert rules.of(call) == ALLOW, call


@MACHINE
@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ((2, 1, 0), ALLOW),
        ((10, 1 | 0o2000000 | 0o4000, 6), ALLOW),  # SOCK_CLOEXEC, SOCK_NONBLOCK
        ((2, 2, 0), ALLOW),  # the resolver of the C library
        ((2, 2, 17), ALLOW),
        ((1, 1, 0), REFUSED),  # AF_UNIX
        ((16, 3, 0), REFUSED),  # AF_NETLINK
        ((17, 3, 768), REFUSED),  # AF_PACKET
        ((40, 1, 0), REFUSED),  # AF_VSOCK
        ((38, 5, 0), REFUSED),  # AF_ALG
        ((2, 3, 1), REFUSED),  # SOCK_RAW
        ((2, 3 | 0o2000000, 255), REFUSED),
        ((2, 1, 132), REFUSED),  # SCTP
        ((2, 1, 262), REFUSED),  # MPTCP
        ((2, 5, 132), REFUSED),
    ],
)
def test_only_tcp_and_udp_sockets(name: str, arguments: tuple[int, ...], answer: int) -> None:
    assert Filter(name).of("socket", *arguments) == answer


@MACHINE
def test_threads_but_no_processes(name: str) -> None:
    rules = Filter(name)
    assert rules.of("clone", 0x3D0F00) == ALLOW  # the flags of pthread_create
    assert rules.of("clone", 0x01200011) == REFUSED  # those of fork
    assert rules.of("clone", 0x00004111) == REFUSED  # those of posix_spawn
    assert rules.of("clone3") == ABSENT


@MACHINE
def test_signals_go_to_this_process_only(name: str) -> None:
    rules = Filter(name)
    assert rules.of("tgkill", PID, PID, 6) == ALLOW
    assert rules.of("tgkill", 1, 1, 9) == REFUSED


@MACHINE
def test_system_calls_of_later_kernels_and_other_architectures_do_not_exist(name: str) -> None:
    rules = Filter(name)
    assert rules.of(LAST_KNOWN) == ALLOW
    assert rules.of(LAST_KNOWN + 1) == ABSENT
    assert rules.of(0x40000000 | 59) == ABSENT  # x32
    assert decide(rules.program, 0x40000003, 11) == KILL_PROCESS  # i386


def test_musls_resolver_may_bind_its_sockets() -> None:
    machine = MACHINES["x86_64"]
    program = build_filter(machine, PID, can_bind=True)
    assert decide(program, machine.architecture, NUMBERS["x86_64"]["bind"]) == ALLOW
    assert decide(program, machine.architecture, NUMBERS["x86_64"]["listen"]) == REFUSED


def test_another_architecture_is_an_error() -> None:
    with pytest.raises(OSError, match="no filter for riscv64: expected x86_64 or aarch64"):
        prepare_filter("riscv64")


PRELUDE = """
import ctypes, os, pathlib, socket, subprocess, sys, threading
from byoc_agents.egress.seccomp import DENIED, MACHINES, prepare_filter
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action, *args):
    try:
        return action(*args) or "open"
    except OSError as error:
        return error.errno
"""


def run(code: str) -> list[str]:
    """Run the code in a new process without an audit hook; return the words that it printed."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_kernel_refuses_every_denied_call_of_native_code() -> None:
    """The arguments would do nothing without the filter, but the filter is looked at first."""
    code = """
        prepare_filter()()
        assert "Seccomp:\\t2" in pathlib.Path("/proc/self/status").read_text()
        machine = MACHINES[os.uname().machine]
        for name, row in DENIED.items():
            number = row[machine.column]
            if number is not None:
                ctypes.set_errno(0)
                result = libc.syscall(number, *[ctypes.c_long(-1)] * 6)
                print(name, result, ctypes.get_errno())
        """
    words = run(code)
    assert len(words) > 150
    assert set(zip(words[1::3], words[2::3], strict=True)) == {("-1", "1")}


def test_the_kernel_refuses_programs_listeners_and_other_sockets_in_every_thread() -> None:
    code = """
        def spawned():
            os.posix_spawn("/bin/true", ["true"], {})

        def listened():
            socket.socket().listen()

        def bound():
            socket.socket().bind(("127.0.0.1", 0))

        def reached(*kind):
            socket.socket(*kind)

        WAYS = {
            "run": (subprocess.run, ["true"]),
            "fork": (os.fork,),
            "spawn": (spawned,),
            "exec": (os.execv, "/bin/true", ["true"]),
            "listen": (listened,),
            "bind": (bound,),
            "unix": (reached, socket.AF_UNIX, socket.SOCK_STREAM),
            "packet": (reached, socket.AF_PACKET, socket.SOCK_DGRAM),
            "netlink": (reached, socket.AF_NETLINK, socket.SOCK_RAW),
            "raw": (reached, socket.AF_INET, socket.SOCK_RAW, 255),
            "kill": (os.kill, os.getppid(), 0),
        }
        started, ended, go = [], [], threading.Event()

        def try_all():
            go.wait()
            ended.extend(attempt(*way) for way in WAYS.values())

        before = threading.Thread(target=try_all)
        before.start()
        prepare_filter()()
        go.set()
        before.join()
        after = threading.Thread(target=try_all)
        after.start()
        after.join()
        try_all()
        print(*ended)
        """
    assert run(code) == ["1"] * 33


def test_what_the_daemons_do_still_works() -> None:
    code = """
        listener = socket.create_server(("127.0.0.1", 0))
        prepare_filter()()
        with socket.create_connection(listener.getsockname()) as there:
            here, _ = listener.accept()
            there.sendall(b"x")
            print(here.recv(1).decode())
        print(socket.getaddrinfo("localhost", 80)[0][4][1])
        left, right = socket.socketpair()
        threading.Thread(target=left.sendall, args=(b"y",)).start()
        print(right.recv(1).decode())
        """
    assert run(code) == ["x", "80", "y"]


def test_the_process_gains_no_privileges() -> None:
    code = """
        prepare_filter()()
        print(libc.prctl(39, 0, 0, 0, 0))  # PR_GET_NO_NEW_PRIVS
        """
    assert run(code) == ["1"]
