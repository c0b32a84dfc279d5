"""The filter of system calls: its program on both architectures, and the kernel enforcing it."""

import json
import subprocess
import sys
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
from lab.seccomp_probes import (
    CLONE_FORK,
    CLONE_SPAWN,
    SOCKETS,
    expected_outcomes,
    this_machine,
)

NUMBERS = json.loads(Path(__file__).with_name("system_calls.json").read_text())
REFUSED, ABSENT = ERRNO | 1, ERRNO | 38  # EPERM, ENOSYS
NEWER = {"open_tree_attr"}  # than the headers that the numbers are from
PID = 4711
EXPECTED = expected_outcomes(this_machine())
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
        elif call not in {"socket", "socketpair", "clone", "clone3", "tgkill"}:
            assert rules.of(call) == ALLOW, call


@MACHINE
@pytest.mark.parametrize(("arguments", "allowed"), SOCKETS.items())
def test_only_tcp_and_udp_sockets(name: str, arguments: tuple[int, ...], *, allowed: bool) -> None:
    assert Filter(name).of("socket", *arguments) == (ALLOW if allowed else REFUSED)


@MACHINE
def test_no_pair_of_datagram_sockets_which_could_send_to_any_path(name: str) -> None:
    rules = Filter(name)
    assert rules.of("socketpair", 1, 1 | 0o2000000 | 0o4000, 0) == ALLOW  # as asyncio's
    for kind in (2, 2 | 0o2000000, 3, 5):
        assert rules.of("socketpair", 1, kind, 0) == REFUSED


@MACHINE
def test_threads_but_no_processes(name: str) -> None:
    rules = Filter(name)
    assert rules.of("clone", 0x3D0F00) == ALLOW  # the flags of pthread_create
    assert rules.of("clone", CLONE_FORK) == REFUSED
    assert rules.of("clone", CLONE_SPAWN) == REFUSED
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


def run(probe: str) -> object:
    """Run a probe in a new process without an audit hook; return its outcome."""
    command = [sys.executable, "-m", "lab.seccomp_probes", probe]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_kernel_refuses_every_denied_call_of_native_code() -> None:
    expected = EXPECTED["denied"]
    assert len(expected) > 50
    assert run("denied") == expected


def test_the_kernel_refuses_programs_listeners_and_other_sockets_in_every_thread() -> None:
    assert run("ways") == EXPECTED["ways"]
    assert run("sockets") == EXPECTED["sockets"]


@pytest.mark.parametrize("probe", ["absent", "processes", "signals"])
def test_the_kernel_checks_the_arguments_of_native_code(probe: str) -> None:
    assert run(probe) == EXPECTED[probe]


def test_what_the_daemons_do_still_works() -> None:
    assert run("daemons") == EXPECTED["daemons"]


def test_the_process_gains_no_privileges() -> None:
    assert run("state") == EXPECTED["state"]
