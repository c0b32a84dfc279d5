"""Where the meter stood when the last record was made durable; and beyond it, in memory."""

import msgspec

from byoc_agents.billing.window import Period, State


class Held(msgspec.Struct, frozen=True):
    """What a sample closed while there was no room, and where the meter stood then."""

    periods: list[Period]
    state: State


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What survives a kill, but for `held`."""

    epoch: int
    sequence: int  # of the next record
    state: State
    held: tuple[Held, ...] = ()  # oldest first; never written with it


def decoded(stored: bytes | None) -> Checkpoint | None:
    """Return the checkpoint of these bytes, or None where they are none of ours."""
    if stored is None:
        return None
    try:
        return msgspec.json.decode(stored, type=Checkpoint)
    except msgspec.DecodeError:  # written by another version: a new epoch states the gap
        return None


def same_place(one: Checkpoint, other: Checkpoint) -> bool:
    """Tell whether no record lies between them."""
    return (one.epoch, one.sequence) == (other.epoch, other.sequence)
