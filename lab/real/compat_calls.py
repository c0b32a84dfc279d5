"""Run a 32-bit program of ARM on an arm64 kernel, without and with the seccomp filter.

`python -m lab.real.compat_calls` prints as JSON how each of these ended: the program on the kernel
alone, the program below the filter, and a 64-bit program below the same filter. Only a new program
can be 32-bit on this architecture, and the filter refuses every new program. So the filter is
installed here with one rule turned around: it allows `execve`.
"""

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from byoc_agents.egress.seccomp import (
    ALLOW,
    DENIED,
    JUMP_EQUAL,
    MACHINES,
    RETURN,
    Instruction,
    build_filter,
)
from lab.seccomp_probes import install_program

EXIT_CODE = 42
ADDRESS, PAGE_BYTES = 0x10000, 0x1000
# mov r0, #42; mov r7, #1 (exit, in arch/arm/tools/syscall.tbl); svc #0
CODE = struct.pack("<3I", 0xE3A00000 | EXIT_CODE, 0xE3A07001, 0xEF000000)
HEADER_BYTES = 52 + 32  # of the file and of its one segment
ET_EXEC, EM_ARM, EF_ARM_EABI_VER5 = 2, 40, 0x05000000  # elf.h


def program() -> bytes:
    """Return an executable of 32-bit ARM that ends with EXIT_CODE."""
    identity = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)  # 32 bits, little endian
    size, entry = HEADER_BYTES + len(CODE), ADDRESS + HEADER_BYTES
    numbers = (ET_EXEC, EM_ARM, 1, entry, 52, 0, EF_ARM_EABI_VER5, 52, 32, 1, 40, 0, 0)
    segment = (1, 0, ADDRESS, ADDRESS, size, size, 5, PAGE_BYTES)  # PT_LOAD, read and execute
    return identity + struct.pack("<HHIIIIIHHHHHH", *numbers) + struct.pack("<8I", *segment) + CODE


def install_filter_without_execve() -> None:
    """Install the product's filter, with `execve` allowed."""
    machine = MACHINES[os.uname().machine]
    steps = build_filter(machine, os.getpid())
    number = DENIED["execve"][machine.column]
    rule = steps.index(Instruction(JUMP_EQUAL, 0, 1, number or 0))
    steps[rule + 1] = Instruction(RETURN, 0, 0, ALLOW)
    install_program(steps)


def end(*command: str, before: Callable[[], None] | None = None) -> int:
    """Return the exit code of a program; a signal is negative."""
    return subprocess.run(command, preexec_fn=before, check=False).returncode


def main() -> None:
    """Run all three."""
    file = Path("/tmp/program-of-32-bits")
    file.write_bytes(program())
    file.chmod(0o755)
    ends = {
        "bits_of_python": ctypes.sizeof(ctypes.c_void_p) * 8,
        "alone": end(str(file)),
        "below_the_filter": end(str(file), before=install_filter_without_execve),
        "64_bits_below_the_filter": end(
            sys.executable, "-c", "pass", before=install_filter_without_execve
        ),
    }
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
