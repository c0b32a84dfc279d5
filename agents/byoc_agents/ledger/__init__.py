"""The ledger of sends: one line before and one after each, in a hash chain on local disk.

Reading order: `format` (the lines), `segments` (the files), `tree` (RFC 6962), `reader` (reads the
lines). The daemon's side: `chain` (the blocking writer), `writer` (its asynchronous interface),
`recent` (detects an old spool). The customer's side: `query` (sends with their outcomes), `heads`
(checkpoints), `verify`. docs/contracts/ledger.md is for people who read the files.
"""

from collections.abc import Sequence
from typing import Protocol

from byoc_agents.ledger.writer import FileLedger
from byoc_agents.message import Message, Outcome

__all__ = ["FileLedger", "Ledger"]


class Ledger(Protocol):
    """Records every send. Only the shipper calls it."""

    async def intent(self, destination: str, batch: Sequence[Message]) -> int:
        """Write the intent to send a batch, durably. Return the number of the line. May block.

        Raises LedgerError: then the batch must not be sent.
        """
        ...

    async def receipt(
        self, intent: int, batch: Sequence[Message], outcomes: Sequence[Outcome]
    ) -> None:
        """Write the outcomes. May block.

        Raises LedgerError: the messages then count as not sent.
        """
        ...
