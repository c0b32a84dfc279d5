"""Readings to periods: a pure function from (state, sample) to (state, periods).

The caller adopts the new state only after the periods are durable. If the commit fails, it keeps
the old state. A failed commit has the effect of a missed sample: counters are cumulative, so the
next sample includes the usage.

Periods are measured on the wall clock, durations on the boot clock. The time of a sample is its
wall clock, but never before the previous sample. If the clock is set back, the window stays open
until the wall clock has caught up. If it is set forward, the window is closed at the time derived
from the boot clock, and the skipped interval is recorded as a gap. The time for which the machine
was suspended is recorded as a separate gap.

The state is an open window while the target is measured, or an open gap while it is not:

| state  | sample                                               | next state                      |
|--------|------------------------------------------------------|---------------------------------|
| window | a reading of its counter, with possible CPU          | the window, extended            |
| window | no reading, and the window's end is not reached      | the window, unchanged           |
| window | no reading at the window's end, or target absent     | a gap                           |
| window | a reading of another counter, or with impossible CPU | a gap that ends with the sample |
| gap    | no reading, for the same reason                      | the gap, extended               |
| gap    | no reading, for another reason                       | another gap                     |
| gap    | a reading of the last counter, with possible CPU     | a window with the gap's CPU     |
| gap    | a reading of a counter that began in the gap         | a window that counts from zero  |
| gap    | any other reading                                    | a window that starts at it      |

Two rules protect the bill. A counter is counted from zero only if its birth is known and is in the
interval; otherwise the first reading is a baseline. No interval contains more CPU than the machine
could provide in it (`most_usec`); otherwise it becomes a `counter_impossible` gap.
"""

import msgspec
from msgspec.structs import replace

from byoc_agents.billing.continuity import (
    birth_tolerance_ns,
    births_agree,
    born_ms,
    carry_over,
    common_reading,
    counter_fell,
    is_other_source,
    keep_birth_time,
    same_container,
    same_counter,
    shift_birth_by_sleep,
    switch_source,
    use_state_boot_id,
    was_rebooted,
    was_running_at,
)
from byoc_agents.billing.record import SLACK_MS, GapReason
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.window import (
    HOUR_MS,
    NS_PER_MS,
    LastSeen,
    MeterState,
    OpenGap,
    Period,
    Sample,
    Size,
    Window,
    add_clock_jump,
    advance,
    close_window,
    counted_span_ms,
    cut_points,
    ensure_nonempty,
    first_window,
    gap,
    next_window,
    same_size,
    size_after,
    size_at,
    size_of,
    with_limits,
)

JUMP_TOLERANCE_MS = 1000  # NTP slews at most 0.5 ms per second (ntp_adjtime(2)); more is a jump
JUMP_TOLERANCE_RATIO = 0.001  # twice the slew limit, for long spans between samples
SLEEP_MS = 1000  # a shorter sleep of the machine counts as a late sample

MeterResult = tuple[MeterState, list[Period]]


def is_routine(before: Sample, sample: Sample, window_ms: int) -> bool:
    """Return whether a sample only extends the window of the one before.

    Only the used CPU and memory differ: the counter, the container, its limits, the machine and the
    clocks are the same, and the machine could use that CPU. The meter then closes no period, so the
    sample can be metered later.
    """
    then, now = before.reading, sample.reading
    if then is None or now is None or sample.secondary or now.cpu_usec < then.cpu_usec:
        return False
    wall_ms, elapsed_ns = sample.wall_ms - before.wall_ms, sample.boot_ns - before.boot_ns
    drift_ms = wall_ms - elapsed_ns // NS_PER_MS
    return (
        wall_ms >= 0
        and (now.cpu_usec - then.cpu_usec) * 1000 <= elapsed_ns * sample.cpus()
        and abs(drift_ms) <= JUMP_TOLERANCE_MS
        and before.wall_ms // window_ms == sample.wall_ms // window_ms
        and _slept_ns(before, sample) < SLEEP_MS * NS_PER_MS
        and (before.boot_id, before.machine_cpus) == (sample.boot_id, sample.machine_cpus)
        and replace(now, cpu_usec=then.cpu_usec, memory_bytes=then.memory_bytes) == then
    )


def _slept_ns(before: Sample, sample: Sample) -> int:
    """Return how long the machine slept between two samples; 0 if it is not known."""
    if before.asleep_ns is None or sample.asleep_ns is None:
        return 0
    return sample.asleep_ns - before.asleep_ns


class _Moment(msgspec.Struct, frozen=True):
    """The time of a sample, in relation to the sample before it."""

    timeline_ms: int
    elapsed_ns: int  # since the last sample
    jump_ms: int  # how far the wall clock was set since the last sample; 0 = not at all
    unjumped_ms: int  # `timeline_ms` without that jump
    clock_set: bool  # the wall clock was set, or has not yet caught up after it was set back
    rebooted: bool  # the machine was rebooted since the last sample
    cpus: int  # upper bound of the machine's CPUs

    @classmethod
    def of(cls, state: MeterState, sample: Sample) -> "_Moment":
        wall_ms = sample.wall_ms - state.wall_ms
        boot = was_rebooted(state, sample)
        elapsed_ns = max(0, wall_ms) * NS_PER_MS if boot else sample.boot_ns - state.boot_ns
        drift_ms = wall_ms - elapsed_ns // NS_PER_MS
        tolerance_ms = max(JUMP_TOLERANCE_MS, elapsed_ns / NS_PER_MS * JUMP_TOLERANCE_RATIO)
        jump_ms = drift_ms if not boot and abs(drift_ms) > tolerance_ms else 0
        timeline_ms = max(sample.wall_ms, state.timeline_ms)
        unjumped_ms = min(max(sample.wall_ms - jump_ms, state.timeline_ms), timeline_ms)
        cpus = max(state.machine_cpus or 0, sample.cpus())  # CPUs can be added and removed
        behind = state.timeline_ms > state.wall_ms or timeline_ms > sample.wall_ms
        clock_set = not boot and (jump_ms != 0 or behind)
        return cls(timeline_ms, elapsed_ns, jump_ms, unjumped_ms, clock_set, boot, cpus)


class _Found(msgspec.Struct, frozen=True):
    """The new window of a target that can be read again, and facts about the gap before it."""

    window: Window
    reading: Reading  # the present value of the window's counter
    late_ns: int = 0  # time in which the counter could rise before the window
    late_ms: int = 0  # time that the container ran before the window, in recorded gaps
    reason: GapReason = ""  # of the gap; "" = as recorded already


class Meter:
    """Turns samples into periods. It has no state except the length of a window."""

    def __init__(self, *, window_ms: int) -> None:
        self._window_ms = window_ms

    def start(
        self, sample: Sample, reason: GapReason, *, since_ms: int | None = None
    ) -> MeterResult:
        """Begin without a checkpoint. Usage since the counter's birth is recorded as a gap.

        If records of an earlier epoch may be lost from `since_ms` on (milliseconds since 1970), the
        time from there on is recorded as a gap as well. The size is billed from the birth on, since
        the container has existed from then on.
        """
        reading, unsure_ms = sample.reading, sample.wall_ms if since_ms is None else since_ms
        if reading is None:
            before = gap(unsure_ms, sample.wall_ms, reason)
            opened = replace(_open_gap(sample, sample.wall_ms), unread=reason)
            return _state_at(sample, sample.wall_ms, opened), before
        birth_ms = born_ms(reading, sample, sample.wall_ms)
        born = birth_ms is not None
        if birth_ms is None:  # a counter of the kernel is not older than its boot
            birth_ms = sample.wall_ms - sample.boot_ns // NS_PER_MS
        window = first_window(reading, sample.wall_ms, reading.cpu_usec)
        earlier = gap(unsure_ms, min(birth_ms, sample.wall_ms), reason)
        size = size_of(reading)
        counted_ms = sample.wall_ms - birth_ms if born else 0
        sizes = (size, size)
        before = gap(birth_ms, sample.wall_ms, reason, reading, sizes=sizes, counted_ms=counted_ms)
        window = _remember_sample(window, sample)
        return _state_at(sample, sample.wall_ms, window), earlier + before

    def observe(
        self, state: MeterState, sample: Sample, *, hours_only: bool = False
    ) -> MeterResult:
        """Process one sample. With `hours_only` (a full spool) windows end at UTC hours only."""
        renamed = use_state_boot_id(state, sample)
        alias = sample.boot_id if renamed.boot_id != sample.boot_id else None
        state, slept = _account_for_sleep(state, renamed)
        state, periods = self._observe(state, renamed, HOUR_MS if hours_only else self._window_ms)
        return replace(state, boot_alias=alias), slept + periods

    @staticmethod
    def close(state: MeterState) -> MeterResult:
        """Close the open window or gap at the last sample, because the daemon stops."""
        phase = state.phase
        if isinstance(phase, OpenGap):
            before = gap(phase.start_ms, state.timeline_ms, phase.reason)
            return replace(state, phase=_restart_gap(phase, state.timeline_ms)), before
        if phase.end_ms == phase.start_ms:  # no time has passed, or the clock was set back
            return state, []
        window = replace(next_window(phase), pending_ns=phase.pending_ns)
        return replace(state, phase=window), close_window(phase)

    @staticmethod
    def end(state: MeterState, wall_ms: int, boot_ns: int, boot_id: str) -> MeterResult:
        """End the metering of a target for good. The time since its last record is a gap.

        If it is metered again, its first reading is a baseline: nothing is billed in between.
        """
        state, periods = Meter.close(state)
        phase = state.phase
        start_ms = phase.start_ms if isinstance(phase, OpenGap) else phase.end_ms
        end_ms = max(wall_ms, start_ms + 1)
        periods += gap(start_ms, end_ms, "target_removed")
        ended = OpenGap(start_ms=end_ms, reason="target_removed")
        return (
            MeterState(
                wall_ms=wall_ms, boot_ns=boot_ns, boot_id=boot_id, timeline_ms=end_ms, phase=ended
            ),
            periods,
        )

    def _observe(self, state: MeterState, sample: Sample, window_ms: int) -> MeterResult:
        moment = _Moment.of(state, sample)
        if isinstance(state.phase, OpenGap):
            lasting = _advance_gap(state.phase, state.timeline_ms, moment)
            return _observe_in_gap(lasting, sample, moment, window_ms)
        window = add_clock_jump(state.phase, moment.jump_ms)
        window = replace(window, machine_cpus=max(window.machine_cpus or 0, moment.cpus))
        if sample.reading is None:
            return self._observe_without_reading(window, sample, moment, window_ms)
        handed = None if moment.rebooted else carry_over(window, sample)
        if handed is None or not _is_possible(window, handed, sample, moment):
            return _handle_discontinuity(window, sample, sample.reading, moment, window_ms)
        at_ms = cut_points(window.end_ms, moment.unjumped_ms, window_ms)
        unseen = moment.elapsed_ns + window.pending_ns > self._window_ms * NS_PER_MS
        size = size_after(size_at(window), sample.reading)
        window, periods = _extend_window(window, handed, moment, at_ms, size=size, unseen=unseen)
        if is_other_source(handed, sample.reading):
            window = ensure_nonempty(window)
            periods += close_window(window)
            window = switch_source(next_window(window), sample.reading)
        timeline_ms = max(moment.timeline_ms, window.end_ms)
        return _state_at(sample, timeline_ms, _remember_sample(window, sample)), periods

    def _observe_without_reading(
        self, window: Window, sample: Sample, moment: _Moment, window_ms: int
    ) -> MeterResult:
        """Process a sample without a reading: missed until the window's end, then a gap."""
        over = cut_points(window.end_ms, moment.timeline_ms, self._window_ms)
        if not over and not sample.absent and moment.jump_ms <= 0 and not moment.rebooted:
            pending_ns = window.pending_ns + moment.elapsed_ns
            return _state_at(sample, moment.timeline_ms, replace(window, pending_ns=pending_ns)), []
        window = ensure_nonempty(window)
        opened = _open_gap_after(window, sample, moment)
        opened, periods = _cut_gap(opened, moment.timeline_ms, window_ms)
        return _state_in_gap(sample, moment, opened), close_window(window) + periods


def _extend_window(  # noqa: PLR0913
    window: Window,
    reading: Reading,
    moment: _Moment,
    at_ms: list[int],
    *,
    size: Size,
    unseen: bool,
) -> tuple[Window, list[Period]]:
    """Extend the window up to a reading of the same counter that shows `size`.

    `unseen`: there was no sample for longer than a window.
    """
    reading = keep_birth_time(window.reading, reading)
    to_ms = moment.unjumped_ms if moment.jump_ms > 0 else moment.timeline_ms
    periods = list[Period]()
    another = not same_size(size_at(window), size)
    if unseen and another and window.end_ms > window.start_ms:
        # Up to the last sample the size was the old one; after it, either is possible.
        periods = close_window(window)
        pending_ns = window.pending_ns
        window = replace(next_window(window), pending_ns=pending_ns)
    earlier_ns = window.seen.read_ns if window.seen else 0
    if unseen and another:
        window = replace(window, resized_to=size)
    resized_to = window.resized_to
    window, closed = advance(
        window,
        to_ms,
        reading,
        moment.elapsed_ns,
        at_ms,
        earlier_ns=earlier_ns,
        clock_set=moment.clock_set,
    )
    if resized_to:  # applies to each period of the time without a sample
        closed = [_with_resize(period, resized_to) for period in closed]
        window = replace(window, resized_to=resized_to)
    periods += closed
    if another:
        window = ensure_nonempty(window)
        periods += close_window(window)
        window = with_limits(next_window(window), size)
    if closed:
        window = replace(window, machine_cpus=None)  # from the sample: see _remember_sample
    if moment.jump_ms > 0:
        window = ensure_nonempty(window)
        periods += close_window(window) + gap(window.end_ms, moment.timeline_ms, "clock_step")
        start_ms = max(window.end_ms, moment.timeline_ms)
        window = replace(next_window(window), start_ms=start_ms, end_ms=start_ms)
    return window, periods


def _with_resize(period: Period, size: Size) -> Period:
    window = period.window
    return replace(period, window=window and replace(window, resized_to=size))


def _handle_discontinuity(
    window: Window, sample: Sample, reading: Reading, moment: _Moment, window_ms: int
) -> MeterResult:
    """Close the window: the target was restarted, or a source without a common reading is used."""
    window = ensure_nonempty(window)
    opened = _open_gap_after(window, sample, moment)
    opened = replace(opened, reason=_break_reason(opened, reading))
    state, periods = _observe_in_gap(opened, sample, moment, window_ms)
    return state, close_window(window) + periods


def _observe_in_gap(
    lasting: OpenGap, sample: Sample, moment: _Moment, window_ms: int
) -> MeterResult:
    """Process a sample during a gap. If it has a reading, the gap ends."""
    reading = sample.reading
    if reading is None:
        return _extend_gap(lasting, sample, moment, window_ms)
    found = _resume_metering(lasting, sample, reading, moment)
    window = replace(found.window, machine_cpus=moment.cpus)
    start_ms = window.start_ms
    same = _same_container(lasting, sample, reading)
    size = size_after(lasting.size, reading)
    late_ms = max(0, lasting.late_ms) if same else 0
    before = gap(
        lasting.start_ms,
        start_ms,
        found.reason or lasting.reason,
        sizes=(lasting.size or size, size) if same else None,
        counted_ms=max(0, start_ms - lasting.start_ms + lasting.late_ms),
    )
    if same:
        window = with_limits(window, size)
        window = window if before else replace(window, counted_ms=late_ms)
    elif found.late_ms:
        window = replace(window, counted_ms=found.late_ms)
    before += _gap_before_start(lasting, sample, reading, size, moment)
    to_ms = max(moment.timeline_ms, start_ms)
    at_ms = cut_points(start_ms, to_ms, window_ms)
    elapsed_ns = (to_ms - start_ms) * NS_PER_MS
    earlier_ns = max(0, found.late_ns - elapsed_ns)
    window, periods = advance(
        window, to_ms, found.reading, elapsed_ns, at_ms, earlier_ns=earlier_ns
    )
    return _state_at(sample, to_ms, _remember_sample(window, sample)), before + periods


def _gap_before_start(
    lasting: OpenGap, sample: Sample, reading: Reading, size: Size, moment: _Moment
) -> list[Period]:
    """Return the gap for usage before the meter's start, if this is the first reading."""
    since, birth_ms = lasting.since, born_ms(reading, sample, moment.timeline_ms)
    if not lasting.unread or since is None or birth_ms is None or lasting.rebooted:
        return []
    start_ms = moment.timeline_ms - (sample.boot_ns - since.boot_ns) // NS_PER_MS
    counted_ms = start_ms - birth_ms
    reason = lasting.unread
    return gap(birth_ms, start_ms, reason, reading, sizes=(size, size), counted_ms=counted_ms)


def _extend_gap(lasting: OpenGap, sample: Sample, moment: _Moment, window_ms: int) -> MeterResult:
    reason: GapReason = "target_absent" if sample.absent else "target_unreadable"
    absent_ms = moment.timeline_ms if sample.absent else lasting.absent_ms
    changed = replace(lasting, reason=reason, absent_ms=absent_ms)
    if reason == lasting.reason:
        changed, periods = _cut_gap(changed, moment.timeline_ms, window_ms)
    else:
        periods = gap(lasting.start_ms, moment.timeline_ms, lasting.reason)
        changed = _restart_gap(changed, moment.timeline_ms)
    return _state_in_gap(sample, moment, changed), periods


def _cut_gap(lasting: OpenGap, to_ms: int, window_ms: int) -> tuple[OpenGap, list[Period]]:
    """Split the gap at each window's end. Whether its time is billed is known only at its end."""
    periods = list[Period]()
    for cut_ms in cut_points(lasting.start_ms, to_ms, window_ms):
        periods += gap(lasting.start_ms, cut_ms, lasting.reason)
        lasting = _restart_gap(lasting, cut_ms)
    return lasting, periods


def _restart_gap(lasting: OpenGap, at_ms: int) -> OpenGap:
    """Return the gap that follows after a part of it was recorded, if it had begun at all."""
    start_ms = max(at_ms, lasting.start_ms)
    late_ms = lasting.late_ms + start_ms - lasting.start_ms
    return replace(lasting, start_ms=start_ms, late_ms=late_ms)


def _resume_metering(lasting: OpenGap, sample: Sample, reading: Reading, moment: _Moment) -> _Found:
    """Open a window for a target that can be read again, with the CPU not accounted for yet."""
    last, since = lasting.last, lasting.since
    timeline_ms = max(moment.timeline_ms, lasting.start_ms)
    late_ns = _rise_time_ns(lasting, sample, moment)
    if last is not None and not lasting.rebooted:
        late = same_counter(last, since, reading, sample)
        handed = reading if late else common_reading(last, since, sample)
        if handed is not None:  # the CPU of the gap is billed late, not lost
            late_usec = handed.cpu_usec - last.cpu_usec
            if late_usec > most_usec(moment.cpus, late_ns, last, reading):
                return _start_at_baseline(lasting, timeline_ms, reading, "counter_impossible")
            reading = keep_birth_time(last, reading) if late else reading
            window = first_window(reading, timeline_ms, reading.cpu_usec - late_usec)
            window = replace(window, estimated=True, source_changed=not late)
            return _Found(window, reading, late_ns)
    if not _counts_from_zero(lasting, reading):
        lower = last is not None and not lasting.rebooted and counter_fell(last, reading)
        return _start_at_baseline(lasting, timeline_ms, reading, "counter_fell" if lower else "")
    if reading.born_boot_ns is not None:
        late_ns = sample.boot_ns - reading.born_boot_ns
    if reading.cpu_usec > most_usec(moment.cpus, late_ns, reading):
        return _start_at_baseline(
            lasting, timeline_ms, reading, "counter_impossible"
        )  # the counter is older than its reported birth
    birth_ms = born_ms(reading, sample, moment.timeline_ms)
    start_ms = next((ms for ms in (birth_ms, lasting.absent_ms) if ms is not None), timeline_ms)
    late_ms = 0 if birth_ms is None else max(0, lasting.start_ms - birth_ms)
    start_ms = min(max(start_ms, lasting.start_ms), timeline_ms)
    window = first_window(replace(reading, cpu_usec=0), start_ms, 0)
    window = replace(window, restart_observed=last is not None)
    return _Found(window, reading, late_ns, late_ms)


def _start_at_baseline(
    lasting: OpenGap, timeline_ms: int, reading: Reading, reason: GapReason
) -> _Found:
    """Start at the counter's present value: its earlier value is unknown or impossible."""
    last = lasting.last
    if reason:  # it is recorded with the gap, so the gap needs a length
        timeline_ms = max(timeline_ms, lasting.start_ms + 1)
    window = first_window(reading, timeline_ms, reading.cpu_usec)
    restarted = last is not None and not reason and last.source == reading.source
    return _Found(replace(window, restart_observed=restarted), reading, reason=reason)


def most_usec(cpus: int, elapsed_ns: int, *readings: Reading) -> int:
    """Return the largest rise, microseconds of CPU, of a counter of these sources in a time."""
    slack_ms = max(SLACK_MS[reading.source] for reading in readings)
    return cpus * (elapsed_ns // 1000 + slack_ms * 1000)


def _is_possible(window: Window, handed: Reading, sample: Sample, moment: _Moment) -> bool:
    """Return whether the machine could provide the CPU of this interval and of the whole window."""
    sources = [handed, *([sample.reading] if sample.reading else [])]
    sources += window.secondary if window.source_changed else []
    read_ns = window.seen.read_ns if window.seen else 0
    elapsed_ns = moment.elapsed_ns + window.pending_ns + read_ns
    rise_usec = handed.cpu_usec - window.reading.cpu_usec
    used_usec = handed.cpu_usec - window.cpu_start_usec
    whole_ns = window.counter_ns + elapsed_ns
    return rise_usec <= most_usec(moment.cpus, elapsed_ns, *sources) and used_usec <= most_usec(
        window.machine_cpus or moment.cpus, whole_ns, *sources
    )


def _rise_time_ns(lasting: OpenGap, sample: Sample, moment: _Moment) -> int:
    """Return an upper bound of the time since the last reading, nanoseconds."""
    since = lasting.since
    if lasting.rebooted or since is None or since.boot_id != sample.boot_id:
        return sample.boot_ns
    return max(moment.elapsed_ns, sample.boot_ns - since.boot_ns + since.read_ns)


def _counts_from_zero(lasting: OpenGap, reading: Reading) -> bool:
    """Return whether the counter is known to have begun at 0 after the last reading."""
    last, since = lasting.last, lasting.since
    if since is None:
        return False
    if last is not None and not lasting.rebooted and counter_fell(last, reading):
        return False
    if reading.born_boot_ns is None:
        again = last is not None and not is_other_source(last, reading)
        another = last is not None and again and last.incarnation != reading.incarnation
        return reading.exclusive and (another or (lasting.absent_ms is not None and not again))
    born_ns = reading.born_boot_ns + birth_tolerance_ns(reading)
    return lasting.rebooted or born_ns >= since.boot_ns


def _same_container(lasting: OpenGap, sample: Sample, reading: Reading) -> bool:
    """Return whether the container that is read now also ran during the gap."""
    if lasting.since is None or lasting.rebooted:
        return False
    if lasting.last is None:  # never read before: it ran all the time if it is older
        return was_running_at(reading, lasting.since.boot_ns)
    return same_container(lasting.last, lasting.since, reading, sample, rebooted=False)


def _break_reason(opened: OpenGap, reading: Reading) -> GapReason:
    last = opened.last
    if last is None or opened.rebooted or _counts_from_zero(opened, reading):
        return "target_restarted"
    if is_other_source(last, reading):
        return "source_changed"
    return "counter_fell" if counter_fell(last, reading) else "target_restarted"


def _account_for_sleep(state: MeterState, sample: Sample) -> MeterResult:
    """Return the state after the machine's sleep since the last sample, and the gap for the sleep.

    The time of the sleep within the interval is unknown. It is assumed to follow the last sample.
    """
    slept_ms = _slept_ms(state, sample)
    if slept_ms < SLEEP_MS:
        return state, []
    slept_ns = slept_ms * NS_PER_MS
    state = replace(state, wall_ms=state.wall_ms + slept_ms, boot_ns=state.boot_ns + slept_ns)
    if isinstance(state.phase, OpenGap):
        return _account_for_sleep_in_gap(state, state.phase, slept_ms)
    window = ensure_nonempty(state.phase)
    size, end_ms, counted_ms = size_at(window), window.end_ms + slept_ms, 0
    periods, pending_ns = close_window(window), window.pending_ns
    seen = window.seen and replace(window.seen, boot_ns=window.seen.boot_ns + slept_ns)
    last = shift_birth_by_sleep(window.reading, slept_ns)
    now = sample.reading
    same = now is None or same_container(last, seen, now, sample, rebooted=False)
    if same and not sample.absent:  # a sleep of the machine does not end a container
        counted_ms = slept_ms
    slept = gap(window.end_ms, end_ms, "suspended", sizes=(size, size), counted_ms=counted_ms)
    window = replace(
        next_window(window) if periods else window,
        start_ms=end_ms,
        end_ms=end_ms,
        pending_ns=pending_ns,
        seen=seen,
        reading=last,
        secondary=tuple(shift_birth_by_sleep(one, slept_ns) for one in window.secondary),
    )
    timeline_ms = max(state.timeline_ms + slept_ms, end_ms)
    return replace(state, phase=window, timeline_ms=timeline_ms), periods + slept


def _account_for_sleep_in_gap(state: MeterState, lasting: OpenGap, slept_ms: int) -> MeterResult:
    slept_ns = slept_ms * NS_PER_MS
    start_ms = max(state.timeline_ms, lasting.start_ms)
    end_ms = start_ms + slept_ms
    periods = gap(lasting.start_ms, start_ms, lasting.reason)
    periods += gap(start_ms, end_ms, "suspended")
    since = lasting.since
    after = replace(
        _restart_gap(lasting, end_ms),
        since=since and replace(since, boot_ns=since.boot_ns + slept_ns),
        last=lasting.last and shift_birth_by_sleep(lasting.last, slept_ns),
    )
    return replace(state, timeline_ms=end_ms, phase=after), periods


def _slept_ms(state: MeterState, sample: Sample) -> int:
    """Return how long the target's machine slept since the last sample, milliseconds.

    For another machine the only evidence is ClickHouse's uptime, in whole seconds, if it did not
    increase meanwhile.
    """
    if was_rebooted(state, sample):
        return 0
    if state.asleep_ns is not None and sample.asleep_ns is not None:
        return (sample.asleep_ns - state.asleep_ns) // NS_PER_MS
    before, phase = state.last, state.phase
    seen = phase.seen if isinstance(phase, Window) else phase.since
    now = sample.reading
    if before is None or now is None or before.born_boot_ns is None or now.born_boot_ns is None:
        return 0
    if births_agree(before, now) or not same_counter(before, seen, now, sample):
        return 0
    slept_ns = min(now.born_boot_ns - before.born_boot_ns, sample.boot_ns - state.boot_ns)
    return max(0, slept_ns) // NS_PER_MS


def _state_at(sample: Sample, timeline_ms: int, phase: Window | OpenGap) -> MeterState:
    return MeterState(
        wall_ms=sample.wall_ms,
        boot_ns=sample.boot_ns,
        boot_id=sample.boot_id,
        timeline_ms=timeline_ms,
        phase=phase,
        asleep_ns=sample.asleep_ns,
        machine_cpus=sample.cpus(),
    )


def _state_in_gap(sample: Sample, moment: _Moment, lasting: OpenGap) -> MeterState:
    state = _state_at(sample, moment.timeline_ms, lasting)
    return replace(state, machine_cpus=moment.cpus)  # no reading shows fewer


def _advance_gap(lasting: OpenGap, before_ms: int, moment: _Moment) -> OpenGap:
    """Return the open gap, extended from the last sample's time to that of the next."""
    span_ms = moment.timeline_ms - before_ms
    return replace(
        lasting,
        # The wall clock may be set during the gap: the elapsed time is billed.
        late_ms=lasting.late_ms + _counted_ms(span_ms, moment) - span_ms,
        rebooted=lasting.rebooted or moment.rebooted,
    )


def _open_gap(sample: Sample, since_ms: int) -> OpenGap:
    """Return the gap that begins at the very first sample."""
    return OpenGap(
        start_ms=since_ms,
        since=_last_seen(sample),
        reason="target_absent" if sample.absent else "target_unreadable",
        absent_ms=since_ms if sample.absent else None,
    )


def _open_gap_after(window: Window, sample: Sample, moment: _Moment) -> OpenGap:
    """Return the gap that begins at the end of a closed window."""
    span_ms = moment.timeline_ms - window.end_ms
    return OpenGap(
        start_ms=window.end_ms,
        since=window.seen,
        last=window.reading,
        size=size_at(window),
        reason="target_absent" if sample.absent else "target_unreadable",
        absent_ms=max(moment.timeline_ms, window.end_ms) if sample.absent else None,
        # A jump of the wall clock is not elapsed time.
        late_ms=_counted_ms(span_ms, moment, window.pending_ns) - span_ms,
        rebooted=moment.rebooted,
    )


def _counted_ms(span_ms: int, moment: _Moment, pending_ns: int = 0) -> int:
    return counted_span_ms(span_ms, moment.elapsed_ns + pending_ns, clock_set=moment.clock_set)


def _remember_sample(window: Window, sample: Sample) -> Window:
    """Store the facts of the last sample that the window needs later."""
    cpus = max(window.machine_cpus or 0, sample.cpus())
    window = replace(window, seen=_last_seen(sample), machine_cpus=cpus)
    if not sample.secondary:
        return window
    return replace(window, secondary=sample.secondary, secondary_cpu_usec=window.reading.cpu_usec)


def _last_seen(sample: Sample) -> LastSeen:
    return LastSeen(boot_ns=sample.boot_ns, boot_id=sample.boot_id, read_ns=sample.read_ns)
