"""Random containers and clocks: the billed usage is possible, correct and complete.

The simulation knows the truth: what every incarnation used, how long the container existed. The
meter sees samples only. Unlike the oracle's simulation, this one also has counters that fall or
jump, boot ids that change or stay over a reboot, a machine that sleeps with or without a clock that
shows it.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.billing.meter import Meter
from byoc_agents.billing.record import SLACK_MS, UsageRecord, cpu_bound
from byoc_agents.billing.recorder import Recorder
from byoc_agents.billing.sources.reading import Reading, SourceName
from byoc_agents.billing.window import MeterState, Period, Sample, Window
from lab.fakes.billing import NOON_MS
from tests.unit.billing.test_billing_meter_audit import WHO

NS_PER_MS = 1_000_000
CPUS = 4
SIZE = 8 << 30
SAME_CONTAINER = [
    *("tick", "missed", "unreadable", "absent", "fall", "spike", "sleep", "secret-sleep"),
    *("forward", "back", "rename", "daemon-away", "switch", "hold"),
]
ANOTHER = ["restart", "reboot", "reboot-same-id"]


@dataclass
class Simulation:
    """One machine, one container at a time."""

    random: Random
    source: SourceName
    wall_ms: int = NOON_MS
    boot_ns: int = 7_200_000 * NS_PER_MS
    asleep_ns: int = 0
    hidden_sleep_ns: int = 0  # that our clock does not show
    boot_id: str = "boot-0-0"
    born_ns: int = 3_600_000 * NS_PER_MS
    incarnation: int = 1
    cpu_usec: int = 5_000_000_000
    used_usec: int = 0  # by all incarnations, since noon
    present_ms: int = 3_600_000  # real time that the present container has been there
    whole_ms: int = 3_600_000  # real time of all containers
    shown_off_usec: int = 0  # how far the counter shown is from the truth
    holding: bool = False
    state: MeterState | None = None
    periods: list[Period] = field(default_factory=list)
    meter: Meter = field(default_factory=lambda: Meter(window_ms=60_000))

    def happen(self, what: str) -> None:  # noqa: C901, PLR0912  one case per event
        shown = True
        match what:
            case "restart":
                self._begin()
            case "reboot" | "reboot-same-id":
                down_ms = self.random.randrange(20_000, 200_000)
                self.wall_ms += down_ms
                self.boot_ns = self.random.randrange(1_000, 10_000) * NS_PER_MS
                self.asleep_ns = self.hidden_sleep_ns = 0
                if what == "reboot":
                    self.boot_id = f"boot-{self.random.randrange(10)}-{self.random.randrange(10)}"
                self._begin()
            case "rename":
                self.boot_id = f"boot-{self.random.randrange(10)}-{self.random.randrange(10)}"
            case "fall":
                self.shown_off_usec -= self.random.choice([1, 1_000_000, self.cpu_usec // 2])
            case "spike":
                self.shown_off_usec += 10**12
            case "sleep" | "secret-sleep":
                self._sleep(self.random.randrange(2_000, 9_000_000), shown=what == "sleep")
            case "forward" | "back":
                sign = 1 if what == "forward" else -1
                self.wall_ms += sign * self.random.randrange(2_000, 400_000)
            case "hold":
                self.holding = not self.holding
            case "switch" if self.source == "cgroup.v2":
                self.source = "clickhouse"
            case "daemon-away":
                if self.state:
                    self._write(*self.meter.close(self.state))
                self._run(self.random.randrange(1_000, 90_000_000))
            case "missed":
                shown = False
        self._run(self.random.choice([5_000, 5_000, 5_000, 17_000, 61_000]))
        if shown:
            self.sample(absent=what == "absent", blind=what == "unreadable")

    def sample(self, *, absent: bool = False, blind: bool = False) -> None:
        sample = Sample(
            wall_ms=self.wall_ms,
            boot_ns=self.boot_ns,
            boot_id=self.boot_id,
            reading=None if absent or blind else self._reading(),
            absent=absent,
            asleep_ns=self.asleep_ns,
            machine_cpus=CPUS,
        )
        if self.state is None:
            self._write(*self.meter.start(sample, "no_checkpoint"))
        else:
            self._write(*self.meter.observe(self.state, sample, hours_only=self.holding))

    def _reading(self) -> Reading:
        born_ns = self.born_ns
        if self.source == "clickhouse":  # counted back by an uptime that stands still in a sleep
            born_ns += self.asleep_ns + self.hidden_sleep_ns
        names = self.source == "cgroup.v2"
        return Reading(
            source=self.source,
            incarnation=f"{self.boot_id[:8]}-{self.incarnation}" if names else self.boot_id[:8],
            container_id=f"{self.incarnation:064x}" if names else "",
            cpu_usec=max(0, self.cpu_usec + self.shown_off_usec),
            memory_bytes=self.random.randrange(1 << 30),
            born_boot_ns=born_ns,
            cpu_limit_millicores=2000,
            memory_limit_bytes=SIZE,
        )

    def _begin(self) -> None:
        self.incarnation += 1
        self.born_ns = self.boot_ns - self.asleep_ns - self.hidden_sleep_ns
        if self.source == "cgroup.v2":
            self.born_ns = self.boot_ns
        self.cpu_usec = self.present_ms = self.shown_off_usec = 0

    def _run(self, ms: int) -> None:
        used_usec = self.random.randrange(ms * CPUS * 1000)
        self.cpu_usec += used_usec
        self.used_usec += used_usec
        self._pass(ms)

    def _sleep(self, ms: int, *, shown: bool) -> None:
        if shown:
            self.asleep_ns += ms * NS_PER_MS
        else:
            self.hidden_sleep_ns += ms * NS_PER_MS
        self._pass(ms)

    def _pass(self, ms: int) -> None:
        self.wall_ms += ms
        self.boot_ns += ms * NS_PER_MS
        self.present_ms += ms
        self.whole_ms += ms

    def _write(self, state: MeterState, periods: list[Period]) -> None:
        self.state = state
        self.periods += periods

    def records(self) -> list[UsageRecord]:
        assert self.state
        self._write(*self.meter.close(self.state))
        recorder = Recorder(identity=WHO, sample_ms=5000)
        return [recorder.record(one, 1, number) for number, one in enumerate(self.periods)]


def simulate(seed: int, source: SourceName, what: list[str]) -> Simulation:
    simulation = Simulation(Random(seed), source)
    for one in ["tick", *what, "tick"]:
        simulation.happen(one)
    if simulation.holding:
        simulation.happen("hold")
    return simulation


many = settings(max_examples=150, deadline=None, derandomize=True, database=None)
SOURCES: tuple[SourceName, ...] = ("cgroup.v2", "clickhouse")


@pytest.mark.parametrize("source", SOURCES)
@many
@given(
    seed=st.integers(0, 10_000),
    what=st.lists(st.sampled_from([*SAME_CONTAINER, *ANOTHER]), max_size=14),
)
def test_no_record_is_impossible_and_no_sum_is_more_than_was_used(
    source: SourceName, seed: int, what: list[str]
) -> None:
    simulation = simulate(seed, source, what)
    records = [record.data for record in simulation.records()]
    for one in records:
        bound = cpu_bound(one)
        assert bound is None or one.used.cpu_core_seconds <= bound.core_seconds, one
    billed = sum((one.used.cpu_core_seconds for one in records), Decimal(0))
    slack_usec = CPUS * SLACK_MS["clickhouse"] * 1000 * len(what)
    assert billed <= Decimal(simulation.used_usec + slack_usec) / 1_000_000
    for before, after in pairwise(records):
        assert before.charge_period_end == after.charge_period_start, (before, after)
    counted_ms = sum(one.allocated.counted_milliseconds or 0 for one in records)
    # A second reboot some seconds after the first, under one id, looks like a step of the clock.
    slack_ms = 10_000 * max(0, what.count("reboot-same-id") + what.count("reboot") - 1)
    assert counted_ms <= simulation.whole_ms + len(records) + slack_ms


@pytest.mark.parametrize("source", SOURCES)
@many
@given(
    seed=st.integers(0, 10_000),
    what=st.lists(st.sampled_from(SAME_CONTAINER), max_size=14),
)
def test_every_millisecond_of_one_container_is_allocated_once(
    source: SourceName, seed: int, what: list[str]
) -> None:
    simulation = simulate(seed, source, what)
    records = [record.data for record in simulation.records()]
    counted = sum(one.allocated.counted_milliseconds or 0 for one in records)
    if simulation.state and isinstance(
        simulation.state.phase, Window
    ):  # a clock set back holds it open
        counted += simulation.state.phase.counted_ms
    assert abs(counted - simulation.present_ms) <= len(records)  # rounding
    assert all(
        one.allocated.memory_bytes == SIZE for one in records if one.allocated.counted_milliseconds
    )
    first, last = records[0].charge_period_start, records[-1].charge_period_end
    assert parse_rfc3339(last) >= parse_rfc3339(first)
