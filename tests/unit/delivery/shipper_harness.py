"""A spool on disk, a scripted receiver and a shipper between them."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import Reason, SendError
from byoc_agents.ledger import Ledger
from byoc_agents.message import Message, Receipt
from lab.fakes.core import FakeClock, NullLedger, ScriptedSink

OK = Receipt(Reason.OK, 200)
BUSY = SendError(Reason.SERVER_ERROR, "503")
DENIED = SendError(Reason.FORBIDDEN, "403")
POISON = SendError(Reason.REJECTED, "400")


def message(number: int) -> Message:
    return Message(f"m{number}", "t", b"body %d" % number, created_at_ms=number)


class ScriptedRandom(random.Random):
    """Always throws the same part of the range."""

    def __init__(self, part: float) -> None:
        super().__init__(0)
        self.part = part

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.part


class Harness:
    """A spool on disk, a scripted receiver and a shipper between them."""

    def __init__(
        self,
        spool: Spool,
        sink: ScriptedSink,
        ledger: Ledger,
        rng: ScriptedRandom,
        unknown_batch: Sequence[str] = (),
    ) -> None:
        self.unknown_batch = unknown_batch  # what the ledger of the last process names
        self.spool, self.sink, self.ledger = spool, sink, ledger
        self.clock, self.metrics, self.rng = FakeClock(), Metrics(), rng
        self.shipper = self.restarted()

    def restarted(self) -> Shipper:
        self.shipper = Shipper(
            "daemon",
            spool=self.spool,
            sink=self.sink,
            ledger=self.ledger,
            clock=self.clock,
            metrics=self.metrics,
            rng=self.rng,
            unknown_batch=self.unknown_batch,
        )
        return self.shipper

    def count(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, {"daemon": "daemon", **labels})
        return value or 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.shipper.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    async def until_idle(self) -> None:
        await asyncio.wait_for(self.shipper.wait_until_idle(), 30)

    async def queued(self) -> list[str]:
        return [m.id for m in await self.spool.peek(1000, 1 << 30)]


@asynccontextmanager
async def harness(
    directory: Path,
    *script: object,
    messages: int = 1,
    max_messages: int = 1,
    ledger: Ledger | None = None,
    part: float = 1.0,
    unknown_batch: Sequence[str] = (),
) -> AsyncIterator[Harness]:
    sink = ScriptedSink(script, max_messages=max_messages)  # type: ignore[arg-type]
    async with Spool(directory, max_bytes=1 << 24, clock=FakeClock()) as spool:
        if messages:
            await spool.put(*map(message, range(messages)))
        yield Harness(spool, sink, ledger or NullLedger(), ScriptedRandom(part), unknown_batch)
