"""The audit refuses CPU that no machine has, and sums sizes that are known only."""

from collections.abc import Iterator
from decimal import Decimal

from msgspec.structs import replace

from byoc_agents.audit.evidence import Claim, Evidence, PodEpoch
from byoc_agents.audit.reconcile import conclude
from byoc_agents.billing.record import UsageRecord
from lab.fakes.billing import MINUTE_MS, Story, altered
from tests.unit.billing.buckets import of


def _sized(record: UsageRecord, **fields: object) -> UsageRecord:
    return altered(record, allocated=replace(record.data.allocated, **fields))


def test_more_cpu_than_the_machine_has_is_a_problem_and_in_no_sum() -> None:
    story = Story()
    first, second = story.measured(), story.measured()
    tiny = altered(first, machine_cpus=1, counter_milliseconds=0)
    report = of([tiny, second])
    (finding,) = report.findings
    (total,) = report.replicas
    assert not report.well
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
    story = Story()
    (total,) = of(
        [_sized(story.measured(), cpu_millicores=None), _sized(story.measured(), memory_bytes=None)]
    ).replicas
    assert total.unknown_allocated_cpu_seconds == 60
    assert total.unknown_allocated_memory_seconds == 60
    assert total.unallocated_seconds == 120
    assert total.allocated_core_seconds == 240
    assert total.allocated_byte_seconds == (16 << 30) * 60


def test_counted_time_of_a_gap_is_allocated_and_a_gap_of_version_0_1_is_not() -> None:
    story = Story()
    records = [
        story.measured(),
        _sized(story.gap("source_changed"), counted_milliseconds=MINUTE_MS),
        story.gap("target_unreadable"),
        story.measured(),
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
    evidence = Evidence(partial=False, recent_ids=1)
    claims = _Claims({PodEpoch("o", "s", f"p-{n}", 0): Claim() for n in range(100)})
    evidence.claims = claims  # type: ignore[assignment]
    conclude(evidence, "")
    assert claims.reads == 1
