"""What the count of lost and repeated alerts makes of a receiver's memory."""

import json

import pytest

from lab.bench import loss


def events(*numbers: int, first_id: str = "id") -> bytes:
    """Return a request of the forwarder."""
    return json.dumps(
        [{"id": f"{first_id}-{n}", "data": {"labels": {"alertname": f"A{n}Z"}}} for n in numbers]
    ).encode()


def records(*numbers: int) -> bytes:
    """Return a request of a program that gives no ids; a number is in it twice."""
    return b"".join(b"A%dZ A%dZ;" % (number, number) for number in numbers)


def test_all_in_order_is_neither_lost_nor_late_nor_doubled() -> None:
    receiver = loss.Receiver(1)
    receiver.store("d-1", events(1, 2))
    receiver.store("d-2", events(3))
    found = receiver.verdict("p", 1, 3, 0)
    assert (found.lost, found.late, found.doubled, found.extra_copies) == (0, 0, 0, 0)
    assert not found.broken(most=0)


def test_a_missing_number_is_lost() -> None:
    receiver = loss.Receiver(1)
    receiver.store("", records(1, 3))
    found = receiver.verdict("p", 1, 3, 0)
    assert (found.lost, found.late) == (1, 0)
    assert found.broken(most=50)


def test_a_number_after_a_later_one_is_late() -> None:
    """Only its first arrival counts."""
    receiver = loss.Receiver(1)
    for request in (records(2), records(1), records(3), records(1)):
        receiver.store("", request)
    found = receiver.verdict("p", 1, 3, 0)
    assert (found.lost, found.late, found.doubled, found.extra_copies) == (0, 1, 1, 1)
    assert found.broken(most=50)


def test_repeats_are_allowed_up_to_a_number() -> None:
    receiver = loss.Receiver(1)
    receiver.store("d-1", events(1, 2))
    receiver.store("d-1", events(1, 2))
    found = receiver.verdict("p", 1, 2, 0)
    assert (found.doubled, found.extra_copies, found.under_two_webhook_ids) == (2, 2, 0)
    assert found.broken(most=1)
    assert not found.broken(most=2)


def test_an_alert_under_two_ids_breaks_the_promise() -> None:
    receiver = loss.Receiver(1)
    receiver.store("d-1", events(1))
    receiver.store("d-2", events(1, first_id="other"))
    found = receiver.verdict("p", 1, 1, 0)
    assert (found.under_two_event_ids, found.under_two_webhook_ids) == (1, 1)
    assert found.broken(most=50)


def test_one_webhook_id_with_two_bodies_breaks_the_promise() -> None:
    receiver = loss.Receiver(1)
    receiver.store("d-1", events(1))
    receiver.store("d-1", events(1, 2))
    assert receiver.verdict("p", 1, 2, 0).webhook_ids_with_two_bodies == 1
    assert receiver.verdict("p", 1, 2, 0).broken(most=50)


def test_a_program_without_ids_has_none_to_change() -> None:
    receiver = loss.Receiver(1)
    receiver.store("", records(1))
    assert receiver.verdict("p", 1, 1, 0).under_two_event_ids is None


def test_the_table_has_a_value_per_seed_and_the_settings() -> None:
    found = []
    for seed, numbers in ((21, (1, 2)), (7, (2,))):
        receiver = loss.Receiver(seed)
        receiver.store("d", events(*numbers))
        found.append(receiver.verdict(loss.OURS, seed, 2, 10))
    lines = loss.table(found).splitlines()
    assert (
        lines[2]
        == "| alert-forwarder | 7, 21 | 1, 0 | 0, 0 | 0, 0 | 0, 0 | yes; 0 alerts under two |"
    )
    assert lines[-1] == f"| alert-forwarder | {loss.CONTESTANTS[loss.OURS].settings} |"


@pytest.mark.parametrize("name", [*loss.CONTESTANTS])
def test_every_body_carries_its_number_once_or_more(name: str) -> None:
    body = loss.CONTESTANTS[name].body(42)
    assert set(loss.NUMBER.findall(body)) == {b"42"}


def test_the_page_has_a_place_for_the_tables() -> None:
    assert loss.DOCS.read_text().count(loss.BEGIN) == 1


def test_half_of_the_requests_are_answered() -> None:
    assert sum(loss.MIX.values()) == 100
    assert loss.MIX["ok"] == 50
