"""Samples that are metered together give the same records as samples metered one by one."""

from itertools import pairwise
from pathlib import Path
from random import Random

import msgspec
import pytest

from byoc_agents.billing.meter import Meter, is_routine
from byoc_agents.billing.record import Usage
from byoc_agents.billing.recorder import Recorder
from byoc_agents.billing.scraper import MAX_WAITING, TargetMachine
from byoc_agents.billing.sealer import Intervals
from byoc_agents.billing.sources.reading import SourceName
from byoc_agents.billing.sources.target import TargetObservation
from byoc_agents.billing.window import MeterState, Period, Sample
from byoc_agents.durable.spool import Spool
from lab.fakes.core import FakeClock
from lab.fakes.scrapers import make_scraper
from tests.unit.billing.scraper_harness import IDENTITY, Harness
from tests.unit.billing.test_billing_meter_property import ANOTHER, SAME_CONTAINER, Simulation

EVENTS = [one for one in SAME_CONTAINER + ANOTHER if one not in {"hold", "daemon-away", "missed"}]
QUIET = ["tick"] * 60
WINDOW_MS = 60_000


class SampleMachine(FakeClock):
    """The machine and the target of given samples: the clock of the next one, and its reading."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__()
        self._samples = samples
        self.next = 0

    def __repr__(self) -> str:
        return "given samples"

    @property
    def boot_id(self) -> str:
        return self.sample.boot_id

    @boot_id.setter
    def boot_id(self, _: str) -> None:
        """Ignore the one of `FakeClock`."""

    @property
    def sample(self) -> Sample:
        return self._samples[self.next]

    def wall_ns(self) -> int:
        return self.sample.wall_ms * 1_000_000

    def boot_ns(self) -> int:
        return self.sample.boot_ns

    async def read(self, *, secondary: bool = False) -> TargetObservation:
        del secondary
        return TargetObservation(self.sample.reading, absent=self.sample.absent)

    def close(self) -> None:
        """Have nothing to close."""


class RecordingMeter(Meter):
    """A meter that keeps the samples that it has metered."""

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__(window_ms=WINDOW_MS)
        self._samples = samples

    def start(
        self, sample: Sample, *args: object, **more: object
    ) -> tuple[MeterState, list[Period]]:
        self._samples.append(sample)
        return super().start(sample, *args, **more)  # type: ignore[arg-type]

    def observe(
        self, state: MeterState, sample: Sample, **more: bool
    ) -> tuple[MeterState, list[Period]]:
        self._samples.append(sample)
        return super().observe(state, sample, **more)


@pytest.mark.parametrize("source", ["cgroup.v2", "clickhouse"])
@pytest.mark.parametrize("seed", range(40))
async def test_the_records_are_those_of_samples_metered_one_by_one(
    tmp_path: Path, seed: int, source: SourceName
) -> None:
    random = Random(seed)
    samples: list[Sample] = []
    simulation = Simulation(random=random, source=source, meter=RecordingMeter(samples))
    for event in random.choices(QUIET + EVENTS, k=150):
        simulation.happen(event)
    state = simulation.state
    assert state is not None
    periods = simulation.periods + Meter.close(state)[1]
    recorder = Recorder(identity=IDENTITY, sample_ms=5000)
    machine = SampleMachine(samples)
    intervals = Intervals(sample_ms=5000, window_ms=WINDOW_MS, seal_ms=10**12)
    waited = 0
    async with Spool(tmp_path, max_bytes=1 << 24, clock=machine) as spool:
        scraper = make_scraper(
            machine,
            recorder,
            intervals,
            spool,
            machine,
            machine=TargetMachine(
                lambda: machine.sample.machine_cpus, lambda: machine.sample.asleep_ns
            ),
        )
        for machine.next in range(len(samples) - 1):
            await scraper.tick()
            waited += scraper.waiting > 0
        machine.next += 1
        await scraper.close_window()  # with the last sample
        lines = await spool.staged()
    found = [msgspec.json.decode(line, type=UsageLine).data for line in lines]
    expected = [
        recorder.record(period, found[0].epoch, number).data
        for number, period in enumerate(periods)
    ]
    assert found == expected
    assert waited > 50


class UsageLine(msgspec.Struct):
    """The part of a stored record that the meter decides."""

    data: Usage


def test_a_rise_that_the_machine_cannot_do_is_metered_at_once() -> None:
    """A kill before the end of the window would forget when it was."""
    samples: list[Sample] = []
    simulation = Simulation(random=Random(1), source="cgroup.v2", meter=RecordingMeter(samples))
    for event in ("tick", "tick", "tick", "spike"):
        simulation.happen(event)
    routine = [is_routine(a, b, 3_600_000) for a, b in pairwise(samples)]
    assert routine == [True, True, False]


async def test_a_kill_loses_no_more_than_the_open_window(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    async with harness.spool:
        await harness.ticks(30)
        assert harness.scraper.waiting
        harness.scraper = harness.made()  # as after a SIGKILL
        await harness.ticks(30)
        data = [record.data for record in await harness.records()]
    ends = [one.counter.end for one in data if one.counter]
    starts = [one.counter.start for one in data if one.counter]
    assert ends[:-1] == starts[1:], "no CPU between two records is lost or billed twice"


async def test_the_number_of_waiting_samples_is_bounded(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.scraper = harness.made(Intervals(sample_ms=100, window_ms=WINDOW_MS, seal_ms=300_000))
    async with harness.spool:
        for _ in range(300):
            await harness.clock.advance(0.1)
            await harness.scraper.tick()
            assert harness.scraper.waiting <= MAX_WAITING
