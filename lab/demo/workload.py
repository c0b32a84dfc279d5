"""The metered process of the demo: `python -m lab.demo.workload NAME REPORT_FILE PARENT_PID`.

Uses CPU in bursts, forks children that use CPU too and waits for them, and varies its memory.
SIGUSR1: rest. SIGTERM: write the kernel's figures of its use, and exit. It also exits with its
parent.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

SIGNALS = frozenset({signal.SIGUSR1, signal.SIGTERM})
SLOT_SECONDS = 0.5
BUSY_RATIOS = (0.4, 1.0, 0.7, 0.9, 0.3, 0.8)  # of a slot; the load that a meter has to follow
HELD_MIB = (24, 24, 64, 64, 96, 48)
CHILD_SECONDS = 1.2
SLOTS_A_CHILD = 5


def main(argv: Sequence[str]) -> int:
    """Work until SIGTERM."""
    name, report, parent = argv
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    Path("/proc/self/comm").write_text(name)  # what process:NAME looks for
    print_state("working")
    if _work(int(parent)) == signal.SIGUSR1:
        _wait_for_children()
        print_state("resting")
        _rest(int(parent))
    _wait_for_children()
    Path(report).write_text(json.dumps(used()))
    return 0


def print_state(state: str) -> None:
    """Print the current state on standard output."""
    sys.stdout.write(f"{state}\n")
    sys.stdout.flush()


def used() -> dict[str, float]:
    """Return the CPU seconds of this process and of the children it has waited for."""
    itself, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "self_core_seconds": itself.ru_utime + itself.ru_stime,
        "children_core_seconds": children.ru_utime + children.ru_stime,
    }


def burn(seconds: float) -> None:
    """Keep one core busy for some seconds of wall time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(number * number for number in range(1000))


def _work(parent: int) -> int:
    """Use CPU until a signal arrives. Return its number, SIGTERM if the parent has exited."""
    for slot, (busy, mib) in enumerate(zip(cycle(BUSY_RATIOS), cycle(HELD_MIB), strict=False)):
        held = bytearray(b"x") * (mib << 20)
        if slot % SLOTS_A_CHILD == 1:
            _fork()
        burn(SLOT_SECONDS * busy)
        _wait_for_children(os.WNOHANG)
        got = signal.sigtimedwait(SIGNALS, SLOT_SECONDS * (1 - busy))
        del held
        if got or os.getppid() != parent:
            return got.si_signo if got else signal.SIGTERM
    raise AssertionError  # a cycle has no end


def _rest(parent: int) -> None:
    while not signal.sigtimedwait({signal.SIGTERM}, SLOT_SECONDS) and os.getppid() == parent:
        pass


def _fork() -> None:
    if os.fork() == 0:
        burn(CHILD_SECONDS)
        os._exit(0)


def _wait_for_children(options: int = 0) -> None:
    try:
        while os.waitpid(-1, options)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
