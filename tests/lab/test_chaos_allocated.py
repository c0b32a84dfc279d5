"""Tests of the oracle of allocated memory, on records made by the meter and then altered."""

from collections import Counter

import msgspec
import pytest
from msgspec.structs import replace

from byoc_agents.billing.record import Usage, UsageRecord
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.window import Sample
from lab.chaos.allocated import LIMIT_BYTES, allocated
from lab.chaos.evidence import Evidence
from lab.chaos.target import Incarnation
from lab.fakes.billing import objects
from tests.lab.test_chaos_oracle import evidence
from tests.unit.billing.meter_run import SECOND, UP, Run, reading, sample

WHO = UsageIdentity(
    organization_id="o",
    service_id="s",
    replica="r",
    region="eu-west-1",
    pod_uid="p",
    container_name="c",
    memory_limit_bytes=LIMIT_BYTES,
)
BARE = {"memory_limit_bytes": None, "cpu_limit_millicores": None, "container_id": ""}


def records() -> list[UsageRecord]:
    """Return two incarnations: inode 7 for 300 s with two gaps, one late; inode 8 for 100 s."""
    run = Run(sample(0, reading(0, **BARE, born_boot_ns=UP)))
    seen = [sample(s, reading(s, **BARE, born_boot_ns=UP)) for s in range(5, 100, 5)]
    blind = [sample(s) for s in range(100, 200, 5)]
    back = [sample(s, reading(s, **BARE, born_boot_ns=UP)) for s in range(200, 250, 5)]
    fell = [sample(s, reading(s - 1, **BARE, born_boot_ns=UP)) for s in range(246, 301, 5)]
    other = {**BARE, "incarnation": "boot-1-8", "born_boot_ns": UP + 300 * SECOND}
    second = [sample(s, reading(s - 300, **other)) for s in range(305, 405, 5)]
    run.feed([*seen, *blind, *back, *fell, *second]).close()
    recorder = Recorder(identity=WHO, sample_ms=5000)
    return [recorder.record(one, 1, number) for number, one in enumerate(run.periods)]


def left(made: list[UsageRecord]) -> Evidence:
    """Return what a run left with these records."""
    found = evidence()
    found.objects = {one.id: one.body for one in objects(made)}
    found.writes = Counter()
    found.incarnations = [Incarnation(7, 0, seconds=300.0), Incarnation(8, 0, seconds=100.0)]
    return found


def altered(made: list[UsageRecord], number: int, milliseconds: int) -> list[UsageRecord]:
    """Return the records with another counted time in one of them."""
    one = made[number]
    counted = (one.data.allocated.counted_milliseconds or 0) + milliseconds
    size = replace(one.data.allocated, counted_milliseconds=counted)
    data: Usage = replace(one.data, allocated=size)
    return [*made[:number], replace(one, data=data), *made[number + 1 :]]


def test_records_of_the_meter_hold() -> None:
    assert list(allocated(left(records()))) == []


@pytest.mark.parametrize("milliseconds", [-5000, 5000, -60_000, 60_000])
def test_time_that_is_missing_or_counts_twice_is_noticed(milliseconds: int) -> None:
    made = records()
    long = [
        n for n, one in enumerate(made) if (one.data.allocated.counted_milliseconds or 0) > 9000
    ]
    for number in long:
        assert list(allocated(left(altered(made, number, milliseconds)))), made[number]


def test_another_size_is_noticed() -> None:
    made = records()
    size = replace(made[0].data.allocated, memory_bytes=LIMIT_BYTES - 1)
    other = [replace(made[0], data=replace(made[0].data, allocated=size)), *made[1:]]
    assert list(allocated(left(other)))


def test_a_record_of_an_older_version_that_does_not_say_how_long_it_counts_is_noticed() -> None:
    made = [msgspec.json.decode(msgspec.json.encode(one), type=UsageRecord) for one in records()]
    number = next(n for n, one in enumerate(made) if one.data.quality == "measured")
    size = replace(made[number].data.allocated, counted_milliseconds=None)
    made[number] = replace(made[number], data=replace(made[number].data, allocated=size))
    assert list(allocated(left(made)))


def test_an_incarnation_that_counts_longer_than_the_kernel_had_it_is_noticed() -> None:
    found = left(records())
    found.incarnations = [Incarnation(7, 0, seconds=250.0), Incarnation(8, 0, seconds=100.0)]
    assert list(allocated(found))


def test_an_incarnation_of_which_nothing_counts_is_noticed() -> None:
    found = left(records())
    found.incarnations += [Incarnation(9, 0, seconds=200.0)]
    assert list(allocated(found))


def test_the_wall_clock_may_be_set_while_an_incarnation_is_measured() -> None:
    off = {"wall_off_seconds": 600}
    run = Run(sample(0, reading(0, **BARE, born_boot_ns=UP)))
    run.feed([ran_bare(30), *(ran_bare(s, **off) for s in range(35, 130, 5))]).close()
    recorder = Recorder(identity=WHO, sample_ms=5000)
    made = [recorder.record(one, 1, number) for number, one in enumerate(run.periods)]
    found = left(made)
    found.incarnations = [Incarnation(7, 0, seconds=125.0)]
    assert list(allocated(found)) == []


def ran_bare(second: float, **fields: object) -> Sample:
    return sample(second, reading(second, **BARE, born_boot_ns=UP), **fields)
