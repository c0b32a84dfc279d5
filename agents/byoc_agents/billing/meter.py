"""Readings to periods: a pure function from (state, sample) to (state, periods).

The caller adopts the new state only when the periods are durable. If they are not, it keeps the old
one, and a failed commit is the same as a missed sample: counters are cumulative, so the next one
makes it good.

Periods lie on the wall clock, durations on the boot clock. A sample's place in time is its wall
clock, but never before the sample before it: a clock set back holds the window open until the wall
clock has caught up. A clock set forward closes the window where the boot clock says we are, and the
jumped span is stated as a gap.
"""

import msgspec
from msgspec.structs import replace

from byoc_agents.billing.continuity import (
    BIRTH_TOLERANCE_NS,
    births_agree,
    born_ms,
    handed_over,
    in_common,
    other_source,
    rescaled,
    same_life,
    steady,
)
from byoc_agents.billing.record import GapReason
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.window import (
    HOUR_MS,
    NS_PER_MS,
    Period,
    Sample,
    Seen,
    State,
    Window,
    advance,
    cuts,
    ended,
    fresh,
    gap,
    opened,
    resized,
    shut,
    sized,
    stepped,
)

STEP_TOLERANCE_MS = 1000  # NTP slews at most 0.5 ms a second (ntp_adjtime(2)); more is a step
STEP_TOLERANCE_RATIO = 0.001  # twice the slew limit, for long spans between samples

Stepped = tuple[State, list[Period]]


class _Moment(msgspec.Struct, frozen=True):
    """Where a sample lies in our time."""

    place_ms: int
    elapsed_ns: int  # since the last sample
    step_ms: int  # how far the wall clock was set since the last sample; 0 = not at all
    unstepped_ms: int  # where we would be without that

    @classmethod
    def of(cls, state: State, sample: Sample) -> "_Moment":
        wall_ms = sample.wall_ms - state.wall_ms
        same_boot = sample.boot_id == state.boot_id and sample.boot_ns >= state.boot_ns
        elapsed_ns = sample.boot_ns - state.boot_ns if same_boot else max(0, wall_ms) * NS_PER_MS
        drift_ms = wall_ms - elapsed_ns // NS_PER_MS
        tolerance_ms = max(STEP_TOLERANCE_MS, elapsed_ns / NS_PER_MS * STEP_TOLERANCE_RATIO)
        step_ms = drift_ms if same_boot and abs(drift_ms) > tolerance_ms else 0
        place_ms = max(sample.wall_ms, state.place_ms)
        unstepped_ms = max(sample.wall_ms - step_ms, state.place_ms)
        return cls(place_ms, elapsed_ns, step_ms, min(unstepped_ms, place_ms))


class Meter:
    """Decides what each sample means. Holds nothing but the length of a window."""

    def __init__(self, *, window_ms: int) -> None:
        self._window_ms = window_ms

    def start(self, sample: Sample, reason: GapReason, *, since_ms: int | None = None) -> Stepped:
        """Begin without a checkpoint. What ran before is stated as a gap, back to its birth.

        Where records of an earlier epoch may be lost from `since_ms` on, back to there as well.
        """
        state = _at(sample, sample.wall_ms)
        reading, unsure_ms = sample.reading, sample.wall_ms if since_ms is None else since_ms
        if reading is None:
            before = gap(unsure_ms, sample.wall_ms, reason)
            return _lost(state, sample, sample.wall_ms, _seen(sample)), before
        birth_ms = born_ms(reading, sample, sample.wall_ms)
        if birth_ms is None:  # a counter of the kernel is not older than its boot
            birth_ms = sample.wall_ms - sample.boot_ns // NS_PER_MS
        window = fresh(reading, sample.wall_ms, reading.cpu_usec)
        earlier = gap(unsure_ms, min(birth_ms, sample.wall_ms), reason)
        before = gap(birth_ms, sample.wall_ms, reason, reading)
        return replace(state, window=_measured(window, sample)), earlier + before

    def step(self, state: State, sample: Sample, *, hold: bool = False) -> Stepped:
        """Take one sample. With `hold` windows end at UTC hours only: the spool is full."""
        moment = _Moment.of(state, sample)
        after = _at(sample, moment.place_ms)
        if state.window is None:
            return self._step_gap(_in_gap(state, after), sample, moment)
        window = stepped(state.window, moment.step_ms)
        if sample.reading is None:
            return self._step_blind(window, after, sample, moment)
        handed = handed_over(window, sample)
        if handed is None:
            return self._step_break(window, after, sample, moment)
        window_ms = HOUR_MS if hold else self._window_ms
        at_ms = cuts(window.end_ms, moment.unstepped_ms, window_ms)
        state, periods = _step_on(window, after, handed, moment, at_ms)
        window = _open(state)
        if other_source(handed, sample.reading):
            window = rescaled(window, sample.reading)
        return replace(state, window=_measured(window, sample)), periods

    def close(self, state: State) -> Stepped:
        """Close what is open at the last sample: the agent stops."""
        if state.window is None:
            before = gap(state.gap_start_ms, state.place_ms, state.gap_reason)
            return replace(state, gap_start_ms=state.place_ms), before
        if state.window.end_ms == state.window.start_ms:
            return state, []  # nothing yet, or a clock set back: the checkpoint keeps it
        return replace(state, window=opened(state.window)), shut(state.window)

    def _step_blind(self, window: Window, after: State, sample: Sample, moment: _Moment) -> Stepped:
        """No reading. Until the window is over this is a missed sample; then the target is gone."""
        over = cuts(window.end_ms, moment.place_ms, self._window_ms)
        if not over and not sample.absent and moment.step_ms <= 0:
            pending_ns = window.pending_ns + moment.elapsed_ns
            return replace(after, window=replace(window, pending_ns=pending_ns)), []
        window = ended(window)
        lost = replace(_lost(after, sample, window.end_ms, window.seen), last=window.reading)
        return self._close_gap_windows(lost, shut(window))

    def _step_break(self, window: Window, after: State, sample: Sample, moment: _Moment) -> Stepped:
        """Another life of the target, or a source that has no reading in common with the last."""
        window = ended(window)
        lost = replace(_lost(after, sample, window.end_ms, window.seen), last=window.reading)
        lost = replace(lost, gap_reason=_break_reason(lost, sample))
        state, periods = self._step_gap(lost, sample, moment)
        return state, shut(window) + periods

    def _step_gap(self, state: State, sample: Sample, moment: _Moment) -> Stepped:
        """Nothing was measured up to now; perhaps it is again."""
        if sample.reading is None:
            return self._still_gap(state, sample)
        window = _appear(state, sample.reading, sample)
        before = gap(state.gap_start_ms, window.start_ms, state.gap_reason)
        to_ms = max(moment.place_ms, window.start_ms)
        at_ms = cuts(window.start_ms, to_ms, self._window_ms)
        elapsed_ns = (to_ms - window.start_ms) * NS_PER_MS
        reading = steady(window.reading, sample.reading)
        window, periods = advance(window, to_ms, reading, elapsed_ns, at_ms)
        after = _at(sample, to_ms)
        return replace(after, window=_measured(window, sample)), before + periods

    def _still_gap(self, state: State, sample: Sample) -> Stepped:
        reason: GapReason = "target_absent" if sample.absent else "target_unreadable"
        absent_ms = state.place_ms if sample.absent else state.absent_ms
        changed = replace(state, gap_reason=reason, absent_ms=absent_ms)
        if reason == state.gap_reason:
            return self._close_gap_windows(changed, [])
        before = gap(state.gap_start_ms, state.place_ms, state.gap_reason)
        return replace(changed, gap_start_ms=max(state.place_ms, state.gap_start_ms)), before

    def _close_gap_windows(self, state: State, periods: list[Period]) -> Stepped:
        for cut_ms in cuts(state.gap_start_ms, state.place_ms, self._window_ms):
            periods = periods + gap(state.gap_start_ms, cut_ms, state.gap_reason)
            state = replace(state, gap_start_ms=cut_ms)
        return state, periods


def _step_on(
    window: Window, after: State, reading: Reading, moment: _Moment, at_ms: list[int]
) -> Stepped:
    """Measure on in the same life."""
    reading = steady(window.reading, reading)
    to_ms = moment.unstepped_ms if moment.step_ms > 0 else moment.place_ms
    window, periods = advance(window, to_ms, reading, moment.elapsed_ns, at_ms)
    if resized(window):
        window = ended(window)
        periods += shut(window)
        window = sized(opened(window), reading)
    if moment.step_ms > 0:
        window = ended(window)
        periods += shut(window) + gap(window.end_ms, moment.place_ms, "clock_step")
        start_ms = max(window.end_ms, moment.place_ms)
        window = replace(opened(window), start_ms=start_ms, end_ms=start_ms)
    place_ms = max(after.place_ms, window.end_ms)
    return replace(after, place_ms=place_ms, window=window), periods


def _appear(state: State, reading: Reading, sample: Sample) -> Window:
    """Open a window for a target that was not there, from where its CPU is not accounted for."""
    last, place_ms = state.last, max(state.place_ms, state.gap_start_ms)
    if last is not None and same_life(last, reading):  # its CPU in the gap is late, not lost
        return replace(fresh(steady(last, reading), place_ms, last.cpu_usec), estimated=True)
    if last is not None and (handed := in_common(last, sample)):
        late_usec = handed.cpu_usec - last.cpu_usec
        window = fresh(reading, place_ms, reading.cpu_usec - late_usec)
        return replace(window, estimated=True, source_changed=True)
    if not _born_in_gap(state, reading, sample):
        window = fresh(reading, place_ms, reading.cpu_usec)
        return replace(window, restart_observed=last is not None and last.source == reading.source)
    birth_ms = born_ms(reading, sample, state.place_ms)
    if not _new(state, reading, sample):
        birth_ms = None  # it is older than its counter, which was set to 0
    start_ms = next((ms for ms in (birth_ms, state.absent_ms) if ms is not None), place_ms)
    start_ms = min(max(start_ms, state.gap_start_ms), place_ms)
    window = fresh(replace(reading, cpu_usec=0), start_ms, 0)
    return replace(window, restart_observed=last is not None)


def _born_in_gap(state: State, reading: Reading, sample: Sample) -> bool:
    """Return whether the counter began at 0 after the last one was read."""
    last = state.last
    again = last is not None and not other_source(last, reading)
    if last is not None and again and _fell(last, reading):
        return reading.resets_to_zero
    if reading.born_boot_ns is None:
        return again or state.absent_ms is not None
    return _new(state, reading, sample)


def _fell(last: Reading, reading: Reading) -> bool:
    """Return whether one and the same counter, which only grows, is lower now."""
    same = last.incarnation == reading.incarnation and births_agree(last, reading)
    return same and reading.cpu_usec < last.cpu_usec


def _new(state: State, reading: Reading, sample: Sample) -> bool:
    """Return whether the reading's birth is known to lie after the last thing we saw."""
    if reading.born_boot_ns is None or state.since is None:
        return False
    rebooted = state.since.boot_id != sample.boot_id
    return rebooted or reading.born_boot_ns >= state.since.boot_ns - BIRTH_TOLERANCE_NS


def _break_reason(state: State, sample: Sample) -> GapReason:
    reading, last = _need(sample), state.last
    if last is None or _born_in_gap(state, reading, sample):
        return "target_restarted"
    if other_source(last, reading):
        return "source_changed"
    fell = last.incarnation == reading.incarnation and reading.cpu_usec < last.cpu_usec
    return "counter_fell" if fell else "target_restarted"


def _at(sample: Sample, place_ms: int) -> State:
    return State(
        wall_ms=sample.wall_ms, boot_ns=sample.boot_ns, boot_id=sample.boot_id, place_ms=place_ms
    )


def _in_gap(before: State, after: State) -> State:
    """Return the open gap of `before`, at the moment of `after`."""
    return replace(
        before,
        wall_ms=after.wall_ms,
        boot_ns=after.boot_ns,
        boot_id=after.boot_id,
        place_ms=after.place_ms,
    )


def _lost(after: State, sample: Sample, since_ms: int, since: Seen | None) -> State:
    return replace(
        after,
        gap_start_ms=since_ms,
        since=since,
        gap_reason="target_absent" if sample.absent else "target_unreadable",
        absent_ms=max(after.place_ms, since_ms) if sample.absent else None,
    )


def _measured(window: Window, sample: Sample) -> Window:
    """Return the window with what it remembers of its last sample."""
    window = replace(window, seen=_seen(sample))
    if not sample.standby:
        return window
    return replace(window, standby=sample.standby, standby_cpu_usec=window.reading.cpu_usec)


def _seen(sample: Sample) -> Seen:
    return Seen(boot_ns=sample.boot_ns, boot_id=sample.boot_id)


def _open(state: State) -> Window:
    assert state.window is not None  # noqa: S101  it was just measured
    return state.window


def _need(sample: Sample) -> Reading:
    assert sample.reading is not None  # noqa: S101  the callers have looked
    return sample.reading
