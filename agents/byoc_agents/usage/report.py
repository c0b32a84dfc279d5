"""The figures of `byoc-agents usage`, one struct for people and machines."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction

import msgspec

from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.audit.audit import ServiceDay
from byoc_agents.audit.replica import DAY_MS, UsageSums
from byoc_agents.audit.report import Report, seconds, shift_point
from byoc_agents.billing.record import GapReason

HOUR_SECONDS = 3600
GIB = 2**30
HOUR_DIGITS = 6  # of a rounded figure in hours: 3.6 core milliseconds


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    """The usage of one service, on one UTC day or on all of them: then `date` is empty.

    The figures in seconds are exact, and those of `totals.sql`. Those in hours are made from them,
    rounded to six digits: a total is not the sum of rounded days. Each record belongs to the day of
    its start. `gap_seconds` and `covered_gap_seconds` together are the gaps of `totals.sql`.
    """

    organization_id: str
    service_id: str
    date: str  # YYYY-MM-DD
    records: int
    core_seconds: Decimal  # used
    byte_seconds: int  # used
    allocated_core_seconds: Decimal
    allocated_byte_seconds: Decimal
    core_hours: Decimal  # used
    gib_hours: Decimal  # used; GiB = 2^30 bytes
    allocated_core_hours: Decimal
    allocated_gib_hours: Decimal
    measured_seconds: Decimal
    estimated_seconds: Decimal
    gap_seconds: dict[GapReason, Decimal]  # time without any other record
    covered_gap_seconds: Decimal  # of gaps over time that other records cover
    unknown_allocated_cpu_seconds: Decimal  # time whose size is unknown, so it is in no sum
    unknown_allocated_memory_seconds: Decimal
    excluded_records: int  # with more CPU than their machine has: in no other figure
    excluded_core_seconds: Decimal


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """All figures. They are complete if `problems` is empty."""

    target: str
    objects: int
    records: int  # lines read, duplicates and damaged ones included
    unkept_records: int  # in no figure, because the ledgers do not keep their bodies
    problems: dict[str, int]  # findings of `byoc-agents verify` by kind
    days: list[Amounts]  # by organization, service and date
    services: list[Amounts]  # the totals of each service


def report_usage(
    audited: Report, days: Mapping[ServiceDay, UsageSums], unkept_records: int = 0
) -> UsageReport:
    """Return the figures of an audit by day; `days` are in order."""
    services: dict[tuple[str, str], UsageSums] = {}
    for place, sums in days.items():
        services.setdefault(place[:2], UsageSums()).merge(sums)
    return UsageReport(
        target=audited.target,
        objects=audited.objects,
        records=audited.records,
        unkept_records=unkept_records,
        problems=audited.counts,
        days=[_amounts(place[:2], _date(place.day), sums) for place, sums in days.items()],
        services=[_amounts(name, "", sums) for name, sums in services.items()],
    )


def dates_of(days: Iterable[Amounts]) -> tuple[str, str]:
    """Return the first and the last date. Raises ValueError if there is none."""
    dates = [day.date for day in days]
    return min(dates), max(dates)


def _date(day: int) -> str:
    return rfc3339(day * DAY_MS)[:10]


def _amounts(name: tuple[str, str], date: str, sums: UsageSums) -> Amounts:
    allocated_core_seconds = shift_point(sums.allocated_millicore_ms, 6)
    allocated_byte_seconds = seconds(sums.allocated_byte_ms)
    return Amounts(
        organization_id=name[0],
        service_id=name[1],
        date=date,
        records=sums.records,
        core_seconds=sums.core_seconds,
        byte_seconds=sums.byte_seconds,
        allocated_core_seconds=allocated_core_seconds,
        allocated_byte_seconds=allocated_byte_seconds,
        core_hours=_hours(sums.core_seconds),
        gib_hours=_hours(sums.byte_seconds, GIB),
        allocated_core_hours=_hours(allocated_core_seconds),
        allocated_gib_hours=_hours(allocated_byte_seconds, GIB),
        measured_seconds=seconds(sums.measured_ms),
        estimated_seconds=seconds(sums.estimated_ms),
        gap_seconds={reason: seconds(ms) for reason, ms in sorted(sums.gap_ms.items()) if ms},
        covered_gap_seconds=seconds(sums.covered_gap_ms),
        unknown_allocated_cpu_seconds=seconds(sums.unknown_cpu_ms),
        unknown_allocated_memory_seconds=seconds(sums.unknown_memory_ms),
        excluded_records=sums.excluded_records,
        excluded_core_seconds=sums.excluded_core_seconds,
    )


def _hours(amount: Decimal | int, unit: int = 1) -> Decimal:
    """Return hours of an amount in seconds, rounded half to even."""
    exact = Fraction(amount) / (unit * HOUR_SECONDS)
    return Decimal(round(exact * 10**HOUR_DIGITS)).scaleb(-HOUR_DIGITS)
