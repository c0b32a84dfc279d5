"""The far sides, by TLS on port 443: S3 at two addresses, SQS, the control plane, and a stranger.

Both addresses serve the same bucket with the rendered policy.
"""

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from aiohttp import web

from byoc_agents.alerts.events import ALERT
from byoc_agents.app.clock import SystemClock
from lab.fakes.http import Reply, Request
from lab.fakes.s3 import FakeS3, s3_error
from lab.fakes.sqs import FakeSqs
from lab.iam import Request as Call
from lab.iam import permits
from lab.real.netlab.namespaces import (
    INTERNET,
    PLANE_ADDRESS,
    S3,
    S3_ADDRESS,
    SQS_ADDRESS,
    STRANGER_ADDRESS,
    Namespace,
)
from lab.real.netlab.policy import ROLE
from lab.receiver import Receiver

HTTPS_PORT = 443
MAX_BODY_BYTES = 64 * 1024 * 1024
CONNECT = "import socket, sys; socket.create_connection(sys.argv[1:], timeout=1).close()"
ACTIONS = {"PUT": "s3:PutObject", "GET": "s3:GetObject"}
Apply = Callable[[Request], Reply]


@dataclass
class FarSides:
    """The receiving services, with the requests that each of them has seen and accepted."""

    policy: Mapping[str, Any]  # the bucket's; signatures are not checked here
    token: str
    signing_secret: str
    s3: FakeS3 = field(default_factory=FakeS3)  # one bucket, whichever way one comes
    sqs: FakeSqs = field(default_factory=FakeSqs)
    refused_by_policy: list[str] = field(default_factory=list)  # "" or the endpoint, each time
    stranger: list[Request] = field(default_factory=list)
    send_away_to: str = ""  # a URL: S3, SQS and the control plane redirect to it

    def __post_init__(self) -> None:
        """Make the control plane."""
        self.receiver = Receiver(
            self.token, self.signing_secret, clock=SystemClock(), fault=self._plane_sends_away
        )

    def progress(self) -> tuple[int, int, int]:
        """Return the number of deliveries at S3, SQS and the control plane."""
        return len(self.s3.objects), len(self.sqs.messages), len(self.receiver.events)

    def alerted(self) -> bool:
        """Return whether the control plane has an alert."""
        return any(event["type"] == ALERT for event in self.receiver.events.values())

    def s3_by(self, endpoint: str) -> Apply:
        """Return S3 as seen through this endpoint; "" = from the internet."""

        def respond(request: Request) -> Reply:
            bucket = request.headers["host"].partition(".")[0]
            by_path = replace(request, target=f"/{bucket}{request.target}")  # as the fake wants
            if self._permits(by_path, endpoint):
                return self._unless_sent_away(self.s3.apply)(by_path)
            self.refused_by_policy.append(endpoint)
            return s3_error(403, "AccessDenied")

        return respond

    def respond_as_sqs(self, request: Request) -> Reply:
        """Respond as SQS does."""
        return self._unless_sent_away(self.sqs.apply)(request)

    def respond_as_stranger(self, request: Request) -> Reply:
        """Accept every request."""
        self.stranger.append(request)
        return Reply()

    def _permits(self, request: Request, endpoint: str) -> bool:
        context = {"aws:SecureTransport": "true", "s3:TlsVersion": "1.3"}
        context |= {"s3:signatureversion": "AWS4-HMAC-SHA256", "s3:authType": "REST-HEADER"}
        context |= {"aws:SourceVpce": endpoint} if endpoint else {}
        if condition := request.headers.get("if-none-match"):
            context["s3:if-none-match"] = condition
        resource = f"arn:aws:s3::{request.path.replace('/', ':', 1)}"
        return permits(Call(ACTIONS[request.method], resource, ROLE, context), self.policy)

    def _unless_sent_away(self, apply: Apply) -> Apply:
        if not self.send_away_to:
            return apply
        return lambda _: Reply(307, {"location": self.send_away_to})

    def _plane_sends_away(self, _number: int, _request: web.Request) -> web.Response | None:
        if not self.send_away_to:
            return None
        return web.Response(status=307, headers={"location": self.send_away_to})


@asynccontextmanager
async def served(
    namespaces: Mapping[str, Namespace], tls: ssl.SSLContext, far: FarSides, endpoint: str
) -> AsyncIterator[None]:
    """Serve them all in their namespaces."""
    places = [
        (S3, S3_ADDRESS, application(far.s3_by(endpoint))),
        (INTERNET, S3_ADDRESS, application(far.s3_by(""))),
        (INTERNET, SQS_ADDRESS, application(far.respond_as_sqs)),
        (INTERNET, PLANE_ADDRESS, far.receiver.application()),
        (INTERNET, STRANGER_ADDRESS, application(far.respond_as_stranger)),
    ]
    async with AsyncExitStack() as stack:
        for name, address, app in places:
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            sock = await namespaces[name].do(listening, address)
            await web.SockSite(runner, sock, ssl_context=tls).start()
        yield


def application(apply: Apply) -> web.Application:
    """Return a server that responds with `apply` and closes the connection."""

    async def respond(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.read()
        reply = apply(Request(0, request.method, request.raw_path, headers, body))
        response = web.Response(status=reply.status, headers=reply.headers, body=reply.body)
        response.force_close()
        return response

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_route("*", "/{path:.*}", respond)
    return app


def listening(address: str, port: int = HTTPS_PORT) -> socket.socket:
    """Return a listening socket. Call it inside a namespace."""
    sock = socket.create_server((address, port))
    sock.settimeout(0)
    return sock


async def reachable(namespace: Namespace, address: str, port: int) -> bool:
    """Return whether a process inside the namespace gets a TCP connection within a second."""
    command = [sys.executable, "-c", CONNECT, address, str(port)]
    done = await namespace.do(partial(subprocess.run, command, check=False, capture_output=True))
    return done.returncode == 0


async def within(seconds: float, happened: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds. Raises AssertionError after a timeout."""
    try:
        async with asyncio.timeout(seconds):
            while not happened():  # noqa: ASYNC110  the other side is a process
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}") from None
