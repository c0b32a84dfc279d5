"""Each kind of damage is found, called by its name, and nothing else is."""

from collections.abc import Callable
from decimal import Decimal

import msgspec
import pytest
from msgspec.structs import replace

from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.billing.objects import seal, unseal
from byoc_agents.billing.record import Counter, GapReason, Resized, Samples, UsageRecord
from byoc_agents.message import Message
from lab.fakes.billing import MINUTE_MS, NOON_MS, ReplicaHistory, altered, objects
from tests.unit.billing.buckets import Records, audit, of, rewritten, sound, torn

# Damage to records, which are then sealed again. Each gives the findings.


def edit(place: int, change: Callable[[UsageRecord], UsageRecord]) -> Callable[[Records], Records]:
    def damage(records: Records) -> Records:
        return [*records[:place], change(records[place]), *records[place + 1 :]]

    return damage


def usage(**fields: object) -> Callable[[UsageRecord], UsageRecord]:
    return lambda record: altered(record, **fields)


def shifted_end(record: UsageRecord, by_ms: int) -> UsageRecord:
    start = NOON_MS + record.data.sequence * MINUTE_MS
    return altered(record, charge_period_end=rfc3339(start + MINUTE_MS + by_ms))


def shifted_counter(record: UsageRecord) -> UsageRecord:
    counter = record.data.counter
    assert counter
    return altered(record, counter=Counter(start=counter.start + 1, end=counter.end + 1))


def less_used(record: UsageRecord) -> UsageRecord:
    used = record.data.used
    return altered(record, used=replace(used, cpu_core_seconds=used.cpu_core_seconds - 1))


def too_much_memory(record: UsageRecord) -> UsageRecord:
    used = record.data.used
    return altered(record, used=replace(used, memory_byte_seconds=used.memory_max_bytes * 61))


def lost_cpu(records: Records) -> Records:
    return [*records[:5], *(shifted_counter(record) for record in records[5:12])]


def other_incarnation(records: Records) -> Records:
    return [
        *records[:5],
        *(altered(shifted_counter(r), incarnation="cgroup.v2:x") for r in records[5:12]),
    ]


def second_writer(records: Records) -> Records:
    """Two containers of one name in one pod: both cannot be."""
    history = ReplicaHistory(incarnation=9, epoch=NOON_MS - 2)
    return records + [history.measured() for _ in range(1)]


def size(**fields: object) -> Callable[[UsageRecord], UsageRecord]:
    return lambda r: altered(r, allocated=replace(r.data.allocated, **fields))


def used(**fields: object) -> Callable[[UsageRecord], UsageRecord]:
    return lambda r: altered(r, used=replace(r.data.used, **fields))


def slow(elapsed_ms: int, **fields: object) -> Callable[[UsageRecord], UsageRecord]:
    """Return a record of one minute in which less time elapsed, and of memory that fits."""
    fields = {"counter_milliseconds": 60_000, **fields}
    return lambda r: used(memory_byte_seconds=0)(
        altered(r, elapsed_milliseconds=elapsed_ms, **fields)
    )


def readings(expected: int, observed: int) -> Callable[[UsageRecord], UsageRecord]:
    return usage(samples=Samples(expected=expected, observed=observed))


def resized(cpu: tuple[int | None, int | None], memory: tuple[int | None, int | None]) -> Resized:
    return Resized(
        cpu_millicores_start=cpu[0],
        cpu_millicores_end=cpu[1],
        memory_bytes_start=memory[0],
        memory_bytes_end=memory[1],
    )


SIZE, OTHER = (4000, 4000), (16 << 30, 16 << 30)  # of the history: cores, memory

SOUND: dict[str, Callable[[UsageRecord], UsageRecord]] = {
    "no time counted": size(counted_milliseconds=0),
    "samples every 0.1 s": readings(12, 600),
    "a larger size at the end": size(resized=resized((4000, 8000), OTHER)),
    "a larger memory at the start": size(resized=resized(SIZE, (17 << 30, 16 << 30))),
    "the start of the size is unknown": size(
        resized=resized((None, 4000), OTHER), cpu_millicores=None
    ),
    "a clock that was set back earlier": usage(
        elapsed_milliseconds=3_600_000, counter_milliseconds=3_600_000
    ),
    "a clock that gains a second at each sample": slow(60_000 - 13_000),
    "a clock step that the record states": slow(20_000, clock_step_milliseconds=40_000),
    "a long time without samples": slow(20_000, quality="estimated"),
    "a record of 0.1.0": slow(20_000, counter_milliseconds=None),
}
ALTERED: dict[str, Callable[[UsageRecord], UsageRecord]] = {
    "negative CPU size": size(cpu_millicores=-1),
    "negative memory size": size(memory_bytes=-1),
    "negative counted time": size(counted_milliseconds=-1),
    "negative elapsed time": usage(elapsed_milliseconds=-1),
    "negative counter time": usage(counter_milliseconds=-1),
    "no CPUs": usage(machine_cpus=0),
    "negative CPUs": usage(machine_cpus=-4),
    "negative memory": used(memory_byte_seconds=-1),
    "negative peak": used(memory_max_bytes=-1),
    "fewer samples than none expected": readings(-1, 12),
    "fewer samples than none observed": readings(12, -1),
    "a hundred samples per second": readings(12, 6_101),
    "the larger size counts": size(resized=resized((4000, 2000), OTHER)),
    "the larger memory counts": size(resized=resized(SIZE, (16 << 30, 1))),
    "neither of both sizes counts": size(resized=resized((5000, 6000), OTHER)),
    "an unknown size counts": size(resized=resized((4000, None), OTHER)),
    "more than a second per sample did not elapse": slow(60_000 - 13_100),
}


@pytest.mark.parametrize("change", SOUND.values(), ids=SOUND)
def test_a_record_that_an_honest_meter_may_write_is_well(
    change: Callable[[UsageRecord], UsageRecord],
) -> None:
    history = ReplicaHistory()
    report = of([history.measured(), change(history.measured()), history.measured()])
    assert report.ok, report.findings


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_a_record_that_contradicts_itself_is_altered_and_in_no_total(
    change: Callable[[UsageRecord], UsageRecord],
) -> None:
    history = ReplicaHistory()
    report = of([history.measured(), change(history.measured()), history.measured()])
    assert report.counts == {"altered_record": 1}
    assert report.findings[0].first_sequence == 1
    assert report.findings[0].detail
    assert report.replicas[0].records == 2


@pytest.mark.parametrize("reason", ["counter_fell", "counter_impossible"])
@pytest.mark.parametrize("usec", [-1_000_000, 10**15])
def test_the_counter_over_a_gap_in_which_it_is_not_believed_is_no_cpu(
    reason: GapReason, usec: int
) -> None:
    """Neither unrecorded nor lost nor counted twice; next to another gap it says the same."""
    for gaps in ((reason,), (reason, "target_unreadable"), ("target_unreadable", reason)):
        history = ReplicaHistory(counter_usec=5_000_000)
        first = [history.measured()]
        first += [history.gap(each, usec=usec) for each in gaps]
        report = of([*first, history.measured()])
        assert report.ok, report.findings
        assert report.unrecorded == []


RECORD_DAMAGE: dict[str, tuple[Callable[[Records], Records], dict[str, int]]] = {
    "one record is gone": (lambda r: r[:7] + r[8:], {"missing_sequence": 1}),
    "an object is gone": (lambda r: r[:5] + r[10:], {"missing_sequence": 1}),
    "the head is gone": (lambda r: r[3:], {"missing_sequence": 1}),
    "the head of the second epoch is gone": (lambda r: r[:31] + r[33:], {"missing_sequence": 1}),
    "two holes": (lambda r: r[:3] + r[4:8] + r[9:], {"missing_sequence": 2}),
    "a stated gap is gone": (lambda r: r[:12] + r[13:], {"missing_sequence": 1}),
    "the id is another": (edit(4, lambda r: replace(r, id="0" * 32)), {"altered_record": 1}),
    "the source is another": (edit(4, lambda r: replace(r, source="/x")), {"altered_record": 1}),
    "the type is another": (edit(4, lambda r: replace(r, type="x")), {"altered_record": 1}),
    "less CPU used": (edit(4, less_used), {"altered_record": 1}),
    "no counter": (edit(4, usage(counter=None)), {"altered_record": 1}),
    "more memory than its peak": (edit(4, too_much_memory), {"altered_record": 1}),
    "a gap with usage": (edit(4, usage(quality="gap")), {"altered_record": 1}),
    "a measurement without a source": (edit(4, usage(source="none")), {"altered_record": 1}),
    "an end in the year 10000": (
        edit(4, usage(charge_period_end="9999-12-31T23:59:59.9999Z")),
        {"torn_object": 1},
    ),
    "a start in the year 0": (
        edit(4, usage(charge_period_start="0001-01-01T00:00:00+23:59")),
        {"torn_object": 1},
    ),
    "a moved start": (
        edit(4, usage(charge_period_start=rfc3339(NOON_MS + 241_000))),
        {"altered_record": 1},
    ),
    "an earlier end": (edit(4, lambda r: shifted_end(r, -1)), {"uncovered": 1}),
    "a later end": (edit(4, lambda r: shifted_end(r, 1)), {"overlap": 1}),
    "an end before the start": (edit(4, lambda r: shifted_end(r, -60_000)), {"torn_object": 1}),
    "a counter that jumps": (lost_cpu, {"lost_cpu": 1}),
    "a counter out of line": (edit(4, shifted_counter), {"lost_cpu": 1, "doubled_cpu": 1}),
    "an unannounced incarnation": (other_incarnation, {"unannounced_incarnation": 1}),
    "two records of one minute": (second_writer, {"overlap": 1, "unannounced_incarnation": 1}),
}


@pytest.mark.parametrize(("damage", "found"), RECORD_DAMAGE.values(), ids=RECORD_DAMAGE)
def test_damage_to_records_is_found_and_nothing_else(
    damage: Callable[[Records], Records], found: dict[str, int]
) -> None:
    report = of(damage(sound()))
    assert report.counts == found, report.findings


def test_a_missing_record_says_where_when_and_how_much_cpu() -> None:
    records = sound()
    report = of(records[:7] + records[9:])
    (finding,) = report.findings
    lost = sum(record.data.used.cpu_core_seconds for record in records[7:9])
    assert (finding.first_sequence, finding.last_sequence) == (7, 8)
    assert (finding.start, finding.end) == (
        records[7].data.charge_period_start,
        records[8].data.charge_period_end,
    )
    assert finding.core_seconds == lost


def test_a_jump_of_the_counter_says_how_far() -> None:
    (finding,) = of(lost_cpu(sound())).findings
    assert finding.core_seconds == Decimal(1)


# Damage to objects as they lie.


def renamed(message: Message, old: str, new: str) -> Message:
    assert old in message.id
    return msgspec.structs.replace(message, id=message.id.replace(old, new))


def at(
    place: int, change: Callable[[Message], Message]
) -> Callable[[list[Message]], list[Message]]:
    return lambda m: [change(x) if x is m[place] else x for x in m]


def lines(
    change: Callable[[list[bytes]], list[bytes]],
) -> Callable[[list[Message]], list[Message]]:
    return at(1, lambda message: rewritten(message, change))


def relabeled(line: bytes, old: bytes, new: bytes) -> bytes:
    assert old in line
    return line.replace(old, new)


def resealed_shorter(messages: list[Message]) -> list[Message]:
    """Seal the first two records of an object once more."""
    some = unseal(messages[1].id, messages[1].body)[:2]
    return [*messages, seal(some, created_at_ms=0)]


def conflicting(messages: list[Message]) -> list[Message]:
    history = ReplicaHistory(seed=99)
    return [*messages, *objects([history.measured()])]


def second_sequence(messages: list[Message]) -> list[Message]:
    """Count on from an older sequence in later minutes, as a restored directory does."""
    history = ReplicaHistory(sequence=3, incarnation=9, now_ms=NOON_MS + 41 * MINUTE_MS)
    return [*messages, *objects([history.gap("target_absent")])]


OBJECT_DAMAGE: dict[str, tuple[Callable[[list[Message]], list[Message]], dict[str, int]]] = {
    "a frame cut": (at(1, torn), {"torn_object": 1}),
    "the last frame cut": (at(-1, torn), {"torn_object": 1}),
    "the first frame cut": (at(0, torn), {"torn_object": 1}),
    "the last line cut": (lines(lambda x: [*x[:-1], x[-1][:-9]]), {"torn_object": 1}),
    "a line that is not JSON": (lines(lambda x: [x[0], b"{", *x[2:]]), {"torn_object": 1}),
    "a line of another schema": (lines(lambda x: [b"{}", *x[1:]]), {"torn_object": 1}),
    "a value that is not a number": (
        lines(lambda x: [*x[:-1], relabeled(x[-1], b'"end":', b'"end":"sNaN","x":')]),
        {"torn_object": 1},
    ),
    "the first record gone from an object": (lines(lambda x: x[1:]), {"missing_sequence": 1}),
    "an inner record gone from an object": (
        lines(lambda x: [*x[:2], *x[3:]]),
        {"missing_sequence": 1},
    ),
    "the last record gone from an object": (lines(lambda x: x[:-1]), {"missing_sequence": 1}),
    "the very last record gone from its object": (
        at(-2, lambda m: rewritten(m, lambda x: x[:-1])),
        {"missing_sequence": 1},
    ),
    "lines out of order": (lines(lambda x: x[::-1]), {"altered_object": 4}),
    "a record twice in one object": (lines(lambda x: [*x, x[-1]]), {"duplicate_identical": 1}),
    "another sequence": (
        lines(lambda x: [relabeled(x[0], b'"sequence":5', b'"sequence":7000'), *x[1:]]),
        {"altered_object": 1},
    ),
    "another epoch": (
        lines(lambda x: [relabeled(x[0], b'"epoch":1', b'"epoch":2'), *x[1:]]),
        {"altered_object": 1},
    ),
    "another organization": (
        lines(lambda x: [relabeled(y, b'_id":"org-1"', b'_id":"org-2"') for y in x]),
        {"altered_record": 5},
    ),
    "a key of another hour": (at(1, lambda m: renamed(m, "=12/", "=13/")), {"altered_object": 1}),
    "a key of another pod": (at(1, lambda m: renamed(m, "0b51", "0b52")), {"altered_object": 1}),
    "a key of another epoch": (
        at(1, lambda m: renamed(m, "-1795", "-1796")),
        {"altered_object": 1},
    ),
    "a key of another service": (
        at(1, lambda m: renamed(m, "service=service-1", "service=service-2")),
        {"altered_object": 1},
    ),
    "a key that says less": (
        at(1, lambda m: renamed(m, "0000000009.", "0000000008.")),
        {"altered_object": 1},
    ),
    "a key that says more": (
        at(1, lambda m: renamed(m, "0000000009.", "0000000010.")),
        {},  # 10 is stored elsewhere, so nothing is missing
    ),
    "an object under another prefix as well": (
        lambda m: [*m, renamed(m[1], "v1/", "old/v1/")],
        {"duplicate_identical": 5},
    ),
    "records sealed twice": (resealed_shorter, {"duplicate_identical": 2}),
    "the same minute with other figures": (conflicting, {"duplicate_conflicting": 1}),
    "a sequence given twice": (second_sequence, {"duplicate_sequence": 1, "uncovered": 1}),
    "a stranger": (lambda m: [*m, Message("v1/readme", "", b"", 0)], {"foreign_object": 1}),
}


@pytest.mark.parametrize(("damage", "found"), OBJECT_DAMAGE.values(), ids=OBJECT_DAMAGE)
def test_damage_to_objects_is_found_and_nothing_else(
    damage: Callable[[list[Message]], list[Message]], found: dict[str, int]
) -> None:
    report = audit(damage(objects(sound())))
    assert report.counts == found, report.findings
