"""`byoc-control-plane compact --shard i/n`: archive the closed hours once, or again and again."""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError

from byoc_agents.app import logging as log
from byoc_agents.app import signals
from byoc_agents.app.clock import Clock, SystemClock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.command_line import CommandParser, color_verdict
from byoc_agents.app.settings import load
from byoc_agents.billing.archive import Shard, parse_shard
from byoc_agents.billing.objects import MAX_BODY_BYTES
from byoc_agents.egress.aws import aws_config, aws_session, fetch_credentials
from byoc_agents.egress.destinations import (
    credential_destinations,
    endpoint_url,
    name_endpoint,
    s3_destination,
)
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import ConfigError, SendError
from byoc_agents.sinks.s3 import addressing
from byoc_control_plane import __version__
from byoc_control_plane.bucket import GETS_IN_FLIGHT, Bucket
from byoc_control_plane.cli import COMMANDS
from byoc_control_plane.compactor import Compactor, Tally
from byoc_control_plane.directory import DirectoryBucket
from byoc_control_plane.metrics import PlaneMetrics, serve_metrics
from byoc_control_plane.quick_get import QuickGet
from byoc_control_plane.quick_http import QuickHttp
from byoc_control_plane.settings import CompactorSettings, refuse_unknown

SCHEME = "file://"  # of a directory, as BYOC_BILLING_BUCKET
ATTEMPTS = 5  # of each request: S3 throttles by the prefix, and one failed request ends a run
WATCH_SECONDS = 300.0  # between two runs with --watch
FAILURES = (BotoCoreError, ClientError, SendError, OSError, TimeoutError)


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit code. Raises ConfigError."""
    asked = make_parser().parse_args(argv)
    refuse_unknown(os.environ)
    running = compact(asked.shard, os.environ, watch=asked.watch, as_json=asked.json)
    try:
        return asyncio.run(running)
    except OSError as error:
        sys.stderr.write(f"cannot start: {error}\n")
        return 1


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = COMMANDS["compact"].parser()
    parser.add_argument(
        "--shard", required=True, type=_shard, metavar="i/n", help="the part of all pods, from 0/n"
    )
    parser.add_argument(
        "--watch", action="store_true", help="again every five minutes until SIGTERM, with metrics"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per run")
    return parser


def _shard(text: str) -> Shard:
    try:
        return parse_shard(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


async def compact(
    shard: Shard, environ: Mapping[str, str], *, watch: bool, as_json: bool = False
) -> int:
    """Return 0 if all is archived, 1 if something is held, 2 if S3 cannot be used.

    With `watch`, run until SIGTERM, serve the metrics, and return the code of the last run. Raises
    ConfigError, and OSError if the address of the metrics cannot be used.
    """
    (own,) = load([CompactorSettings], environ, {})
    log.configure(own.log_level)
    clock, metrics, stop = SystemClock(), PlaneMetrics(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def run() -> int:
        about = (clock, metrics, as_json)
        return await _run_until_stopped(shard, own, environ, about, watch=watch)

    def set_stop() -> None:
        loop.call_soon_threadsafe(stop.set)

    with signals.stopping(set_stop):
        async with AsyncExitStack() as stack:
            if watch:
                host, port = await stack.enter_async_context(serve_metrics(metrics, own.listen))
                structlog.get_logger().info("metrics.listening", host=host, port=port)
            running = asyncio.ensure_future(run())
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait([running, stopped], return_when="FIRST_COMPLETED")
            stopped.cancel()
            if not running.done():  # the next run completes this one
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                code = 0
            else:
                code = running.result()
    log.close()
    return code


async def _run_until_stopped(
    shard: Shard,
    own: CompactorSettings,
    environ: Mapping[str, str],
    about: tuple[Clock, PlaneMetrics, bool],
    *,
    watch: bool,
) -> int:
    clock, metrics, _ = about
    metrics.compacted.set(clock.wall_ns() / 1e9)
    while True:
        code = await run_once(shard, own, environ, about)
        if code != 2:  # noqa: PLR2004  it was completed
            metrics.compacted.set(clock.wall_ns() / 1e9)
        if not watch:
            return code
        await clock.sleep(WATCH_SECONDS)


async def run_once(
    shard: Shard,
    own: CompactorSettings,
    environ: Mapping[str, str],
    about: tuple[Clock, PlaneMetrics, bool],
) -> int:
    """Archive the closed hours; return the exit code. Raises ConfigError.

    The last of `about` is whether to print JSON.
    """
    clock, metrics, as_json = about
    closed_ms = clock.wall_ns() // 1_000_000 - own.close_seconds * 1000
    try:
        async with open_bucket(own, environ) as bucket:
            tally = await Compactor(bucket, own.prefix, shard, metrics).run(rfc3339(closed_ms)[:13])
    except FAILURES as error:
        metrics.bucket_errors.inc()
        structlog.get_logger().error("compact.failed", error=str(error)[:300])
        return 2
    sys.stdout.write(describe(tally, sys.stdout, as_json=as_json))
    sys.stdout.flush()
    return 1 if tally.held else 0


def describe(tally: Tally, stream: TextIO, *, as_json: bool) -> str:
    """Return the line of one run, with a color if `stream` is a terminal."""
    if as_json:
        found = {"ok": not tally.held} | msgspec.to_builtins(tally)
        return msgspec.json.encode(found).decode() + "\n"
    verdict = f"{tally.held} held: see the log" if tally.held else "OK"
    verdict = color_verdict(verdict, stream, ok=not tally.held)
    done = f"{tally.archived} objects in {tally.archives} archives, {tally.deleted} deleted."
    return f"{done} {verdict}\n"


def _open_directory(url: str) -> DirectoryBucket:
    """Return a directory as a bucket. Raises ConfigError if it does not exist."""
    root = Path(url.removeprefix(SCHEME))
    if not root.is_absolute() or not root.is_dir():  # an unmounted volume is not an empty one
        why = f"invalid value {url!r}: expected a bucket or file:///DIRECTORY of an existing one"
        raise ConfigError([f"BYOC_PLANE_BUCKET: {why}"])
    return DirectoryBucket(root)


@asynccontextmanager
async def open_bucket(own: CompactorSettings, environ: Mapping[str, str]) -> AsyncIterator[Bucket]:
    """Yield the bucket of the settings. Raises ConfigError and SendError."""
    if own.bucket.startswith(SCHEME):
        yield _open_directory(own.bucket)
        return
    endpoint = endpoint_url("s3", environ)
    place = s3_destination(own.bucket, own.region, endpoint, setting="BYOC_PLANE_BUCKET")
    place = name_endpoint(place, "s3", environ)
    gate = Gate([place, *credential_destinations(environ, own.region, services=["s3"])])
    session = aws_session(gate, own.region)
    await fetch_credentials(session)
    options: dict[str, Any] = {
        "s3": addressing(own.bucket, endpoint),
        "max_pool_connections": 2 * GETS_IN_FLIGHT,
        "retries": {"total_max_attempts": ATTEMPTS, "mode": "standard"},
        "user_agent": f"byoc-control-plane/{__version__}",
    }
    async with session.create_client(
        "s3", region_name=own.region, endpoint_url=endpoint, config=aws_config(gate, **options)
    ) as client:
        example = {"Bucket": own.bucket, "Key": "k"}
        signed: str = await client.generate_presigned_url("get_object", Params=example)
        credentials = await session.get_credentials()
        agent = options["user_agent"]
        async with QuickHttp(gate, signed, user_agent=agent, max_body_bytes=MAX_BODY_BYTES) as http:
            url = signed.partition("?")[0].removesuffix("k")
            keys = credentials.get_frozen_credentials
            quick = QuickGet(http, url, own.region, keys, SystemClock().wall_ns)
            yield Bucket(client, own.bucket, quick)
