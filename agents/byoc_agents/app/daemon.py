"""One running daemon: a source that fills the spool, and a shipper that empties it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolError

RESTART_SECONDS = 5.0  # from the failure of a task to its next start


class EventSource(Protocol):
    """A producer of messages."""

    async def run(self) -> None:
        """Fill the spool until cancelled. Continues from the spool's state; may be called again."""
        ...

    async def finish(self) -> None:
        """Put the last events into the spool. Called after `run` was cancelled.

        Raises SpoolError. It is then called once more after the spool was emptied.
        """
        ...

    def status(self) -> dict[str, Any]:
        """Return the source's fields of /status, without secrets."""
        ...


async def _seal_nothing() -> None:
    """Do nothing: the default `seal` of a daemon that does not seal events into objects."""


async def _check_nothing() -> None:
    """Do nothing: the default `check` of a source without conditions for its start."""


class Down(msgspec.Struct, frozen=True):
    """The last unexpected end of a task."""

    why: str
    restarted_boot_ns: int | None = None  # boot clock of its next start; None = not yet


class Daemon(msgspec.Struct, frozen=True):
    """The parts of one daemon, and the order in which they start and stop."""

    name: str
    source: EventSource
    spool: Spool
    shipper: Shipper
    clock: Clock
    metrics: Metrics
    ledger_status: Callable[[], dict[str, Any]] = dict  # the ledger's fields of /status
    identity: Callable[[], dict[str, Any]] = dict  # the sender's identity for /status; no keys
    seal: Callable[[], Awaitable[None]] = _seal_nothing  # makes messages of the staged lines
    # Called before `run`; raises ConfigError if the daemon must not start.
    check: Callable[[], Awaitable[None]] = _check_nothing
    down: dict[str, Down] = msgspec.field(default_factory=dict)  # tasks that failed, by name
    counted: dict[str, int] = msgspec.field(default_factory=dict)  # what `observe` has counted

    def __repr__(self) -> str:
        """Return the pipeline, as the log prints it at the start."""
        parts = (self.name, type(self.source).__name__, self.spool.path, self.shipper.destination)
        return " -> ".join(map(str, parts))

    async def run(self, stop: asyncio.Event, grace_seconds: float) -> None:
        """Run until `stop`, then finish the source and drain within the grace period.

        The order of the stop: (1) cancel the source's `run`; (2) `finish` puts its last events
        into the spool; (3) the shipper, which still runs, empties the spool; (4) if the spool had
        refused the events, 2 and 3 once more; (5) cancel the shipper. Steps 2 to 4 share the
        grace period. At its end the remaining messages stay on disk.
        """
        log = structlog.get_logger().bind(daemon=self.name)
        log.info("daemon.started", pipeline=repr(self))
        self.metrics.create_series(self.name)
        source = asyncio.create_task(self._run_with_restarts(self.source.run, "source"))
        shipper = asyncio.create_task(self._run_with_restarts(self.shipper.run, "shipper"))
        try:
            await stop.wait()
        finally:
            try:
                await _cancel(source)
                await self._end(grace_seconds)
            finally:
                await _cancel(shipper)
                log.info("daemon.stopped", backlog_events=self.spool.totals.events)

    async def drain(self, stop: asyncio.Event) -> int:
        """Send until the spool is empty, or until `stop`. The source makes no new messages.

        Returns the number of remaining events and dead letters. Raises SpoolError.
        """
        structlog.get_logger().info("daemon.drain_started", daemon=self.name, pipeline=repr(self))
        await self.seal()
        shipper = asyncio.create_task(self._run_with_restarts(self.shipper.run, "shipper"))
        ends = [asyncio.create_task(end) for end in (self.shipper.wait_until_idle(), stop.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*ends, shipper):
                await _cancel(task)
        return self.spool.totals.events + self.spool.totals.dead_letters

    async def _end(self, grace_seconds: float) -> None:
        log = structlog.get_logger().bind(daemon=self.name)
        try:
            async with asyncio.timeout(grace_seconds):
                finished = await self._finish()
                await self.shipper.drain()
                if not finished:  # the drain has made room
                    await self._finish()
                    await self.shipper.drain()
        except TimeoutError:
            log.warning("daemon.shutdown_timeout", backlog_events=self.spool.totals.events)

    async def _finish(self) -> bool:
        """Finish the source. Return False if a second call may succeed.

        False: the spool refused the last events, and may have room after the drain. True: they are
        stored, or a defect prevented it, which would happen again. After a failure, stored messages
        are still sent.
        """
        log = structlog.get_logger().bind(daemon=self.name)
        try:
            await self.source.finish()
        except SpoolError as error:  # the checkpoint has all but the last window
            log.error("daemon.finish_failed", error=str(error))
            return False
        except Exception as error:  # a task boundary, as in `_run_with_restarts`
            log.exception("daemon.task_failed", task="finish", error=str(error))
            self.metrics.task_failures.labels(self.name, "finish").inc()
        return True

    async def _run_with_restarts(self, run: Any, task: str) -> None:
        """Run a task until cancelled. If it ends or fails, log and count it and start it again.

        `down` has the task from then on, so that /readyz is 503 until the restarted task has run
        for RESTART_SECONDS.
        """
        while True:
            try:
                await run()
                raise RuntimeError("ended")  # no task ends by itself
            except Exception as error:  # noqa: BLE001  the task boundary: state is on disk
                self.down[task] = Down(str(error) or type(error).__name__)
                structlog.get_logger().error(
                    "daemon.task_failed",
                    daemon=self.name,
                    task=task,
                    error=str(error),
                    exc_info=True,
                )
                self.metrics.task_failures.labels(self.name, task).inc()
            await self.clock.sleep(RESTART_SECONDS)
            self.down[task] = Down(self.down[task].why, self.clock.boot_ns())

    def observe(self) -> None:
        """Set the metrics of the spool and the ledger, before each scrape."""
        totals = self.spool.totals
        oldest = totals.oldest_created_at_ms
        age = 0.0 if oldest is None else max(0.0, self.clock.wall_ns() / 1e9 - oldest / 1e3)
        self.metrics.spool_events.labels(self.name).set(totals.events)
        self.metrics.spool_bytes.labels(self.name).set(totals.bytes)
        self.metrics.spool_dead_letters.labels(self.name).set(totals.dead_letters)
        self.metrics.spool_oldest_age_seconds.labels(self.name).set(age)
        mismatch = self.ledger_status().get("mismatch")
        for why in ("lost", "older"):
            self.metrics.ledger_mismatch.labels(self.name, why).set(mismatch == why)
        new = self.spool.corruptions - self.counted.get("corruptions", 0)
        self.counted["corruptions"] = self.spool.corruptions
        self.metrics.spool_corruptions.labels(self.name).inc(new)

    async def not_ready_reason(self) -> str:
        """Return why this daemon is not ready, or an empty string, for /readyz.

        It is not ready if the spool cannot be used, or if a task failed and is waiting for its
        restart or has run for less than RESTART_SECONDS since.
        """
        now = self.clock.boot_ns()
        for task, down in self.down.items():
            since = down.restarted_boot_ns
            if since is None or now - since < RESTART_SECONDS * 1e9:
                return f"{task}: {down.why}"
        try:
            async with asyncio.timeout(1):
                await self.spool.probe()
        except (SpoolError, TimeoutError) as error:
            return f"spool: {str(error) or 'does not respond'}"
        return ""

    def status(self) -> dict[str, Any]:
        """Return the daemon's fields of /status."""
        return {
            "pipeline": repr(self),
            **self.source.status(),
            **self.shipper.status(),
            **self.identity(),
            "ledger": self.ledger_status(),
        }


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
