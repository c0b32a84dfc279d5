"""Whatever the meter meets, the audit finds its records whole: the two were written apart."""

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byoc_agents.audit import Audit, Report
from byoc_agents.billing.meter import Meter
from byoc_agents.billing.record import UsageRecord
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.sources.reading import Reading, SourceName
from byoc_agents.billing.window import MeterState, Period, Sample
from lab.fakes.billing import NOON_MS, objects

NS_PER_MS = 1_000_000
BIRTH_NS = 3_600_000_000_000
WHO = UsageIdentity(
    organization_id="o",
    service_id="s",
    replica="r",
    region="eu-west-1",
    pod_uid="p",
    container_name="c",
)
SEEN = ("seen", "seen", "seen", "seen", "absent", "unreadable", "restart")
STEPS = ("forward", "stop and go on", "resize", "lose state", "fall", "switch", "switch blind")


@dataclass
class Simulation:
    """A container with a clock, and its scraper."""

    random: Random
    wall_ms: int = NOON_MS
    boot_ns: int = 2 * BIRTH_NS
    born_boot_ns: int = BIRTH_NS
    incarnation: int = 1
    cpu_usec: int = 500_000_000
    cores: int = 2000
    resets: bool = True  # a lower counter is a fresh one
    sources: tuple[SourceName, SourceName] = (
        "cgroup.v2",
        "clickhouse",
    )  # the main source and the secondary one
    blind: bool = False  # the secondary source cannot be read
    epoch: int = 0
    sequence: int = 0
    state: MeterState | None = None
    records: list[UsageRecord] = field(default_factory=list)
    meter: Meter = field(default_factory=lambda: Meter(window_ms=60_000))
    recorder: Recorder = field(default_factory=lambda: Recorder(identity=WHO, sample_ms=5000))

    def happen(self, what: str) -> None:
        """Let one thing happen, then some time pass, then take a sample."""
        if what == "restart":
            self.incarnation, self.cpu_usec, self.born_boot_ns = (
                self.incarnation + 1,
                0,
                self.boot_ns,
            )
        elif what == "resize":
            self.cores = self.random.choice([1000, 2000, 4000])
        elif what == "fall":
            self.cpu_usec //= 3
        elif what in {"switch", "switch blind"}:
            self.sources = self.sources[::-1]
            self.blind = what == "switch blind"
        elif what in {"forward", "back"}:
            self.wall_ms += self.random.randrange(2000, 400_000) * (1 if what == "forward" else -1)
        elif what == "lose state":
            self.state = None
        elif what == "stop and go on" and self.state:
            self.state = self._write(*self.meter.close(self.state))
        self._pass(self.random.choice([5000, 5000, 5000, 17_000, 61_000, 4_000_000]))
        self.sample(absent=what == "absent", unreadable=what == "unreadable")

    def sample(self, *, absent: bool, unreadable: bool) -> None:
        """Take one sample."""
        sample = Sample(
            wall_ms=self.wall_ms,
            boot_ns=self.boot_ns,
            boot_id="b",
            reading=None if absent or unreadable else self._reading(self.sources[0]),
            secondary=()
            if absent or unreadable or self.blind
            else (self._reading(self.sources[1]),),
            absent=absent,
        )
        if self.state is None:
            self.epoch, self.sequence = max(self.wall_ms, self.epoch + 1), 0
            self.state = self._write(*self.meter.start(sample, "no_checkpoint"))
        else:
            self.state = self._write(*self.meter.observe(self.state, sample))

    def _reading(self, source: SourceName) -> Reading:
        return Reading(
            source=source,
            incarnation=str(self.incarnation),
            container_id=f"{self.incarnation:064x}",
            cpu_usec=self.cpu_usec + 77 * (source == "clickhouse"),
            resets_to_zero=self.resets,
            memory_bytes=self.random.randrange(1 << 34),
            born_boot_ns=self.born_boot_ns,
            cpu_limit_millicores=self.cores,
        )

    def _pass(self, ms: int) -> None:
        ms += self.random.randrange(1000)
        self.wall_ms += ms
        self.boot_ns += ms * NS_PER_MS
        self.cpu_usec += self.random.randrange(ms * 4000)

    def _write(self, state: MeterState, periods: list[Period]) -> MeterState:
        for period in periods:
            self.records.append(self.recorder.record(period, self.epoch, self.sequence))
            self.sequence += 1
        return state

    def report(self) -> Report:
        """Close, seal and audit."""
        if self.state:
            self._write(*self.meter.close(self.state))
        audit = Audit()
        for message in objects(self.records):
            audit.add(message.id, message.body)
        return audit.report("")


def simulation(seed: int, events: list[str]) -> Simulation:
    found = Simulation(Random(seed), resets=seed % 2 == 0)
    for what in events:
        found.happen(what)
    return found


quick = settings(max_examples=80, deadline=None, derandomize=True, database=None)


@quick
@given(seed=st.integers(0, 1000), events=st.lists(st.sampled_from(SEEN), max_size=25))
def test_events_of_a_container_leave_a_sound_bucket(seed: int, events: list[str]) -> None:
    report = simulation(seed, ["seen", *events]).report()
    assert report.ok, report.findings


@pytest.mark.parametrize("step", STEPS)
@quick
@given(
    seed=st.integers(0, 1000),
    events=st.lists(st.sampled_from(SEEN), max_size=9),
    at=st.integers(1, 5),
)
def test_what_befalls_a_scraper_leaves_a_sound_bucket(
    step: str, seed: int, events: list[str], at: int
) -> None:
    report = simulation(seed, ["seen", *events[:at], step, *events[at:]]).report()
    assert report.ok, report.findings


@quick
@given(
    seed=st.integers(0, 1000),
    events=st.lists(st.sampled_from(SEEN), max_size=9),
    at=st.integers(1, 5),
)
def test_a_clock_set_back_leaves_a_sound_bucket(seed: int, events: list[str], at: int) -> None:
    report = simulation(seed, ["seen", *events[:at], "back", *events[at:], "seen"]).report()
    assert report.ok, report.findings
