"""The interface of a sink: one method, its arguments and its results."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from byoc_agents.errors import Reason, SendError


class Message(msgspec.Struct, frozen=True):
    """The exact bytes to be sent, sealed before the first attempt and never changed after it."""

    id: str  # S3 object key, SQS de-duplication id, webhook-id: stable over retries and restarts
    type: str  # type of the events inside, e.g. byoc.billing.usage.v1
    body: bytes
    created_at_ms: int  # wall clock at sealing, milliseconds since 1970
    records: int = 1  # events inside the body
    content_type: str = "application/json"
    content_encoding: str = ""  # S3 only: the compression of the body, or empty
    group: str = ""  # messages of a group stay in order (SQS MessageGroupId)
    replaces: str = ""  # a later message with the same non-empty value replaces an unsent one
    stream: str = ""  # the numbered stream that its events belong to; empty = not numbered
    epoch: int = 0  # of the stream
    sequence: int = 0  # of its last event, in the epoch


class Receipt(msgspec.Struct, frozen=True):
    """The receiver's confirmation that it has stored the message."""

    reason: Reason  # OK or ALREADY_STORED
    status: int  # HTTP status, or 0 if there is none
    reference: str = ""  # the receiver's ETag, MessageId or delivery id


Outcome = Receipt | SendError
Request = Callable[[], Awaitable[Sequence[Outcome]]]  # sends once; an outcome for each message
Transmit = Callable[[Sequence[Message], Request], Awaitable[Sequence[Outcome]]]


async def transmit_unrecorded(_messages: Sequence[Message], request: Request) -> Sequence[Outcome]:
    """Send without a ledger, for a sink that is used alone."""
    return await request()


class Sink(Protocol):
    """One destination. The shipper, not the sink, holds the queue, retries and decides."""

    destination: str  # as the ledger and /status print it: s3://bucket, sqs://queue, https://host
    max_messages: int  # of one `send`
    max_bytes: int  # sum of the bodies of one `send`; a larger message is sent alone

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        """Try to send once and return one outcome per message, in order. May block.

        Each request is made by `transmit(messages, request)`, with exactly the messages in it: the
        ledger has a line before and one after it. `transmit` returns what the request returns, and
        raises what it raises; or LedgerError, which the sink does not catch: nothing was sent.

        May be called again with the same message: the effect at the receiver must be the same as
        after one call. A raised SendError applies to every message of the batch. Raises no other
        error except asyncio.CancelledError, after which the outcome of the batch is unknown.
        """
        ...
