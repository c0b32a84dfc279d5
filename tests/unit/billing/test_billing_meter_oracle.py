"""The meter against a simulation that knows the truth, over many seeds.

The simulation is one container at a time that burns CPU at a changing rate. The seeds choose
missed and late samples, kills of the scraper, restarts and absences of the target, changes of the
source, a full spool, and steps of the wall clock both ways.
"""

import copy
import random
from itertools import pairwise

import pytest

from byoc_agents.billing.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from byoc_agents.billing.meter import Meter
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.window import MeterState, Period, Sample, Window

SECOND = 1_000_000_000
SEEDS = range(300)


def read_again(state: MeterState) -> MeterState:
    found = decode_checkpoint(encode_checkpoint(Checkpoint(epoch=1, sequence=0, state=state)))
    assert found
    return found.state


class Simulation:
    """Truth: boot time, how wrong the wall clock is, and the counter of the container."""

    def __init__(self, rng: random.Random, *, sources: int) -> None:
        self.rng = rng
        self.boot_ns = 40_000 * SECOND
        self.wall_ms = 1_795_000_000_000
        self.cpu_usec = rng.randrange(10**9)
        self.incarnation = 0
        self.born_ns: int = self.boot_ns - 1000 * SECOND
        self.running = True
        self.readable = [True] * sources
        self.scale_off = [0] + [rng.randrange(10**8) for _ in range(sources - 1)]

    def go(self, seconds: float) -> None:
        self.boot_ns += round(seconds * SECOND)
        self.wall_ms += round(seconds * 1000)
        if self.running:
            self.cpu_usec += round(seconds * self.rng.random() * 8e6)

    def restart(self) -> None:
        self.incarnation += 1
        self.born_ns = self.boot_ns
        self.cpu_usec = 0
        self.scale_off = [0] * len(self.scale_off)
        self.running = True

    def sample(self) -> Sample:
        names = ("cgroup.v2", "clickhouse", "process")
        seen = [
            Reading(
                source=names[index],  # type: ignore[arg-type]
                incarnation=f"{self.incarnation}",
                container_id="",
                cpu_usec=self.cpu_usec + self.scale_off[index],
                memory_bytes=self.rng.randrange(10**9),
                born_boot_ns=self.born_ns,
            )
            for index, readable in enumerate(self.readable)
            if readable and self.running
        ]
        return Sample(
            wall_ms=self.wall_ms,
            boot_ns=self.boot_ns,
            boot_id="boot",
            reading=seen[0] if seen else None,
            secondary=tuple(seen[1:]),
            absent=not self.running,
        )


class Ledger:
    """The usage that must be billed: all of it except usage that no sample could show."""

    def __init__(self, first_usec: int) -> None:
        self.past_usec = -first_usec
        self.incarnation = 0
        self.last_usec = first_usec

    def seen(self, incarnation: int, usec: int) -> None:
        if incarnation != self.incarnation:  # the rest of the incarnation before was seen by nobody
            self.past_usec += self.last_usec
        self.incarnation, self.last_usec = incarnation, usec

    def billable_usec(self) -> int:
        return self.past_usec + self.last_usec


@pytest.mark.parametrize("seed", SEEDS)
def test_every_cpu_second_that_was_seen_is_billed_once(seed: int) -> None:
    rng = random.Random(seed)
    simulation = Simulation(rng, sources=1)
    meter = Meter(window_ms=60_000)
    first = simulation.sample()
    state, periods = meter.start(first, "no_checkpoint")
    ledger = Ledger(simulation.cpu_usec)
    stored = state, copy.copy(ledger)
    for _ in range(300):
        change_randomly(simulation, rng)
        if rng.random() < 0.03:  # killed: state that was not durable is lost
            state, ledger = stored[0], copy.copy(stored[1])
            continue
        one = simulation.sample()
        full = rng.random() < 0.05
        after, closed = meter.observe(state, one, hours_only=full)
        if full and closed:
            continue  # the commit was refused: as if the sample had not been
        state, periods = after, periods + closed
        if one.reading:
            ledger.seen(simulation.incarnation, one.reading.cpu_usec)
        if closed:
            stored = read_again(state), copy.copy(ledger)
    state, closed = meter.close(state)
    periods += closed
    window = state.phase
    held = window.reading.cpu_usec - window.cpu_start_usec if isinstance(window, Window) else 0
    assert sum(map(used, periods)) + held == ledger.billable_usec()
    assert_well_formed(periods)


@pytest.mark.parametrize("seed", range(100))
def test_sources_that_come_and_go_neither_lose_nor_double_a_second(seed: int) -> None:
    rng = random.Random(seed)
    simulation = Simulation(rng, sources=3)
    meter = Meter(window_ms=60_000)
    start_usec = simulation.cpu_usec
    state, periods = meter.start(simulation.sample(), "no_checkpoint")
    for _ in range(300):
        simulation.go(5)
        if rng.random() < 0.1:
            simulation.readable = [rng.random() < 0.7 for _ in simulation.readable[:-1]] + [True]
        state, closed = meter.observe(state, simulation.sample())
        periods += closed
    state, closed = meter.close(state)
    assert sum(map(used, periods + closed)) == simulation.cpu_usec - start_usec
    assert not any(p.gap_reason == "source_changed" for p in periods)
    assert_well_formed(periods + closed)


def change_randomly(simulation: Simulation, rng: random.Random) -> None:
    simulation.go(rng.choice([5, 5, 5, 5, 5.2, 4.9, 17, rng.random() * 4000]))
    if rng.random() < 0.04:
        simulation.wall_ms += rng.choice([-1, 1]) * rng.randrange(2_000, 900_000)
    if rng.random() < 0.04:
        simulation.readable = [not readable for readable in simulation.readable]
    if rng.random() < 0.04 and simulation.running:
        simulation.running = False
    elif (not simulation.running and rng.random() < 0.3) or (
        simulation.running and rng.random() < 0.03
    ):
        simulation.restart()


def used(period: Period) -> int:
    window = period.window
    return window.reading.cpu_usec - window.cpu_start_usec if window else 0


def assert_well_formed(periods: list[Period]) -> None:
    """Check that every instant is in one period, and every record can be written and is unique."""
    for before, after in pairwise(periods):
        assert before.end_ms == after.start_ms, (before, after)
    assert all(p.start_ms < p.end_ms for p in periods)
    assert all(used(p) >= 0 for p in periods)
    recorder = Recorder(identity=IDENTITY, sample_ms=5000)
    ids = [recorder.record(period, 1, index).id for index, period in enumerate(periods)]
    assert len(set(ids)) == len(ids)


IDENTITY = UsageIdentity(
    organization_id="o",
    service_id="s",
    replica="r",
    region="us-east-1",
    pod_uid="p",
    container_name="clickhouse",
)
