"""Sound buckets, and the tools that damage them."""

from collections.abc import Callable
from functools import cache

import msgspec
import zstandard

from byoc_agents.audit import Audit, Report
from byoc_agents.billing.objects import unseal
from byoc_agents.billing.record import UsageRecord
from byoc_agents.message import Message
from lab.fakes.billing import ReplicaHistory, eventful, objects

Records = list[UsageRecord]


def audit(messages: list[Message], *, partial: bool = False) -> Report:
    taken = Audit(partial=partial)
    for message in messages:
        taken.add(message.id, message.body)
    return taken.report("here")


def of(records: Records, size: int = 5) -> Report:
    return audit(objects(records, size=size))


@cache
def _sound() -> tuple[UsageRecord, ...]:
    return tuple(eventful(ReplicaHistory()))


def sound() -> Records:
    return list(_sound())


def torn(message: Message) -> Message:
    return msgspec.structs.replace(message, body=message.body[:-3])


def rewritten(message: Message, change: Callable[[list[bytes]], list[bytes]]) -> Message:
    """Return the object with other lines, well compressed, under its old key."""
    lines = change(unseal(message.id, message.body))
    body = pressed(b"".join(line + b"\n" for line in lines))
    return msgspec.structs.replace(message, body=body)


def pressed(text: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(text)
