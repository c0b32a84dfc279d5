"""Which readings belong to the same counter, and how one source replaces another."""

from msgspec.structs import replace

from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.window import NS_PER_MS, LastSeen, MeterState, Sample, Window

BIRTH_TOLERANCE_NS = 5_000_000_000  # ClickHouse gives its uptime in whole seconds
EXACT_BIRTH_TOLERANCE_NS = 100_000_000  # of a process: a tick of 10 ms, and a late reading
# How far the machine's start (wall clock minus boot clock) may move before it counts as a reboot:
# NTP steps of less than a second, and slewing of at most 0.5 ms per second (ntp_adjtime(2)).
START_TOLERANCE_MS = 1000
START_TOLERANCE_RATIO = 0.001
BOOT_PREFIX = 8  # characters of the boot id at the start of a source's `incarnation`


def use_state_boot_id(state: MeterState, sample: Sample) -> Sample:
    """Return the sample with the state's boot id if the machine was not rebooted in between.

    The boot id alone is not evidence of a reboot: a restarted container may see another one.
    """
    if sample.boot_id == state.boot_id:
        return sample
    if sample.boot_id != state.boot_alias and not _clock_went_on(state, sample):
        return sample
    return replace(
        sample,
        boot_id=state.boot_id,
        reading=sample.reading and _replace_boot_id(sample.reading, sample.boot_id, state.boot_id),
        secondary=tuple(
            _replace_boot_id(one, sample.boot_id, state.boot_id) for one in sample.secondary
        ),
    )


def was_rebooted(state: MeterState, sample: Sample) -> bool:
    """Return whether the machine was rebooted between the two.

    `sample` is one that `use_state_boot_id` returned. A boot clock that falls is a reboot, even if
    the boot id is unchanged or missing.
    """
    return sample.boot_id != state.boot_id or sample.boot_ns < state.boot_ns


def shift_birth_by_sleep(reading: Reading, slept_ns: int) -> Reading:
    """Return the reading with its birth moved forward by a sleep of the machine.

    ClickHouse's uptime does not increase while the machine sleeps, so its birth, computed as boot
    clock minus uptime, moves forward.
    """
    if reading.source != "clickhouse" or reading.born_boot_ns is None:
        return reading
    named = reading.named_born_boot_ns or reading.born_boot_ns
    born_boot_ns = reading.born_boot_ns + slept_ns
    return replace(reading, born_boot_ns=born_boot_ns, named_born_boot_ns=named)


def carry_over(window: Window, sample: Sample) -> Reading | None:
    """Return the present value of the window's source, or None if no source was read both times.

    It is the source's own reading if there is one. Otherwise it is derived from a secondary source
    that was read with the window's source earlier and is read again: both counted the same CPU
    since then.
    """
    now = [reading for reading in (sample.reading, *sample.secondary) if reading]
    for reading in now:
        if same_counter(window.reading, window.seen, reading, sample):
            return reading
    for before in window.secondary:
        for reading in now:
            if same_counter(before, None, reading, sample):
                derived_usec = window.secondary_cpu_usec + reading.cpu_usec - before.cpu_usec
                cpu_usec = max(derived_usec, window.reading.cpu_usec)
                return replace(window.reading, cpu_usec=cpu_usec)
    return None


def switch_source(window: Window, reading: Reading) -> Window:
    """Return an empty window converted to the reading's source. Both were read at its start.

    A change of source starts a record, because sources define memory differently (with or without
    page cache).
    """
    used_usec = window.reading.cpu_usec - window.cpu_start_usec
    cpu_start_usec = reading.cpu_usec - used_usec
    return replace(
        window,
        reading=reading,
        cpu_start_usec=cpu_start_usec,
        memory_max_bytes=reading.memory_bytes,
        source_changed=True,
    )


def common_reading(before: Reading, seen: LastSeen | None, sample: Sample) -> Reading | None:
    """Return the secondary reading of the source that was used before, or None."""
    return next((s for s in sample.secondary if same_counter(before, seen, s, sample)), None)


def same_counter(before: Reading, seen: LastSeen | None, now: Reading, sample: Sample) -> bool:
    """Return whether both readings are of one counter that has only grown in between.

    `seen` is the time of `before`, None if unknown. The machine was not rebooted in between.
    """
    return (
        not is_other_source(before, now)
        and _same_incarnation(before, now)
        and (births_agree(before, now) or uptime_stood_still(before, seen, now, sample))
        and now.cpu_usec >= before.cpu_usec
    )


def same_container(
    before: Reading, seen: LastSeen | None, now: Reading, sample: Sample, *, rebooted: bool
) -> bool:
    """Return whether the same container certainly ran all the time between two readings."""
    if before.container_id and now.container_id:
        return before.container_id == now.container_id and not rebooted
    if rebooted:
        return False
    if not is_other_source(before, now):
        same = _same_incarnation(before, now)
        still = births_agree(before, now) or same_counter(before, seen, now, sample)
        return same and still
    return seen is not None and was_running_at(now, seen.boot_ns)


def was_running_at(reading: Reading, boot_ns: int) -> bool:
    """Return whether the target of a reading certainly ran at an earlier time of the same boot."""
    born_boot_ns = reading.born_boot_ns
    return born_boot_ns is not None and born_boot_ns <= boot_ns + birth_tolerance_ns(reading)


def birth_tolerance_ns(reading: Reading) -> int:
    """Return the tolerance of the source's birth times, nanoseconds."""
    return BIRTH_TOLERANCE_NS if reading.source == "clickhouse" else EXACT_BIRTH_TOLERANCE_NS


def counter_fell(before: Reading, now: Reading) -> bool:
    """Return whether both readings are of one counter, and its value is lower now."""
    same = not is_other_source(before, now) and _same_incarnation(before, now)
    return same and births_agree(before, now) and now.cpu_usec < before.cpu_usec


def is_other_source(before: Reading, now: Reading) -> bool:
    """Return whether two readings are of different counters."""
    return before.source != now.source


def births_agree(before: Reading, now: Reading) -> bool:
    """Return whether both counters began at the same time, or a birth is unknown."""
    if before.born_boot_ns is None or now.born_boot_ns is None:
        return True
    return abs(before.born_boot_ns - now.born_boot_ns) < BIRTH_TOLERANCE_NS


def keep_birth_time(before: Reading, now: Reading) -> Reading:
    """Return `now` with the first known birth and name, so that records have one incarnation."""
    named = before.named_born_boot_ns
    if births_agree(before, now):
        born_boot_ns = before.born_boot_ns or now.born_boot_ns
    else:  # ClickHouse's, after a sleep of its machine that our clock does not show
        born_boot_ns, named = now.born_boot_ns, named or before.born_boot_ns
    return replace(
        now, born_boot_ns=born_boot_ns, named_born_boot_ns=named, run_name=before.run_name
    )


def born_ms(reading: Reading, sample: Sample, timeline_ms: int) -> int | None:
    """Return the birth on the sample's wall clock, milliseconds since 1970."""
    if reading.born_boot_ns is None:
        return None
    return timeline_ms - (sample.boot_ns - reading.born_boot_ns) // NS_PER_MS


def uptime_stood_still(
    before: Reading, seen: LastSeen | None, now: Reading, sample: Sample
) -> bool:
    """Return whether ClickHouse's uptime did not fall, but rose by less than the elapsed time.

    In this case its machine slept. Our own clock may not show that, if it is another machine or a
    virtual one. A restart during a long absence cannot be excluded. Treating it as the same counter
    then bills only the counter's rise, which is at most the usage after the restart.
    """
    if now.source != "clickhouse" or seen is None:
        return False
    if before.born_boot_ns is None or now.born_boot_ns is None:
        return False
    uptime_before_ns = seen.boot_ns - before.born_boot_ns
    uptime_ns = sample.boot_ns - now.born_boot_ns
    later = now.born_boot_ns > before.born_boot_ns  # uptime never rises faster than time passes
    return later and uptime_ns > uptime_before_ns - BIRTH_TOLERANCE_NS


def _same_incarnation(before: Reading, now: Reading) -> bool:
    """Return whether the incarnations match. ClickHouse's of 0.1.0 did not contain the server."""
    if before.incarnation == now.incarnation:
        return True
    return now.source == "clickhouse" and now.incarnation.startswith(f"{before.incarnation}-")


def _clock_went_on(state: MeterState, sample: Sample) -> bool:
    """Return whether the boot clock continued from the state, which excludes a reboot.

    After a reboot the machine's start is later by at least its earlier uptime, and its new uptime
    is at most the time since the last sample.
    """
    wall_ms = sample.wall_ms - state.wall_ms
    boot_ms = (sample.boot_ns - state.boot_ns) // NS_PER_MS
    tolerance_ms = max(START_TOLERANCE_MS, boot_ms * START_TOLERANCE_RATIO)
    if boot_ms < 0 or state.boot_ns // NS_PER_MS <= tolerance_ms:
        return False
    if abs(wall_ms - boot_ms) <= tolerance_ms:
        return True
    if sample.boot_ns // NS_PER_MS > wall_ms + tolerance_ms:
        return True
    before = state.last  # the wall clock may also have been set
    if before is None or sample.reading is None or not before.container_id:
        return False
    return _same_birth(before, sample.reading)


def _same_birth(before: Reading, now: Reading) -> bool:
    return (
        before.source == now.source
        and before.container_id == now.container_id
        and now.cpu_usec >= before.cpu_usec
        and before.born_boot_ns is not None
        and before.born_boot_ns == now.born_boot_ns
    )


def _replace_boot_id(reading: Reading, boot_id: str, as_boot_id: str) -> Reading:
    rest = reading.incarnation.removeprefix(boot_id[:BOOT_PREFIX])
    if rest == reading.incarnation and boot_id:
        return reading  # the incarnation does not begin with the boot id
    return replace(reading, incarnation=as_boot_id[:BOOT_PREFIX] + rest)
