"""`byoc-control-plane run receiver consumer`: receive until SIGTERM."""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import structlog

from byoc_agents.app import logging as log
from byoc_agents.app import signals
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.command_line import CommandParser
from byoc_agents.app.http_server import Listen, serve
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.app.settings import load
from byoc_agents.egress.aws import aws_config, aws_session, fetch_credentials
from byoc_agents.egress.destinations import (
    credential_destinations,
    endpoint_url,
    sqs_destination,
)
from byoc_agents.egress.gate import Gate
from byoc_agents.egress.regions import sqs_region
from byoc_agents.errors import ConfigError
from byoc_control_plane import __version__
from byoc_control_plane.cli import COMMANDS
from byoc_control_plane.consumer import Consumer
from byoc_control_plane.credentials import Keyring, Parsed
from byoc_control_plane.fleet_access import PATH as FLEET_PATH
from byoc_control_plane.fleet_access import FleetAccess
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics, serve_metrics
from byoc_control_plane.progress import Progress, SilenceWatch, StreamName
from byoc_control_plane.quick_http import QuickHttp
from byoc_control_plane.quick_queue import MAX_RESPONSE_BYTES, QuickQueue
from byoc_control_plane.receiver import LIMITS, Receiver
from byoc_control_plane.requests import RequestFolder
from byoc_control_plane.settings import (
    MAX_REGISTRY_BYTES,
    PARTS,
    ConsumerSettings,
    PlaneSettings,
    ReceiverSettings,
    Senders,
    parse_senders,
    refuse_unknown,
)
from byoc_control_plane.store import Store, StoreError, check_tables, create_tables, open_store

FORWARDER_PAUSE_SECONDS = 60.0  # the longest pause of a forwarder between two attempts
SECRET_SECONDS = 1.0  # between two checks of a secret's file
STORE_PAUSE_SECONDS = 2.0  # between two attempts to reach ClickHouse at the start


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM; return the exit code. Raises ConfigError."""
    asked = make_parser().parse_args(argv)
    try:
        return asyncio.run(_run(list(dict.fromkeys(asked.part)), os.environ))
    except OSError as error:
        sys.stderr.write(f"cannot start: {error}\n")
        return 1


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = COMMANDS["run"].parser()
    parser.add_argument(
        "part", nargs="+", choices=sorted(PARTS), metavar="part", help=" or ".join(sorted(PARTS))
    )
    return parser


class Process:
    """One process: the parts that were asked for, one store, one page of metrics."""

    def __init__(self, store: Store, settings: PlaneSettings, stack: AsyncExitStack) -> None:
        self.clock = SystemClock()
        self.metrics = PlaneMetrics()
        self.inserter = Inserter(store, self.metrics)
        self._store = store
        self._settings = settings
        self._stack = stack

    def progress(self, stream: StreamName, redelivery_seconds: float) -> Progress:
        """Return the progress of this process on a stream."""
        name = self._settings.name or socket.gethostname()
        redelivery: dict[str, Any] = {"redelivery_seconds": redelivery_seconds}
        return Progress(self._store, self.clock, stream, name, **redelivery)

    async def open_receiver(self, own: ReceiverSettings) -> tuple[Receiver, Progress]:
        """Listen for deliveries. Raises ConfigError."""
        progress = self.progress("alerts", FORWARDER_PAUSE_SECONDS)
        try:
            keyring = Keyring(
                _reloadable(own.token, own.token_file),
                _reloadable(own.signing_secret, own.signing_secret_file),
            )
        except ValueError as error:  # a file has changed since the settings were read
            names = "BYOC_PLANE_TOKEN or BYOC_PLANE_SIGNING_SECRET"
            raise ConfigError([f"{names}: {error}"]) from error
        receiver = Receiver(
            self.inserter,
            progress,
            self.metrics,
            self.clock,
            keyring=keyring,
            requests=RequestFolder(Path(own.requests_dir)) if own.requests_dir else None,
        )
        await progress.load()
        listen = Listen(*own.listen, own.tls_cert_file, own.tls_key_file)
        host, port = await self._stack.enter_async_context(serve(receiver.handle, listen, LIMITS))
        structlog.get_logger().info("receiver.listening", host=host, port=port)
        return receiver, progress

    async def open_consumer(
        self, own: ConsumerSettings, environ: Mapping[str, str]
    ) -> tuple[Consumer, Progress]:
        """Open a client of the queue. Raises ConfigError."""
        endpoint = endpoint_url("sqs", environ)
        queue = sqs_destination(own.queue_url, endpoint, setting="BYOC_PLANE_QUEUE_URL")
        region = sqs_region(queue.host) or own.region
        gate = Gate([queue, *credential_destinations(environ, region, services=["sqs"])])
        session = aws_session(gate, region)
        await fetch_credentials(session)
        url = endpoint or f"{queue.scheme}://{queue.host}:{queue.port}"
        # Otherwise botocore composes a text for each request.
        agent = f"byoc-control-plane/{__version__}"
        config = aws_config(gate, max_pool_connections=2 * own.loops, user_agent=agent)
        client = await self._stack.enter_async_context(
            session.create_client("sqs", region_name=region, endpoint_url=url, config=config)
        )
        credentials = await session.get_credentials()
        http = await self._stack.enter_async_context(
            QuickHttp(gate, url, user_agent=agent, max_body_bytes=MAX_RESPONSE_BYTES)
        )
        keys = credentials.get_frozen_credentials
        client = QuickQueue(client, http, url, region, keys, self.clock.wall_ns)
        progress = self.progress("state", own.visibility_seconds)
        await progress.load()
        consumer = Consumer(
            client,
            own.queue_url,
            self.inserter,
            progress,
            self.metrics,
            self.clock,
            senders=_load_senders(own),
            loops=own.loops,
            visibility_seconds=own.visibility_seconds,
        )
        return consumer, progress


def _reloadable(text: str, path: str) -> ReloadableSecret:
    limit = MAX_REGISTRY_BYTES
    return ReloadableSecret(text, path, check_seconds=SECRET_SECONDS, max_bytes=limit)


def _load_senders(own: ConsumerSettings) -> Parsed[Senders] | None:
    """Return the senders if there are any. Raises ConfigError."""
    if not own.senders:
        return None
    try:
        return Parsed(_reloadable(own.senders, own.senders_file), parse_senders)
    except ValueError as error:  # the file has changed since the settings were read
        raise ConfigError([f"BYOC_PLANE_SENDERS: {error}"]) from error


async def _run(names: Sequence[str], environ: Mapping[str, str]) -> int:
    structs: list[type[msgspec.Struct]] = [PlaneSettings, *(PARTS[name] for name in names)]
    plane, *owns = load(structs, environ, {})
    refuse_unknown(environ)
    log.configure(plane.log_level)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def set_stop() -> None:
        loop.call_soon_threadsafe(stop.set)

    with signals.stopping(set_stop):
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(
                open_store(plane.store_url, plane.store_password)
            )
            if not await _prepare_unless(stop, store, plane):
                log.close()
                return 0
            process = Process(store, plane, stack)
            tasks = [asyncio.ensure_future(process.inserter.run())]
            try:
                for name, own in zip(names, owns, strict=True):
                    part: Receiver | Consumer
                    if name == "receiver":
                        part, progress = await process.open_receiver(own)
                    else:
                        part, progress = await process.open_consumer(own, environ)
                    tasks += [
                        asyncio.ensure_future(part.run()),
                        asyncio.ensure_future(progress.run()),
                    ]
                watch = SilenceWatch(store, process.clock, process.metrics)
                tasks.append(asyncio.ensure_future(watch.run()))
                token = _reloadable(plane.read_token, plane.read_token_file)
                fleet = FleetAccess(store, process.clock, process.metrics, token)
                pages = {FLEET_PATH: fleet.handle}
                host, port = await stack.enter_async_context(
                    serve_metrics(process.metrics, plane.listen, pages)
                )
                structlog.get_logger().info("metrics.listening", host=host, port=port)
                stopped = asyncio.ensure_future(stop.wait())
                done, _ = await asyncio.wait([*tasks, stopped], return_when="FIRST_COMPLETED")
                for task in done:
                    task.result()  # a defect ends the process with its own error
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    log.close()
    return 0


async def _prepare_unless(stop: asyncio.Event, store: Store, settings: PlaneSettings) -> bool:
    """Prepare ClickHouse; return whether it is ready, or False as soon as `stop` is set.

    Raises ConfigError if a table cannot be used as it is.
    """
    prepared = asyncio.ensure_future(_prepare(store, settings))
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([prepared, stopped], return_when="FIRST_COMPLETED")
        if prepared.done():
            prepared.result()
        return prepared.done()
    finally:
        for task in (prepared, stopped):
            task.cancel()
        await asyncio.gather(prepared, stopped, return_exceptions=True)


async def _prepare(store: Store, settings: PlaneSettings) -> None:
    """Wait for ClickHouse, and create the tables that are missing, and the views.

    Raises ConfigError if a table cannot be used as it is.
    """
    while True:
        try:
            await store.run("SELECT 1")
            if settings.tables == "existing":
                await check_tables(store)
            else:
                await create_tables(store, settings.tables)
        except StoreError as error:
            structlog.get_logger().error("store.not_ready", error=str(error)[:300])
            await asyncio.sleep(STORE_PAUSE_SECONDS)
        else:
            return
