"""Where the meter stood when the last record was made durable; and beyond it, in memory."""

import msgspec
from msgspec.structs import replace

from byoc_agents.billing.window import MeterState, Period, Window


class DeferredPeriods(msgspec.Struct, frozen=True):
    """What a sample closed while there was no room, and where the meter stood then."""

    periods: list[Period]
    state: MeterState


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What survives a kill, but for `deferred`."""

    epoch: int
    sequence: int  # of the next record
    state: MeterState
    deferred: tuple[DeferredPeriods, ...] = ()  # oldest first; never written with it


def decode_checkpoint(stored: bytes | None) -> Checkpoint | None:
    """Return the checkpoint of these bytes, or None where they are none of ours."""
    if stored is None:
        return None
    try:
        found = msgspec.json.decode(stored, type=Checkpoint)
    except msgspec.DecodeError:  # written by another version: a new epoch states the gap
        return None
    window = found.state.window
    if window is None or window.machine_cpus is not None:
        return found
    return replace(found, state=replace(found.state, window=_upgrade_window(window)))


def _upgrade_window(window: Window) -> Window:
    """Return a window of 0.1.0 with the lengths that it did not keep.

    It may hold CPU of an earlier time if it is estimated or the first of a life: the counter then
    had as long as the machine was up.
    """
    counter_ns = window.elapsed_ns
    if (window.estimated or window.restart_observed or window.source_changed) and window.seen:
        counter_ns = window.seen.boot_ns
    return replace(window, counted_ms=window.end_ms - window.start_ms, counter_ns=counter_ns)


def same_position(one: Checkpoint, other: Checkpoint) -> bool:
    """Tell whether no record lies between them."""
    return (one.epoch, one.sequence) == (other.epoch, other.sequence)
