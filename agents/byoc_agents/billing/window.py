"""The meter's values, and the arithmetic of one open window.

Between two samples CPU use is assumed to be even and memory to change linearly, so that a counter
can be interpolated at the end of each window. Windows without a sample inside become one long
period, which is cut at UTC hours.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from byoc_agents.billing.record import MAX_CPUS, GapReason, SizeSource
from byoc_agents.billing.sources.reading import Reading, SourceName

HOUR_MS = 3_600_000
NS_PER_MS = 1_000_000
# How far wall clock and boot clock may differ over one interval before the wall clock counts as
# set: the two are read one after the other, and NTP slews by at most 0.5 ms per second.
SLEW_TOLERANCE_MS = 50
SLEW_TOLERANCE_RATIO = 0.001


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The target at one moment. `secondary`: readings of its other sources at the same time."""

    wall_ms: int
    boot_ns: int
    boot_id: str
    reading: Reading | None
    secondary: tuple[Reading, ...] = ()
    absent: bool = False  # no reading, and the target certainly does not run
    read_ns: int = 0  # duration of the reading, which was taken at some time before `boot_ns`
    asleep_ns: int | None = None  # since boot, CLOCK_BOOTTIME - CLOCK_MONOTONIC; None = unknown
    machine_cpus: int | None = None  # of the daemon's machine, if the reading does not show it

    def cpus(self) -> int:
        """Return an upper bound of the number of CPUs that the target can use."""
        seen = self.reading.machine_cpus if self.reading else None
        return seen or self.machine_cpus or MAX_CPUS


class LastSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The time of a sample on the boot clock, which is never set."""

    boot_ns: int
    boot_id: str
    read_ns: int = 0


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The container's limits as one source shows them. None = no limit, or not visible."""

    cpu_millicores: int | None
    memory_bytes: int | None
    cpu_source: SizeSource | None
    memory_source: SizeSource | None
    by: SourceName


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements from `start_ms` up to the last sample at `end_ms`."""

    start_ms: int
    end_ms: int
    cpu_start_usec: int
    reading: Reading  # at `end_ms`
    cpu_limit_millicores: int | None  # a change of the limits starts a new window
    memory_limit_bytes: int | None
    sized_by: SourceName
    cpu_size_source: SizeSource | None = None  # None = by `sized_by`
    memory_size_source: SizeSource | None = None
    resized_to: Size | None = None  # the size at the end, if it changed between two distant samples
    counted_ms: int = 0  # the time for which the size is billed
    counter_ns: int = 0  # upper bound of the time in which the counter rose
    machine_cpus: int | None = None
    seen: LastSeen | None = None  # the last sample
    memory_byte_ns: int = 0  # integral of the memory over time
    memory_max_bytes: int = 0
    elapsed_ns: int = 0
    pending_ns: int = 0  # time since `end_ms` with samples, but without a reading
    samples: int = 0
    longest_ns: int = 0  # the longest span without a sample
    estimated: bool = False  # part of it is not known exactly: it includes CPU of an earlier gap
    restart_observed: bool = False
    source_changed: bool = False
    clock_step_ms: int = 0
    # The readings of the other sources, taken when the main counter was `secondary_cpu_usec`
    secondary: tuple[Reading, ...] = msgspec.field(default=(), name="standby")
    secondary_cpu_usec: int = msgspec.field(default=0, name="standby_cpu_usec")


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """A closed window or a gap (`gap_reason`), ready to become a record."""

    start_ms: int
    end_ms: int
    window: Window | None = None  # closed: `window.end_ms` is `end_ms`; None in a gap
    gap_reason: GapReason = ""
    until: Reading | None = None  # a counter that rose from 0 to this reading in the gap
    sizes: tuple[Size, Size] | None = None  # of the container at both ends of a gap, if known
    counted_ms: int = 0  # the time of a gap for which the size is billed


class OpenGap(msgspec.Struct, frozen=True, kw_only=True):
    """The time without a reading. An absence of the target may have several consecutive gaps."""

    start_ms: int
    reason: GapReason = "target_absent"
    since: LastSeen | None = None  # the sample at which the absence began
    absent_ms: int | None = None  # when the target was last known not to run
    last: Reading | None = None  # the last reading before the absence
    size: Size | None = None  # the size at that time
    late_ms: int = 0  # time since then that is billed if the container turns out to be the same
    rebooted: bool = False  # the machine was rebooted since then
    # Nothing has been read since the start: the reason why earlier usage is not recorded
    unread: GapReason = ""


class MeterState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole state of the meter: the last sample's time, and an open window or an open gap."""

    wall_ms: int  # of the last sample
    boot_ns: int
    boot_id: str
    timeline_ms: int  # of the last sample: its wall clock, but never before the previous sample's
    phase: Window | OpenGap
    boot_alias: str | None = None  # another boot id under which this boot was seen last
    asleep_ns: int | None = None  # of the last sample, as in Sample
    machine_cpus: int | None = None  # of the last sample

    @property
    def last(self) -> Reading | None:
        """The last reading of the target."""
        return self.phase.reading if isinstance(self.phase, Window) else self.phase.last


def cut_points(after_ms: int, to_ms: int, window_ms: int) -> list[int]:
    """Return the times at which to cut the span between two samples, milliseconds since 1970.

    They are the ends of the first and of the last window in the span, and the full UTC hours.
    """
    first = (after_ms // window_ms + 1) * window_ms
    last = to_ms // window_ms * window_ms
    if last < first:
        return []
    hours = range((first // HOUR_MS + 1) * HOUR_MS, last, HOUR_MS)
    return sorted({first, *hours, last})


def advance(  # noqa: PLR0913  the description of one interval
    window: Window,
    to_ms: int,
    reading: Reading,
    elapsed_ns: int,
    at_ms: Sequence[int],
    *,
    earlier_ns: int = 0,
    clock_set: bool = False,
) -> tuple[Window, list[Period]]:
    """Extend the window up to `to_ms` and close a period at each time of `at_ms`.

    `reading` is of the same counter as the window's. `elapsed_ns` is the length of the interval on
    the boot clock. The counter may have risen for `earlier_ns` in addition. Sums are exact: each
    period starts with the values at which the previous one ended.
    """
    origin, span_ms = window, to_ms - window.end_ms
    elapsed_ns += window.pending_ns
    counter_ns = elapsed_ns + earlier_ns
    counted_ms = counted_span_ms(span_ms, elapsed_ns, clock_set=clock_set)
    window = replace(window, longest_ns=max(window.longest_ns, elapsed_ns), pending_ns=0)
    closed = []
    spent: tuple[int, ...] = (0, 0, 0)
    for cut_ms in at_ms:
        done = cut_ms - origin.end_ms
        cpu = _interpolate(origin.reading.cpu_usec, reading.cpu_usec, done, span_ms)
        memory = _interpolate(origin.reading.memory_bytes, reading.memory_bytes, done, span_ms)
        whole = (elapsed_ns, counter_ns, counted_ms)
        until = tuple(_interpolate(0, one, done, span_ms) for one in whole)
        there = replace(origin.reading, cpu_usec=cpu, memory_bytes=memory)
        window = _extend(window, cut_ms, there, *(b - a for a, b in zip(spent, until, strict=True)))
        spent = until
        closed.append(Period(start_ms=window.start_ms, end_ms=cut_ms, window=window))
        window = next_window(window, elapsed_ns)
    rest = (elapsed_ns - spent[0], counter_ns - spent[1], counted_ms - spent[2])
    window = _extend(window, to_ms, reading, *rest)
    if not closed or closed[-1].end_ms < to_ms:
        return replace(window, samples=window.samples + 1), closed
    last = closed[-1].window  # a sample exactly at the cut belongs to the window that ends
    counted_last = replace(last, samples=last.samples + 1) if last else None
    return window, [*closed[:-1], replace(closed[-1], window=counted_last)]


def counted_span_ms(span_ms: int, elapsed_ns: int, *, clock_set: bool) -> int:
    """Return the time for which a size is billed, milliseconds.

    It is the span of the wall clock, or the elapsed time if the wall clock was set.
    """
    if clock_set:
        return elapsed_ns // NS_PER_MS
    elapsed_ms = elapsed_ns // NS_PER_MS
    tolerance_ms = max(SLEW_TOLERANCE_MS, elapsed_ms * SLEW_TOLERANCE_RATIO)
    return span_ms if abs(span_ms - elapsed_ms) <= tolerance_ms else elapsed_ms


def next_window(closed: Window, longest_ns: int = 0) -> Window:
    """Return the empty window that follows a closed one of the same counter."""
    return Window(
        start_ms=closed.end_ms,
        end_ms=closed.end_ms,
        cpu_start_usec=closed.reading.cpu_usec,
        reading=closed.reading,
        cpu_limit_millicores=closed.cpu_limit_millicores,
        memory_limit_bytes=closed.memory_limit_bytes,
        sized_by=closed.sized_by,
        cpu_size_source=closed.cpu_size_source,
        memory_size_source=closed.memory_size_source,
        machine_cpus=closed.machine_cpus,
        seen=closed.seen,
        memory_max_bytes=closed.reading.memory_bytes,
        longest_ns=longest_ns,
        secondary=closed.secondary,
        secondary_cpu_usec=closed.secondary_cpu_usec,
    )


def size_of(reading: Reading) -> Size:
    """Return the size that a reading shows."""
    by: SizeSource = "clickhouse" if reading.source == "clickhouse" else "cgroup"
    return Size(
        cpu_millicores=reading.cpu_limit_millicores,
        memory_bytes=reading.memory_limit_bytes,
        cpu_source=reading.cpu_limit_source or by,
        memory_source=reading.memory_limit_source or by,
        by=reading.source,
    )


def size_at(window: Window) -> Size:
    """Return the size at the start of the window."""
    by: SizeSource = "clickhouse" if window.sized_by == "clickhouse" else "cgroup"
    return Size(
        cpu_millicores=window.cpu_limit_millicores,
        memory_bytes=window.memory_limit_bytes,
        cpu_source=window.cpu_size_source or by,
        memory_source=window.memory_size_source or by,
        by=window.sized_by,
    )


def size_after(before: Size | None, reading: Reading) -> Size:
    """Return the size after a reading.

    If the reading is of another source and shows no limit, the limit of before is kept.
    """
    now = size_of(reading)
    if before is None or before.by == now.by:
        return now
    if now.cpu_millicores is None:
        now = replace(now, cpu_millicores=before.cpu_millicores, cpu_source=before.cpu_source)
    if now.memory_bytes is None:
        now = replace(now, memory_bytes=before.memory_bytes, memory_source=before.memory_source)
    unseen = (reading.cpu_limit_millicores, reading.memory_limit_bytes) == (None, None)
    return replace(now, by=before.by) if unseen else now


def same_size(one: Size, other: Size) -> bool:
    """Return whether both limits are equal. The sources that show them may differ."""
    return (one.cpu_millicores, one.memory_bytes) == (other.cpu_millicores, other.memory_bytes)


def with_limits(window: Window, size: Size) -> Window:
    """Return the window with the limits of a size."""
    return replace(
        window,
        cpu_limit_millicores=size.cpu_millicores,
        memory_limit_bytes=size.memory_bytes,
        sized_by=size.by,
        cpu_size_source=size.cpu_source,
        memory_size_source=size.memory_source,
    )


def first_window(reading: Reading, start_ms: int, cpu_start_usec: int) -> Window:
    """Return the first window of a counter, which starts when it showed `cpu_start_usec`."""
    return Window(
        start_ms=start_ms,
        end_ms=start_ms,
        cpu_start_usec=cpu_start_usec,
        reading=replace(reading, cpu_usec=cpu_start_usec),
        cpu_limit_millicores=reading.cpu_limit_millicores,
        memory_limit_bytes=reading.memory_limit_bytes,
        sized_by=reading.source,
        cpu_size_source=reading.cpu_limit_source,
        memory_size_source=reading.memory_limit_source,
        memory_max_bytes=reading.memory_bytes,
    )


def add_clock_jump(window: Window, jump_ms: int) -> Window:
    """Add the time by which the wall clock was set since the last sample."""
    if not jump_ms:
        return window
    return replace(window, clock_step_ms=window.clock_step_ms + jump_ms)


def ensure_nonempty(window: Window) -> Window:
    """Return a window that can be closed.

    A window that has content but no length on the wall clock, which was set back, gets a length of
    one millisecond.
    """
    holds = window.elapsed_ns > 0 or window.counted_ms > 0
    holds = holds or window.reading.cpu_usec > window.cpu_start_usec
    held = holds and window.end_ms == window.start_ms
    return replace(window, end_ms=window.start_ms + 1) if held else window


def close_window(window: Window) -> list[Period]:
    """Return the window as a closed period, or no period if the window has no length."""
    if window.end_ms == window.start_ms:
        return []
    return [Period(start_ms=window.start_ms, end_ms=window.end_ms, window=window)]


def gap(  # noqa: PLR0913  the fields of a gap record
    start_ms: int,
    end_ms: int,
    reason: GapReason,
    until: Reading | None = None,
    *,
    sizes: tuple[Size, Size] | None = None,
    counted_ms: int = 0,
) -> list[Period]:
    """Return the period of a gap, or no period if the gap has no length."""
    if end_ms <= start_ms:
        return []
    return [
        Period(
            start_ms=start_ms,
            end_ms=end_ms,
            gap_reason=reason,
            until=until,
            sizes=sizes,
            counted_ms=counted_ms if sizes else 0,
        )
    ]


def _extend(  # noqa: PLR0913, PLR0917  the three durations of one interval
    window: Window, to_ms: int, reading: Reading, elapsed_ns: int, counter_ns: int, counted_ms: int
) -> Window:
    mean_twice = window.reading.memory_bytes + reading.memory_bytes
    return replace(
        window,
        end_ms=to_ms,
        reading=reading,
        memory_byte_ns=window.memory_byte_ns + mean_twice * elapsed_ns // 2,
        memory_max_bytes=max(window.memory_max_bytes, reading.memory_bytes),
        elapsed_ns=window.elapsed_ns + elapsed_ns,
        counter_ns=window.counter_ns + counter_ns,
        counted_ms=window.counted_ms + counted_ms,
    )


def _interpolate(start: int, end: int, done: int, whole: int) -> int:
    return start + (end - start) * done // whole
