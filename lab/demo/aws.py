"""The embedded AWS: moto's server in threads of this process, with a switch for outages."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from byoc_agents.egress.aws import aws_config
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.sinks.s3 import addressing

REGION = "us-east-1"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Door:
    """A switch: while `shut`, every PUT of an object is answered 503 Slow Down."""

    def __init__(self, inside: WsgiApp) -> None:
        self.shut = False
        self.refused = 0
        self.puts = 0  # let through
        self._inside = inside

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer one request: a WSGI application."""
        is_put = environ["REQUEST_METHOD"] == "PUT"  # SQS knows POST only
        if is_put and self.shut:
            self.refused += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [SLOW_DOWN]
        response = self._inside(environ, start_response)
        self.puts += is_put
        return response


@dataclass(frozen=True, slots=True)
class Aws:
    """The services' addresses, and clients for the demo's own requests: make a bucket, ..."""

    door: Door
    url: str
    session: AioSession
    config: AioConfig

    def client(self, service: str) -> AbstractAsyncContextManager[Any]:
        """Return a client for `s3` or `sqs`."""
        made: AbstractAsyncContextManager[Any] = self.session.create_client(
            service, endpoint_url=self.url, config=self.config
        )
        return made

    def environ(self) -> dict[str, str]:
        """Return the environment in which a program uses this AWS and no other."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "demo",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@asynccontextmanager
async def embedded() -> AsyncIterator[Aws]:
    """Serve an empty S3 and SQS on a loopback port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    inside: WsgiApp = await asyncio.to_thread(DomainDispatcherApplication, create_backend_app)
    door = Door(inside)
    with _served(door) as url:
        gate = Gate([https_destination(url)])
        yield Aws(door, url, _session(), aws_config(gate, s3=addressing("", url)))


def _session() -> AioSession:
    session = AioSession()
    session.set_config_variable("config_file", os.devnull)  # a person's own is not for the demo
    session.set_config_variable("region", REGION)
    session.set_credentials("demo", "demo")
    return session


@contextmanager
def _served(app: WsgiApp) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="aws", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
