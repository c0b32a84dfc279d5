"""Which readings belong to one life of a counter, and how one source takes over from another."""

from msgspec.structs import replace

from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.window import NS_PER_MS, Sample, Window

BIRTH_TOLERANCE_NS = 5_000_000_000  # ClickHouse gives its uptime in whole seconds


def handed_over(window: Window, sample: Sample) -> Reading | None:
    """Return what the window's source would show now, told by any source that was read both times.

    That is the source itself where it stands by, or one that stood by at the window's last standby
    sample and is read again: what it counted since then, the window's source counted as well.
    """
    now = [reading for reading in (sample.reading, *sample.standby) if reading]
    for reading in now:
        if same_life(window.reading, reading):
            return reading
    for before in window.standby:
        for reading in now:
            if same_life(before, reading):
                told = window.standby_cpu_usec + reading.cpu_usec - before.cpu_usec
                cpu_usec = max(told, window.reading.cpu_usec)
                memory_bytes = reading.memory_bytes
                return replace(window.reading, cpu_usec=cpu_usec, memory_bytes=memory_bytes)
    return None


def rescaled(window: Window, reading: Reading) -> Window:
    """Return the window as the reading's source counts; both were read at the window's end."""
    used_usec = window.reading.cpu_usec - window.cpu_start_usec
    cpu_start_usec = reading.cpu_usec - used_usec
    return replace(
        window,
        reading=reading,
        cpu_start_usec=cpu_start_usec,
        memory_max_bytes=max(window.memory_max_bytes, reading.memory_bytes),
        source_changed=True,
    )


def in_common(before: Reading, sample: Sample) -> Reading | None:
    """Return what the earlier source shows beside another one that takes over from it."""
    return next((s for s in sample.standby if same_life(before, s)), None)


def same_life(before: Reading, now: Reading) -> bool:
    """Return whether the counter has only grown from one reading to the other."""
    return (
        not other_source(before, now)
        and before.incarnation == now.incarnation
        and births_agree(before, now)
        and now.cpu_usec >= before.cpu_usec
    )


def other_source(before: Reading, now: Reading) -> bool:
    """Return whether two readings are of different counters."""
    return before.source != now.source


def births_agree(before: Reading, now: Reading) -> bool:
    """Return whether both counters began at the same time, as far as that is known."""
    if before.born_boot_ns is None or now.born_boot_ns is None:
        return True
    return abs(before.born_boot_ns - now.born_boot_ns) < BIRTH_TOLERANCE_NS


def steady(before: Reading, now: Reading) -> Reading:
    """Return `now` with the birth that was seen first, so that a life keeps one name."""
    born_boot_ns = before.born_boot_ns or now.born_boot_ns
    return now if born_boot_ns == now.born_boot_ns else replace(now, born_boot_ns=born_boot_ns)


def born_ms(reading: Reading, sample: Sample, place_ms: int) -> int | None:
    """Return the birth on the sample's wall clock, milliseconds since 1970."""
    if reading.born_boot_ns is None:
        return None
    return place_ms - (sample.boot_ns - reading.born_boot_ns) // NS_PER_MS
