"""A seccomp filter that the process puts on itself after its start. The kernel enforces it.

It holds for every thread, for native code, and cannot be taken off. It refuses with EPERM what the
daemons do not do once they listen: start programs or processes, reach into other processes, listen
on another address, open sockets that are neither TCP nor UDP, and change the machine. It cannot see
addresses: those are left to the gate and to the rules of the network. amd64 and arm64, no library.
"""

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# linux/filter.h, linux/bpf_common.h
LOAD, AND, RETURN = 0x20, 0x54, 0x06
JUMP_EQUAL, JUMP_GREATER, JUMP_ANY_BIT = 0x15, 0x25, 0x45
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; low words of 8 bytes
# linux/seccomp.h
KILL_PROCESS, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
SET_MODE_FILTER, ALL_THREADS = 1, 1
# linux/prctl.h
PR_SET_NO_NEW_PRIVS = 38

EPERM, ENOSYS = 1, 38
AF_INET, AF_INET6 = 2, 10
SOCK_STREAM, SOCK_DGRAM, SOCK_TYPE_MASK = 1, 2, 0xF
IPPROTO_ANY, IPPROTO_TCP, IPPROTO_UDP = 0, 6, 17
CLONE_THREAD = 0x00010000
# The last system call that was looked at, `file_setattr` of Linux 6.17. Later ones do not exist for
# the process: a filter cannot know what they do, and every library can do without.
LAST_KNOWN = 469

# Name -> number on amd64 (asm/unistd_64.h) and on arm64 (asm-generic/unistd.h); None = not there.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # programs and processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    # other processes
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    # listeners
    "bind": (49, 200),
    "listen": (50, 201),
    # ways around this filter: io_uring makes system calls that no filter checks
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "mknod": (133, None),
    "mknodat": (259, 33),
    # the kernel and the machine
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "personality": (135, 92),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}


class Machine(NamedTuple):
    """The constants of one architecture."""

    architecture: int  # AUDIT_ARCH_* of linux/audit.h
    column: int  # in DENIED
    socket: int
    clone: int
    clone3: int
    tgkill: int
    prctl: int
    seccomp: int
    socketpair: int


MACHINES = {
    "x86_64": Machine(0xC000003E, 0, 41, 56, 435, 234, 157, 317, 53),
    "aarch64": Machine(0xC00000B7, 1, 198, 220, 435, 131, 167, 277, 199),
}


class Instruction(NamedTuple):
    """One step of classic BPF: struct sock_filter of linux/filter.h."""

    code: int
    jump_true: int
    jump_false: int
    k: int

    def __bytes__(self) -> bytes:
        """Return the eight bytes that the kernel reads."""
        return struct.pack("=HBBI", *self)


def build_filter(machine: Machine, pid: int, *, can_bind: bool = False) -> list[Instruction]:
    """Return the program for one architecture. `pid` is the process that `tgkill` may signal."""
    refused = Instruction(RETURN, 0, 0, ERRNO | EPERM)
    absent = Instruction(RETURN, 0, 0, ERRNO | ENOSYS)
    allowed = Instruction(RETURN, 0, 0, ALLOW)
    program = [
        Instruction(LOAD, 0, 0, ARCHITECTURE),
        Instruction(JUMP_EQUAL, 1, 0, machine.architecture),
        Instruction(RETURN, 0, 0, KILL_PROCESS),  # 32-bit calls have other numbers
        Instruction(LOAD, 0, 0, NUMBER),
        Instruction(JUMP_GREATER, 0, 1, LAST_KNOWN),  # x32 too: its numbers have bit 30
        absent,
    ]
    for rule in (
        _unless(machine.socket, _socket_rule(refused, allowed)),
        _unless(machine.socketpair, _pair_rule(refused, allowed)),
        _unless(machine.clone, _clone_rule(refused, allowed)),
        _unless(machine.tgkill, _signal_rule(pid, refused, allowed)),
        _unless(machine.clone3, [absent]),  # flags in memory; libraries fall back to `clone`
    ):
        program += rule
    for name, numbers in DENIED.items():
        number = numbers[machine.column]
        if number is not None and not (can_bind and name == "bind"):
            program += _unless(number, [refused])
    return [*program, allowed]


def _unless(number: int, rule: Sequence[Instruction]) -> list[Instruction]:
    """Return a rule that only one system call reaches."""
    return [Instruction(JUMP_EQUAL, 0, len(rule), number), *rule]


def _socket_rule(refused: Instruction, allowed: Instruction) -> list[Instruction]:
    """Allow socket(AF_INET or AF_INET6, SOCK_STREAM or SOCK_DGRAM, TCP or UDP).

    The resolver of the C library sends datagrams.
    """
    return [
        Instruction(LOAD, 0, 0, ARGUMENTS),
        Instruction(JUMP_EQUAL, 1, 0, AF_INET),
        Instruction(JUMP_EQUAL, 0, 8, AF_INET6),
        Instruction(LOAD, 0, 0, ARGUMENTS + 8),
        Instruction(AND, 0, 0, SOCK_TYPE_MASK),
        Instruction(JUMP_EQUAL, 1, 0, SOCK_STREAM),
        Instruction(JUMP_EQUAL, 0, 4, SOCK_DGRAM),
        Instruction(LOAD, 0, 0, ARGUMENTS + 16),
        Instruction(JUMP_EQUAL, 3, 0, IPPROTO_ANY),
        Instruction(JUMP_EQUAL, 2, 0, IPPROTO_TCP),
        Instruction(JUMP_EQUAL, 1, 0, IPPROTO_UDP),
        refused,
        allowed,
    ]


def _pair_rule(refused: Instruction, allowed: Instruction) -> list[Instruction]:
    """Allow socketpair(AF_UNIX, SOCK_STREAM), as asyncio does.

    The sockets of another pair are connected too, but may send to any path of a datagram socket.
    """
    return [
        Instruction(LOAD, 0, 0, ARGUMENTS + 8),
        Instruction(AND, 0, 0, SOCK_TYPE_MASK),
        Instruction(JUMP_EQUAL, 1, 0, SOCK_STREAM),
        refused,
        allowed,
    ]


def _clone_rule(refused: Instruction, allowed: Instruction) -> list[Instruction]:
    """Allow a new thread, refuse a new process."""
    return [
        Instruction(LOAD, 0, 0, ARGUMENTS),
        Instruction(JUMP_ANY_BIT, 1, 0, CLONE_THREAD),
        refused,
        allowed,
    ]


def _signal_rule(pid: int, refused: Instruction, allowed: Instruction) -> list[Instruction]:
    """Allow signals to threads of this process: `abort` sends one."""
    return [
        Instruction(LOAD, 0, 0, ARGUMENTS),
        Instruction(JUMP_EQUAL, 1, 0, pid),
        refused,
        allowed,
    ]


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


@dataclass(frozen=True)
class Installer:
    """Puts the filter on all threads of this process when it is called. Call it once."""

    steps: list[Callable[[], None]]  # empty when it is done: they hold a C function of ctypes
    addresses: set[int]  # of the C functions that it calls; empty when it is done

    def __call__(self) -> None:
        """Install the filter. Raises OSError if the kernel refuses."""
        try:
            for step in self.steps:
                step()
        finally:
            self.steps.clear()
            self.addresses.clear()


def prepare_filter(machine_name: str = os.uname().machine) -> Installer:
    """Return the installer of the filter. Raises OSError if the architecture is unknown.

    Everything that needs ctypes is done here, before the audit hook closes ctypes, except the calls
    themselves: CPython 3.14 reports them, and the hook allows `addresses`. The installer also sets
    `no_new_privs`, without which only root may install a filter.
    """
    machine = MACHINES.get(machine_name)
    if machine is None or struct.calcsize("P") != 8:  # noqa: PLR2004  bytes of a 64-bit pointer
        raise OSError(f"no filter for {machine_name}: expected {' or '.join(MACHINES)}, 64 bits")
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    steps = build_filter(machine, os.getpid(), can_bind=not _is_glibc())
    text = b"".join(map(bytes, steps))
    memory = ctypes.create_string_buffer(text, len(text))
    program = _Program(len(steps), ctypes.addressof(memory))
    last_errno = ctypes.get_errno

    def call(what: str, *arguments: Any) -> None:
        result = syscall(*arguments)
        if result:
            why = os.strerror(last_errno()) if result < 0 else f"thread {result} has another filter"
            raise OSError(f"{what}: {why}")

    long, zero = ctypes.c_long, ctypes.c_long(0)
    no_privileges = (long(machine.prctl), long(PR_SET_NO_NEW_PRIVS), long(1), zero, zero, zero)
    filtering = (
        long(machine.seccomp),
        long(SET_MODE_FILTER),
        long(ALL_THREADS),
        ctypes.byref(program),
    )

    def install() -> None:
        assert memory  # noqa: S101  the kernel reads it: it must live until here
        call("PR_SET_NO_NEW_PRIVS", *no_privileges)
        call("seccomp", *filtering)

    address = ctypes.cast(syscall, ctypes.c_void_p).value
    return Installer([install], {address} if address else set())


def _is_glibc() -> bool:
    """Return whether the C library is glibc. Musl's resolver binds its sockets."""
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except ValueError:
        return False
