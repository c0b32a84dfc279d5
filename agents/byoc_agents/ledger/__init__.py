"""What left: one line before a send, one after it, in a hash chain on local disk.

Reading order: `lines` (what a line says), `scan` (one file read back), `segments` (the files),
`chain` (the blocking writer), `file` (the asynchronous face of it), `verify`, `sends` (what left,
put together for readers). docs/ledger.md is written for the people who read the files.
"""

from collections.abc import Sequence
from typing import Protocol

from byoc_agents.delivery.sink import Message, Outcome
from byoc_agents.ledger.writer import FileLedger

__all__ = ["FileLedger", "Ledger"]


class Ledger(Protocol):
    """Told by the shipper, and by nobody else, about everything that leaves."""

    async def intent(self, destination: str, batch: Sequence[Message]) -> int:
        """Write durably what is about to be sent; return the number of the line.

        Raises LedgerError: then the send does not happen.
        """
        ...

    async def receipt(
        self, intent: int, batch: Sequence[Message], outcomes: Sequence[Outcome]
    ) -> None:
        """Write how it ended. Raises LedgerError: the messages then count as not sent."""
        ...
