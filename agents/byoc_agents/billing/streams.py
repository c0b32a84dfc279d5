"""Which stream the keys of objects number: the records of one replica, or those of a service.

A scraper with one target writes objects whose key has the sequences of the replica's own records.
A scraper that meters the replicas of a service puts their records into shared objects. Each record
keeps its replica's epoch and sequence. The key has the numbers of the records in the scraper's own
stream. So a missing object is a hole in these numbers, and each missing record is a hole in its
replica's sequences.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.billing.checkpoint import Checkpoint, decode_checkpoint
from byoc_agents.billing.objects import HOUR_MS, SHARED_STREAM, STREAM, SharedNumbers
from byoc_agents.billing.record import GapReason, charge_period_ms
from byoc_agents.billing.rollback import count_stored_lines, uncertain_since_ms
from byoc_agents.durable.spool import Spool
from byoc_agents.ledger.recent import RecentSend, newest_sent

CHECKPOINT = "billing/meter"  # of the only target; "billing/meter/NAME" of one of several
NUMBERS = "billing/objects"  # of the shared objects

T = TypeVar("T")


def checkpoint_key(replica: str) -> str:
    """Return the key of the checkpoint of one of several replicas."""
    return f"{CHECKPOINT}/{replica}"


class EpochStart(msgspec.Struct, frozen=True, kw_only=True):
    """The way in which an epoch begins without a checkpoint."""

    reason: GapReason
    epoch: int | None = None  # None = one that is later than all earlier ones of the directory
    least_epoch: int = 0  # then it is at least this, milliseconds since 1970
    since_ms: int | None = None  # records may be lost from then on, milliseconds since 1970


class LostObject(NamedTuple):
    """Records of an announced object that is gone from the spool and may not be stored."""

    lines: Sequence[bytes]
    numbers: SharedNumbers


class Recovery(NamedTuple):
    """The next object's numbers, and the correction of a spool that is older than the last sends.

    The correction is to be stored in one commit.
    """

    numbers: SharedNumbers | None  # None if they are the records' sequences
    gone: int = 0  # how many of the oldest staged lines are in announced objects
    resend: Sequence[LostObject] = ()  # those of them that may not be stored
    state: Mapping[str, bytes] = {}


class ObjectStream(Protocol):
    """Numbers the records of objects, and determines where to begin if a checkpoint is lost."""

    async def load(self, sent: Sequence[RecentSend], lines: Sequence[bytes]) -> Recovery:
        """Read the next object's numbers. Compare the spool with the recently announced sends.

        `lines` are the staged ones. Raises SpoolError. May be called again.
        """
        ...

    async def read_checkpoint(self, key: str) -> Checkpoint | EpochStart:
        """Return the checkpoint, or how to begin without it. After `load`. Raises SpoolError."""
        ...


def advance_numbers(
    numbers: SharedNumbers | None, records: int
) -> tuple[SharedNumbers | None, Mapping[str, bytes]]:
    """Return the numbers after an object of so many records, and what to store with it."""
    if numbers is None:  # the checkpoint has the sequence
        return None, {}
    numbers = msgspec.structs.replace(numbers, first=numbers.first + records)
    return numbers, {NUMBERS: msgspec.json.encode(numbers)}


class ReplicaStream:
    """The sequences of the only target's records."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._sent: Sequence[RecentSend] = ()

    async def load(self, sent: Sequence[RecentSend], lines: Sequence[bytes]) -> Recovery:
        """Find the staged lines that are stored already."""
        self._sent = [one for one in sent if one.stream == STREAM]
        return Recovery(None, count_stored_lines(lines, self._sent))

    async def read_checkpoint(self, key: str) -> Checkpoint | EpochStart:
        """Return the checkpoint, unless records after it were announced."""
        stored = (await self._spool.state(key)).get(key)
        found, info = decode_checkpoint(stored), await self._spool.info()
        newest = newest_sent(self._sent, STREAM)
        if found and not (
            (newest and newest >= (found.epoch, found.sequence))
            or (info.replaced and found.epoch < info.epoch)  # written by one who did not know it
        ):
            return found
        sent = newest is not None and newest >= (info.epoch, 0)
        return EpochStart(
            reason="spool_corrupt" if sent or info.replaced else "no_checkpoint",
            epoch=None if stored is not None or sent else info.epoch,
            least_epoch=newest.epoch + 1 if newest else 0,
            since_ms=uncertain_since_ms(self._sent),
        )


class ServiceStream:
    """The numbers of the records of all replicas, in the order in which they were staged.

    One stream is one epoch of the state directory. If the spool is lost, or older than the
    last sends, a new stream begins, and each replica begins a new epoch with a gap.
    """

    def __init__(self, spool: Spool, clock: Clock, name: str, replicas: Sequence[str]) -> None:
        """`name` is that of a new stream; a stream keeps its name when the scraper gets another.

        `replicas` are the names of the metered ones.
        """
        self._spool = spool
        self._clock = clock
        self._name = name
        self._replicas = replicas
        self._lost_since_ms: int | None = None  # if one replica's checkpoint is lost

    async def load(self, sent: Sequence[RecentSend], lines: Sequence[bytes]) -> Recovery:
        """Load the next number. Begin a new stream if it is lost or was used already."""
        sent = [one for one in sent if one.stream == SHARED_STREAM]
        since_ms = _lost_since_ms(sent, lines)
        rows = await self._spool.state("billing/")
        found = _decode(rows.get(NUMBERS), SharedNumbers)
        newest = newest_sent(sent, SHARED_STREAM)
        if found and not (newest and newest >= (found.epoch, found.first)):
            self._lost_since_ms = since_ms or found.epoch - HOUR_MS
            return Recovery(found)
        info = await self._spool.info()
        least = max(self._clock.wall_ns() // 1_000_000, newest.epoch + 1 if newest else 0)
        epoch = await self._spool.later_epoch(least)
        self._lost_since_ms = since_ms or epoch - HOUR_MS
        numbers = SharedNumbers(name=self._name, epoch=epoch, first=0)
        corrupt = NUMBERS in rows or bool(sent) or info.replaced
        start = EpochStart(
            reason="spool_corrupt" if corrupt else "no_checkpoint",
            since_ms=since_ms,
        )
        structlog.get_logger().warning("billing.stream_started", epoch=epoch, reason=start.reason)
        keys = {key for key in rows if key.startswith(checkpoint_key(""))}
        keys |= {checkpoint_key(name) for name in self._replicas}
        state = dict.fromkeys(keys, msgspec.json.encode(start))
        gone, resend = _find_announced(found, sent, lines) if found else (0, ())
        return Recovery(numbers, gone, resend, {**state, NUMBERS: msgspec.json.encode(numbers)})

    async def read_checkpoint(self, key: str) -> Checkpoint | EpochStart:
        """Return the checkpoint. A damaged one concerns its replica only."""
        stored = (await self._spool.state(key)).get(key)
        if stored is None:  # a new replica
            return EpochStart(reason="no_checkpoint")
        found = decode_checkpoint(stored) or _decode(stored, EpochStart)
        if found is None:  # its last record is not older than the stream
            return EpochStart(reason="no_checkpoint", since_ms=self._lost_since_ms)
        return found


def _lost_since_ms(sent: Sequence[RecentSend], lines: Sequence[bytes]) -> int | None:
    """Return a time before the end of each replica's last record, milliseconds since 1970.

    A record of one replica may be an hour older than another's in the newest object. None if
    nothing was announced and nothing is staged.
    """
    since_ms = uncertain_since_ms(sent)
    if since_ms is None and lines:
        since_ms, _ = charge_period_ms(lines[0])
    return since_ms and since_ms - HOUR_MS


def _find_announced(
    next_one: SharedNumbers, sent: Sequence[RecentSend], lines: Sequence[bytes]
) -> tuple[int, list[LostObject]]:
    """Return how many of the staged lines are in announced objects, and the objects to send again.

    `next_one` and `lines` are of the older spool. Lines are sealed in their order, so the objects
    that were announced since then have the numbers from there on. Sealed again with the same
    numbers they have the same key, and the receiver keeps one of them. If some records of such an
    object are lost, the others get a new key: the receiver may have them twice, with equal ids.
    """
    ranges = {
        one.first.sequence: (one.last.sequence + 1, one.stored)
        for one in sent
        if one.last.epoch == next_one.epoch
    }
    number, end, lost = next_one.first, next_one.first + len(lines), list[LostObject]()
    while number < end and number in ranges:
        after, stored = ranges[number]
        if not stored and after > end:
            break
        if not stored:
            some = lines[number - next_one.first : after - next_one.first]
            lost.append(LostObject(some, msgspec.structs.replace(next_one, first=number)))
        number = min(after, end)
    return number - next_one.first, lost


def _decode(stored: bytes | None, kind: type[T]) -> T | None:
    """Return the stored value, or None if there is none or it is another."""
    if stored is None:
        return None
    try:
        return msgspec.json.decode(stored, type=kind)
    except msgspec.DecodeError:
        return None
