"""A message, which the spool stores and a sink sends, and the outcome of an attempt to send it."""

import msgspec

from byoc_agents.errors import Reason, SendError


class Message(msgspec.Struct, frozen=True):
    """The exact bytes to be sent. They are final before the first attempt."""

    id: str  # S3 object key, SQS de-duplication id, webhook-id: stable over retries and restarts
    type: str  # type of the events inside, e.g. byoc.billing.usage.v1
    body: bytes
    created_at_ms: int  # wall clock when it was made, milliseconds since 1970
    events: int = 1  # inside the body
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
