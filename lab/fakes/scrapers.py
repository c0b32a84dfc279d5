"""Make a billing scraper with its target and sealer, as `byoc_agents.billing.daemon` does."""

from collections.abc import Callable, Sequence
from typing import Any

from byoc_agents.app.clock import Clock
from byoc_agents.app.metrics import Metrics
from byoc_agents.billing.metrics import BillingMetrics
from byoc_agents.billing.recorder import Recorder
from byoc_agents.billing.scraper import Scraper
from byoc_agents.billing.sealer import Intervals, Sealer
from byoc_agents.billing.sources.reading import Reading
from byoc_agents.billing.sources.target import TargetObservation
from byoc_agents.billing.streams import ObjectStream, ReplicaStream
from byoc_agents.durable.spool import Spool
from byoc_agents.ledger.recent import RecentSend

DAEMON = "billing-scraper"


class OneCore:
    """A target that keeps one core busy since the machine's boot."""

    def __init__(self, clock: Clock, run_name: str = "") -> None:
        self._clock = clock
        self._run_name = run_name
        self.secondary_reads: list[bool] = []  # the argument of each read
        self.observation: TargetObservation | None = None  # returned instead, if it is set
        self.closed = False

    def __repr__(self) -> str:
        return "one core"

    async def read(self, *, secondary: bool = False) -> TargetObservation:
        """Return the counters of now, or `observation`."""
        self.secondary_reads.append(secondary)
        return self.observation or TargetObservation(
            Reading(
                source="cgroup.v2",
                incarnation="boot-1-7",
                container_id="",
                cpu_usec=self._clock.boot_ns() // 1000,
                memory_bytes=1 << 30,
                born_boot_ns=0,
                run_name=self._run_name,
            )
        )

    def close(self) -> None:
        """Record that it was closed."""
        self.closed = True


def make_sealer(
    intervals: Intervals,
    spool: Spool,
    clock: Clock,
    sent: Callable[[], Sequence[RecentSend]] = tuple,
    stream: ObjectStream | None = None,
) -> Sealer:
    """Return a sealer for zstd objects under `v1/`."""
    return Sealer(
        DAEMON,
        intervals=intervals,
        spool=spool,
        stream=stream or ReplicaStream(spool),
        clock=clock,
        prefix="v1/",
        compression="zstd",
        sent=sent,
    )


def make_scraper(  # noqa: PLR0917  test data
    target: Any,
    recorder: Recorder,
    intervals: Intervals,
    spool: Spool,
    clock: Clock,
    metrics: Metrics | None = None,
    sealer: Sealer | None = None,
    **more: Any,
) -> Scraper:
    """Return a scraper. `more` are other arguments of `Scraper`."""
    return Scraper(
        target=target,
        recorder=recorder,
        sealer=sealer or make_sealer(intervals, spool, clock),
        clock=clock,
        metrics=BillingMetrics(DAEMON, metrics or Metrics()),
        **more,
    )
