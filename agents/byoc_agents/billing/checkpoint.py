"""The meter's checkpoint: its state at the last durable record, and periods not written yet."""

import msgspec
from msgspec.structs import replace

from byoc_agents.billing.record import GapReason
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.window import LastSeen, MeterState, OpenGap, Period, Size, Window


class DeferredPeriods(msgspec.Struct, frozen=True):
    """The periods that a sample closed while the spool was full, and the meter's state then."""

    periods: list[Period]
    state: MeterState


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The position of the stream, and the meter's state there."""

    epoch: int
    sequence: int  # of the next record
    state: MeterState
    deferred: tuple[DeferredPeriods, ...] = ()  # oldest first; kept in memory only


class _StoredState(msgspec.Struct, frozen=True, kw_only=True):
    """MeterState as JSON, in the form of 0.1.0: the fields of the open gap are not nested."""

    wall_ms: int
    boot_ns: int
    boot_id: str
    timeline_ms: int = msgspec.field(name="place_ms")
    window: Window | None = None
    gap_start_ms: int = 0
    gap_reason: GapReason = "target_absent"
    since: LastSeen | None = None
    absent_ms: int | None = None
    last: Reading | None = None
    size: Size | None = None
    late_ms: int = 0
    rebooted: bool = False
    unread: GapReason = ""
    boot_alias: str | None = None
    asleep_ns: int | None = None
    machine_cpus: int | None = None


class _StoredCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    epoch: int
    sequence: int
    state: _StoredState


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return the JSON that is stored with the records."""
    state = checkpoint.state
    stored = _StoredState(
        wall_ms=state.wall_ms,
        boot_ns=state.boot_ns,
        boot_id=state.boot_id,
        timeline_ms=state.timeline_ms,
        boot_alias=state.boot_alias,
        asleep_ns=state.asleep_ns,
        machine_cpus=state.machine_cpus,
    )
    match state.phase:
        case Window() as window:
            stored = replace(stored, window=window)
        case OpenGap() as gap:
            stored = replace(
                stored,
                gap_start_ms=gap.start_ms,
                gap_reason=gap.reason,
                since=gap.since,
                absent_ms=gap.absent_ms,
                last=gap.last,
                size=gap.size,
                late_ms=gap.late_ms,
                rebooted=gap.rebooted,
                unread=gap.unread,
            )
    return msgspec.json.encode(
        _StoredCheckpoint(epoch=checkpoint.epoch, sequence=checkpoint.sequence, state=stored)
    )


def decode_checkpoint(stored: bytes | None) -> Checkpoint | None:
    """Return the stored checkpoint, or None if there is none or it cannot be decoded."""
    if stored is None:
        return None
    try:
        found = msgspec.json.decode(stored, type=_StoredCheckpoint)
    except msgspec.DecodeError:  # written by another version: a new epoch starts, with a gap
        return None
    return Checkpoint(epoch=found.epoch, sequence=found.sequence, state=_read_state(found.state))


def _read_state(stored: _StoredState) -> MeterState:
    phase: Window | OpenGap
    if stored.window is None:
        phase = OpenGap(
            start_ms=stored.gap_start_ms,
            reason=stored.gap_reason,
            since=stored.since,
            absent_ms=stored.absent_ms,
            last=stored.last,
            size=stored.size,
            late_ms=stored.late_ms,
            rebooted=stored.rebooted,
            unread=stored.unread,
        )
    else:
        known = stored.window.machine_cpus is not None
        phase = stored.window if known else _upgrade_window(stored.window)
    return MeterState(
        wall_ms=stored.wall_ms,
        boot_ns=stored.boot_ns,
        boot_id=stored.boot_id,
        timeline_ms=stored.timeline_ms,
        phase=phase,
        boot_alias=stored.boot_alias,
        asleep_ns=stored.asleep_ns,
        machine_cpus=stored.machine_cpus,
    )


def _upgrade_window(window: Window) -> Window:
    """Return a window of version 0.1.0 with the durations that 0.1.0 did not store.

    A window that is estimated, or the first one of a counter, may include CPU of an earlier time.
    Its counter may then have risen for as long as the machine was up.
    """
    counter_ns = window.elapsed_ns
    if (window.estimated or window.restart_observed or window.source_changed) and window.seen:
        counter_ns = window.seen.boot_ns
    return replace(window, counted_ms=window.end_ms - window.start_ms, counter_ns=counter_ns)


def same_position(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether no record was written between the two checkpoints."""
    return (one.epoch, one.sequence) == (other.epoch, other.sequence)
