"""Break system calls with strace: from the start of a program, or for a while."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.real.parts import install
from lab.real.parts.process import POLL_SECONDS, PartError

ATTACH_SECONDS = 30.0
LONGEST_BODY_BYTES = 1 << 20  # of one write, as the log shows it


def traced(calls: str, log: Path, *options: str) -> list[str]:
    """Return the prefix of a command that logs these system calls of all threads, untruncated."""
    whole = ["-f", "-y", "-xx", "-s", str(LONGEST_BODY_BYTES)]
    kept = ["-E", "LD_LIBRARY_PATH"]  # ours is for strace alone
    return [*_strace(), *whole, *kept, "-e", f"trace={calls}", *options, "-o", str(log)]


def broken(*faults: str) -> list[str]:
    """Return the options for faults such as `fsync:error=EIO:when=3..5`."""
    return [word for fault in faults for word in ("-e", f"inject={fault}")]


@contextmanager
def breaking(pid: int, log: Path, faults: Sequence[str], *paths: Path) -> Iterator[None]:
    """Break system calls of a running process, as long as the context lasts.

    With `paths` only calls on these files: by name, or by a descriptor of theirs.
    """
    only = [word for path in paths for word in ("-P", str(path))]
    calls = ",".join(dict.fromkeys(fault.partition(":")[0] for fault in faults))
    command = [*_strace(), "-f", "-p", str(pid), "-e", f"trace={calls}", *broken(*faults), *only]
    with _attached([*command, "-o", f"{log}.calls"], pid, log):
        yield


def starting(log: Path, faults: Sequence[str], *paths: Path) -> list[str]:
    """Return the prefix of a command whose calls on these files break from the first one on.

    The command stays our child; strace runs in parallel and ends with it.
    """
    only = [word for path in paths for word in ("-P", str(path))]
    calls = ",".join(dict.fromkeys(fault.partition(":")[0] for fault in faults))
    kept = ["-D", "-f", "--seccomp-bpf", "-E", "LD_LIBRARY_PATH", "-e", f"trace={calls}"]
    return [*_strace(), *kept, *broken(*faults), *only, "-o", f"{log}.calls"]


@contextmanager
def shortening(pid: int, log: Path, rules: Sequence[str], *paths: Path) -> Iterator[None]:
    """Shorten the writes of a running process; see `short.py`. Otherwise as `breaking`."""
    module = [sys.executable, "-m", "lab.real.syscalls.short"]
    command = [*module, str(pid), f"{log}.calls", *rules, "--", *map(str, paths)]
    with _attached(command, pid, log):
        yield


def injected(log: Path, call: str = "") -> int:
    """Return the number of calls (of that name) that `breaking` broke."""
    lines = Path(f"{log}.calls").read_text(errors="replace").splitlines()
    return sum("(INJECTED)" in line and call in line for line in lines)


@contextmanager
def _attached(command: Sequence[str], pid: int, log: Path) -> Iterator[None]:
    """Run a tracer; return when it has every thread."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _wait_attached(process, pid, log)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # it lets go of the process and ends
        process.wait(timeout=ATTACH_SECONDS)


def _wait_attached(process: subprocess.Popen[bytes], pid: int, log: Path) -> None:
    deadline = time.monotonic() + ATTACH_SECONDS
    while not _has_all(pid, process.pid):
        if process.poll() is not None or time.monotonic() > deadline:
            raise PartError(
                f"{process.args!r} could not attach:\n{log.read_text(errors='replace')}"
            )
        time.sleep(POLL_SECONDS)


def _has_all(pid: int, tracer: int) -> bool:
    """Return whether every thread of a process is traced."""
    tasks = Path(f"/proc/{pid}/task")
    status = [(task / "status").read_text() for task in tasks.iterdir()]
    return all(f"TracerPid:\t{tracer}\n" in text for text in status)


def _strace() -> list[str]:
    place = install.counters()
    libraries = install.library_path(place)["LD_LIBRARY_PATH"]
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(place / "usr/bin/strace")]
