"""A kernel counter that another counter of the same target contradicts is not billed."""

import pytest
from msgspec.structs import replace

from byoc_agents.billing.meter import Meter
from byoc_agents.billing.sources.reading import (
    Reading,
    SourceName,
    TargetAbsentError,
    TargetForeignError,
    TargetUnreadableError,
)
from byoc_agents.billing.sources.target import AGREED, LAG_SECONDS, Target, TargetObservation
from byoc_agents.billing.window import Period, Sample

NS = 1_000_000_000
STANDS = "its CPU counter stands still or falls behind"


class Now:
    """A clock that is set by hand."""

    boot_id = "8cf25f06-7a2e-4b5b-aef5-5834d36300d2"

    def __init__(self) -> None:
        self.seconds = 1000.0

    def wall_ns(self) -> int:
        return self.boot_ns()

    def boot_ns(self) -> int:
        return int(self.seconds * NS)

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


class Counting:
    """A source whose counter has whatever value it is set to."""

    def __init__(self, name: SourceName) -> None:
        self.name = name
        self.reads = 0
        self.error: Exception | None = None
        self.reading = Reading(
            source=name,
            incarnation="a",
            container_id="",
            cpu_usec=0,
            memory_bytes=1,
            born_boot_ns=5,
            machine_cpus=2,
        )

    def use(self, core_seconds: float) -> None:
        usec = self.reading.cpu_usec + round(core_seconds * 1e6)
        self.reading = replace(self.reading, cpu_usec=usec)

    async def read(self) -> Reading:
        self.reads += 1
        if self.error:
            raise self.error
        return self.reading

    def close(self) -> None:
        pass


class Harness:
    """A machine whose ClickHouse uses CPU; the kernel may count it, or not."""

    def __init__(self) -> None:
        self.kernel = Counting("cgroup.v2")
        self.clickhouse = Counting("clickhouse")
        self.process = Counting("process")
        self.clock = Now()
        self.ticks = 0
        self.target = Target("auto", [self.kernel, self.clickhouse, self.process], self.clock)

    async def tick(
        self, *, kernel: float = 5.0, clickhouse: float = 5.0, process: float = 0.0
    ) -> TargetObservation:
        """Use so many core seconds in 5 s, and look; each 12th look is one at all sources."""
        self.clock.seconds += 5
        for source, used in (
            (self.kernel, kernel),
            (self.clickhouse, clickhouse),
            (self.process, process),
        ):
            source.use(used)
        self.ticks += 1
        return await self.target.read(secondary=self.ticks % 12 == 1)


@pytest.fixture
def harness() -> Harness:
    return Harness()


def sources(seen: TargetObservation) -> list[str]:
    first = [seen.reading] if seen.reading else []
    return [reading.source for reading in (*first, *seen.secondary)]


async def test_a_counter_that_is_zero_for_ever_is_found_out_at_the_third_look(
    harness: Harness,
) -> None:
    for _ in range(2):
        assert sources(await harness.tick(kernel=0))[0] == "cgroup.v2"
    seen = await harness.tick(kernel=0)
    assert sources(seen) == ["clickhouse", "process"], "it is not a secondary either"
    assert seen.error.startswith(f"cgroup.v2: {STANDS}")
    for _ in range(100):
        seen = await harness.tick(kernel=0)
        assert (sources(seen)[0], STANDS in seen.error) == ("clickhouse", True)


@pytest.mark.parametrize("minutes", [0, 1, 60])
async def test_a_counter_that_freezes_costs_two_looks_at_most(
    harness: Harness, minutes: int
) -> None:
    for _ in range(12 * minutes + 5):
        assert sources(await harness.tick())[0] == "cgroup.v2"
    found = [sources(await harness.tick(kernel=0))[0] for _ in range(3)]
    assert found[1:] == ["clickhouse", "clickhouse"]


async def test_a_counter_that_moves_is_compared_once_a_window_only(harness: Harness) -> None:
    for _ in range(120):
        await harness.tick()
    assert harness.clickhouse.reads == 10


async def test_a_counter_that_counts_a_part_is_found_out_by_what_it_lacks(harness: Harness) -> None:
    """Half of 2 cores: a second each second, against LAG_SECONDS on each of 2 CPUs."""
    seen = [sources(await harness.tick(kernel=5, clickhouse=10))[0] for _ in range(60)]
    first = seen.index("clickhouse")
    assert LAG_SECONDS * 2 / 5 <= first <= LAG_SECONDS * 2 / 5 + 12
    assert set(seen[first:]) == {"clickhouse"}


async def test_what_clickhouse_adds_late_is_no_contradiction(harness: Harness) -> None:
    """A step of 10 s on both CPUs, which the kernel has counted before we first looked."""
    await harness.tick(kernel=0.1, clickhouse=0)
    for _ in range(40):
        seen = await harness.tick(kernel=0.1, clickhouse=0.5)
        assert sources(seen)[0] == "cgroup.v2"


async def test_clickhouse_counts_less_than_the_kernel_and_that_is_right(harness: Harness) -> None:
    for _ in range(200):
        assert sources(await harness.tick(kernel=5, clickhouse=1))[0] == "cgroup.v2"


async def test_without_clickhouse_the_process_tree_finds_a_frozen_counter(harness: Harness) -> None:
    harness.clickhouse.error = TargetUnreadableError("no login")
    for _ in range(12):
        await harness.tick(kernel=0, process=5)
    seen = await harness.tick(kernel=0, process=5)
    assert sources(seen) == ["process"]
    assert STANDS in seen.error


async def test_an_idle_target_is_no_contradiction(harness: Harness) -> None:
    harness.clickhouse.error = TargetUnreadableError("no login")
    for _ in range(60):
        assert sources(await harness.tick(kernel=0, clickhouse=0, process=0))[0] == "cgroup.v2"
    assert harness.process.reads == 5, "nobody can say that it should have moved"


async def test_the_counter_is_believed_again_when_it_has_kept_up(harness: Harness) -> None:
    for _ in range(24):
        await harness.tick(kernel=0)
    found = [sources(await harness.tick(kernel=6))[0] for _ in range(12 * (AGREED + 1))]
    first = found.index("cgroup.v2")
    assert first >= 12 * (AGREED - 1)
    assert set(found[first:]) == {"cgroup.v2"}


async def test_when_it_takes_over_again_both_are_read(harness: Harness) -> None:
    for _ in range(24):
        await harness.tick(kernel=0)
    looks = [await harness.tick(kernel=6) for _ in range(12 * (AGREED + 1))]
    first = next(seen for seen in looks if sources(seen)[0] == "cgroup.v2")
    assert sources(first) == ["cgroup.v2", "clickhouse", "process"]
    assert not first.error


async def test_another_container_begins_with_trust(harness: Harness) -> None:
    for _ in range(24):
        await harness.tick(kernel=0)
    harness.kernel.reading = replace(harness.kernel.reading, incarnation="b", cpu_usec=0)
    harness.clickhouse.reading = replace(
        harness.clickhouse.reading, born_boot_ns=900 * NS, cpu_usec=0
    )
    seen = [sources(await harness.tick())[0] for _ in range(13)]
    assert seen[-1] == "cgroup.v2"


async def test_a_restart_of_the_server_alone_is_no_contradiction(harness: Harness) -> None:
    for _ in range(13):
        await harness.tick()
    harness.clickhouse.reading = replace(
        harness.clickhouse.reading, born_boot_ns=900 * NS, cpu_usec=0
    )
    for _ in range(60):
        assert sources(await harness.tick())[0] == "cgroup.v2"


async def test_a_counter_that_is_not_believed_is_no_last_resort(harness: Harness) -> None:
    for _ in range(3):
        await harness.tick(kernel=0)
    harness.clickhouse.error = TargetUnreadableError("busy")
    harness.process.error = TargetUnreadableError("busy")
    seen = await harness.tick(kernel=0)
    assert (seen.reading, seen.absent) == (None, False)
    assert STANDS in seen.error


async def test_what_surely_is_another_target_is_not_read_by_another_source(
    harness: Harness,
) -> None:
    """The server of an init container answers under our URL as well."""
    harness.kernel.error = TargetForeignError("it runs in container init")
    seen = await harness.tick()
    assert (seen.reading, seen.absent) == (None, False)
    assert seen.error == "cgroup.v2: it runs in container init"
    assert harness.clickhouse.reads == 0
    harness.kernel.error = None
    assert sources(await harness.tick())[0] == "cgroup.v2"


async def test_an_ended_target_is_absent_also_after_doubt(harness: Harness) -> None:
    for _ in range(3):
        await harness.tick(kernel=0)
    for source in (harness.kernel, harness.process):
        source.error = TargetAbsentError("gone")
    harness.clickhouse.error = TargetUnreadableError("refused")
    assert (await harness.tick()).absent


@pytest.mark.parametrize(("incarnation", "born_ns"), [("a", 5), ("b", 5), ("a", 900 * NS)])
async def test_a_counter_of_another_incarnation_is_not_compared_with_the_one_before(
    harness: Harness, incarnation: str, born_ns: int | None
) -> None:
    await harness.tick(kernel=100, clickhouse=50)
    changed = replace(harness.kernel.reading, incarnation=incarnation, born_boot_ns=born_ns)
    harness.kernel.reading = replace(changed, cpu_usec=90_000_000)
    seen = await harness.target.read(secondary=True)
    assert sources(seen)[0] == "cgroup.v2"


async def billed(harness: Harness, looks: list[float]) -> float:
    """Return the core seconds that are billed over samples, given the kernel's count in each.

    ClickHouse uses 10 core seconds before each sample.
    """
    meter, state, used_usec = Meter(window_ms=60_000), None, 0
    for kernel in looks:
        seen = await harness.tick(kernel=kernel, clickhouse=10)
        now_ns = harness.clock.boot_ns()
        sample = Sample(
            wall_ms=now_ns // 1_000_000,
            boot_ns=now_ns,
            boot_id=harness.clock.boot_id,
            reading=seen.reading,
            secondary=seen.secondary,
            absent=seen.absent,
        )
        if state is None:
            state, periods = meter.start(sample, "no_checkpoint")
        else:
            state, periods = meter.observe(state, sample)
        used_usec += sum(used(period) for period in periods)
    assert state
    _, periods = meter.close(state)
    return (used_usec + sum(used(period) for period in periods)) / 1e6


def used(period: Period) -> int:
    window = period.window
    return window.reading.cpu_usec - window.cpu_start_usec if window else 0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0, 60, 590.0),  # the first sample is the baseline
        (20, 40, 580.0),  # the usage before one sample is lost
        (30, 100, 1280.0),
    ],
)
async def test_a_frozen_counter_is_billed_by_clickhouse_s_own(
    harness: Harness, before: int, after: int, expected: float
) -> None:
    looks = [10.0] * before + [0.0] * after
    assert await billed(harness, looks) == expected


class WithoutCgroup:
    """A target that is read by its process tree, with ClickHouse's own counter as a check."""

    def __init__(self) -> None:
        self.process = Counting("process")
        self.clickhouse = Counting("clickhouse")
        self.clock = Now()
        self.target = Target("auto", [self.process, self.clickhouse], self.clock)

    async def tick(self, *, process: float, clickhouse: float) -> TargetObservation:
        self.clock.seconds += 5
        self.process.use(process)
        self.clickhouse.use(clickhouse)
        return await self.target.read(secondary=True)


async def test_a_process_tree_that_stands_still_is_not_billed() -> None:
    harness = WithoutCgroup()
    await harness.tick(process=0, clickhouse=5)
    seen = await harness.tick(process=0, clickhouse=5)
    assert sources(seen) == ["clickhouse"]
    assert seen.error.startswith(f"process: {STANDS}")


async def test_a_rise_too_small_for_a_clock_tick_is_no_contradiction() -> None:
    harness = WithoutCgroup()
    for _ in range(50):
        seen = await harness.tick(process=0, clickhouse=0.015)
        assert sources(seen) == ["process", "clickhouse"]
