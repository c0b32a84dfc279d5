"""The meter's values, and the arithmetic of one open window.

Between two samples CPU and memory are taken to run evenly, so a counter can be read off at every
window's end; windows without any sample inside become one long period, cut at UTC hours.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from byoc_agents.billing.record import GapReason
from byoc_agents.billing.sources.reading import Reading, SourceName

HOUR_MS = 3_600_000
NS_PER_MS = 1_000_000


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at the target. `standby` are the readings of its other sources at the same time."""

    wall_ms: int
    boot_ns: int
    boot_id: str
    reading: Reading | None
    standby: tuple[Reading, ...] = ()
    absent: bool = False  # no reading because surely nothing runs; else it could not be read


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """When something was seen, on the clock that is never set."""

    boot_ns: int
    boot_id: str


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What has been measured from `start_ms` up to the last sample at `end_ms`."""

    start_ms: int
    end_ms: int
    cpu_start_usec: int
    reading: Reading  # at `end_ms`
    cpu_limit_millicores: int | None  # the size from `start_ms` on; another size, another window
    memory_limit_bytes: int | None
    sized_by: SourceName
    seen: Seen | None = None  # the last sample
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
    standby: tuple[Reading, ...] = ()  # taken when the main counter was `standby_cpu_usec`
    standby_cpu_usec: int = 0


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """A closed window, or a gap (`gap_reason`), ready to be written down as a record."""

    start_ms: int
    end_ms: int
    window: Window | None = None  # closed, `window.end_ms` = `end_ms`; None in a gap
    gap_reason: GapReason = ""
    until: Reading | None = None  # a counter that ran from 0 to here over the gap


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All that the meter remembers. The checkpoint in the spool is this, as JSON."""

    wall_ms: int  # of the last sample
    boot_ns: int
    boot_id: str
    place_ms: int  # of the last sample in our time, which never runs backwards
    window: Window | None = None  # open, while there is a target
    gap_start_ms: int = 0  # open, while there is none
    gap_reason: GapReason = "target_absent"
    since: "Seen | None" = None  # when the whole absence began
    absent_ms: int | None = None  # when it was last sure that nothing ran
    last: Reading | None = None  # what its counter showed before the absence


def cuts(after_ms: int, to_ms: int, window_ms: int) -> list[int]:
    """Return where to cut the span between two samples: first and last window's end, and hours."""
    first = (after_ms // window_ms + 1) * window_ms
    last = to_ms // window_ms * window_ms
    if last < first:
        return []
    hours = range((first // HOUR_MS + 1) * HOUR_MS, last, HOUR_MS)
    return sorted({first, *hours, last})


def advance(
    window: Window, to_ms: int, reading: Reading, elapsed_ns: int, at_ms: Sequence[int]
) -> tuple[Window, list[Period]]:
    """Measure up to `to_ms`, closing a period at each cut. `reading` continues the window's life.

    `elapsed_ns` is the boot clock's word on how long that took. Sums are exact: what one period
    ends with, the next one starts with.
    """
    origin, span_ms = window, to_ms - window.end_ms
    elapsed_ns += window.pending_ns
    window = replace(window, longest_ns=max(window.longest_ns, elapsed_ns), pending_ns=0)
    closed, spent_ns = [], 0
    for cut_ms in at_ms:
        done = cut_ms - origin.end_ms
        cpu = _between(origin.reading.cpu_usec, reading.cpu_usec, done, span_ms)
        memory = _between(origin.reading.memory_bytes, reading.memory_bytes, done, span_ms)
        part_ns = _between(0, elapsed_ns, done, span_ms) - spent_ns
        spent_ns += part_ns
        there = replace(origin.reading, cpu_usec=cpu, memory_bytes=memory)
        window = _extend(window, cut_ms, there, part_ns)
        closed.append(Period(start_ms=window.start_ms, end_ms=cut_ms, window=window))
        window = opened(window, elapsed_ns)
    window = _extend(window, to_ms, reading, elapsed_ns - spent_ns)
    if not closed or closed[-1].end_ms < to_ms:
        return replace(window, samples=window.samples + 1), closed
    last = closed[-1].window  # the sample stands on the cut: it belongs to the window that ends
    counted = replace(last, samples=last.samples + 1) if last else None
    return window, [*closed[:-1], replace(closed[-1], window=counted)]


def opened(closed: Window, longest_ns: int = 0) -> Window:
    """Return the window that follows one of the same life."""
    return Window(
        start_ms=closed.end_ms,
        end_ms=closed.end_ms,
        cpu_start_usec=closed.reading.cpu_usec,
        reading=closed.reading,
        cpu_limit_millicores=closed.cpu_limit_millicores,
        memory_limit_bytes=closed.memory_limit_bytes,
        sized_by=closed.sized_by,
        seen=closed.seen,
        memory_max_bytes=closed.reading.memory_bytes,
        longest_ns=longest_ns,
        standby=closed.standby,
        standby_cpu_usec=closed.standby_cpu_usec,
    )


def sized(window: Window, reading: Reading) -> Window:
    """Return the window with the size that the reading saw."""
    return replace(
        window,
        cpu_limit_millicores=reading.cpu_limit_millicores,
        memory_limit_bytes=reading.memory_limit_bytes,
        sized_by=reading.source,
    )


def fresh(reading: Reading, start_ms: int, cpu_start_usec: int) -> Window:
    """Return the first window of a life, from where its counter showed `cpu_start_usec`."""
    return Window(
        start_ms=start_ms,
        end_ms=start_ms,
        cpu_start_usec=cpu_start_usec,
        reading=replace(reading, cpu_usec=cpu_start_usec),
        cpu_limit_millicores=reading.cpu_limit_millicores,
        memory_limit_bytes=reading.memory_limit_bytes,
        sized_by=reading.source,
        memory_max_bytes=reading.memory_bytes,
    )


def resized(window: Window) -> bool:
    """Return whether the last reading saw another size than the window began with."""
    reading = window.reading
    limits = (reading.cpu_limit_millicores, reading.memory_limit_bytes)
    if reading.source != window.sized_by and limits == (None, None):
        return False  # another source that sees no limits says nothing about them
    return limits != (window.cpu_limit_millicores, window.memory_limit_bytes)


def stepped(window: Window, step_ms: int) -> Window:
    """Return the window with what the wall clock was set by since the last sample."""
    if not step_ms:
        return window
    return replace(window, clock_step_ms=window.clock_step_ms + step_ms)


def ended(window: Window) -> Window:
    """Return a window that can be closed: one held at an instant gets a millisecond."""
    holds = window.elapsed_ns > 0 or window.reading.cpu_usec > window.cpu_start_usec
    held = holds and window.end_ms == window.start_ms
    return replace(window, end_ms=window.start_ms + 1) if held else window


def shut(window: Window) -> list[Period]:
    """Return the window as a closed period, or nothing where no time has passed in it."""
    if window.end_ms == window.start_ms:
        return []
    return [Period(start_ms=window.start_ms, end_ms=window.end_ms, window=window)]


def gap(
    start_ms: int, end_ms: int, reason: GapReason, until: Reading | None = None
) -> list[Period]:
    """Return a stated gap, or nothing where it has no length."""
    if end_ms <= start_ms:
        return []
    return [Period(start_ms=start_ms, end_ms=end_ms, gap_reason=reason, until=until)]


def _extend(window: Window, to_ms: int, reading: Reading, elapsed_ns: int) -> Window:
    mean_twice = window.reading.memory_bytes + reading.memory_bytes
    return replace(
        window,
        end_ms=to_ms,
        reading=reading,
        memory_byte_ns=window.memory_byte_ns + mean_twice * elapsed_ns // 2,
        memory_max_bytes=max(window.memory_max_bytes, reading.memory_bytes),
        elapsed_ns=window.elapsed_ns + elapsed_ns,
    )


def _between(start: int, end: int, done: int, whole: int) -> int:
    return start + (end - start) * done // whole
