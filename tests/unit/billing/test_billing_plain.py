"""Plain objects: nothing that the audit finds is ever called plain, and usual objects are."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from byoc_agents.app.cloudevents import encode
from byoc_agents.audit import Audit
from byoc_agents.audit.check import OF_ONE_OBJECT, OF_TWO_OBJECTS
from byoc_agents.audit.plain import are_plain
from byoc_agents.billing.objects import unseal
from byoc_agents.billing.record import UsageRecord
from lab.fakes.billing import ReplicaHistory, altered, eventful, objects

Objects = list[tuple[str, list[bytes]]]


def usual(size: int = 3) -> Objects:
    history = ReplicaHistory()
    made = objects([history.measured() for _ in range(12)], size=size)
    return [(one.id, unseal(one.id, one.body)) for one in made]


def finds_nothing(pod: Sequence[tuple[str, Sequence[bytes]]]) -> bool:
    """Return whether the audit finds nothing that would hold an object of the pod."""
    audit = Audit(partial=True, fitness_only=True)
    for key, lines in pod:
        audit.add_lines(key, lines)
    return not audit.found.counts.keys() & (OF_ONE_OBJECT | OF_TWO_OBJECTS)


def changes(record: UsageRecord) -> list[UsageRecord]:
    """Return the record with one rule broken each, its id recomputed where it can be."""
    data, used, counter = record.data, record.data.used, record.data.counter
    size, samples = data.allocated, data.samples
    names = ("organization_id", "service_id", "replica", "pod_uid", "container_id")
    found = [altered(record, **{name: "x"}) for name in names]
    found += [
        altered(record, epoch=data.epoch + 1),
        altered(record, sequence=data.sequence + 1),
        altered(record, sequence=data.sequence + 1000),
        altered(record, charge_period_start=data.charge_period_end),
        altered(record, charge_period_end="2026-11-23T12:59:00.000Z"),
        altered(record, used=replace(used, cpu_core_seconds=used.cpu_core_seconds + 1)),
        altered(record, used=replace(used, cpu_core_seconds=used.cpu_core_seconds * 10**9)),
        altered(record, used=replace(used, memory_byte_seconds=-1)),
        altered(record, used=replace(used, memory_max_bytes=0)),
        altered(record, allocated=replace(size, memory_bytes=-1)),
        altered(record, samples=replace(samples, observed=-1)),
        altered(record, samples=replace(samples, observed=10**9)),
        altered(record, elapsed_milliseconds=-1),
        altered(record, machine_cpus=0),
        altered(record, gap_reason="target_absent"),
        altered(record, quality="gap"),
        altered(record, source="none"),
        altered(record, charge_period_start="0001-01-01T00:00:00+23:59"),
        replace(record, id=record.id[::-1]),
        replace(record, source=record.source + "x"),
        replace(record, type="x"),
    ]
    if counter:
        rise = counter.start + 10**6
        over = altered(
            record,
            counter=replace(counter, end=rise),
            used=replace(used, cpu_core_seconds=rise - counter.start),
        )
        found += [over, altered(record, counter=replace(counter, start=-counter.end))]
    return found


def test_usual_objects_are_plain() -> None:
    for size in (1, 3, 12):
        assert are_plain(usual(size))
        assert finds_nothing(usual(size))
    assert are_plain([])


@pytest.mark.parametrize("number", range(len(changes(ReplicaHistory().measured()))))
def test_a_record_that_breaks_a_rule_is_not_plain(number: int) -> None:
    history = ReplicaHistory()
    records = [history.measured() for _ in range(4)]
    (key, lines), *_ = [(one.id, unseal(one.id, one.body)) for one in objects(records, size=4)]
    lines[1] = encode(changes(records[1])[number])
    assert not finds_nothing([(key, lines)])
    assert not are_plain([(key, lines)])


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_what_is_plain_has_no_finding(data: st.DataObject) -> None:
    """Records of any history, doubled, moved, dropped and changed, in objects of any order."""
    history = eventful(ReplicaHistory(seed=data.draw(st.integers(0, 5))))
    made = objects(history, size=data.draw(st.integers(1, 6)))
    pod = [(one.id, unseal(one.id, one.body)) for one in made]
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(pod) - 1))
        key, lines = pod[at]
        place = data.draw(st.integers(0, len(lines)))
        match data.draw(st.sampled_from(["double", "drop", "swap", "again", "cut", "key"])):
            case "double":
                lines.insert(place, lines[place - 1])
            case "drop" if len(lines) > 1:
                lines.pop(place - 1)
            case "swap":
                lines.reverse()
            case "again":
                pod.insert(at, (key.replace("-00000", "-00001"), lines))
            case "cut":
                lines[place - 1] = lines[place - 1][: len(lines[place - 1]) // 2]
            case "key":
                pod[at] = (key.replace("hour=12", "hour=13"), lines)
    if are_plain(pod):
        assert finds_nothing(pod)
