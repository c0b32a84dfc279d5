"""The audit of a sound bucket: totals, stated gaps, epochs; and what each finding says."""

import pytest

from byoc_agents.app.cloudevents import rfc3339
from lab.fakes.billing import MINUTE_MS, NOON_MS, ReplicaHistory, eventful, objects
from tests.unit.billing.buckets import audit, of, sound, torn


def test_a_sound_bucket_is_well_and_its_totals_are_exact() -> None:
    records = sound()
    report = of(records)
    used = [record.data.used for record in records]
    (total,) = report.replicas
    assert report.ok, report.findings
    assert (report.objects, report.records, total.records, total.objects) == (9, 41, 41, 9)
    assert total.cpu_core_seconds == sum(u.cpu_core_seconds for u in used)
    assert total.memory_byte_seconds == sum(u.memory_byte_seconds for u in used)
    assert total.measured_seconds == 36 * 60 - 5 + 60
    assert total.estimated_seconds == 60
    assert total.allocated_core_seconds == 4 * (total.measured_seconds + 60)
    assert total.allocated_byte_seconds == (16 << 30) * (total.measured_seconds + 60)
    assert (total.first_start, total.last_end) == (rfc3339(NOON_MS), rfc3339(NOON_MS + 2_400_000))


def test_stated_gaps_are_listed_and_no_error() -> None:
    """Of the gap back to the container's birth only the part without records counts."""
    report = of(sound())
    assert [(str(g.reason), int(g.seconds)) for g in report.gaps] == [
        ("target_unreadable", 60),
        ("target_restarted", 5),
        ("no_checkpoint", 60),
    ]
    assert [u.core_seconds for u in report.unrecorded] == [7, 3]
    assert [(e.last_sequence, e.next_epoch) for e in report.epoch_ends] == [
        (30, NOON_MS + 31 * MINUTE_MS)
    ]


def test_services_add_up_their_replicas() -> None:
    histories = [ReplicaHistory(replica=f"r-{n}", pod_uid=f"u-{n}", seed=n) for n in range(3)]
    report = of([record for history in histories for record in eventful(history)])
    (service,) = report.services
    assert report.ok
    assert service.cpu_core_seconds == sum(r.cpu_core_seconds for r in report.replicas)
    assert (service.records, service.replica) == (123, "")


def test_a_state_directory_that_outlives_its_pod_goes_on_counting() -> None:
    history = ReplicaHistory()
    first = [history.measured() for _ in range(7)]
    history.restart()
    history.pod_uid = "another"
    assert of(first + [history.measured() for _ in range(7)]).ok


def test_a_damaged_object_of_the_second_pod_is_one_finding() -> None:
    history = ReplicaHistory()
    first = [history.measured() for _ in range(5)]
    history.restart()
    history.pod_uid = "another"
    messages = objects(first + [history.measured() for _ in range(10)])
    messages[1] = torn(messages[1])
    assert audit(messages).counts == {"torn_object": 1}


def test_cpu_that_two_epochs_both_have_is_found() -> None:
    history = ReplicaHistory()
    first = [history.measured() for _ in range(3)]
    history.counter_usec -= 1_000_000
    second = [history.lose_state(), history.measured()]
    report = of(first + second)
    assert report.counts == {"doubled_cpu": 1}
    assert report.findings[0].core_seconds == 1


@pytest.mark.parametrize("announced", [True, False])
def test_a_counter_that_is_known_to_have_fallen_is_well(announced: bool) -> None:
    """Under the name it had: set to 0 at a restart, or smaller after a stated gap."""
    history = ReplicaHistory()
    first = [history.measured() for _ in range(3)]
    if announced:
        history.restarted = True
    else:
        first.append(history.gap("counter_fell"))
    history.counter_usec //= 2
    assert of([*first, *(history.measured() for _ in range(3))]).ok


def test_an_epoch_that_begins_without_a_word_is_uncovered_and_lost_cpu() -> None:
    history = ReplicaHistory()
    first = [history.measured() for _ in range(3)]
    history.lose_state(usec=5)
    history.sequence = 0
    assert of([*first, history.measured()]).counts == {"lost_cpu": 1, "uncovered": 1}


def test_a_corrupt_spool_states_what_may_be_lost_and_is_well() -> None:
    history = ReplicaHistory()
    first = [history.measured() for _ in range(3)]
    report = of([*first, history.lose_state("spool_corrupt"), history.measured()])
    assert report.ok
    assert [(str(g.reason), int(g.seconds)) for g in report.gaps] == [("spool_corrupt", 60)]


def test_two_losses_of_the_state_directory_state_one_birth() -> None:
    history = ReplicaHistory()
    records = [history.lose_state(), history.measured(), history.lose_state(), history.measured()]
    report = of(records)
    assert report.ok, report.findings
    assert [g.seconds for g in report.gaps] == [60, 60]


def test_the_tail_of_the_last_epoch_cannot_be_missed() -> None:
    """Nobody can tell from a bucket alone that something more should be in it."""
    assert of(sound()[:-3]).ok


def test_a_partial_audit_expects_no_beginning() -> None:
    messages = objects(sound())[2:]
    assert not audit(messages).ok
    assert audit(messages, partial=True).ok


def test_the_tail_of_an_ended_epoch_shows_as_a_longer_gap_and_its_cpu() -> None:
    """It may have been lost with the state directory: the gap that says so covers it."""
    records = sound()
    report = of(records[:29] + records[31:])
    lost = sum(record.data.used.cpu_core_seconds for record in records[29:31])
    assert report.ok
    assert report.gaps[-1].seconds == 60 + 120
    assert report.unrecorded[-1].core_seconds == 3 + lost
