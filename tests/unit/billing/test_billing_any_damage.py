"""Whatever is done to a bucket, it shows; and the order of reading does not matter."""

from collections.abc import Iterator
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from byoc_agents.app.cloudevents import encode
from byoc_agents.billing.objects import Compression, unseal
from byoc_agents.billing.record import UsageRecord
from lab.fakes.billing import altered, event, objects
from tests.unit.billing.buckets import audit, of, rewritten, sound

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)

LAST = (30, 40)  # the last record of each epoch


def with_counters(record: UsageRecord) -> Iterator[UsageRecord]:
    """Yield the record with each figure changed that another field confirms."""
    data, used, counter = record.data, record.data.used, record.data.counter
    for name in ("organization_id", "service_id", "replica", "pod_uid", "container_id"):
        yield altered(record, **{name: "x"})
    yield altered(record, epoch=data.epoch + 1)
    yield altered(record, sequence=data.sequence + 1)
    yield altered(record, charge_period_start=data.charge_period_end)
    yield altered(record, used=replace(used, cpu_core_seconds=used.cpu_core_seconds + 1))
    yield replace(record, id=record.id[::-1])
    yield replace(record, source=record.source + "x")
    if counter and data.gap_reason != "no_checkpoint":
        yield altered(record, counter=replace(counter, end=counter.end + 1))
        yield altered(record, counter=replace(counter, start=counter.start + 1))


@quick
@given(place=st.integers(0, 40), which=st.integers(0, 100))
def test_any_altered_record_is_found(place: int, which: int) -> None:
    messages = objects(sound())
    record = sound()[place]
    options = list(with_counters(record))
    bad = encode(options[which % len(options)])
    changed = [
        rewritten(m, lambda x: [bad if line == encode(record) else line for line in x])
        for m in messages
    ]
    assert not audit(changed).ok


@quick
@given(place=st.integers(0, 40), size=st.integers(1, 9))
def test_any_deleted_record_is_found_but_an_epochs_last(place: int, size: int) -> None:
    records = sound()
    del records[place]
    assert of(records, size).ok == (place in LAST)


@quick
@given(place=st.integers(0, 40), size=st.integers(1, 9), to=st.integers(0, 8))
def test_any_doubled_record_is_found(place: int, size: int, to: int) -> None:
    messages = objects(sound(), size=size)
    line = encode(sound()[place])
    messages[to % len(messages)] = rewritten(
        messages[to % len(messages)], lambda x: [line, *x] if to % 2 else [*x, line]
    )
    assert not audit(messages).ok


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
@quick
@given(place=st.integers(0), which=st.integers(0, 8), flip=st.integers(1, 255))
def test_any_altered_byte_is_found_or_changes_no_record(
    compression: Compression, place: int, which: int, flip: int
) -> None:
    messages = objects(sound(), compression=compression)
    old = messages[which]
    body = bytearray(old.body)
    body[place % len(body)] ^= flip
    messages[which] = msgspec.structs.replace(old, body=bytes(body))
    same = audit(messages).ok
    assert not same or unseal(old.id, bytes(body)) == unseal(old.id, old.body)


@quick
@given(which=st.integers(0, 8), share=st.floats(0, 1, exclude_max=True))
def test_any_cut_object_is_torn(which: int, share: float) -> None:
    messages = objects(sound())
    old = messages[which]
    cut = msgspec.structs.replace(old, body=old.body[: int(len(old.body) * share)])
    messages[which] = cut
    assert audit(messages).counts == {"torn_object": 1}


@quick
@given(seed=st.integers(), size=st.integers(1, 9))
def test_the_order_of_reading_does_not_matter(seed: int, size: int) -> None:
    messages = objects(sound(), size=size)
    ordered = audit(messages)
    Random(seed).shuffle(messages)
    mixed = audit(messages)
    assert mixed.ok
    assert mixed.replicas == ordered.replicas
    assert (mixed.gaps, mixed.epoch_ends) == (ordered.gaps, ordered.epoch_ends)
    rise = sum(u.core_seconds for u in mixed.unrecorded)
    assert rise == sum(u.core_seconds for u in ordered.unrecorded)


@quick
@given(size=st.integers(1, 9), which=st.integers(0, 100))
def test_any_lost_object_is_found_but_an_epochs_last(size: int, which: int) -> None:
    messages = objects(sound(), size=size)
    gone = messages.pop(which % len(messages))
    last = [encode(sound()[place]) for place in LAST]
    assert audit(messages).ok == (unseal(gone.id, gone.body)[-1] in last)


def test_records_of_a_replica_history_are_sound_by_themselves() -> None:
    """The damage above would prove little if these were not what a scraper writes."""
    for record in sound():
        assert event(record.data) == record
