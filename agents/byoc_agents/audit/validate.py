"""Check that the fields of a record agree with each other and with the key of its object.

Few other fields depend on memory, size and quality; the checksum of the frame protects their bytes.
Only the bucket's access control protects against someone who seals a changed object again.
"""

import json
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from byoc_agents.app.cloudevents import encode, parse_rfc3339, rfc3339, source_uri
from byoc_agents.billing.objects import ObjectKey
from byoc_agents.billing.record import (
    TYPE,
    Allocated,
    CpuBound,
    Resized,
    Usage,
    UsageRecord,
    record_id,
)

NO_CPU = Decimal(0)  # comparing with an int takes three times as long
MAX_CORE_SECONDS = Decimal(10) ** 15  # far beyond any machine; the sums stay exact
# Bounds of the other figures, far beyond any machine too: ClickHouse adds their products exactly.
# It takes an integer that does not fit its column for a smaller one.
MAX_TIME_MS = 10 * 366 * 86_400_000
MAX_MILLICORES = 10**12
MAX_MACHINE_CPUS = 10**6
MAX_BYTES = MAX_NUMBER = 2**63 - 1
MAX_BYTE_SECONDS = 2**96
MAX_SAMPLES = 2**32 - 1
MICROSECOND = Decimal("0.000001")
YEAR_2100_MS = 4_102_444_800_000  # ClickHouse has days from 1970 on
# Readings are at least 100 ms apart; ten times as many are impossible.
SHORTEST_SAMPLE_MS, FEWEST_SAMPLES = 10, 100
STEP_TOLERANCE_MS = 1000  # the meter's
TIME_LENGTH = 24
YEAR_1_MS, YEAR_10000_MS = -62_135_596_800_000, 253_402_300_800_000  # other years have no text

_decode = msgspec.json.Decoder(UsageRecord).decode
_DECIMALS = ("cpu_core_seconds", "start", "end")
_NEGATIVE_ZERO = object()


class _Repeated(dict[str, Any]):
    """A JSON object with a key twice."""


def decode(line: bytes) -> UsageRecord:
    """Return a record. Raises ValueError if it is not one, or has an invalid CPU figure.

    It accepts the same lines as the views of `billing/sql/table.sql`, so that the same bytes have
    one meaning for both. So it refuses some lines that msgspec takes, such as a key given twice.
    """
    # Few lines have one of these bytes, and a search for one byte is fast.
    if (b"#" in line or b"\\" in line) and (b'"#' in line or b'"\\u0023' in line):
        raise ValueError("a text begins with #, by which ClickHouse finds the numbers")
    try:
        record = _decode(line)
        if encode(record) != line:  # of another version, or not written by a scraper
            _check_writing(line)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not _has_possible_figures(record.data):
        raise ValueError("a CPU figure is negative, too large or no number")
    return record


def _check_writing(line: bytes) -> None:
    """Check a record by an exact parser. Raises ValueError."""
    found = json.loads(line, object_pairs_hook=_collect, parse_int=_mark_negative_zero)
    usage = found["data"]
    size, counter = usage["allocated"], usage["counter"] or {}
    objects = (found, usage, size, size.get("resized") or {}, usage["used"], usage["samples"])
    for fields in (*objects, counter):
        if isinstance(fields, _Repeated):
            raise ValueError("a key is given twice")  # noqa: TRY004  of the text, not of a caller
        if any(fields[name] is _NEGATIVE_ZERO for name in fields.keys() - _DECIMALS):
            raise ValueError("an integer is written as -0")
    figures = (usage["used"]["cpu_core_seconds"], *counter.values())
    if any(isinstance(figure, str) for figure in figures):
        raise ValueError("a CPU figure is a text")


def _collect(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _Repeated(fields)


def _mark_negative_zero(text: str) -> object:
    return _NEGATIVE_ZERO if text == "-0" else 0


@lru_cache(maxsize=1024)  # one record's end is the next one's start
def _milliseconds(text: str) -> int:
    """Return milliseconds since 1970. Raises ValueError for a time in another form than ours."""
    milliseconds = parse_rfc3339(text)
    # Of all that it reads, these are in the form of `rfc3339`, which takes twice as long.
    is_ours = len(text) == TIME_LENGTH and text[10:20:9] == "T." and text[23] == "Z"
    if not is_ours or text[5] == "W" or text[11:13] == "24":  # a week; Python 3.13 reads 24:00
        raise ValueError(f"the time {text!r}, expected as in {rfc3339(0)!r}")
    return milliseconds


def _has_possible_figures(usage: Usage) -> bool:
    counter = usage.counter
    try:
        sound = NO_CPU <= usage.used.cpu_core_seconds < MAX_CORE_SECONDS
        if counter is None:
            return sound
        start_sound = NO_CPU <= counter.start < MAX_CORE_SECONDS
        return sound and start_sound and NO_CPU <= counter.end < MAX_CORE_SECONDS  # noqa: TRY300
    except ArithmeticError:  # NaN compares with nothing
        return False


class CheckedPeriod(NamedTuple):
    """A record's period, milliseconds since 1970."""

    start_ms: int
    end_ms: int


def find_misplacement(usage: Usage, key: ObjectKey, start_ms: int) -> str:
    """Return how a record contradicts its object's key; empty if it does not."""
    if key.shared:
        return _find_misplacement_in_shared(usage, key, start_ms)
    pod = usage.pod_uid or usage.replica
    if (
        pod != key.pod
        or usage.epoch != key.epoch
        or usage.organization_id != key.organization_id
        or usage.service_id != key.service_id
    ):
        return f"the record is of {(usage.organization_id, usage.service_id, pod, usage.epoch)}"
    if not key.first <= usage.sequence <= key.last:
        return f"sequence {usage.sequence}"
    if usage.sequence == key.first and rfc3339(start_ms)[:13] != f"{key.date}T{key.hour}":
        return f"the first record starts at {usage.charge_period_start}"
    return ""


def _find_misplacement_in_shared(usage: Usage, key: ObjectKey, start_ms: int) -> str:
    if (owner := (usage.organization_id, usage.service_id)) != key[:2]:
        return f"the record is of {owner}"
    if rfc3339(start_ms)[:13] != f"{key.date}T{key.hour}":
        return f"a record starts at {usage.charge_period_start}"
    return ""


def period(usage: Usage) -> CheckedPeriod:
    """Return the period. Raises ValueError if it is malformed, empty or in no year of 4 digits."""
    start_ms = _milliseconds(usage.charge_period_start)
    end_ms = _milliseconds(usage.charge_period_end)
    if start_ms >= end_ms:
        raise ValueError(f"the period ends at {usage.charge_period_end}, not after its start")
    if start_ms < YEAR_1_MS or end_ms >= YEAR_10000_MS:
        raise ValueError(
            f"the period {usage.charge_period_start} to {usage.charge_period_end} is not in the "
            "years 1 to 9999"
        )
    return CheckedPeriod(start_ms, end_ms)


def find_contradiction(record: UsageRecord, span: CheckedPeriod) -> str:
    """Return how a record with this period contradicts itself; empty if it does not."""
    usage = record.data
    if record.type != TYPE:
        return f"type {record.type!r}"
    if record.source != source_uri(usage.organization_id, usage.service_id, usage.replica):
        return f"source {record.source!r}"
    if record.id != record_id(usage):
        return "its id does not recompute from its data"
    if (usage.quality == "gap") != bool(usage.gap_reason):
        return f"quality {usage.quality} with gap reason {usage.gap_reason!r}"
    if usage.source == "none" and usage.quality != "gap":
        return f"quality {usage.quality} without a source"
    return (
        _find_excess(usage, span) or _sizes(usage, span.end_ms - span.start_ms) or _figures(usage)
    )


def find_impossible_cpu(usage: Usage, bound: CpuBound | None) -> str:
    """Return the rule that a record's CPU breaks, with both figures; empty if it breaks none."""
    if bound is None or usage.used.cpu_core_seconds <= bound.core_seconds:
        return ""
    return (
        f"used {usage.used.cpu_core_seconds} core seconds, expected at most {bound.core_seconds}: "
        f"elapsed time x {bound.cpus} CPUs plus slack"
    )


def _find_excess(usage: Usage, span: CheckedPeriod) -> str:
    """Return which figure is beyond its bound; empty if none is.

    `totals.sql` has the same rules, if `table.sql` does not refuse the record before.
    """
    size, used, samples = usage.allocated, usage.used, usage.samples
    if span.start_ms < 0 or span.end_ms > YEAR_2100_MS:
        return "the period is not in the years 1970 to 2099"
    if (figure := _find_fine_cpu(usage)) is not None:
        return f"{figure} core seconds, expected at most six digits after the point"
    if (
        span.end_ms - span.start_ms > MAX_TIME_MS
        or usage.elapsed_milliseconds > MAX_TIME_MS
        or (usage.counter_milliseconds or 0) > MAX_TIME_MS
        or (size.counted_milliseconds or 0) > MAX_TIME_MS
    ):
        return f"a time is longer than {MAX_TIME_MS} ms"
    if (
        (size.cpu_millicores or 0) > MAX_MILLICORES
        or (size.memory_bytes or 0) > MAX_BYTES
        or (usage.machine_cpus or 0) > MAX_MACHINE_CPUS
        or used.memory_max_bytes > MAX_BYTES
        or used.memory_byte_seconds > MAX_BYTE_SECONDS
    ):
        return "a size is beyond any machine"
    if (
        not 0 <= usage.epoch <= MAX_NUMBER
        or not 0 <= usage.sequence <= MAX_NUMBER
        or abs(usage.clock_step_milliseconds) > MAX_NUMBER
        or max(samples.expected, samples.observed) > MAX_SAMPLES
    ):
        return "a number does not fit its column"
    return ""


def _find_fine_cpu(usage: Usage) -> Decimal | None:
    """Return a CPU figure with more than six digits after the point; None if there is none."""
    used, counter = usage.used.cpu_core_seconds, usage.counter
    start, end = (counter.start, counter.end) if counter else (used, used)
    same = MICROSECOND.same_quantum
    if same(used) and same(start) and same(end):
        return None
    for figure in (used, start, end):
        exponent = figure.as_tuple().exponent
        if not isinstance(exponent, int) or not MICROSECOND.adjusted() <= exponent <= 0:
            return figure
    return None


def _sizes(usage: Usage, period_ms: int) -> str:
    size = usage.allocated
    counted_ms, counter_ms = size.counted_milliseconds or 0, usage.counter_milliseconds or 0
    if (size.cpu_millicores or 0) < 0 or (size.memory_bytes or 0) < 0 or counted_ms < 0:
        return "an allocated figure is negative"
    if usage.elapsed_milliseconds < 0 or counter_ms < 0:
        return "an elapsed time is negative"
    if usage.machine_cpus is not None and usage.machine_cpus < 1:
        return f"a machine of {usage.machine_cpus} CPUs"
    if size.resized and (problem := _find_resize_problem(size, size.resized)):
        return problem
    return _times(usage, period_ms)


def _find_resize_problem(size: Allocated, ends: Resized) -> str:
    """Return how a size is not the smaller one of both ends of an unobserved change."""
    for name, counted, start, end in (
        ("cpu_millicores", size.cpu_millicores, ends.cpu_millicores_start, ends.cpu_millicores_end),
        ("memory_bytes", size.memory_bytes, ends.memory_bytes_start, ends.memory_bytes_end),
    ):
        if not 0 <= min(start or 0, end or 0) <= max(start or 0, end or 0) <= MAX_BYTES:
            return f"allocated.resized has a size that is negative or beyond {MAX_BYTES}"
        expected = None if start is None or end is None else min(start, end)
        if counted != expected:
            return f"allocated {name} {counted}, expected {expected} by the sizes of both ends"
    return ""


def _times(usage: Usage, period_ms: int) -> str:
    """Return how the time and the number of readings of a record contradict each other.

    A period may be shorter than the elapsed time if the wall clock was set back before. Between two
    readings, the wall clock may gain up to a second before that counts as a step.
    """
    samples, elapsed_ms = usage.samples, usage.elapsed_milliseconds
    if samples.expected < 0 or samples.observed < 0:
        return "a number of samples is negative"
    most = FEWEST_SAMPLES + max(elapsed_ms, period_ms) // SHORTEST_SAMPLE_MS
    if samples.observed > most:
        return f"{samples.observed} samples, expected at most {most} in the time"
    if usage.quality != "measured" or usage.counter_milliseconds is None:
        return ""
    most_ms = elapsed_ms + STEP_TOLERANCE_MS * (samples.observed + 1) + elapsed_ms // 1000
    if usage.clock_step_milliseconds == 0 and period_ms > most_ms:
        return f"a period of {period_ms} ms and {elapsed_ms} ms elapsed, without a clock step"
    return ""


def _figures(usage: Usage) -> str:
    used, counter = usage.used, usage.counter
    if used.memory_byte_seconds < 0 or used.memory_max_bytes < 0:
        return "a memory figure is negative"
    if usage.quality == "gap":
        return _gap_figures(usage)
    if counter is None or counter.end - counter.start != used.cpu_core_seconds:
        return f"the counter does not rise by the {used.cpu_core_seconds} core seconds used"
    # A trapezoid is nowhere higher than its highest sample; 1 ms for the rounding of `elapsed`.
    most = used.memory_max_bytes * (usage.elapsed_milliseconds + 1)
    if used.memory_byte_seconds * 1000 > most:
        return "memory_byte_seconds is more than memory_max_bytes over the whole period"
    return ""


def _gap_figures(usage: Usage) -> str:
    if (usage.used.cpu_core_seconds, usage.used.memory_byte_seconds) != (Decimal(0), 0):
        return "a gap with usage"
    if usage.counter and usage.counter.end < usage.counter.start:
        return "the counter of a gap falls"
    return ""
