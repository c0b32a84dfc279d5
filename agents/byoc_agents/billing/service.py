"""The scrapers of the replicas of one service, in one process with one spool.

Each replica has its own task, target, epoch, sequence and checkpoint, so one that is down or slow
does not delay the others. They share the sealer, so their records are in shared objects.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import encode
from byoc_agents.app.metrics import Metrics
from byoc_agents.billing.checkpoint import Checkpoint
from byoc_agents.billing.meter import Meter
from byoc_agents.billing.metrics import BillingMetrics
from byoc_agents.billing.recorder import Recorder
from byoc_agents.billing.scraper import Scraper
from byoc_agents.billing.sealer import Sealer
from byoc_agents.billing.streams import EpochStart, checkpoint_key
from byoc_agents.billing.window import OpenGap
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolError

RESTART_SECONDS = 5.0  # from a defect in the task of one replica to its next start


class ServiceScraper:
    """Runs the scrapers of all replicas, and ends the records of those that were removed."""

    def __init__(  # noqa: PLR0913  its dependencies
        self,
        daemon: str,
        scrapers: Mapping[str, Scraper],
        *,
        spool: Spool,
        sealer: Sealer,
        clock: Clock,
        metrics: Metrics,
        recorder: Callable[[str], Recorder],
    ) -> None:
        """Take the scrapers by replica, and a function that returns the recorder of a replica."""
        self._daemon = daemon
        self._scrapers = scrapers
        self._spool = spool
        self._sealer = sealer
        self._clock = clock
        self._metrics = metrics
        self._recorder = recorder
        self._log = structlog.get_logger().bind(daemon=daemon)

    async def run(self) -> None:
        """Run all scrapers until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_with_restarts("", self._end_removed))
            for name, scraper in self._scrapers.items():
                group.create_task(self._run_with_restarts(name, scraper.run))

    async def finish(self) -> None:
        """Store the open windows of all replicas and seal all records.

        Raises SpoolError if a window could not be stored. Then the call can be repeated.
        """
        closing = (scraper.close_window() for scraper in self._scrapers.values())
        found = await asyncio.gather(*closing, return_exceptions=True)
        await self._sealer.seal_all()
        for error in found:
            if error is not None:
                raise error

    async def _run_with_restarts(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run the task of one replica. A defect in it does not end the others' tasks."""
        while True:
            try:
                await run()
            except Exception as error:  # noqa: BLE001  the task boundary: state is on disk
                self._log.error(
                    "billing.replica_failed", replica=name, error=str(error), exc_info=True
                )
                self._metrics.task_failures.labels(self._daemon, "source").inc()
            else:
                return
            await self._clock.sleep(RESTART_SECONDS)

    async def _end_removed(self) -> None:
        """State the end of each replica that was metered and is not in the list any more."""
        prefix = checkpoint_key("")
        metrics = BillingMetrics(self._daemon, self._metrics)
        while True:
            try:
                stored = {key.removeprefix(prefix) for key in await self._spool.state(prefix)}
                for name in sorted(stored - set(self._scrapers)):
                    await self._end_replica(name)
            except SpoolError as error:
                metrics.count_spool_error(error)
                await self._clock.sleep(RESTART_SECONDS)
            else:
                return

    async def _end_replica(self, name: str) -> None:
        checkpoint = self._sealer.checkpoint(checkpoint_key(name))
        found = await checkpoint.load()
        if isinstance(found, EpochStart):  # it was lost: there is no last record to continue from
            return
        phase = found.state.phase
        if isinstance(phase, OpenGap) and phase.reason == "target_removed":
            return
        state, periods = Meter.end(
            found.state,
            self._clock.wall_ns() // 1_000_000,
            self._clock.boot_ns(),
            self._clock.boot_id,
        )
        recorder = self._recorder(name)
        records = [
            recorder.record(period, found.epoch, found.sequence + index)
            for index, period in enumerate(periods)
        ]
        after = Checkpoint(epoch=found.epoch, sequence=found.sequence + len(records), state=state)
        lines = [encode(record) for record in records]
        await self._sealer.stage(lines, checkpoint, after)
        metrics = BillingMetrics(self._daemon, self._metrics, name)
        for record in records:
            metrics.count_record(record.data)
        self._log.warning("billing.replica_removed", replica=name)

    def status(self) -> dict[str, Any]:
        """Return the metering part of /status, by replica."""
        found = {name: scraper.status() for name, scraper in self._scrapers.items()}
        for status in found.values():
            del status["staged_records"]  # of all replicas
        return {"replicas": found, "staged_records": self._sealer.staged}
