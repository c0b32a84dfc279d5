"""The store: dead letters, kept with their reason, and queued again."""

from contextlib import closing
from functools import partial
from pathlib import Path

from byoc_agents.durable.model import DeadLetter, Totals
from byoc_agents.durable.store import SpoolStore
from tests.unit.durable.store_steps import apply, do, ids, message


def test_a_dead_letter_is_kept_with_its_reason_and_can_be_requeued_at_the_end(
    store: SpoolStore,
) -> None:
    apply(store, messages=[message(1), message(2)])
    size = store.totals().bytes
    do(store, lambda: store.dead_letter(message(1), "rejected", "400", 5))
    do(store, lambda: store.dead_letter(message(7), "rejected", "not there", 5))
    assert store.dead_letters() == [DeadLetter(message(1), "rejected", "400", 5)]
    assert (ids(store), store.totals().bytes, store.totals().dead_letters) == (["m2"], size, 1)
    do(store, lambda: store.requeue("m1"))
    assert (ids(store), store.dead_letters(), store.totals().bytes) == (["m2", "m1"], [], size)


def test_a_letter_that_another_process_requeues_is_counted(store: SpoolStore, path: Path) -> None:
    apply(store, messages=[message(1)])
    size = store.totals().bytes
    do(store, lambda: store.dead_letter(message(1), "rejected", "400", 5))
    with closing(SpoolStore(path, max_bytes=1 << 20)) as other:
        do(other, lambda: other.requeue("m1"))
    apply(store, messages=[message(2)])
    now = store.totals()
    assert (now.events, now.bytes, now.dead_letters) == (4, 2 * size, 0)
    do(store, lambda: store.remove(["m1", "m2"]))
    assert store.totals() == Totals()


def test_a_message_that_dies_twice_is_one_dead_letter(store: SpoolStore) -> None:
    for detail in ("first", "second"):
        apply(store, messages=[message(1)])
        do(store, partial(store.dead_letter, message(1), "rejected", detail, 1))
    assert [letter.detail for letter in store.dead_letters()] == ["second"]
    assert store.totals().dead_letters == 1


def test_of_latest_only_messages_the_latest_dead_letter_is_kept(store: SpoolStore) -> None:
    for number in (1, 2):
        beat = message(number, replaces="beat")
        apply(store, messages=[beat])
        do(store, partial(store.dead_letter, beat, "rejected", "", number))
    assert [letter.message.id for letter in store.dead_letters()] == ["m2"]


def test_a_dead_letter_taken_over_leaves_the_queue_alone(store: SpoolStore) -> None:
    letter = DeadLetter(message(1, replaces="a"), "rejected", "400", 5)
    apply(store, messages=[message(1), message(2, replaces="a")])
    apply(store, dead_letters=[letter])
    assert (ids(store), store.dead_letters()) == (["m1", "m2"], [letter])


def test_a_requeued_message_does_not_replace_what_came_later(store: SpoolStore) -> None:
    apply(store, messages=[message(1, replaces="a")])
    do(store, lambda: store.dead_letter(message(1), "rejected", "", 1))
    apply(store, messages=[message(2, replaces="a")])
    do(store, lambda: store.requeue("m1"))
    assert ids(store) == ["m2", "m1"]
