"""Begin and end each fault. Each is a context manager that repairs the damage it does."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab.chaos import scripts
from lab.chaos.daemon import Daemon
from lab.chaos.damage import damage, held
from lab.chaos.dead import resent
from lab.chaos.environment import Environment
from lab.chaos.machine import Clock, Disk
from lab.chaos.outages import Outage, seen
from lab.chaos.plan import DAMAGE, LINK, Fault
from lab.chaos.target import Target
from lab.real.parts.process import RealProcess
from lab.real.scraper import eventually, passed

SOUND_DISK_SECONDS = 20.0  # a full or broken disk is whole again before
PROGRESS_SECONDS = 60.0  # between two lines of a run


@dataclass
class SystemUnderTest:
    """The processes, paths and devices that the faults act on."""

    environment: Environment
    daemons: list[Daemon]
    disk: Disk
    clock: Clock
    target: Target
    at_risk: dict[str, bytes] = field(default_factory=dict)  # id -> body, in a spool when damaged
    damaged: list[str] = field(default_factory=list)
    dead: set[tuple[str, str]] = field(
        default_factory=set
    )  # (daemon, id) of each message sent again
    outages: list[Outage] = field(default_factory=list)  # of ClickHouse
    lock: threading.Lock = field(default_factory=threading.Lock)  # of the daemons' processes

    @property
    def state_dir(self) -> Path:
        return Path(self.daemons[0].settings["BYOC_STATE_DIR"])

    @property
    def exporter(self) -> Daemon:
        return next(one for one in self.daemons if "state-exporter" in one.names)

    def note_outage(self, kind: str, began: float) -> None:
        """Record the exporter's state of ClickHouse before ClickHouse comes back."""
        self.outages.append(seen(kind, began, self.exporter))

    def resend(self) -> None:
        """Send all dead letters again, while no fault starts, stops or repairs anything."""
        with self.lock:
            self.dead.update(resent(self.state_dir))


def inject_fault(system: SystemUnderTest, fault: Fault) -> AbstractContextManager[None]:
    """Return the context manager of a fault."""
    rng = random.Random(fault.seed)
    match fault.lane:
        case "daemons":
            return _daemons(system, fault, rng)
        case "disk":
            return system.disk.full() if fault.kind == "full" else _read_only(system)
        case "clock":
            return _stepped(system.clock, fault)
        case "target":
            return _target(system.target, fault.kind)
        case "parts":
            return _part(system, fault.kind)
        case lane:
            return _link(system, lane, fault.kind, rng)


@contextmanager
def _link(system: SystemUnderTest, lane: str, kind: str, rng: random.Random) -> Iterator[None]:
    """Misbehave, then cut hanging requests, so that the next fault begins on a free path."""
    link = system.environment.links[lane]
    if kind == "cut":
        link.cut()
        yield
        link.mend()
        return
    assert kind in (*LINK, "conflict", "redirect", "rejected")
    with link.behaving(scripts.script(lane, kind, rng)):
        yield
    if kind == "rejected":
        system.resend()
    if kind in {"hang", "drip"}:
        link.cut()
        link.mend()


@contextmanager
def _daemons(system: SystemUnderTest, fault: Fault, rng: random.Random) -> Iterator[None]:
    if fault.kind in DAMAGE:  # a disk that takes no writes cannot be written to by us either
        with suppress(AssertionError):
            eventually(lambda: not system.disk.troubled, SOUND_DISK_SECONDS)
    with system.lock:
        chosen = rng.choice(system.daemons)
        match fault.kind:
            case "kill_all":
                for one in system.daemons:
                    one.send(signal.SIGKILL)
            case "kill" | "kill_twice":
                chosen.send(signal.SIGKILL)
                if fault.kind == "kill_twice":  # the second time while it starts
                    passed(rng.uniform(0.3, 1.5))
                    chosen.send(signal.SIGKILL)
            case "pause":
                chosen.send(signal.SIGSTOP)
                try:
                    yield
                finally:
                    chosen.send(signal.SIGCONT)
                return
            case "terminate":
                chosen.send(signal.SIGTERM)
            case kind:
                _damage(system, chosen, kind, rng)
    yield


def _damage(system: SystemUnderTest, daemon: Daemon, kind: str, rng: random.Random) -> None:
    """Kill or stop a daemon, and damage the file of one of its spools."""
    ends = (signal.SIGKILL, signal.SIGTERM)  # the second leaves no journal
    with daemon.down(signal.SIGKILL if kind.startswith("journal_") else rng.choice(ends)):
        name = rng.choice(daemon.names)
        spool = system.state_dir / name / "spool.db"
        if system.disk.troubled or not spool.exists():
            return
        before = held(spool)
        system.damaged.append(f"{name} {kind}")
        with suppress(OSError):  # it got full or read-only just now
            damage(spool, kind, rng)
        after = (
            held(spool) if kind.startswith("journal_") else {}
        )  # the rest must still be delivered
        system.at_risk |= {one: body for one, body in before.items() if one not in after}


@contextmanager
def _read_only(system: SystemUnderTest) -> Iterator[None]:
    """Break the file system; repair it while no daemon runs, as a restart of the node does.

    No daemon may be inside an fdatasync when it breaks: ext4 can then answer that all is on the
    disk when it is not (`python -m lab.real.ext4_abort`), which nobody can see or undo.
    """
    with system.lock, ExitStack() as still:
        for one in system.daemons:
            still.enter_context(one.still())
        system.disk.break_()
    yield
    with system.lock, ExitStack() as down:
        for one in system.daemons:
            down.enter_context(one.down(signal.SIGTERM))
        system.disk.repair()


@contextmanager
def _stepped(clock: Clock, fault: Fault) -> Iterator[None]:
    """Step the wall clock by twice the time that it stays wrong, then correct it."""
    seconds = round(2 * fault.seconds)
    clock.set(seconds if fault.kind == "forward" else -seconds)
    yield
    clock.set(0)


@contextmanager
def _target(target: Target, kind: str) -> Iterator[None]:
    with target.without_burner():
        if kind == "renewed":
            target.remove()
            target.make()
        if kind == "gone":
            target.remove()
        yield
        if kind == "gone":
            target.make()


@contextmanager
def _part(system: SystemUnderTest, kind: str) -> Iterator[None]:
    environment, began = system.environment, time.monotonic()
    match kind:
        case "clickhouse_killed":
            environment.clickhouse.kill()
            yield
            system.note_outage(kind, began)
            environment.clickhouse.start()
        case "clickhouse_paused":
            with _frozen(environment.clickhouse):
                yield
                system.note_outage(kind, began)
        case "aws_paused":
            with _frozen(environment.aws.server):
                yield
        case "aws_killed":
            with environment.without_aws():
                yield
        case _:
            environment.alertmanager.kill()
            yield
            environment.alertmanager.start()


@contextmanager
def _frozen(process: RealProcess) -> Iterator[None]:
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


def _joined(threads: Sequence[threading.Thread], seconds: float) -> None:
    """Wait for all threads, at most that long."""
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


class Lanes:
    """Executes a plan with one thread per lane."""

    def __init__(self, system: SystemUnderTest, faults: tuple[Fault, ...]) -> None:
        self.done: list[Fault] = []
        self.errors: list[str] = []
        self._system = system
        self._faults = faults

    def run(self) -> None:
        """Execute all faults."""
        began = time.monotonic()
        lanes = {fault.lane for fault in self._faults}
        threads = [threading.Thread(target=self._lane, args=(lane, began)) for lane in lanes]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            _joined(threads, PROGRESS_SECONDS)
            seconds = time.monotonic() - began
            print(f"  {seconds:.0f} s: {len(self.done)} of {len(self._faults)} faults", flush=True)

    def _lane(self, lane: str, began: float) -> None:
        for fault in self._faults:
            if fault.lane != lane:
                continue
            passed(max(0.0, began + fault.at_seconds - time.monotonic()))
            try:
                with inject_fault(self._system, fault):
                    passed(fault.seconds)
            except Exception as error:  # noqa: BLE001  a thread's end: the run reports it
                self.errors.append(f"{fault}: {error!r}")
                return
            self.done.append(fault)
