"""A reference receiver: the control plane's side of alert deliveries, small enough to read.

Checks the bearer token and the Standard Webhooks signature, accepts single events and batches
completely or not at all, keeps each `source` + `id` once, and compares the open episodes of each
heartbeat with its own. The demo and the tests use it; `python -m lab.receiver --help` runs it. It
keeps everything in memory: it is a model, not a product.
"""

import argparse
import asyncio
import contextlib
import hmac
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from byoc_agents.alerts.dedup import MAX_AGE_MS, summarize
from byoc_agents.alerts.events import (
    ALERT,
    HEARTBEAT,
    WATCHDOG,
    AlertEvent,
    HeartbeatEvent,
    WatchdogEvent,
)
from byoc_agents.app.clock import Clock, SystemClock
from byoc_agents.app.cloudevents import Event, parse_rfc3339
from byoc_agents.sinks.control_plane import CODES, Rejected
from byoc_agents.sinks.https import signatures, signing_keys

PATH = "/v1/events"
TOLERANCE_SECONDS = 300  # Standard Webhooks: a signature older than five minutes is a replay
MAX_BODY_BYTES = 1024**2
BELIEVED_MS = 2 * 3600 * 1000  # how long `firing` counts without another event
MAX_EVENTS = 500  # of a batch; the largest BYOC_ALERTS_MAX_BATCH
KNOWN: dict[str, type[Event]] = {
    ALERT: AlertEvent,
    WATCHDOG: WatchdogEvent,
    HEARTBEAT: HeartbeatEvent,
}

Fault = Callable[[int, web.Request], web.Response | None]  # number of the request -> its response
Key = tuple[str, str]  # source and id
Service = tuple[str, str]  # organization and service


class Mismatch(msgspec.Struct, frozen=True):
    """A heartbeat whose open episodes are not those that were delivered."""

    replica: str
    at: str  # time of the heartbeat
    theirs: tuple[int, str]  # number and digest in the heartbeat
    ours: tuple[int, str]


class Episodes:
    """The open episodes of one service, from the events in the order of their delivery."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], int] = {}  # fingerprint and start -> latest event, ms

    def apply(self, alert: dict[str, Any]) -> None:
        """Apply the data of one alert event."""
        episode = alert["fingerprint"], alert["starts_at"]
        self._open.pop(episode, None)
        if alert["status"] == "firing":
            self._open[episode] = parse_rfc3339(alert["received_at"])

    def summary(self, at_ms: int) -> tuple[int, str]:
        """Return the number and the digest that a heartbeat of this time should have."""
        return summarize(key for key, ms in self._open.items() if ms >= at_ms - MAX_AGE_MS)

    def states(self, at_ms: int) -> dict[tuple[str, str], str]:
        """Return `firing` for each open episode, `unknown` if its latest event is too old."""
        return {
            key: "firing" if at_ms - ms <= BELIEVED_MS else "unknown"
            for key, ms in self._open.items()
        }


class Receiver:
    """Stores every event once, in the order of the first delivery."""

    def __init__(
        self,
        token: str,
        signing_secret: str,
        *,
        clock: Clock,
        on_event: Callable[[dict[str, Any]], None] = lambda _event: None,
        fault: Fault = lambda _number, _request: None,
        on_mismatch: Callable[[Mismatch], None] = lambda _mismatch: None,
    ) -> None:
        """`on_event` is called once per event; `fault` may replace the response.

        `on_mismatch` is called for each heartbeat whose open episodes differ from the delivered.
        """
        self.events: dict[Key, dict[str, Any]] = {}
        self.bodies: list[bytes] = []  # as they came, of deliveries that were taken
        self.last_body = b""  # of the last delivery, taken or not
        self.duplicates = 0
        self.requests = 0
        self.episodes: dict[Service, Episodes] = {}
        self.mismatches: dict[str, Mismatch] = {}  # by source, while its last heartbeat differs
        self._token = token
        self._keys = signing_keys(signing_secret)
        self._clock = clock
        self._on_event = on_event
        self._fault = fault
        self._on_mismatch = on_mismatch

    def application(self) -> web.Application:
        """Return the application: one path for deliveries, and `/` to read the events."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post(PATH, self.post)
        app.router.add_get("/", self.kept)
        return app

    async def kept(self, _: web.Request) -> web.Response:
        """Answer with all events, oldest first."""
        return web.json_response(list(self.events.values()))

    async def post(self, request: web.Request) -> web.Response:
        """Answer one delivery."""
        self.requests += 1
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return rejected(request, 413)
        self.last_body = body
        if fault := self._fault(self.requests, request):
            return fault
        if not self._authentic(request, body):
            return web.json_response({"status": "unauthorized"}, status=401)
        try:
            events = _events(request.content_type, body)
        except LookupError:
            return rejected(request, 415)
        except (msgspec.ValidationError, ValueError):
            return rejected(request, 422)
        self.bodies.append(body)
        new = [event for event in events if self._take(event)]
        return web.json_response({"stored": len(new), "duplicates": len(events) - len(new)})

    def _authentic(self, request: web.Request, body: bytes) -> bool:
        bearer = f"Bearer {self._token}".encode()
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, bearer) and self._signed(request, body)

    def _signed(self, request: web.Request, body: bytes) -> bool:
        """Return whether one of the signatures is valid for one of the keys, and recent."""
        delivery_id = request.headers.get("webhook-id", "")
        timestamp = request.headers.get("webhook-timestamp", "")
        if not (delivery_id and timestamp.isascii() and timestamp.isdigit()):
            return False
        age_seconds = self._clock.wall_ns() / 1e9 - int(timestamp)
        ours = signatures(self._keys, delivery_id, int(timestamp), body).split()
        theirs = request.headers.get("webhook-signature", "").split()
        found = [
            hmac.compare_digest(a.encode(), b.encode("utf-8", "surrogateescape"))
            for a in ours
            for b in theirs
        ]
        return abs(age_seconds) <= TOLERANCE_SECONDS and any(found)

    def _take(self, event: dict[str, Any]) -> bool:
        """Store an event unless its id is stored already. Return whether it is new."""
        key = event["source"], event["id"]
        if key in self.events:
            self.duplicates += 1
            return False
        self.events[key] = event
        if event["type"] in {ALERT, HEARTBEAT}:
            with contextlib.suppress(ValueError, OverflowError):  # the schema does not check times
                self._reconcile(event)
        self._on_event(event)
        return True

    def _reconcile(self, event: dict[str, Any]) -> None:
        """Apply an alert to the episodes of its service; compare a heartbeat with them."""
        data = event["data"]
        service = data["organization_id"], data["service_id"]
        episodes = self.episodes.setdefault(service, Episodes())
        if event["type"] == ALERT:
            episodes.apply(data)
            return
        if data.get("open_episodes") is None:  # of 0.1.0
            return
        theirs = data["open_episodes"], data["open_digest"]
        ours = episodes.summary(parse_rfc3339(event["time"]))
        if theirs == ours:
            self.mismatches.pop(event["source"], None)
        else:
            self.mismatches[event["source"]] = Mismatch(
                data["replica"], event["time"], theirs, ours
            )
            self._on_mismatch(self.mismatches[event["source"]])


def _events(content_type: str, body: bytes) -> list[dict[str, Any]]:
    """Return the events of a delivery: all of them, or an error."""
    read: dict[str, Callable[[Any], list[Any]]] = {
        "application/cloudevents+json": lambda value: [value],
        "application/cloudevents-batch+json": lambda value: msgspec.convert(value, list[Any]),
    }
    events = read[content_type](msgspec.json.decode(body))
    if not 0 < len(events) <= MAX_EVENTS:
        raise ValueError("an empty batch, or too many events")
    for event in events:
        _check(event)
    return events


def _check(event: Any) -> None:
    """Raise ValueError if an event breaks the schema. Types of later versions are accepted."""
    envelope = msgspec.convert(event, Event)
    known = KNOWN.get(envelope.type, Event)
    msgspec.convert(event, known)
    if known is not Event and not event.keys() >= set(known.__struct_fields__):
        raise ValueError("a field is missing")


def rejected(request: web.Request, status: int) -> web.Response:
    """Return the response that rejects one delivery for good."""
    body = Rejected(request.headers.get("webhook-id", ""), CODES[status])
    return web.json_response(msgspec.to_builtins(body), status=status)


@contextlib.asynccontextmanager
async def listening(
    receiver: Receiver, port: int = 0, host: str = "127.0.0.1"
) -> AsyncIterator[str]:
    """Serve; yield the URL for deliveries."""
    runner = web.AppRunner(receiver.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}{PATH}"
    finally:
        await runner.cleanup()


async def _run(receiver: Receiver, port: int, host: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # in a container nobody else handles them
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with listening(receiver, port, host) as url:
        _print({"listening": url})
        await stop.wait()


def _print(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; print the URL, each new event and each mismatch, as JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m lab.receiver", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 = any free one, printed")
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--signing-secret-file", type=Path, required=True, help="whsec_ and base64")
    options = parser.parse_args(argv)
    receiver = Receiver(
        options.token_file.read_text().strip(),
        options.signing_secret_file.read_text().strip(),
        clock=SystemClock(),
        on_event=_print,
        on_mismatch=lambda mismatch: _print({"mismatch": msgspec.to_builtins(mismatch)}),
    )
    asyncio.run(_run(receiver, options.port, options.host))
    return 0


if __name__ == "__main__":
    sys.exit(main())
