"""Parts of a daemon that runs in a process of its own, on simulated time, and can be killed.

A `Killer` counts the steps (the durable writes and the sends) and sends SIGKILL to its own process
at one of them. Everything else is real: the spool's file, the shipper, the sink and botocore.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from byoc_agents.app.logging import configure
from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.delivery.sink import Sink, Transmit, transmit_unrecorded
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.message import Message, Outcome
from lab.fakes.core import NullLedger

SECOND = 1_000_000_000  # nanoseconds
EPOCH_NS = 1_795_435_200 * SECOND  # 2026-11-23T12:00:00Z
MAX_ATTEMPTS = 400  # until the spool must be empty


class SimClock:
    """A clock that only `sleep` and the run itself move."""

    boot_id = "boot"

    def __init__(self, second: int, min_sleep_seconds: int = 0) -> None:
        """`second` counts from EPOCH_NS. A sleep lasts `min_sleep_seconds` or longer."""
        self.second = second
        self._min_sleep_seconds = min_sleep_seconds

    def wall_ns(self) -> int:
        """Return the nanoseconds since 1970."""
        return EPOCH_NS + self.second * SECOND

    def boot_ns(self) -> int:
        """Return the nanoseconds since a boot, 1,000 seconds before EPOCH_NS."""
        return (1000 + self.second) * SECOND

    async def sleep(self, seconds: float) -> None:
        """Move the clock by whole seconds."""
        self.second += max(self._min_sleep_seconds, round(seconds))
        await asyncio.sleep(0)


class Killer:
    """Counts the steps and kills the process at one of them."""

    def __init__(self, kill_at: int) -> None:
        """`kill_at` is the number of the step, from 1; 0 = never."""
        self.steps = 0
        self._kill_at = kill_at

    def step(self) -> None:
        """Count a step; do not return from the one at which the process is killed."""
        self.steps += 1
        if self.steps == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class KillableSpool(Spool):
    """A spool with a step before and after every durable write."""

    killer: Killer
    journal: Path | None = None  # a line per ID of a message that replaces none, once committed

    async def commit(self, change: WriteBatch) -> None:
        """Commit between two steps."""
        self.killer.step()
        await super().commit(change)
        if self.journal is not None:
            with self.journal.open("a") as file:
                file.writelines(f"{m.id}\n" for m in change.messages if not m.replaces)
        self.killer.step()

    async def remove(self, ids: Sequence[str], state: Mapping[str, bytes] | None = None) -> None:
        """Remove between two steps."""
        self.killer.step()
        await super().remove(ids, state)
        self.killer.step()


class KillableSink:
    """A sink with a step before and after every send."""

    def __init__(self, sink: Sink, killer: Killer) -> None:
        self.destination = sink.destination
        self.max_messages, self.max_bytes = sink.max_messages, sink.max_bytes
        self._sink, self._killer = sink, killer

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        """Send between two steps."""
        self._killer.step()
        outcomes = await self._sink.send(batch, transmit)
        self._killer.step()
        return outcomes


def discard_log() -> None:
    """Write no log while this process runs."""
    configure("error", open(os.devnull, "w"))  # noqa: PTH123, SIM115  open while the process runs


def make_shipper(
    daemon: str, spool: Spool, sink: KillableSink, clock: SimClock, metrics: Metrics
) -> Shipper:
    """Return a shipper without a ledger."""
    return Shipper(
        daemon, spool=spool, sink=sink, ledger=NullLedger(), clock=clock, metrics=metrics
    )


async def drain(shipper: Shipper, spool: Spool) -> None:
    """Send everything in the spool. Raises AssertionError after MAX_ATTEMPTS."""
    for _ in range(MAX_ATTEMPTS):
        await shipper.attempt()
    assert spool.totals.events == 0, "not drained"
