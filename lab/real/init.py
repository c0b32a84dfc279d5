"""The init process (pid 1) of an emulated machine (`parts/machine.py`).

It mounts /proc and /sys, gives the loopback device its addresses, runs each command as root, prints
one line of JSON per command, and switches the machine off.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from lab.real.ways_out import ALLOWED, NETWORK_FILES, STRANGER

SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C  # linux/sockios.h
IFF_UP = 1  # linux/if.h
RB_POWER_OFF = 0x4321FEDC  # linux/reboot.h
ADDRESSES = {"lo": "127.0.0.1", "lo:1": ALLOWED, "lo:2": STRANGER}
NETMASKS = {"lo": "255.0.0.0"}
COMMAND_SECONDS = 120.0
OUTPUT_CHARACTERS = 20_000

_libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, place: str) -> None:
    """Mount a file system of the kernel."""
    if _libc.mount(kind.encode(), place.encode(), kind.encode(), ctypes.c_ulong(0), None):
        raise OSError(ctypes.get_errno(), f"mount {place}")


def set_addresses() -> None:
    """Give the loopback device an address of its own, and those of `lab.real.ways_out`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for device, address in ADDRESSES.items():
            for request, text in (
                (SIOCSIFADDR, address),
                (SIOCSIFNETMASK, NETMASKS.get(device, "255.255.255.255")),
            ):
                place = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
                fcntl.ioctl(control, request, struct.pack("16s16s", device.encode(), place))
        up = struct.pack("16sh22x", b"lo", IFF_UP)
        fcntl.ioctl(control, SIOCSIFFLAGS, up)


def run(name: str, command: Sequence[str], environment: dict[str, str]) -> None:
    """Run one command and print its result."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        code, output, error = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, output, error = -1, "", f"ran longer than {COMMAND_SECONDS:.0f} s"
    result = {
        "command": name,
        "code": code,
        "output": output[:OUTPUT_CHARACTERS],
        "error": error[-2000:],
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result), flush=True)


def main(commands: str, python_path: str) -> None:
    """Prepare the machine, run all commands, and switch it off, whatever happens."""
    try:
        mount("proc", "/proc")
        mount("sysfs", "/sys")
        set_addresses()
        for name, text in NETWORK_FILES.items():
            Path("/etc", name).write_text(text)
        Path("/etc/hosts").write_text("127.0.0.1 localhost\n")
        environment = {"PATH": "/usr/local/bin:/usr/bin", "PYTHONPATH": python_path}
        environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
        for name, command in json.loads(Path(commands).read_text()).items():
            run(name, command, environment)
    except BaseException:  # noqa: BLE001  the console is the only place for it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os.sync()
        _libc.reboot(RB_POWER_OFF)
