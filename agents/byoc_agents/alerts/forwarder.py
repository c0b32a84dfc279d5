"""The source of the alert forwarder: the webhook, and the forwarder's own heartbeat beside it."""

from typing import Any

import structlog

from byoc_agents.alerts.events import Heartbeat, Origin, build_heartbeat
from byoc_agents.alerts.relay import Relay, message
from byoc_agents.alerts.webhook import LIMITS, Webhook
from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.http_server import Listen, serve
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolError


class Heart:
    """Puts `byoc.alert.heartbeat.v1` into the spool; only the latest waits there."""

    def __init__(
        self, origin: Origin, relay: Relay, spool: Spool, clock: Clock, *, interval_seconds: float
    ) -> None:
        self._origin = origin
        self._relay = relay
        self._spool = spool
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._started_ms = clock.wall_ns() // 1_000_000
        self._sequence = 0

    async def run(self) -> None:
        """Beat for ever. A beat that cannot be stored is missing, and that is what it tells."""
        while True:
            try:
                await self.beat()
            except SpoolError as error:
                structlog.get_logger().error("alerts.heartbeat_not_stored", error=str(error))
            await self._clock.sleep(self._interval_seconds)

    async def beat(self, *, stopping: bool = False) -> None:
        """Store one beat. Raises SpoolError."""
        at_ms = self._clock.wall_ns() // 1_000_000
        event = build_heartbeat(self._data(stopping=stopping), self._origin, at_ms)
        self._sequence += 1
        await self._spool.put(message(event, at_ms, replaces="heartbeat"))

    def _data(self, *, stopping: bool) -> Heartbeat:
        return Heartbeat(
            organization_id=self._origin.organization_id,
            service_id=self._origin.service_id,
            region=self._origin.region,
            replica=self._origin.replica,
            started_at=rfc3339(self._started_ms),
            sequence=self._sequence,
            interval_seconds=self._interval_seconds,
            stopping=stopping,
            last_notification_at=_moment(self._relay.last_notification_ms),
            last_watchdog_at=_moment(self._relay.last_watchdog_ms),
            backlog_records=self._spool.totals.records,
            dead_letters=self._spool.totals.dead_letters,
        )


class Forwarder:
    """What fills the spool."""

    def __init__(self, webhook: Webhook, relay: Relay, heart: Heart, listen: Listen) -> None:
        self._webhook = webhook
        self._relay = relay
        self._heart = heart
        self._listen = listen
        self._address = ""

    async def run(self) -> None:
        """Serve and beat for ever. Raises OSError when the address or the certificate is no use."""
        self._address = ""
        try:
            async with serve(self._webhook.answer, self._listen, LIMITS) as (host, port):
                self._address = f"{host}:{port}"
                tls = bool(self._listen.cert_file)
                structlog.get_logger().info("alerts.listen", host=host, port=port, tls=tls)
                await self._heart.run()
        except OSError as error:
            if self._address:
                raise
            raise OSError(error.errno, f"the webhook does not listen: {error}") from error

    async def finish(self) -> None:
        """Say that the silence to come was planned. Raises SpoolError."""
        await self._heart.beat(stopping=True)

    def status(self) -> dict[str, Any]:
        """Return what /status shows of the receiving side."""
        return {
            "webhook": self._address,  # empty = not listening yet
            "last_notification": _moment(self._relay.last_notification_ms),
            "last_watchdog": _moment(self._relay.last_watchdog_ms),
        }


def _moment(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else rfc3339(milliseconds)
