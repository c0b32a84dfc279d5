"""A program that writes as a daemon does, and prints the result of each write.

    python -m lab.real.syscalls.writer DIRECTORY MESSAGES

Puts messages, and sends the oldest from time to time: an intent in the ledger, a receipt, an
acknowledgment. It prints one line after each step: `put 7`, `sent 7 12` (the line of the intent),
`gone 7`, `not put 7 SpoolUnavailableError`. It never gives up.
"""

import asyncio
import hashlib
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from byoc_agents.app import logging as log
from byoc_agents.app.clock import SystemClock
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.spool_file import OperationKind
from byoc_agents.errors import ByocError, Reason
from byoc_agents.ledger import FileLedger
from byoc_agents.message import Message, Receipt

CHECKPOINT_PAGES = 24  # SQLite's own 1,000 would not be reached here
SEND_EVERY = 3


def message(number: int) -> Message:
    """Return a message that can be distinguished from its own torn copy."""
    body = hashlib.sha256(b"%d" % number).digest() * (1 + number * 37 % 300)
    return Message(f"m{number}", "t", body, number)


async def main(directory: Path, messages: int) -> None:
    """Run the writer."""
    clock = SystemClock()
    spool = Spool(directory, max_bytes=1 << 30, clock=clock)
    ledger = FileLedger(directory / "ledger", clock=clock, max_bytes=1 << 16)
    async with spool, ledger:
        for number in range(messages):
            await _step(f"put {number}", _put(spool, number))
            if number % SEND_EVERY == SEND_EVERY - 1:
                await _step(f"send at {number}", _send(spool, ledger))


async def _step(name: str, step: Coroutine[Any, Any, str]) -> None:
    try:
        result = await step
    except ByocError as error:
        result = f"not {name} {type(error).__name__}"
    if result:
        _say(result)


def _say(line: str) -> None:
    os.writev(1, [f"{line}\n".encode()])  # one call per line, and never a partial one


async def _put(spool: Spool, number: int) -> str:
    pragma = f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}"
    await spool.run(lambda store: store.connection.execute(pragma).close(), OperationKind.READ)
    await spool.put(message(number))
    return f"put {number}"


async def _send(spool: Spool, ledger: FileLedger) -> str:
    batch = await spool.peek()
    if not batch:
        return ""
    line = await ledger.intent("d", batch)
    _say(f"sent {batch[0].id[1:]} {line}")
    await ledger.receipt(line, batch, [Receipt(Reason.OK, 200, "")])
    await spool.remove([batch[0].id])
    return f"gone {batch[0].id[1:]}"


if __name__ == "__main__":
    log.configure("error", sys.stderr)
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
