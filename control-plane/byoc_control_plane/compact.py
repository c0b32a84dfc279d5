"""`byoc-control-plane compact --shard i/n`: archive the closed hours once, or again and again."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from byoc_agents.app import logging as log
from byoc_agents.app import signals
from byoc_agents.app.clock import Clock, SystemClock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.settings import load
from byoc_agents.billing.archive import Shard
from byoc_agents.egress.aws import aws_config, aws_session, fetch_credentials
from byoc_agents.egress.destinations import (
    credential_destinations,
    endpoint_url,
    name_endpoint,
    s3_destination,
)
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import SendError
from byoc_agents.sinks.s3 import addressing
from byoc_control_plane import __version__
from byoc_control_plane.bucket import GETS_IN_FLIGHT, Bucket
from byoc_control_plane.compactor import Compactor
from byoc_control_plane.metrics import PlaneMetrics, serve_metrics
from byoc_control_plane.settings import CompactorSettings

ATTEMPTS = 5  # of each request: S3 throttles by the prefix, and one failed request ends a run
WATCH_SECONDS = 300.0  # between two runs with --watch
FAILURES = (BotoCoreError, ClientError, SendError, OSError, TimeoutError)


async def compact(shard: Shard, environ: Mapping[str, str], *, watch: bool) -> int:
    """Return 0 if all is archived, 1 if something is held, 2 if S3 cannot be used.

    With `watch`, run until SIGTERM, serve the metrics, and return the code of the last run. Raises
    ConfigError, and OSError if the address of the metrics cannot be used.
    """
    (own,) = load([CompactorSettings], environ, {})
    log.configure(own.log_level)
    clock, metrics, stop = SystemClock(), PlaneMetrics(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def run() -> int:
        return await _run_until_stopped(shard, own, environ, (clock, metrics), watch=watch)

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
    about: tuple[Clock, PlaneMetrics],
    *,
    watch: bool,
) -> int:
    clock, metrics = about
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
    about: tuple[Clock, PlaneMetrics],
) -> int:
    """Archive the closed hours; return the exit code. Raises ConfigError."""
    clock, metrics = about
    closed_ms = clock.wall_ns() // 1_000_000 - own.close_seconds * 1000
    try:
        async with open_bucket(own, environ) as bucket:
            tally = await Compactor(bucket, own.prefix, shard, metrics).run(rfc3339(closed_ms)[:13])
    except FAILURES as error:
        metrics.bucket_errors.inc()
        structlog.get_logger().error("compact.failed", error=str(error)[:300])
        return 2
    verdict = f"{tally.held} held: see the log" if tally.held else "OK"
    sys.stdout.write(
        f"{tally.archived} objects in {tally.archives} archives, {tally.deleted} deleted. "
        f"{verdict}\n"
    )
    sys.stdout.flush()
    return 1 if tally.held else 0


@asynccontextmanager
async def open_bucket(own: CompactorSettings, environ: Mapping[str, str]) -> AsyncIterator[Bucket]:
    """Yield the bucket of the settings. Raises ConfigError and SendError."""
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
        yield Bucket(client, own.bucket)
