"""One running daemon: a source that fills the spool, a shipper that empties it, and their end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.app.metrics import Metrics
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import ConfigError, SpoolError

RESTART_SECONDS = 5.0  # between a defect of a task and its next start


class EventSource(Protocol):
    """What makes messages."""

    async def run(self) -> None:
        """Fill the spool for ever. Takes up from the spool's state; may be called again."""
        ...

    async def finish(self) -> None:
        """Put into the spool what is still open. Called once, after `run` was cancelled."""
        ...

    def status(self) -> dict[str, Any]:
        """Return what /status shows; no secrets."""
        ...


async def _nothing_staged() -> None:
    """Stand for a source that stages nothing."""


async def _nothing_to_check() -> None:
    """Stand for a source that needs nothing from outside to start."""


async def check_address(address: tuple[str, int], variable: str) -> None:
    """Raise ConfigError if a host:port cannot be bound now. Port 0 always can."""
    host, port = address
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    except OSError as error:
        raise ConfigError(
            [f"{variable}: {host}:{port}: {error.strerror or error}: expected a free host:port"]
        ) from error
    server.close()


class Down(msgspec.Struct, frozen=True):
    """A task that ended, and when it was started again."""

    why: str
    restarted_boot_ns: int | None = None  # None = not yet


class Agent(msgspec.Struct, frozen=True):
    """The parts of one daemon, and their order at the start and at the end."""

    name: str
    source: EventSource
    spool: Spool
    shipper: Shipper
    clock: Clock
    metrics: Metrics
    ledger_status: Callable[[], dict[str, Any]] = dict  # what /status shows of the ledger
    identity: Callable[[], dict[str, Any]] = dict  # and of who we are to the receiver; no keys
    seal: Callable[[], Awaitable[None]] = _nothing_staged  # makes messages of what is staged
    check: Callable[[], Awaitable[None]] = (
        _nothing_to_check  # raises ConfigError at the start of `run`
    )
    down: dict[str, Down] = msgspec.field(default_factory=dict)  # tasks that failed, by name

    def __repr__(self) -> str:
        """Return the pipeline, as the log prints it at the start."""
        parts = (self.name, type(self.source).__name__, self.spool.path, self.shipper.destination)
        return " -> ".join(map(str, parts))

    async def run(self, stop: asyncio.Event, grace_seconds: float) -> None:
        """Run until `stop`, then close what is open and drain within the grace period."""
        log = structlog.get_logger().bind(agent=self.name)
        log.info("agent.start", pipeline=repr(self))
        self.metrics.build(self.name)
        source = asyncio.create_task(self._keep(self.source.run, "source"))
        shipper = asyncio.create_task(self._keep(self.shipper.run, "shipper"))
        try:
            await stop.wait()
        finally:
            try:
                await _cancel(source)
                await self._end(grace_seconds)
            finally:
                await _cancel(shipper)
                log.info("agent.stop", backlog_records=self.spool.totals.records)

    async def drain(self, stop: asyncio.Event) -> int:
        """Send what waits until nothing does, or until `stop`; the source makes nothing new.

        Return how many records and dead letters are left. Raises SpoolError.
        """
        structlog.get_logger().info("agent.drain", agent=self.name, pipeline=repr(self))
        await self.seal()
        shipper = asyncio.create_task(self._keep(self.shipper.run, "shipper"))
        ends = [asyncio.create_task(end) for end in (self.shipper.empty(), stop.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*ends, shipper):
                await _cancel(task)
        return self.spool.totals.records + self.spool.totals.dead_letters

    async def _end(self, grace_seconds: float) -> None:
        log = structlog.get_logger().bind(agent=self.name)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._finish()
                await self.shipper.drain()
        except TimeoutError:
            log.warning("agent.grace_over", backlog_records=self.spool.totals.records)

    async def _finish(self) -> None:
        """Close what is open; what fails here does not keep the rest from being sent."""
        log = structlog.get_logger().bind(agent=self.name)
        try:
            await self.source.finish()
        except SpoolError as error:  # the checkpoint on disk still has it all but the last window
            log.error("agent.finish_failed", error=str(error))
        except Exception as error:  # a task boundary, as in `_keep`
            log.exception("agent.defect", task="finish", error=str(error))
            self.metrics.defects.labels(self.name, "finish").inc()

    async def _keep(self, run: Any, task: str) -> None:
        """Run a task until cancelled. A defect is logged with its trace; the task restarts."""
        while True:
            try:
                await run()
                self.down[task] = Down("ended")
            except Exception as error:  # noqa: BLE001  the task boundary: state is on disk
                self.down[task] = Down(str(error) or type(error).__name__)
                structlog.get_logger().error(
                    "agent.defect", agent=self.name, task=task, error=str(error), exc_info=True
                )
                self.metrics.defects.labels(self.name, task).inc()
            await self.clock.sleep(RESTART_SECONDS)
            self.down[task] = Down(self.down[task].why, self.clock.boot_ns())

    def observe(self) -> None:
        """Set the gauges that are read when somebody scrapes."""
        totals = self.spool.totals
        oldest = totals.oldest_created_at_ms
        age = 0.0 if oldest is None else max(0.0, self.clock.wall_ns() / 1e9 - oldest / 1e3)
        self.metrics.spool_records.labels(self.name).set(totals.records)
        self.metrics.spool_bytes.labels(self.name).set(totals.bytes)
        self.metrics.spool_dead_letters.labels(self.name).set(totals.dead_letters)
        self.metrics.spool_oldest_age_seconds.labels(self.name).set(age)

    async def trouble(self) -> str:
        """Return why this daemon does not do its work now, or an empty string: part of /readyz.

        The spool cannot be used, or a task has failed: it waits for its restart, or has run for
        less than RESTART_SECONDS since.
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
            return f"spool: {str(error) or 'does not answer'}"
        return ""

    def status(self) -> dict[str, Any]:
        """Return what /status shows of this daemon."""
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
