"""The usage as text for a terminal."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import groupby

from byoc_agents.audit.render import problem_text
from byoc_agents.audit.report import Report
from byoc_agents.usage.report import Amounts, UsageReport

_COLUMNS = (
    *("day (UTC)", "core-hours used", "allocated", "GiB-hours used", "allocated"),
    "not measured",
)
_DIGITS = Decimal("0.001")  # all of them are in --json


def usage_text(usage: UsageReport, audited: Report) -> Iterator[str]:
    """Yield the lines: the days of each service, its total, and what is wrong."""
    yield f"{usage.target}: {usage.objects} objects, {usage.records} records"
    totals = iter(usage.services)
    for (organization, service), days in groupby(
        usage.days, lambda day: (day.organization_id, day.service_id)
    ):
        yield ""
        yield f"{organization}/{service}"
        total = next(totals)
        yield from _table([_COLUMNS, *map(_row, days), _row(total)])
        yield from (f"  {note}" for note in notes(total))
    if usage.unkept_records:
        yield ""
        yield f"{usage.unkept_records} records have no kept body and are missing in all figures"
    yield from problem_text(audited)


def notes(total: Amounts) -> Iterator[str]:
    """Yield sentences on time and records that are not in the sums of a service."""
    for figure, unknown in (
        ("CPU", total.unknown_allocated_cpu_seconds),
        ("memory", total.unknown_allocated_memory_seconds),
    ):
        if unknown:
            yield f"allocated {figure} unknown for {unknown} s, which is in no sum"
    if total.covered_gap_seconds:
        covered = f"{total.covered_gap_seconds} s, which are not in the table"
        yield f"gaps over time that other records cover: {covered}"
    if total.excluded_records:
        excluded = f"{total.excluded_records} records, {total.excluded_core_seconds}"
        yield f"excluded from all sums as impossible: {excluded} core seconds"


def gap_text(amounts: Amounts) -> str:
    """Return the time without a measurement, by reason; `-` if there is none."""
    gaps = amounts.gap_seconds.items()
    return ", ".join(f"{reason} {seconds} s" for reason, seconds in gaps) or "-"


def _row(amounts: Amounts) -> tuple[str, ...]:
    hours = (
        amounts.core_hours,
        amounts.allocated_core_hours,
        amounts.gib_hours,
        amounts.allocated_gib_hours,
    )
    figures = [str(hour.quantize(_DIGITS)) for hour in hours]
    return (amounts.date or "all", *figures, gap_text(amounts))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *figures, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(figures, widths[1:-1], strict=True)]
        yield "  ".join(["", first.ljust(widths[0]), *cells, last])
