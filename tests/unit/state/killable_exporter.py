"""One run of a state exporter in a process of its own, on simulated time, that can be killed.

Everything but time and the watched server is real. It kills itself at the n-th step
(`lab.fakes.killable`). Forked from a server that has imported all of it already.
"""

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.app.metrics import Metrics
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.destinations import sqs_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.sinks.sqs import SqsSink
from byoc_agents.state.exporter import Exporter, PolledReplica
from byoc_agents.state.message import StateIdentity
from byoc_agents.state.message_stream import MessageStream
from byoc_agents.state.probes import Prober
from byoc_agents.state.thresholds import DEFAULTS, ReasonCode, Threshold, Thresholds
from lab.fakes.killable import (
    KillableSink,
    KillableSpool,
    Killer,
    SimClock,
    discard_log,
    drain,
    make_shipper,
)
from lab.fakes.state import HEALTHY, ScriptedServer

POLL_SECONDS = 10
HERE = "eu-west-1"
os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


def readonly(second: int) -> bool:
    """Return the truth: whether the server has a read-only replica at that second."""
    return (second // 20) % 3 == 1


@dataclass(frozen=True)
class ExporterRun:
    """The work of one process. Picklable."""

    directory: Path
    journal: Path  # a line per ID of a transition, written when its commit has returned
    queue_url: str
    start_second: int
    ticks: int
    kill_at: int = 0  # the step at which it kills itself; 0 = never
    finish: bool = False  # drain at the end
    ship: bool = True  # False: nothing can be sent in this run
    patience_seconds: float = 30.0  # for a response; a send that times out makes fewer steps


def run_exporter(run: ExporterRun) -> None:
    """Run the exporter in this process; exit code 0 when it was not killed."""
    discard_log()
    asyncio.run(_run_exporter(run))


async def _run_exporter(run: ExporterRun) -> None:
    clock, metrics, killer = SimClock(run.start_second), Metrics(), Killer(run.kill_at)
    gate = Gate([sqs_destination(run.queue_url)])
    spool = KillableSpool(run.directory, max_bytes=1 << 20, clock=clock)
    spool.killer, spool.journal = killer, run.journal
    aws = aws_session(gate, HERE)
    patience, url = run.patience_seconds, run.queue_url
    sqs = SqsSink(aws, gate, url, region=HERE, attempt_seconds=2 * patience, read_timeout=patience)
    async with spool, sqs:
        server = ScriptedServer(rows=dict(HEALTHY))
        exporter = make_exporter(server, spool, clock, metrics)
        sink = KillableSink(sqs, killer)
        shipper = make_shipper("state-exporter", spool, sink, clock, metrics)
        for _ in range(run.ticks):
            clock.second += POLL_SECONDS
            server.rows["system.metrics.ReadonlyReplica"] = str(int(readonly(clock.second)))
            await exporter.tick()
            if run.ship:
                await shipper.attempt()
        if run.finish:
            await drain(shipper, spool)


def make_exporter(
    server: ScriptedServer, spool: Spool, clock: SimClock, metrics: Metrics
) -> Exporter:
    """Return an exporter of one replica, for which a read-only replica counts at once."""
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
