"""A process that uses CPU on command, and prints the kernel's figures of its use.

As a program it reads one command per line: `burn SECONDS CHILDREN` uses that much CPU itself, while
its children use CPU too and are waited for; `mix SECONDS` runs a mixed load with many short-lived
children for that long; `pulse` uses half a core until the next line. It answers each line with the
core seconds that it and its children have used so far, and is idle until the next. It exits at the
end of its standard input.
"""

import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHILD_SECONDS = 0.5  # CPU of each child
SLICE_SECONDS = 0.03
MIX_OWN_SECONDS = 0.2  # of one round: CPU of the process itself, then its children, then a rest
MIX_CHILDREN = 8
MIX_CHILD_SECONDS = 0.02  # CPU; at most, and of a grandchild
MIX_REST_SECONDS = 0.05
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Burner:
    """The test's handle of the process."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def burn(self, core_seconds: float, children: int = 0) -> float:
        """Run `burn` and wait for it; return the core seconds used so far."""
        self.send(f"burn {core_seconds} {children}")
        return self.answer()

    def mix(self, seconds: float) -> float:
        """Run the mixed load for that long; return the core seconds used so far."""
        self.send(f"mix {seconds}")
        return self.answer(seconds + PATIENCE_SECONDS)

    def pulse(self) -> None:
        """Start to use half a core, until `rest`."""
        self.send("pulse")

    def rest(self) -> float:
        """End a pulse; return the core seconds used so far."""
        self.send("rest")
        return self.answer()

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()

    def answer(self, patience_seconds: float = PATIENCE_SECONDS) -> float:
        assert self.process.stdout is not None
        poll = select.poll()  # `select` fails if this process has more than 1,024 open files
        poll.register(self.process.stdout, select.POLLIN)
        assert poll.poll(patience_seconds * 1000), "the burner has ended"
        return float(self.process.stdout.readline())


@contextmanager
def burning(name: str, *inside: list[str]) -> Iterator[Burner]:
    """Start a burner called `name`, by commands that run their arguments (a group's)."""
    command = [sys.executable, "-m", "lab.real.burner", name]
    with subprocess.Popen(
        [*(word for prefix in inside for word in prefix), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        try:
            burner = Burner(process)
            burner.answer()
            yield burner
        finally:
            process.kill()


def main(name: str) -> int:
    """Execute the commands of standard input until its end."""
    Path("/proc/self/comm").write_text(name)  # what process:NAME looks for
    print(used(), flush=True)
    for line in iter(sys.stdin.readline, ""):
        match line.split():
            case ["burn", seconds, children]:
                burn(float(seconds), int(children))
            case ["mix", seconds]:
                mix(float(seconds))
            case ["pulse"]:
                pulse()
                continue  # the line that ends it is answered
            case _:
                pass
        print(used(), flush=True)
    return 0


def burn(core_seconds: float, children: int) -> None:
    """Use that much CPU in this process; one child at a time runs in parallel."""
    end = time.process_time() + core_seconds
    for number in range(children):
        if os.fork() == 0:
            spend(time.process_time() + CHILD_SECONDS)
            os._exit(0)
        spend(end - core_seconds + core_seconds * (number + 1) / children)
        os.wait()
    spend(end)


def mix(seconds: float) -> None:
    """Use CPU, sleep, and run short-lived children with children, in turn."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        spend(time.process_time() + MIX_OWN_SECONDS)
        for number in range(MIX_CHILDREN):
            if os.fork() == 0:
                if number % 2 and os.fork() == 0:  # a grandchild, which its parent waits for
                    spend(time.process_time() + MIX_CHILD_SECONDS)
                    os._exit(0)
                elif number % 2:
                    os.wait()
                spend(time.process_time() + MIX_CHILD_SECONDS * number / MIX_CHILDREN)
                os._exit(0)
        for _ in range(MIX_CHILDREN):
            os.wait()
        subprocess.run(["/bin/sh", "-c", "echo mixed | cat > /dev/null"], check=True)
        with Path("/dev/zero").open("rb") as zeros:  # time in the kernel
            zeros.read(1 << 24)
        time.sleep(MIX_REST_SECONDS)


def pulse() -> None:
    """Use half a core until standard input has a line."""
    while not select.select([sys.stdin], [], [], SLICE_SECONDS)[0]:
        spend(time.process_time() + SLICE_SECONDS)


def spend(until: float) -> None:
    """Use CPU until this process's CPU clock has reached that time in seconds."""
    while time.process_time() < until:
        sum(number * number for number in range(1000))


def used() -> float:
    """Return the core seconds of this process and of the children it has waited for."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, whose))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
