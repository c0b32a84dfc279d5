"""The audit refuses CPU that no machine has, and sums sizes that are known only."""

from collections.abc import Iterator
from decimal import Decimal
from random import Random

import pytest
from msgspec.structs import replace

from byoc_agents.audit.reconcile import conclude
from byoc_agents.audit.render import text
from byoc_agents.audit.report import Total
from byoc_agents.audit.state import AuditState, Claim, PodEpoch
from byoc_agents.billing.record import Counter, UsageRecord
from lab.fakes.billing import MINUTE_MS, NOON_MS, ReplicaHistory, altered, core_seconds, objects
from tests.unit.billing.buckets import audit, of


def _sized(record: UsageRecord, **fields: object) -> UsageRecord:
    return altered(record, allocated=replace(record.data.allocated, **fields))


def test_more_cpu_than_the_machine_has_is_a_problem_and_in_no_sum() -> None:
    history = ReplicaHistory()
    first, second = history.measured(), history.measured()
    tiny = altered(first, machine_cpus=1, counter_milliseconds=0)
    report = of([tiny, second])
    (finding,) = report.findings
    (total,) = report.replicas
    assert not report.ok
    assert (finding.kind, finding.core_seconds) == (
        "impossible_cpu",
        first.data.used.cpu_core_seconds,
    )
    assert first.id in finding.detail
    assert "x 1 CPUs plus slack" in finding.detail
    assert (total.records, total.excluded_records) == (1, 1)
    assert total.cpu_core_seconds == second.data.used.cpu_core_seconds
    assert total.excluded_core_seconds == first.data.used.cpu_core_seconds


def test_an_unknown_size_is_shown_per_figure_and_not_summed_as_zero() -> None:
    history = ReplicaHistory()
    (total,) = of(
        [
            _sized(history.measured(), cpu_millicores=None),
            _sized(history.measured(), memory_bytes=None),
        ]
    ).replicas
    assert total.unknown_allocated_cpu_seconds == 60
    assert total.unknown_allocated_memory_seconds == 60
    assert total.unallocated_seconds == 120
    assert total.allocated_core_seconds == 240
    assert total.allocated_byte_seconds == (16 << 30) * 60


def test_counted_time_of_a_gap_is_allocated_and_a_gap_of_version_0_1_is_not() -> None:
    history = ReplicaHistory()
    records = [
        history.measured(),
        _sized(history.gap("source_changed"), counted_milliseconds=MINUTE_MS),
        history.gap("target_unreadable"),
        history.measured(),
    ]
    (total,) = of(records).replicas
    assert total.allocated_byte_seconds == Decimal((16 << 30) * 180)


class _Claims(dict[PodEpoch, Claim]):
    """Counts how often all claims are read."""

    reads = 0

    def items(self) -> Iterator[tuple[PodEpoch, Claim]]:  # type: ignore[override]
        """Return all claims."""
        self.reads += 1
        return iter(super().items())


def test_the_conclusion_reads_all_claims_once_for_any_number_of_replicas() -> None:
    evidence = AuditState(partial=False, recent_ids=1)
    claims = _Claims({PodEpoch("o", "s", f"p-{n}", 0): Claim() for n in range(100)})
    evidence.claims = claims  # type: ignore[assignment]
    conclude(evidence, "")
    assert claims.reads == 1


class _Totals(list[Total]):
    """Counts how often all totals are read."""

    reads = 0

    def __iter__(self) -> Iterator[Total]:
        """Return all totals."""
        self.reads += 1
        return super().__iter__()


def test_the_text_reads_the_replicas_once_for_any_number_of_services() -> None:
    histories = [ReplicaHistory(service_id=f"service-{n}", replica=f"r-{n}") for n in range(9)]
    report = of([history.measured() for history in histories])
    replicas = _Totals(report.replicas)
    lines = list(text(replace(report, replicas=replicas)))
    assert replicas.reads == 1
    for n in range(9):
        assert sum(line.startswith(f"org-1/service-{n}  2026") for line in lines) == 1
        assert sum(line.startswith(f"  r-{n} ") for line in lines) == 1


def _busy(
    history: ReplicaHistory, usec: int, *, cpus: int = 4, period_ms: int = MINUTE_MS
) -> UsageRecord:
    """Return a record of `usec` CPU on a machine of `cpus`."""
    start_usec, record = history.counter_usec, history.measured(period_ms=period_ms)
    history.counter_usec = start_usec + usec
    used = replace(record.data.used, cpu_core_seconds=core_seconds(usec))
    counter = Counter(start=core_seconds(start_usec), end=core_seconds(history.counter_usec))
    return altered(
        record, used=used, counter=counter, machine_cpus=cpus, counter_milliseconds=period_ms
    )


FULL_USEC = 4 * MINUTE_MS * 1000  # four CPUs for a minute
SLACK_USEC = 4 * 50_000


def test_records_that_are_possible_only_one_by_one_are_a_problem() -> None:
    """Each uses its slack, which the counter's delay allows once for all of them."""
    history = ReplicaHistory()
    idle = [_busy(history, 0) for _ in range(20)]
    busy = [_busy(history, FULL_USEC + SLACK_USEC) for _ in range(7)]
    idle_later = [_busy(history, 0) for _ in range(20)]
    report = of(idle + busy + idle_later)
    (finding,) = report.findings
    (total,) = report.replicas
    assert report.counts == {"impossible_cpu": 1}
    assert (finding.first_sequence, finding.last_sequence) == (20, 26)
    assert finding.core_seconds == core_seconds(7 * (FULL_USEC + SLACK_USEC))
    assert f"records {busy[0].id} to {busy[-1].id} together" in finding.detail
    assert "plus slack once" in finding.detail
    assert (finding.start, finding.end) == (
        busy[0].data.charge_period_start,
        busy[-1].data.charge_period_end,
    )
    assert (total.records, total.excluded_records) == (47, 0)


@pytest.mark.parametrize("seed", range(20))
def test_such_records_are_found_in_any_order_of_the_objects(seed: int) -> None:
    history, rng = ReplicaHistory(), Random(seed)
    usecs = [0] * 10 + [FULL_USEC + SLACK_USEC] * 9 + [FULL_USEC // 2] * 10
    messages = objects([_busy(history, usec) for usec in usecs], size=1)
    rng.shuffle(messages)
    (finding,) = audit(messages).findings
    assert (finding.kind, finding.first_sequence, finding.last_sequence) == (
        "impossible_cpu",
        10,
        18,
    )


def test_the_bound_of_neighboring_records_is_exact() -> None:
    """Time x CPUs, 500 millionths of it for the clock's rate, and the slack once."""
    rate_usec = FULL_USEC * 500 // 10**6
    for more, expected in ((0, {}), (1, {"impossible_cpu": 1})):
        history = ReplicaHistory()
        usecs = [FULL_USEC + rate_usec] * 9 + [FULL_USEC + SLACK_USEC]
        usecs[0] += rate_usec // 2 + more
        usecs[1] += rate_usec // 2
        assert of([_busy(history, usec) for usec in usecs]).counts == expected


def test_a_full_machine_is_well_for_a_week_even_if_its_clock_is_slow() -> None:
    """The counter is late by the whole slack at the start, and the clock's rate is 400 ppm low."""
    history = ReplicaHistory()
    usecs = [FULL_USEC + SLACK_USEC - 1] + [FULL_USEC + FULL_USEC * 400 // 10**6] * 10_079
    report = of([_busy(history, usec) for usec in usecs], size=500)
    assert report.ok, report.findings


@pytest.mark.parametrize("between", ["gap", "restart", "other_counter"])
def test_records_of_two_counters_each_have_a_slack(between: str) -> None:
    """What both together may use beyond the time is twice the slack."""
    history = ReplicaHistory()
    records = [_busy(history, FULL_USEC + SLACK_USEC)]
    if between == "gap":
        records.append(history.gap("target_unreadable", usec=5))
    elif between == "restart":
        history.restart()
    else:
        records.append(history.gap("counter_fell"))
        history.counter_usec //= 2
    records += [_busy(history, FULL_USEC + SLACK_USEC // 2) for _ in range(2)]
    assert of(records).ok


def test_a_record_that_is_impossible_by_itself_is_reported_once() -> None:
    history = ReplicaHistory()
    records = [_busy(history, FULL_USEC), _busy(history, 2 * FULL_USEC), _busy(history, FULL_USEC)]
    report = of(records)
    (finding,) = report.findings
    assert (finding.kind, finding.first_sequence) == ("impossible_cpu", 1)
    assert report.replicas[0].excluded_records == 1


def test_a_machine_that_grows_has_the_time_of_each_size() -> None:
    history = ReplicaHistory()
    small = [_busy(history, FULL_USEC) for _ in range(5)]
    large = [_busy(history, 2 * FULL_USEC, cpus=8) for _ in range(5)]
    assert of(small + large).ok
    history = ReplicaHistory()
    small = [_busy(history, FULL_USEC + SLACK_USEC) for _ in range(9)]
    large = [_busy(history, 2 * FULL_USEC + SLACK_USEC, cpus=8) for _ in range(9)]
    assert of(small + large).counts == {"impossible_cpu": 1}


def _older(history: ReplicaHistory, usec: int) -> UsageRecord:
    """Return a record of 0.1.0, which does not say how many CPUs the machine has."""
    return altered(_busy(history, usec), machine_cpus=None, counter_milliseconds=None)


@pytest.mark.parametrize("newer_first", [False, True])
def test_a_record_of_version_0_1_is_held_to_the_cpus_of_later_records(newer_first: bool) -> None:
    history = ReplicaHistory()
    older = [_older(history, usec) for usec in (FULL_USEC, 2 * FULL_USEC, 2 * FULL_USEC, 1)]
    newer = [_busy(history, FULL_USEC, cpus=2, period_ms=2 * MINUTE_MS), _busy(history, FULL_USEC)]
    messages = objects(older) + objects(newer)
    report = audit(messages[::-1] if newer_first else messages)
    (finding,) = report.findings
    (total,) = report.replicas
    assert report.counts == {"impossible_cpu": 2}
    assert (finding.first_sequence, finding.core_seconds) == (1, core_seconds(2 * FULL_USEC))
    assert f"record {older[1].id} and 1 more: " in finding.detail
    assert "needs 8 CPUs; the machine has 4" in finding.detail
    assert (total.records, total.excluded_records) == (4, 2)
    assert total.cpu_core_seconds == core_seconds(3 * FULL_USEC + 1)
    assert total.excluded_core_seconds == core_seconds(4 * FULL_USEC)
    assert total.measured_seconds == 60 + 60 + 120 + 60


def test_the_cpus_that_a_record_of_version_0_1_needs_are_exact() -> None:
    for usec, expected in ((FULL_USEC + SLACK_USEC, {}), (1, {"impossible_cpu": 1})):
        history = ReplicaHistory()
        used = usec if usec > 1 else FULL_USEC + SLACK_USEC + 1
        assert of([_older(history, used), _busy(history, 1)]).counts == expected


def test_without_a_known_number_of_cpus_the_largest_machine_is_the_bound() -> None:
    """The CPUs of another pod say nothing: it may run on another machine."""
    history, other = (
        ReplicaHistory(),
        ReplicaHistory(pod_uid="another", epoch=5, now_ms=NOON_MS + 60 * MINUTE_MS),
    )
    history_usec, limit_usec = 500 * FULL_USEC, 2048 * (MINUTE_MS + 50) * 1000
    records = [_older(history, history_usec), _older(history, limit_usec)]
    (total,) = of([*records, _busy(other, FULL_USEC)]).replicas
    assert (total.records, total.excluded_records) == (3, 0)
    (total,) = of([_older(ReplicaHistory(), limit_usec + 1)]).replicas
    assert (total.records, total.excluded_records) == (0, 1)
