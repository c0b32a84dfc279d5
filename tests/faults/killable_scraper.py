"""One run of a billing scraper in a process of its own, on simulated time, that can be killed.

Everything but time and the target is real: the scraper, the spool's file, the shipper, botocore.
A fuse sends SIGKILL to the process itself at the n-th step of seal, put and ack; a parent may send
it at any other moment. Forked from a server that has imported all of it already.
"""

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from byoc_agents.app.logging import configure
from byoc_agents.app.metrics import Metrics
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.scraper import Scraper
from byoc_agents.billing.sealer import Intervals
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.sources.target import TargetObservation
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.delivery.sink import Transmit, transmit_unrecorded
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.destinations import s3_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.message import Message, Outcome
from byoc_agents.sinks.s3 import S3Sink
from lab.fakes.scrapers import make_scraper

SECOND = 1_000_000_000
EPOCH_NS = 1_795_435_200 * SECOND  # 2026-11-23T12:00:00Z
SAMPLE_SECONDS = 5
MAX_ATTEMPTS = 400
os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


def cpu_usec(second: int) -> int:
    """Return the truth: the target's counter, `second` seconds after the test began."""
    return 77_000_000 + second * 1_400_000 + second * second * 11


@dataclass(frozen=True)
class ScraperRun:
    """The work of one process. Picklable."""

    directory: Path
    endpoint_url: str
    start_second: int
    ticks: int
    burn_at: int = 0  # the step at which the fuse kills; 0 = never
    finish: bool = False  # stop in good order and drain
    max_file_bytes: int = 0  # of any file it writes: a disk that is full
    attempt_seconds: float = 0.5


class SimClock:
    """Time that passes by `go`."""

    boot_id = "boot"

    def __init__(self, second: int) -> None:
        self.second = second

    def wall_ns(self) -> int:
        return EPOCH_NS + self.second * SECOND

    def boot_ns(self) -> int:
        return (1000 + self.second) * SECOND

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.second += max(1, round(seconds))


class SimTarget:
    """A container that was there before us and stays."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock

    async def read(self, *, secondary: bool = False) -> TargetObservation:
        assert secondary in {True, False}
        return TargetObservation(
            Reading(
                source="cgroup.v2",
                incarnation="boot-1-7",
                container_id="",
                cpu_usec=cpu_usec(self._clock.second),
                memory_bytes=1 << 30,
                born_boot_ns=900 * SECOND,
            )
        )

    def close(self) -> None: ...


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

    async def commit(self, change: WriteBatch) -> None:
        self.fuse.burn()
        await super().commit(change)
        self.fuse.burn()

    async def remove(self, ids: Sequence[str], state: Mapping[str, bytes] | None = None) -> None:
        self.fuse.burn()
        await super().remove(ids, state)
        self.fuse.burn()


class FusedSink:
    """The S3 sink with a fuse before and after every put."""

    def __init__(self, sink: S3Sink, fuse: Fuse) -> None:
        self.destination, self.max_messages, self.max_bytes = sink.destination, 1, sink.max_bytes
        self._sink, self._fuse = sink, fuse

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        self._fuse.burn()
        outcomes = await self._sink.send(batch, transmit)
        self._fuse.burn()
        return outcomes


class NoLedger:
    async def intent(self, destination: str, batch: Sequence[Message]) -> int:
        return len(destination) + len(batch)

    async def receipt(
        self, intent: int, batch: Sequence[Message], outcomes: Sequence[Outcome]
    ) -> None: ...


def run_scraper(run: ScraperRun) -> None:
    """Run the scraper in this process; exit code 0 when it was not killed."""
    configure("error", open(os.devnull, "w"))  # noqa: PTH123, SIM115  open while the process runs
    if run.max_file_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (run.max_file_bytes, run.max_file_bytes))
    asyncio.run(_run_scraper(run))


async def _run_scraper(run: ScraperRun) -> None:
    clock, fuse, metrics = SimClock(run.start_second), Fuse(run.burn_at), Metrics()
    gate = Gate([s3_destination("bucket", "us-east-1", run.endpoint_url)])
    spool = FusedSpool(run.directory, max_bytes=1 << 20, clock=clock)
    spool.fuse = fuse
    s3 = S3Sink(
        aws_session(gate, "us-east-1"),
        gate,
        "bucket",
        region="us-east-1",
        endpoint_url=run.endpoint_url,
        attempt_seconds=run.attempt_seconds,
    )
    async with spool, s3:
        scraper = _scraper(spool, clock, metrics)
        shipper = Shipper(
            "billing-scraper",
            spool=spool,
            sink=FusedSink(s3, fuse),
            ledger=NoLedger(),
            clock=clock,
            metrics=metrics,
        )
        for _ in range(run.ticks):
            clock.second += SAMPLE_SECONDS
            await scraper.tick()
            await shipper.attempt()
        if run.finish:
            await scraper.finish()
            for _ in range(MAX_ATTEMPTS):
                await shipper.attempt()
            assert spool.totals.events == 0, "not drained"


def _scraper(spool: Spool, clock: SimClock, metrics: Metrics) -> Scraper:
    return make_scraper(
        SimTarget(clock),
        Recorder(identity=IDENTITY, sample_ms=SAMPLE_SECONDS * 1000),
        Intervals(sample_ms=SAMPLE_SECONDS * 1000, window_ms=10_000, seal_ms=30_000),
        spool,
        clock,
        metrics,
    )


IDENTITY = UsageIdentity(
    organization_id="org",
    service_id="service",
    replica="replica-0",
    region="us-east-1",
    pod_uid="uid",
    container_name="clickhouse",
)

with contextlib.suppress(Exception):  # warm what every run needs, in the server it is forked from
    aws_session(Gate([]), "us-east-1").get_component("data_loader").load_service_model(
        "s3", "service-2"
    )
