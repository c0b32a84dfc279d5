"""One run of a state exporter in a process of its own, on simulated time, that can be killed.

Everything but time and the watched server is real: exporter, spool file, shipper, botocore. A fuse
sends SIGKILL to the process itself at the n-th durable write or send. Forked from a server that
has imported all of it already.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.app.logging import configure
from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.delivery.sink import Transmit, transmit_unrecorded
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.destinations import sqs_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.message import Message, Outcome
from byoc_agents.sinks.sqs import SqsSink
from byoc_agents.state.exporter import Exporter, PolledReplica
from byoc_agents.state.message import StateIdentity
from byoc_agents.state.message_stream import MessageStream
from byoc_agents.state.probes import Prober
from byoc_agents.state.thresholds import DEFAULTS, ReasonCode, Threshold, Thresholds
from lab.fakes.core import NullLedger
from lab.fakes.state import HEALTHY, ScriptedServer

SECOND = 1_000_000_000
EPOCH_NS = 1_795_435_200 * SECOND  # 2026-11-23T12:00:00Z
POLL_SECONDS = 10
MAX_ATTEMPTS = 200
HERE = "eu-west-1"
os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


def readonly(second: int) -> bool:
    """Return the truth: whether the server has a read-only replica at that second."""
    return (second // 20) % 3 == 1


@dataclass(frozen=True)
class ExporterRun:
    """The work of one process. Picklable."""

    directory: Path
    journal: Path  # one line an id of a transition, written when its commit has returned
    queue_url: str
    start_second: int
    ticks: int
    burn_at: int = 0  # the step at which the fuse kills; 0 = never
    finish: bool = False  # drain at the end
    ship: bool = True  # False: nothing can be sent in this run
    patience_seconds: float = 30.0  # for a response; a send that times out makes fewer steps


class SimClock:
    """Time that only the run itself moves."""

    boot_id = "boot"

    def __init__(self, second: int) -> None:
        self.second = second

    def wall_ns(self) -> int:
        return EPOCH_NS + self.second * SECOND

    def boot_ns(self) -> int:
        return (1000 + self.second) * SECOND

    async def sleep(self, seconds: float) -> None:
        self.second += max(0, round(seconds))
        await asyncio.sleep(0)


class Fuse:
    """Counts the steps and kills the process at one of them."""

    def __init__(self, burn_at: int) -> None:
        self.steps = 0
        self._burn_at = burn_at

    def burn(self) -> None:
        self.steps += 1
        if self.steps == self._burn_at:
            os.kill(os.getpid(), signal.SIGKILL)


class FusedSpool(Spool):
    """A spool with a fuse before and after every durable write."""

    fuse: Fuse
    journal: Path

    async def commit(self, change: WriteBatch) -> None:
        self.fuse.burn()
        await super().commit(change)
        with self.journal.open("a") as file:
            file.writelines(f"{m.id}\n" for m in change.messages if not m.replaces)
        self.fuse.burn()

    async def remove(self, ids: Sequence[str], state: Mapping[str, bytes] | None = None) -> None:
        self.fuse.burn()
        await super().remove(ids, state)
        self.fuse.burn()


class FusedSink:
    """The SQS sink with a fuse before and after every send."""

    def __init__(self, sink: SqsSink, fuse: Fuse) -> None:
        self.destination = sink.destination
        self.max_messages, self.max_bytes = sink.max_messages, sink.max_bytes
        self._sink, self._fuse = sink, fuse

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        self._fuse.burn()
        outcomes = await self._sink.send(batch, transmit)
        self._fuse.burn()
        return outcomes


def run_exporter(run: ExporterRun) -> None:
    """Be that process; exit code 0 when it was not killed."""
    configure("error", open(os.devnull, "w"))  # noqa: PTH123, SIM115  open while the process runs
    asyncio.run(_run_exporter(run))


async def _run_exporter(run: ExporterRun) -> None:
    clock, fuse, metrics = SimClock(run.start_second), Fuse(run.burn_at), Metrics()
    gate = Gate([sqs_destination(run.queue_url)])
    spool = FusedSpool(run.directory, max_bytes=1 << 20, clock=clock)
    spool.fuse, spool.journal = fuse, run.journal
    aws = aws_session(gate, HERE)
    patience, url = run.patience_seconds, run.queue_url
    sqs = SqsSink(aws, gate, url, region=HERE, attempt_seconds=2 * patience, read_timeout=patience)
    async with spool, sqs:
        server = ScriptedServer(rows=dict(HEALTHY))
        exporter = _exporter(server, spool, clock, metrics)
        shipper = Shipper(
            "state-exporter",
            spool=spool,
            sink=FusedSink(sqs, fuse),
            ledger=NullLedger(),
            clock=clock,
            metrics=metrics,
        )
        for _ in range(run.ticks):
            clock.second += POLL_SECONDS
            server.rows["system.metrics.ReadonlyReplica"] = str(int(readonly(clock.second)))
            await exporter.tick()
            if run.ship:
                await shipper.attempt()
        if run.finish:
            for _ in range(MAX_ATTEMPTS):
                await shipper.attempt()
            assert spool.totals.events == 0, "not drained"


def _exporter(server: ScriptedServer, spool: Spool, clock: SimClock, metrics: Metrics) -> Exporter:
    stream = MessageStream(
        "state-exporter",
        "state/replica/r-0",
        intervals=HeartbeatIntervals(30, 30),
        spool=spool,
        clock=clock,
        metrics=metrics,
    )
    return Exporter(
        who=StateIdentity(organization_id="o", service_id="s", region=HERE),
        replicas=[PolledReplica("r-0", Prober(server, clock=clock), stream)],
        thresholds=Thresholds(by_code={**DEFAULTS, ReasonCode.READONLY_REPLICA: Threshold(1, 0)}),
        poll_seconds=POLL_SECONDS,
        clock=clock,
    )


with contextlib.suppress(Exception):  # warm what every run needs, in the server it is forked from
    aws_session(Gate([]), HERE).get_component("data_loader").load_service_model("sqs", "service-2")
