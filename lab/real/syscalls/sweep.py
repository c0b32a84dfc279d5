"""Let each system call of opening a spool and a ledger fail once.

    python -m lab.real.syscalls.sweep DIRECTORY [--every N]

A directory as a kill leaves it is opened repeatedly, each time by a new process in which another
call fails: the first with ENOSPC, with EIO, ..., short by half, then the second, and so on; and the
same with all calls from there on. After each, a start without a fault must have all stored
messages: nothing lost, nothing doubled, no file set aside as damaged, and a ledger that verifies.
Prints a table of the results; exits with 1 if that does not hold.
"""

import argparse
import asyncio
import errno
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from byoc_agents.app import logging as log
from byoc_agents.app.clock import SystemClock
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import ByocError
from byoc_agents.ledger import FileLedger
from byoc_agents.ledger.verify import verify
from lab.real.syscalls.ptrace import COUNTED, EXITKILL, Call, Tracer
from lab.real.syscalls.writer import message

WAYS = ("ENOSPC", "EIO", "EROFS", "EMFILE", "EACCES", "half", "none")
SHORT = ("half", "none")
OPENING = {"open", "openat", "mkdir"}
LOCKING = {"fcntl", "flock"}  # on a local file system only another holder makes these fail
THERE = 12  # messages stored in the spool
DEFECT = 9  # exit code of a process that met an error not of ours


class Fault(NamedTuple):
    """The number of the failing call, from 1, and the failure; `on`: with every later one."""

    nth: int
    way: str
    on: bool

    def applies(self, call: Call) -> bool:
        """Return whether a call can fail in this way."""
        if self.way in SHORT:
            return call.name in COUNTED.values()
        return self.way not in {"EMFILE", "EACCES"} or call.name in OPENING


@dataclass
class Breaks:
    """Alters the calls of one process."""

    root: str
    fault: Fault
    seen: int = 0
    met: list[str] = field(default_factory=list)

    def __call__(self, call: Call) -> int | None:
        if not call.path.startswith(self.root) or call.name in LOCKING:
            return None
        self.seen += 1
        due = self.seen >= self.fault.nth if self.fault.on else self.seen == self.fault.nth
        if not due or not self.fault.applies(call):
            return None
        self.met.append(f"{call.name} {Path(call.path).name}")
        match self.fault.way:
            case "half":
                return max(1, call.asked_bytes // 2)
            case "none":
                return 0
        return -int(getattr(errno, self.fault.way))


async def opened(directory: Path) -> str:
    """Start as a daemon does, put one message, write one line; return the result."""
    clock = SystemClock()
    spool = Spool(directory, max_bytes=1 << 30, clock=clock)
    ledger = FileLedger(directory / "ledger", clock=clock, max_bytes=1 << 16)
    try:
        await spool.__aenter__()
    except ByocError:
        return "exit 2"
    async with ledger:
        try:
            succeeded = [await tried(lambda: spool.put(message(THERE)))]
            succeeded += [await tried(lambda: ledger.intent("d", [message(0)]))]
        finally:
            await spool.__aexit__()
    return f"{'takes' if succeeded[0] else 'not ready'}, {'sends' if succeeded[1] else 'held'}"


async def tried(work: Callable[[], object]) -> bool:
    try:
        await work()  # type: ignore[misc]
    except ByocError:
        return False
    return True


ACTIONS = ("exit 2", *(f"{a}, {b}" for a in ("takes", "not ready") for b in ("sends", "held")))


def child(directory: Path, go: int) -> None:
    """Wait for the tracer, then open; the exit code is the number of the result."""
    os.read(go, 1)
    try:
        code = ACTIONS.index(asyncio.run(opened(directory)))
    except BaseException as error:  # noqa: BLE001  whatever it is, it is a finding
        sys.stderr.write(f"{error!r}\n")
        code = DEFECT
    os._exit(code)


def run(directory: Path, fault: Fault) -> tuple[str, Breaks]:
    """Open the directory with one fault. Return the result and the broken calls."""
    breaks = Breaks(str(directory), fault)
    tracer = Tracer(breaks)
    waits, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(directory, waits)
    tracer.seize(pid, EXITKILL)
    os.write(go, b"x")
    while tracer.serve():
        pass
    os.close(waits)
    os.close(go)
    code = tracer.codes[pid]
    return (ACTIONS[code] if 0 <= code < len(ACTIONS) else f"ended with {code}"), breaks


def killed(directory: Path) -> None:
    """Make a directory as a kill leaves it: messages, lines, checkpoints, an open send."""
    pid = os.fork()
    if pid == 0:
        asyncio.run(fill(directory))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


async def fill(directory: Path) -> None:
    clock = SystemClock()
    async with Spool(directory, max_bytes=1 << 30, clock=clock) as spool:
        await spool.put(*map(message, range(THERE // 2)))  # in the file: it is closed once
        await spool.put(message(100))
        await spool.dead_letter(message(100), "rejected", "400")
    spool = Spool(directory, max_bytes=1 << 30, clock=clock)
    ledger = FileLedger(directory / "ledger", clock=clock, max_bytes=1 << 16)
    async with spool, ledger:
        await spool.commit(WriteBatch(stage=[b"line"], state={"k": b"v"}))
        await spool.put(*map(message, range(THERE // 2, THERE)))  # in the journal
        await ledger.intent("d", [message(0)])
        os._exit(0)


async def differences(directory: Path, *, takes: bool) -> list[str]:
    """Start without a fault; return every difference from the expected state."""
    wrong = set_aside(directory)
    async with Spool(directory, max_bytes=1 << 30, clock=SystemClock()) as spool:
        found = await spool.peek(1000, 1 << 30)
        dead = [letter.message for letter in await spool.dead_letters()]
        rest = await spool.staged(), (await spool.state("k")).get("k"), spool.corruptions
    wrong += [] if found[:THERE] == list(map(message, range(THERE))) else [f"messages: {found}"]
    late = found[THERE:]
    if late not in [[message(THERE)], *([] if takes else [[]])]:
        wrong.append(f"acknowledged {takes}, found {late}")
    wrong += [] if dead == [message(100)] else [f"dead letters: {dead}"]
    wrong += [] if rest == ([b"line"], b"v", 0) else [f"lines, checkpoint, corruptions: {rest}"]
    async with FileLedger(directory / "ledger", clock=SystemClock(), max_bytes=1 << 16) as ledger:
        wrong += [ledger.last_error] if ledger.last_error else []
    return wrong + [str(problem) for problem in verify(directory / "ledger").problems]


def set_aside(directory: Path) -> list[str]:
    return [f"{name.name} was set aside" for name in directory.glob("*.corrupt-*")]


@dataclass
class Sweep:
    """The results of all faults."""

    directory: Path
    every: int = 1  # of all faults only each so manieth
    outcomes: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    runs: int = 0

    def do(self) -> None:
        golden = self.directory / "golden"
        killed(golden)
        (golden / "reserve").unlink()
        for number, fault in enumerate(self.faults(golden)):
            if number % self.every == 0:
                self.one(golden, fault)

    def faults(self, golden: Path) -> Iterator[Fault]:
        """Count the calls, then yield every fault."""
        _, breaks = run(copied(golden, self.directory / "counted"), Fault(0, "EIO", on=False))
        for way in WAYS:
            for on in (False, True):
                yield from (Fault(nth, way, on) for nth in range(1, breaks.seen + 1))

    def one(self, golden: Path, fault: Fault) -> None:
        place = copied(golden, self.directory / "swept")
        outcome, breaks = run(place, fault)
        if not breaks.met:
            return  # no call of that number can fail like that
        self.runs += 1
        key = fault.way, "on" if fault.on else "once"
        self.outcomes.setdefault(key, Counter())[outcome] += 1
        wrong = asyncio.run(differences(place, takes=outcome.startswith("takes")))
        wrong += [] if outcome in ACTIONS else [outcome]
        self.wrong += [f"{fault} {breaks.met[0]}: {outcome}: {what}" for what in wrong]

    def table(self) -> str:
        head = ["fault", *ACTIONS]
        rows = [
            [" ".join(key), *(str(outcomes[outcome]) for outcome in ACTIONS)]
            for key, outcomes in self.outcomes.items()
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def copied(golden: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(golden, place)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.real.syscalls.sweep")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    log.configure("critical", sys.stderr)
    sweep = Sweep(options.directory, options.every)
    sweep.do()
    sys.stdout.write(f"{sweep.table()}\n{sweep.runs} openings\n")
    sys.stdout.writelines(f"{what}\n" for what in sweep.wrong)
    return int(bool(sweep.wrong))


if __name__ == "__main__":
    sys.exit(main())
