"""Do one run: start the environment, execute a plan, end all faults, drain, check."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from lab.chaos.allocated import LIMIT_BYTES
from lab.chaos.aws import Queue
from lab.chaos.daemon import Daemon, Figures
from lab.chaos.environment import Environment, settings, start_environment
from lab.chaos.evidence import Evidence, collected, settled
from lab.chaos.fault_injection import Lanes, SystemUnderTest
from lab.chaos.load import Alerts
from lab.chaos.machine import Clock, disk
from lab.chaos.oracle import ALERTS, BILLING, STATE
from lab.chaos.plan import Plan
from lab.chaos.target import Target
from lab.real.parts.process import RealProcess
from lab.real.scraper import eventually

NAMES = (BILLING, STATE, ALERTS)
DRAIN_SECONDS = 240.0
SHORT_SECONDS, SHORT_DRAIN_SECONDS = 60.0, 8.0
ALERT_SECONDS = 0.7
PACE = {
    "BYOC_BILLING_SAMPLE_SECONDS": "0.5",
    "BYOC_BILLING_WINDOW_SECONDS": "1",
    "BYOC_BILLING_SEAL_SECONDS": "1",
    "BYOC_LIMITS_MEMORY_BYTES": str(LIMIT_BYTES),
    "BYOC_STATE_POLL_SECONDS": "0.5",
    "BYOC_STATE_HEARTBEAT_SECONDS": "2",
    "BYOC_STATE_STARTING_SECONDS": "2",
    "BYOC_ALERTS_HEARTBEAT_SECONDS": "2",
    "BYOC_ALERTS_TIMEOUT_SECONDS": "3",
    "BYOC_SHUTDOWN_GRACE_SECONDS": "30",
}
TIGHT = {"BYOC_SPOOL_MAX_BYTES": "8Ki"}  # five objects, four states or four alerts


@contextmanager
def prepared_system(plan: Plan, place: Path, aws: RealProcess | None) -> Iterator[SystemUnderTest]:
    """Start everything, wait until it works."""
    with start_environment(place, aws) as of, disk(place / "disk", plan.disk) as small:
        clock = Clock(place / "clock")
        target = Target(of.group, random.Random(plan.seed))
        system = SystemUnderTest(
            of, _daemons(plan, of, small.path / "state", clock), small, clock, target
        )
        try:
            for daemon in system.daemons:
                daemon.start()
            eventually(lambda: all(daemon.healthy() for daemon in system.daemons))
            eventually(of.bucket.writes)  # the empty group was sampled
            target.begin()
            yield system
        finally:
            for daemon in system.daemons:
                daemon.kill()
            target.end()


def _daemons(plan: Plan, of: Environment, state: Path, clock: Clock) -> list[Daemon]:
    processes = [(name,) for name in NAMES] if plan.apart else [NAMES]
    common = settings(of, state) | PACE | clock.settings | (TIGHT if plan.tight else {})
    return [Daemon(names, of.directory / "logs", common) for names in processes]


class Watch:
    """A stopwatch that prints the duration of each part of a run."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self, what: str) -> None:
        now = time.monotonic()
        print(f"  {what}: {now - self._last:.0f} s", flush=True)
        self._last = now


def run(plan: Plan, place: Path, aws: RealProcess | None = None) -> Evidence:
    """Execute the plan; return the evidence."""
    watch = Watch()
    with prepared_system(plan, place, aws) as system:
        alerts = Alerts(system.environment.alertmanager, ALERT_SECONDS)
        with alerts.raising():
            taken = system.environment.notified.accepted
            eventually(lambda: len(taken) > 2 and len(system.environment.queue.got) > 1)
            before = figures(system)
            watch.lap("started")
            lanes = Lanes(system, plan.faults)
            lanes.run()
            assert not lanes.errors, lanes.errors
        watch.lap("broken")
        drain(system, plan)
        resend(system)
        seen = settled(system)
        after = figures(system)
        pairs = {name: (before[name], after[name]) for name in before}
        watch.lap("drained")
        system.target.end()
        with ThreadPoolExecutor() as pool:  # together, as a pod's containers
            codes = list(pool.map(Daemon.stop, system.daemons))
        last = {"+".join(one.names): code for one, code in zip(system.daemons, codes, strict=True)}
        watch.lap("stopped")
        read_out(system.environment.queue)
        return replace(collected(system, pairs, last, seen), tight=plan.tight)


def figures(system: SystemUnderTest) -> dict[str, Figures]:
    """Return the current resources of each process."""
    found = {}
    for daemon in system.daemons:
        seen = daemon.figures()
        assert seen is not None, f"{daemon.names} ended: {daemon.log.read_text()[-2000:]}"
        found["+".join(daemon.names)] = seen
    return found


def drain(system: SystemUnderTest, plan: Plan) -> None:
    """Wait until every daemon runs, the clock has caught up and all messages are sent.

    The short form does not wait long for the messages: a SIGTERM drains as well.
    """
    eventually(system.clock.caught_up)
    eventually(lambda: all(daemon.healthy() for daemon in system.daemons), DRAIN_SECONDS)
    short = plan.seconds < SHORT_SECONDS
    with suppress(AssertionError) if short else nullcontext():
        seconds = SHORT_DRAIN_SECONDS if short else DRAIN_SECONDS
        eventually(lambda: all(map(drained, system.daemons)), seconds)


def resend(system: SystemUnderTest) -> None:
    """Send the dead letters again; wait until none is left, and the exporter sees a sound server.

    A timeout is not an error here: the oracle reports the difference.
    """
    system.resend()
    with suppress(AssertionError):
        eventually(lambda: settled(system).dead_left == 0)
    with suppress(AssertionError):
        eventually(lambda: settled(system).last_word.startswith("running"))


def read_out(queue: Queue) -> None:
    """Wait until the queue's reader has the exporter's last state; the oracle reports a miss."""
    with suppress(AssertionError):
        eventually(lambda: queue.got and queue.got[-1]["data"]["state"] == "stopping", 30)


def drained(daemon: Daemon) -> bool:
    """Return whether no message is delayed; messages of this second may still be in flight."""
    status = daemon.status()
    return bool(status) and all(
        one["last_error"] is None and one["backlog"]["events"] <= 3 for one in status.values()
    )
