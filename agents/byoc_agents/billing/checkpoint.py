"""The meter's checkpoint: its state at the last durable record, and periods not written yet."""

import msgspec
from msgspec.structs import replace

from byoc_agents.billing.window import MeterState, Period, Window


class DeferredPeriods(msgspec.Struct, frozen=True):
    """The periods that a sample closed while the spool was full, and the meter's state then."""

    periods: list[Period]
    state: MeterState


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state that is stored with the records. `deferred` is kept in memory only."""

    epoch: int
    sequence: int  # of the next record
    state: MeterState
    deferred: tuple[DeferredPeriods, ...] = ()  # oldest first; never stored


def decode_checkpoint(stored: bytes | None) -> Checkpoint | None:
    """Return the stored checkpoint, or None if there is none or it cannot be decoded."""
    if stored is None:
        return None
    try:
        found = msgspec.json.decode(stored, type=Checkpoint)
    except msgspec.DecodeError:  # written by another version: a new epoch starts, with a gap
        return None
    window = found.state.window
    if window is None or window.machine_cpus is not None:
        return found
    return replace(found, state=replace(found.state, window=_upgrade_window(window)))


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
