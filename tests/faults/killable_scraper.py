"""One run of a billing scraper in a process of its own, on simulated time, that can be killed.

Everything but time and the target is real. It kills itself at the n-th step (`lab.fakes.killable`);
a parent may kill it at any other moment. Forked from a server that has imported all of it already.
"""

import asyncio
import contextlib
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from byoc_agents.app.metrics import Metrics
from byoc_agents.billing.recorder import Recorder, UsageIdentity
from byoc_agents.billing.scraper import Scraper
from byoc_agents.billing.sealer import Intervals
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.sources.target import TargetObservation
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.destinations import s3_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.sinks.s3 import S3Sink
from lab.fakes.killable import (
    SECOND,
    KillableSink,
    KillableSpool,
    Killer,
    SimClock,
    discard_log,
    drain,
    make_shipper,
)
from lab.fakes.scrapers import make_scraper

SAMPLE_SECONDS = 5
os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


def make_clock(second: int) -> SimClock:
    """Return a clock for a scraper, whose short waits must end, too."""
    return SimClock(second, min_sleep_seconds=1)


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
    kill_at: int = 0  # the step at which it kills itself; 0 = never
    finish: bool = False  # stop in good order and drain
    max_file_bytes: int = 0  # of any file it writes: a disk that is full
    attempt_seconds: float = 0.5


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


def run_scraper(run: ScraperRun) -> None:
    """Run the scraper in this process; exit code 0 when it was not killed."""
    discard_log()
    if run.max_file_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (run.max_file_bytes, run.max_file_bytes))
    asyncio.run(_run_scraper(run))


async def _run_scraper(run: ScraperRun) -> None:
    clock, metrics, killer = make_clock(run.start_second), Metrics(), Killer(run.kill_at)
    gate = Gate([s3_destination("bucket", "us-east-1", run.endpoint_url)])
    spool = KillableSpool(run.directory, max_bytes=1 << 20, clock=clock)
    spool.killer = killer
    s3 = S3Sink(
        aws_session(gate, "us-east-1"),
        gate,
        "bucket",
        region="us-east-1",
        endpoint_url=run.endpoint_url,
        attempt_seconds=run.attempt_seconds,
    )
    async with spool, s3:
        scraper = _make_scraper(spool, clock, metrics)
        sink = KillableSink(s3, killer)
        shipper = make_shipper("billing-scraper", spool, sink, clock, metrics)
        for _ in range(run.ticks):
            clock.second += SAMPLE_SECONDS
            await scraper.tick()
            await shipper.attempt()
        if run.finish:
            await scraper.finish()
            await drain(shipper, spool)


def _make_scraper(spool: Spool, clock: SimClock, metrics: Metrics) -> Scraper:
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
