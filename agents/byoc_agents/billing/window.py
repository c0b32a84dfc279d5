"""The meter's values, and the arithmetic of one open window.

Between two samples CPU and memory are taken to run evenly, so a counter can be read off at every
window's end; windows without any sample inside become one long period, cut at UTC hours.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from byoc_agents.billing.record import MAX_CPUS, GapReason, SizeSource
from byoc_agents.billing.sources.reading import Reading, SourceName

HOUR_MS = 3_600_000
NS_PER_MS = 1_000_000
# How far wall clock and boot clock may be apart over one interval before the wall clock is taken to
# have been set: the two are read one after the other, and NTP slews by 0.5 ms a second at most.
SLEW_TOLERANCE_MS = 50
SLEW_TOLERANCE_RATIO = 0.001


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The target at one moment. `secondary`: readings of its other sources at the same time."""

    wall_ms: int
    boot_ns: int
    boot_id: str
    reading: Reading | None
    secondary: tuple[Reading, ...] = ()
    absent: bool = False  # no reading because surely nothing runs; else it could not be read
    read_ns: int = 0  # how long before `boot_ns` the reading began: it is of some time in between
    asleep_ns: int | None = None  # since boot, CLOCK_BOOTTIME - CLOCK_MONOTONIC; None = unknown
    machine_cpus: int | None = None  # of the agent's machine

    def cpus(self) -> int:
        """Return the number of CPUs that can have used CPU time, at most."""
        seen = self.reading.machine_cpus if self.reading else None
        return seen or self.machine_cpus or MAX_CPUS


class LastSeen(msgspec.Struct, frozen=True, kw_only=True):
    """When something was seen, on the clock that is never set."""

    boot_ns: int
    boot_id: str
    read_ns: int = 0


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The container's size as one source sees it. None = no limit, or not visible."""

    cpu_millicores: int | None
    memory_bytes: int | None
    cpu_source: SizeSource | None
    memory_source: SizeSource | None
    by: SourceName


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What has been measured from `start_ms` up to the last sample at `end_ms`."""

    start_ms: int
    end_ms: int
    cpu_start_usec: int
    reading: Reading  # at `end_ms`
    cpu_limit_millicores: int | None  # the size from `start_ms` on; another size, another window
    memory_limit_bytes: int | None
    sized_by: SourceName
    cpu_size_source: SizeSource | None = None  # None = by `sized_by`
    memory_size_source: SizeSource | None = None
    resized_to: Size | None = None  # the size at the end, if it changed while nobody looked
    counted_ms: int = 0  # for how long the size counts
    counter_ns: int = 0  # at most how long the counter had to rise
    machine_cpus: int | None = None
    seen: LastSeen | None = None  # the last sample
    memory_byte_ns: int = 0  # integral
    memory_max_bytes: int = 0
    elapsed_ns: int = 0
    pending_ns: int = 0  # since `end_ms`, over samples without a reading
    samples: int = 0
    longest_ns: int = 0  # the longest span without a sample
    estimated: bool = False  # some of it is not known: a counter fell, a gap is carried over
    restart_observed: bool = False
    source_changed: bool = False
    clock_step_ms: int = 0
    # The readings of the other sources, taken when the main counter was `secondary_cpu_usec`
    secondary: tuple[Reading, ...] = msgspec.field(default=(), name="standby")
    secondary_cpu_usec: int = msgspec.field(default=0, name="standby_cpu_usec")


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """A closed window, or a gap (`gap_reason`), ready to be written down as a record."""

    start_ms: int
    end_ms: int
    window: Window | None = None  # closed, `window.end_ms` = `end_ms`; None in a gap
    gap_reason: GapReason = ""
    until: Reading | None = None  # a counter that ran from 0 to here over the gap
    sizes: tuple[Size, Size] | None = None  # of the container at both ends of a gap, if known
    counted_ms: int = 0  # for how long the size counts in a gap


class MeterState(msgspec.Struct, frozen=True, kw_only=True):
    """All that the meter remembers. The checkpoint in the spool is this, as JSON."""

    wall_ms: int  # of the last sample
    boot_ns: int
    boot_id: str
    place_ms: int  # of the last sample in our time, which never runs backwards
    window: Window | None = None  # open, while there is a target
    gap_start_ms: int = 0  # open, while there is none
    gap_reason: GapReason = "target_absent"
    since: "LastSeen | None" = None  # when the whole absence began
    absent_ms: int | None = None  # when it was last sure that nothing ran
    last: Reading | None = None  # what its counter showed before the absence
    size: Size | None = None  # what size it had then
    late_ms: int = 0  # time since then that counts if the container turns out to be the same
    rebooted: bool = False  # the machine was, since then
    unread: GapReason = ""  # nothing was ever read: why what was before the start is not recorded
    boot_alias: str | None = None  # another boot id under which this boot was seen last
    asleep_ns: int | None = None  # of the last sample, as in Sample
    machine_cpus: int | None = None  # of the last sample


def cut_points(after_ms: int, to_ms: int, window_ms: int) -> list[int]:
    """Return where to cut the span between two samples: first and last window's end, and hours."""
    first = (after_ms // window_ms + 1) * window_ms
    last = to_ms // window_ms * window_ms
    if last < first:
        return []
    hours = range((first // HOUR_MS + 1) * HOUR_MS, last, HOUR_MS)
    return sorted({first, *hours, last})


def advance(  # noqa: PLR0913  what happened in one interval
    window: Window,
    to_ms: int,
    reading: Reading,
    elapsed_ns: int,
    at_ms: Sequence[int],
    *,
    earlier_ns: int = 0,
    clock_set: bool = False,
) -> tuple[Window, list[Period]]:
    """Measure up to `to_ms`, closing a period at each cut. `reading` continues the window's life.

    `elapsed_ns` is how long that took on the boot clock, `earlier_ns` what the counter had in
    addition to rise. Sums are exact: what one period ends with, the next one starts with.
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
        cpu = _between(origin.reading.cpu_usec, reading.cpu_usec, done, span_ms)
        memory = _between(origin.reading.memory_bytes, reading.memory_bytes, done, span_ms)
        whole = (elapsed_ns, counter_ns, counted_ms)
        until = tuple(_between(0, one, done, span_ms) for one in whole)
        there = replace(origin.reading, cpu_usec=cpu, memory_bytes=memory)
        window = _extend(window, cut_ms, there, *(b - a for a, b in zip(spent, until, strict=True)))
        spent = until
        closed.append(Period(start_ms=window.start_ms, end_ms=cut_ms, window=window))
        window = next_window(window, elapsed_ns)
    rest = (elapsed_ns - spent[0], counter_ns - spent[1], counted_ms - spent[2])
    window = _extend(window, to_ms, reading, *rest)
    if not closed or closed[-1].end_ms < to_ms:
        return replace(window, samples=window.samples + 1), closed
    last = closed[-1].window  # the sample stands on the cut: it belongs to the window that ends
    counted_last = replace(last, samples=last.samples + 1) if last else None
    return window, [*closed[:-1], replace(closed[-1], window=counted_last)]


def counted_span_ms(span_ms: int, elapsed_ns: int, *, clock_set: bool) -> int:
    """Return how long a size counts, milliseconds: the wall clock's span, unless it was set."""
    if clock_set:
        return elapsed_ns // NS_PER_MS
    elapsed_ms = elapsed_ns // NS_PER_MS
    tolerance_ms = max(SLEW_TOLERANCE_MS, elapsed_ms * SLEW_TOLERANCE_RATIO)
    return span_ms if abs(span_ms - elapsed_ms) <= tolerance_ms else elapsed_ms


def next_window(closed: Window, longest_ns: int = 0) -> Window:
    """Return the window that follows one of the same life."""
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
    """Return the size that the window began with."""
    by: SizeSource = "clickhouse" if window.sized_by == "clickhouse" else "cgroup"
    return Size(
        cpu_millicores=window.cpu_limit_millicores,
        memory_bytes=window.memory_limit_bytes,
        cpu_source=window.cpu_size_source or by,
        memory_source=window.memory_size_source or by,
        by=window.sized_by,
    )


def size_after(before: Size | None, reading: Reading) -> Size:
    """Return the size after a reading: another source that sees no limit says nothing about it."""
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
    """Return whether both figures are equal, whatever source shows them."""
    return (one.cpu_millicores, one.memory_bytes) == (other.cpu_millicores, other.memory_bytes)


def with_limits(window: Window, size: Size) -> Window:
    """Return the window with another size."""
    return replace(
        window,
        cpu_limit_millicores=size.cpu_millicores,
        memory_limit_bytes=size.memory_bytes,
        sized_by=size.by,
        cpu_size_source=size.cpu_source,
        memory_size_source=size.memory_source,
    )


def first_window(reading: Reading, start_ms: int, cpu_start_usec: int) -> Window:
    """Return the first window of a life, from where its counter showed `cpu_start_usec`."""
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
    """Return the window with what the wall clock was set by since the last sample."""
    if not jump_ms:
        return window
    return replace(window, clock_step_ms=window.clock_step_ms + jump_ms)


def ensure_nonempty(window: Window) -> Window:
    """Return a window that can be closed: one held at an instant gets a millisecond."""
    holds = window.elapsed_ns > 0 or window.counted_ms > 0
    holds = holds or window.reading.cpu_usec > window.cpu_start_usec
    held = holds and window.end_ms == window.start_ms
    return replace(window, end_ms=window.start_ms + 1) if held else window


def close_window(window: Window) -> list[Period]:
    """Return the window as a closed period, or nothing where no time has passed in it."""
    if window.end_ms == window.start_ms:
        return []
    return [Period(start_ms=window.start_ms, end_ms=window.end_ms, window=window)]


def gap(  # noqa: PLR0913  what a gap record says
    start_ms: int,
    end_ms: int,
    reason: GapReason,
    until: Reading | None = None,
    *,
    sizes: tuple[Size, Size] | None = None,
    counted_ms: int = 0,
) -> list[Period]:
    """Return a stated gap, or nothing where it has no length."""
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


def _extend(  # noqa: PLR0913, PLR0917  the three lengths of one interval
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


def _between(start: int, end: int, done: int, whole: int) -> int:
    return start + (end - start) * done // whole
