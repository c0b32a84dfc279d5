"""Alter system calls on their way into the kernel, by ptrace and ctypes.

strace can let a call fail, but cannot let it do a part of its work. Here the count is made smaller
before the kernel sees it, so that the program gets a true result. x86-64 only: a register is named.
"""

import ctypes
import os
import platform
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lab.real.parts.process import PartError

CLONES, SYSGOOD, EXITKILL = 0x8, 0x1, 0x100000  # PTRACE_O_*; linux/ptrace.h
POKEUSER, SYSCALL, SEIZE, INTERRUPT, GET_SYSCALL_INFO = 6, 24, 0x4206, 0x4207, 0x420E
WALL = 0x40000000  # __WALL: threads as well
AT_CALL = signal.SIGTRAP | 0x80
ENTRY, EXIT = 1, 2  # PTRACE_SYSCALL_INFO_*
RAX, RDX, ORIG_RAX = 80, 96, 120  # offsets in struct user_regs_struct; sys/user.h
COUNTED = {1: "write", 18: "pwrite64", 44: "sendto"}  # by descriptor, with a count as third
BY_DESCRIPTOR = {
    **COUNTED, 0: "read", 17: "pread64", 72: "fcntl", 73: "flock", 74: "fsync", 75: "fdatasync",
    77: "ftruncate", 285: "fallocate",
}  # fmt: skip
BY_NAME = {2: 0, 82: 0, 83: 0, 87: 0, 257: 1}  # which argument: open rename mkdir unlink openat
NAMES = BY_DESCRIPTOR | {2: "open", 82: "rename", 83: "mkdir", 87: "unlink", 257: "openat"}


class Info(ctypes.Structure):
    """struct ptrace_syscall_info, as far as the arguments of a call."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("arch", ctypes.c_uint32),
        ("pointers", ctypes.c_uint64 * 2),
        ("number", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    )


class Call(NamedTuple):
    """A system call before its execution."""

    name: str
    path: str  # of its descriptor or its first name; `socket:[1234]` for a socket
    asked_bytes: int  # where it counts some


# Returns None (leave it alone), a smaller count, or -errno: then the call is not made.
Alter = Callable[[Call], int | None]


class Tracer:
    """A tracer between processes and the kernel. Only one thread may call it."""

    def __init__(self, alter: Alter) -> None:
        if platform.machine() != "x86_64":
            raise PartError(f"short system calls want x86_64, not {platform.machine()}")
        self._alter = alter
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.restype = ctypes.c_long
        self._libc.ptrace.argtypes = [
            ctypes.c_long,
            ctypes.c_long,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._undo: dict[int, tuple[int, int]] = {}  # thread -> register and value at the end
        self.codes: dict[int, int] = {}  # process -> exit code, or minus the signal

    @property
    def busy(self) -> bool:
        """Return whether an altered call has not returned yet."""
        return bool(self._undo)

    def seize(self, pid: int, options: int = 0) -> None:
        """Attach to all threads of a process. Raises OSError."""
        taken: set[int] = set()
        while new := {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - taken:
            for thread in new:
                with suppress(PermissionError):  # it came with the thread that made it
                    self._ptrace(SEIZE, thread, 0, options | CLONES | SYSGOOD)
                    self._ptrace(INTERRUPT, thread)
            taken |= new

    def serve(self) -> bool:
        """Wait for one stop and continue. Return False if no process is left."""
        try:
            thread, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            return False
        self._stopped(thread, status)
        return True

    def _stopped(self, thread: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._undo.pop(thread, None)
            self.codes[thread] = os.waitstatus_to_exitcode(status)
            return
        number, event = os.WSTOPSIG(status), status >> 16
        with suppress(ProcessLookupError):  # killed in that moment
            if number == AT_CALL:
                self._at_call(thread)
            given = number if not event and number not in {AT_CALL, signal.SIGTRAP} else 0
            self._ptrace(SYSCALL, thread, 0, given)

    def _at_call(self, thread: int) -> None:
        info = Info()
        self._ptrace(GET_SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
        if info.op == ENTRY and info.number in NAMES:
            self._enter(thread, info)
        elif info.op == EXIT and thread in self._undo:
            self._ptrace(POKEUSER, thread, *self._undo.pop(thread))

    def _enter(self, thread: int, info: Info) -> None:
        call = Call(NAMES[info.number], _path(thread, info), info.args[2])
        answer = self._alter(call)
        if answer is None:
            return
        if answer < 0:
            self._ptrace(POKEUSER, thread, ORIG_RAX, ctypes.c_ulong(-1).value)
            self._undo[thread] = RAX, ctypes.c_ulong(answer).value
        else:
            self._ptrace(POKEUSER, thread, RDX, answer)
            self._undo[thread] = RDX, info.args[2]

    def _ptrace(self, request: int, thread: int, address: int = 0, value: int = 0) -> None:
        if self._libc.ptrace(request, thread, address, value) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _path(thread: int, info: Info) -> str:
    if info.number in BY_NAME:
        return _text(thread, info.args[BY_NAME[info.number]])
    try:
        return str(Path(f"/proc/{thread}/fd/{info.args[0]}").readlink())
    except OSError:  # it is closed
        return ""


def _text(thread: int, address: int) -> str:
    """Return a string of the process, which ends with a zero."""
    with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        found = b""
        while b"\0" not in found and (more := memory.read(256 - address % 256)):
            found += more
            address += len(more)
    return found.partition(b"\0")[0].decode(errors="replace")
