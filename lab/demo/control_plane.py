"""The vendor's control plane for alerts: the reference receiver, with outages."""

import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from aiohttp import web

from byoc_agents.alerts.events import ALERT, Alert
from byoc_agents.app.clock import SystemClock
from lab.fakes.http import WEBHOOK_TOKEN
from lab.receiver import Receiver, listening


@dataclass(slots=True)
class ControlPlane:
    """Stores each alert once, in the order of arrival. `down`: answers 503 to every request."""

    down: bool = False
    refused: int = 0
    url: str = ""
    receiver: Receiver | None = None

    @property
    def alerts(self) -> list[Alert]:
        """Return the received alerts, without heartbeats."""
        events = self.receiver.events.values() if self.receiver else ()
        return [msgspec.convert(e["data"], Alert) for e in events if e["type"] == ALERT]

    @property
    def bodies(self) -> list[bytes]:
        """Return the body of every accepted delivery."""
        return self.receiver.bodies if self.receiver else []

    def respond(self, _number: int, _request: web.Request) -> web.Response | None:
        """Return 503 while down."""
        self.refused += self.down
        return web.Response(status=503) if self.down else None


@asynccontextmanager
async def control_plane() -> AsyncIterator[tuple[ControlPlane, dict[str, str]]]:
    """Serve it; yield it with the forwarder's settings for it."""
    token = secrets.token_urlsafe()
    signing_secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    plane = ControlPlane()
    plane.receiver = Receiver(token, signing_secret, clock=SystemClock(), fault=plane.respond)
    async with listening(plane.receiver) as plane.url:
        yield (
            plane,
            {
                "BYOC_ALERTS_URL": plane.url,
                "BYOC_ALERTS_TOKEN": token,
                "BYOC_ALERTS_SIGNING_SECRET": signing_secret,
                "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
                "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
                "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
                "BYOC_ALERTS_ANNOTATIONS": "summary",
            },
        )
