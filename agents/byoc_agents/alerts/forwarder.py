"""The source of the alert forwarder: the webhook, and the forwarder's own heartbeat."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import structlog

from byoc_agents.alerts.events import Heartbeat, Origin, build_heartbeat
from byoc_agents.alerts.relay import Relay, build_message
from byoc_agents.alerts.webhook import LIMITS, Webhook
from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import Agent, rfc3339
from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.app.http_server import Listen, serve
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolError


class HeartbeatSender:
    """Puts `byoc.alert.heartbeat.v1` into the spool, which keeps only the latest.

    It checks the relay at each of the shorter intervals. A heartbeat is due when the time that
    the last one stated is over, and at the first check after an alert began or ended.
    """

    def __init__(  # noqa: PLR0913  its collaborators
        self,
        origin: Origin,
        relay: Relay,
        spool: Spool,
        clock: Clock,
        *,
        intervals: HeartbeatIntervals,
        agent: Callable[[], Agent | None] = lambda: None,
    ) -> None:
        """`agent` describes this process in each heartbeat."""
        self._agent = agent
        self._origin = origin
        self._relay = relay
        self._spool = spool
        self._clock = clock
        self._intervals = intervals
        self._started_ms = clock.wall_ns() // 1_000_000
        self._sequence = 0
        self._sent_at_ns = self._due_at_ns = clock.boot_ns()

    async def run(self) -> None:
        """Send heartbeats until cancelled. One that cannot be stored is tried at the next check."""
        while True:
            try:
                await self._relay.confirm_reopened()
                if self._is_due():
                    await self._store_heartbeat(stopping=False)
            except SpoolError as error:
                structlog.get_logger().error("heartbeat.write_failed", error=str(error))
            left_seconds = (self._due_at_ns - self._clock.boot_ns()) / 1e9
            if left_seconds <= 0 or left_seconds > self._intervals.seconds:
                left_seconds = self._intervals.seconds
            await self._clock.sleep(left_seconds)

    async def send(self, *, stopping: bool = False) -> None:
        """Report the beginnings that are due, then store a heartbeat. Raises SpoolError."""
        await self._relay.confirm_reopened()
        await self._store_heartbeat(stopping=stopping)

    def _is_due(self) -> bool:
        changed = self._relay.changed_at_ns > self._sent_at_ns
        return changed or self._clock.boot_ns() >= self._due_at_ns

    async def _store_heartbeat(self, *, stopping: bool) -> None:
        now_ns = self._clock.boot_ns()
        at_ms = self._clock.wall_ns() // 1_000_000
        interval_seconds = self._intervals.after(now_ns - self._relay.changed_at_ns)
        data = self._data(interval_seconds, stopping=stopping)
        event = build_heartbeat(data, self._origin, at_ms)
        self._sequence += 1
        await self._spool.put(build_message(event, at_ms, replaces="heartbeat"))
        self._sent_at_ns = now_ns
        self._due_at_ns = now_ns + int(interval_seconds * 1e9)

    def _data(self, interval_seconds: float, *, stopping: bool) -> Heartbeat:
        open_episodes, open_digest = self._relay.open_episodes()
        return Heartbeat(
            organization_id=self._origin.organization_id,
            service_id=self._origin.service_id,
            region=self._origin.region,
            replica=self._origin.replica,
            started_at=rfc3339(self._started_ms),
            sequence=self._sequence,
            interval_seconds=interval_seconds,
            stopping=stopping,
            last_notification_at=_moment(self._relay.last_notification_ms),
            last_watchdog_at=_moment(self._relay.last_watchdog_ms),
            backlog_records=self._spool.totals.events,
            dead_letters=self._spool.totals.dead_letters,
            open_episodes=open_episodes,
            open_digest=open_digest,
            agent=self._agent(),
        )


class Forwarder:
    """Receives notifications and sends heartbeats, both by way of the spool."""

    def __init__(
        self, webhook: Webhook, relay: Relay, heartbeat: HeartbeatSender, listen: Listen
    ) -> None:
        self.webhook = webhook
        self._relay = relay
        self._heartbeat = heartbeat
        self._listen = listen
        self._address = ""
        self._open = AsyncExitStack()

    async def listen(self) -> None:
        """Open the webhook if it is not open. Raises OSError if it cannot be opened.

        It stays open until `close`, even if `run` is restarted: once the daemons run, the kernel
        refuses new listening sockets.
        """
        if self._address:
            return
        try:
            host, port = await self._open.enter_async_context(
                serve(self.webhook.handle, self._listen, LIMITS)
            )
        except OSError as error:
            raise OSError(error.errno, f"cannot open the webhook: {error}") from error
        self._address = f"{host}:{port}"
        tls = bool(self._listen.cert_file)
        structlog.get_logger().info("webhook.listening", host=host, port=port, tls=tls)

    async def close(self) -> None:
        """Close the webhook; may be called twice."""
        self._address = ""
        await self._open.aclose()

    async def run(self) -> None:
        """Serve and send heartbeats until cancelled. Raises OSError as `listen` does."""
        await self.listen()
        await self._heartbeat.run()

    async def finish(self) -> None:
        """Close the webhook, and report the planned stop. Raises SpoolError."""
        await self.close()
        await self._heartbeat.send(stopping=True)

    def status(self) -> dict[str, Any]:
        """Return the fields of the webhook in /status."""
        return {
            "webhook_address": self._address,  # empty = not open
            "last_notification": _moment(self._relay.last_notification_ms),
            "last_watchdog": _moment(self._relay.last_watchdog_ms),
            **self._relay.status(),
        }


def _moment(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else rfc3339(milliseconds)
