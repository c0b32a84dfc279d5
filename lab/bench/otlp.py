"""Decode OTLP metrics from protobuf, and compute CPU seconds from the cumulative points.

Only the fields that the computation needs are decoded. Their numbers are those of
`opentelemetry/proto/metrics/v1/metrics.proto`, version 1.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

CPU_TIME = "process.cpu.time"  # seconds of one process, one series per `state`
CUMULATIVE = 2  # AggregationTemporality
# The Collector computes the start of a process from the boot time, which it reads again and which
# the kernel rounds to seconds. So the same process may have two starts, this much apart at most.
SAME_START_NS = 2_000_000_000
USED = ("user", "system")  # the third state, `wait`, is time without CPU

Series = tuple[str, str]  # the process's id, and the state


@dataclass(frozen=True, order=True)
class Point:
    """One reading of one counter. Times are nanoseconds since 1970."""

    series: Series
    time_ns: int
    start_ns: int  # of the counter, which was zero then
    seconds: float


class OtlpError(ValueError):
    """A request is not what the computation expects."""


def decode_points(request: bytes) -> Iterator[Point]:
    """Yield the points of `process.cpu.time` in one request. Raises OtlpError."""
    for resource_metrics in _messages(request, 1):
        attributes = dict(
            _attribute(one)
            for resource in _messages(resource_metrics, 1)
            for one in _messages(resource, 1)
        )
        for scope_metrics in _messages(resource_metrics, 2):
            for metric in _messages(scope_metrics, 2):
                if _text(metric, 1) == CPU_TIME:
                    yield from _points(metric, attributes.get("process.pid", ""))


def count_seconds(points: Iterable[Point], since_ns: int = 0) -> float:
    """Return the CPU seconds that were used after `since_ns`, as a careful consumer counts them.

    Of the states, user and system count. For each start of each process, the last value counts:
    the counter was zero at the start, so nothing before the first reading is missing. A process
    that had started before `since_ns` counts from its first value after that time. A point that
    comes twice, as after a restart of the Collector, changes nothing. A value below its
    predecessor, or a start that is more than two seconds later, is another process with the same
    id.
    """
    total = 0.0
    ordered = sorted({one for one in points if one.time_ns >= since_ns and one.series[1] in USED})
    for _, series in groupby(ordered, key=lambda point: point.series):
        for run in _runs(series):
            first, last = run[0], run[-1]
            begun_before = first.start_ns + SAME_START_NS < since_ns
            total += last.seconds - (first.seconds if begun_before else 0.0)
    return total


def _runs(points: Iterable[Point]) -> Iterator[list[Point]]:
    run: list[Point] = []
    for point in points:
        if run and (
            point.seconds < run[-1].seconds or point.start_ns > run[0].start_ns + SAME_START_NS
        ):
            yield run
            run = []
        run.append(point)
    if run:
        yield run


def _points(metric: bytes, pid: str) -> Iterator[Point]:
    for total in _messages(metric, 7):
        temporality = [value for number, value in _fields(total) if number == 2]
        if temporality != [CUMULATIVE]:
            raise OtlpError(f"{CPU_TIME}: temporality {temporality}: expected {CUMULATIVE}")
        for point in _messages(total, 1):
            found = dict(field for field in _fields(point) if field[0] != 7)
            state = dict(_attribute(one) for one in _messages(point, 7)).get("state", "")
            yield Point(
                series=(pid, state),
                time_ns=_unsigned(found.get(3)),
                start_ns=_unsigned(found.get(2)),
                seconds=_double(found.get(4)),
            )


def _attribute(pair: bytes) -> tuple[str, str]:
    """Return a key and its value as text; only strings and integers are used."""
    (value,) = _messages(pair, 2) or [b""]
    for number, found in _fields(value):
        if number == 1 and isinstance(found, bytes):
            return _text(pair, 1), found.decode()
        if number == 3:
            return _text(pair, 1), str(found)
    return _text(pair, 1), ""


def _messages(data: bytes, number: int) -> list[bytes]:
    return [found for n, found in _fields(data) if n == number and isinstance(found, bytes)]


def _text(data: bytes, number: int) -> str:
    return b"".join(_messages(data, number)[:1]).decode()


def _unsigned(value: int | bytes | None) -> int:
    if not isinstance(value, int):
        raise OtlpError(f"{CPU_TIME}: a point has {value!r} as a time: expected an integer")
    return value


def _double(value: int | bytes | None) -> float:
    seconds: float = struct.unpack("<d", struct.pack("<Q", _unsigned(value)))[0]
    return seconds


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field: an integer, or bytes. Raises OtlpError."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:  # the wire type
            case 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
            case 2:
                size, at = _varint(data, at)
                yield tag >> 3, _slice(data, at, size)
                at += size
            case 1 | 5 as fixed:
                size = {1: 8, 5: 4}[fixed]
                yield tag >> 3, int.from_bytes(_slice(data, at, size), "little")
                at += size
            case kind:
                raise OtlpError(f"wire type {kind} at byte {at}: expected 0, 1, 2 or 5")


def _slice(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise OtlpError(f"the request ends at byte {len(data)}: expected {at + size} bytes")
    return data[at : at + size]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = _slice(data, at, 1)[0]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
