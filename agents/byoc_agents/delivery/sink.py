"""The interface of a sink: one method, its arguments and its results."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from byoc_agents.message import Message, Outcome

Request = Callable[[], Awaitable[Sequence[Outcome]]]  # sends once; an outcome for each message
# Makes a request, with a ledger line before and after it.
Transmit = Callable[[Sequence[Message], Request], Awaitable[Sequence[Outcome]]]


async def transmit_unrecorded(_messages: Sequence[Message], request: Request) -> Sequence[Outcome]:
    """Send without a ledger, for a sink that is used alone."""
    return await request()


class Sink(Protocol):
    """One destination. The shipper reads the queue, repeats attempts and decides."""

    destination: str  # as the ledger and /status print it: s3://bucket, sqs://queue, https://host
    max_messages: int  # of one `send`
    max_bytes: int  # sum of the bodies of one `send`; a larger message is sent alone

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        """Try to send once and return one outcome per message, in order. Waits for the network.

        Each request is made by `transmit(messages, request)`, with exactly the messages in it: the
        ledger has a line before and one after it. `transmit` returns what the request returns, and
        raises what it raises. It also raises LedgerError, which the sink does not catch: the
        request was not made, or its outcomes could not be recorded.

        May be called again with the same message: the effect at the receiver must be the same as
        after one call. A raised SendError applies to every message of the batch. Raises no other
        error except asyncio.CancelledError, after which the outcome of the batch is unknown.
        """
        ...
