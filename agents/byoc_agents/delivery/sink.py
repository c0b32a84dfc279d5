"""What a way out looks like: one method, and the values that go in and come back."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from byoc_agents.errors import Reason, SendError


class Message(msgspec.Struct, frozen=True):
    """The exact bytes to be sent, sealed before the first attempt and never changed after it."""

    id: str  # S3 object key, SQS de-duplication id, webhook-id: stable over retries and restarts
    type: str  # event type of what is inside, e.g. byoc.billing.usage.v1
    body: bytes
    created_at_ms: int  # wall clock at sealing, milliseconds since 1970
    records: int = 1  # events inside the body
    content_type: str = "application/json"
    content_encoding: str = ""  # S3 only: empty or what the body is compressed with
    group: str = ""  # order is kept inside a group (SQS MessageGroupId)
    replaces: str = ""  # a later message with the same non-empty value replaces an unsent one


class Receipt(msgspec.Struct, frozen=True):
    """The receiver's word that it has the message."""

    reason: Reason  # OK or ALREADY_STORED
    status: int  # HTTP status; 0 where there is none
    reference: str = ""  # ETag, MessageId or delivery id, as the receiver gave it


Outcome = Receipt | SendError


class Sink(Protocol):
    """One way out. Holds no queue, makes no retry and takes no decision: the shipper does."""

    destination: str  # as the ledger and /status print it: s3://bucket, sqs://queue, https://host
    max_messages: int  # of one `send`
    max_bytes: int  # sum of the bodies of one `send`; a single larger message still comes alone

    async def send(self, batch: Sequence[Message]) -> Sequence[Outcome]:
        """Try to send once and return one outcome a message, in order.

        May be called again with the same message: the receiver's effect must be the same as once.
        A raised `SendError` means that it holds for every message of the batch. Raises nothing
        else but `asyncio.CancelledError`, after which nothing is known about the batch.
        """
        ...
