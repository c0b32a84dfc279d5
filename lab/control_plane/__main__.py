"""`make control-plane`: the daemons of the demo send to a real control plane on this machine.

The store is chdb in a process of its own, or a ClickHouse that `--store` names. The consumer and
the receiver run as they do in production; billing objects are loaded with the project's load.sql.

The tables may exist and have rows: each run has a service of its own, `demo-service-` and a random
number, and reads back the rows of this service only.
"""

import argparse
import asyncio
import base64
import json
import os
import re
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from byoc_agents import __version__
from byoc_agents.ledger.heads import parse_heads
from byoc_agents.ledger.verify import verify
from byoc_control_plane.schema import USAGE_SQL, split_statements
from byoc_control_plane.store import HttpStore, Store, StoreError, fetch_rows
from lab.control_plane.processes import plane_environment, running_plane
from lab.demo import alert_scenes, billing_scenes, state_scenes
from lab.demo.alertmanager import Alertmanager
from lab.demo.aws import REGION, Aws, embedded
from lab.demo.daemons import Daemons
from lab.demo.fifo import queue
from lab.demo.process import DemoError, forget_accounts, started, tail, written
from lab.demo.snapshot import EXPORTER, FORWARDER, SCRAPER
from lab.demo.storage import BUCKET, bucket
from lab.demo.workload_process import running_workload
from lab.fakes.http import WEBHOOK_TOKEN
from lab.fakes.state import HEALTHY, FakeClickHouse

ORGANIZATION = "demo-org"
OWN = f" WHERE organization_id = '{ORGANIZATION}' AND service_id = '{{service}}'"
FLEET = (
    "SELECT replica, state, version, state_exporter_seen, alert_forwarder_seen, billed_until,"
    f" silent_daemons FROM fleet_now{OWN} ORDER BY replica"
)
AGENTS = (
    "SELECT replica, daemon, agent_version, configuration_sha256, ledger_size, ledger_root"
    f" FROM agents_now{OWN} ORDER BY daemon"
)
HEADS = f"SELECT daemon, head FROM ledger_heads{OWN} ORDER BY head"
HASH = re.compile(r"[0-9a-f]{64}")
ROOT = re.compile(r"[A-Za-z0-9+/]{43}=")  # 32 bytes in base64
STREAMS = {
    "byoc_usage": f"SELECT count() AS n FROM byoc_usage FINAL{OWN}",
    "byoc_state": f"SELECT count() AS n FROM byoc_state FINAL{OWN}",
    "byoc_alerts": f"SELECT count() AS n FROM byoc_alerts FINAL{OWN} AND type = 'byoc.alert.v1'",
}
PLANE_LOG = "control-plane.log"
LOAD_SECONDS = 2.0  # between two listings of the bucket
ONCE_SECONDS = 180.0  # for all rows to be there


@asynccontextmanager
async def running_store(directory: Path, url: str) -> AsyncIterator[str]:
    """Yield the URL of a ClickHouse; without one, start chdb."""
    if url:
        yield url
        return
    argv = [sys.executable, "-m", "lab.control_plane.chdb_http", str(directory / "chdb")]
    async with started(argv, directory / "chdb.log", plane_environment()) as child:
        yield (await written(directory / "chdb.log", "http://", child, 60)).strip()


async def load_usage(store: Store, aws: Aws, stop: asyncio.Event) -> None:
    """Load every object of the bucket repeatedly until `stop` is set.

    The table keeps each record once. A statement is not cancelled: the server would go on with it,
    and wait for a bucket that is no longer there.
    """
    (statement,) = split_statements((USAGE_SQL / "load.sql").read_text())
    glob = "/v1/**/*.jsonl.{zst,gz}'"
    place = f"'{aws.url}/{BUCKET}{glob}, 'demo', 'demo'"
    statement = statement.replace(f"'https://BUCKET.s3.REGION.amazonaws.com{glob}", place)
    while not stop.is_set():
        try:
            await store.run(statement)
        except StoreError as error:  # an empty bucket is one too
            _say(f"nothing loaded yet: {str(error)[:100]}")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOAD_SECONDS)


class RunRows:
    """What the store has of one run: the rows of its service, and none of an earlier run."""

    def __init__(self, store: Store, service: str) -> None:
        self._store = store
        self._service = service

    async def fetch(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of a query with a place for the service. Raises StoreError."""
        return await fetch_rows(self._store, query.format(service=self._service))

    async def count(self) -> dict[str, int]:
        """Return table -> number of rows. Raises StoreError."""
        return {table: (await self.fetch(query))[0]["n"] for table, query in STREAMS.items()}

    async def are_complete(self) -> bool:
        """Return whether each stream has rows, and both daemons their heads. Raises StoreError."""
        described = [row for row in await self.fetch(AGENTS) if is_described(row)]
        heads = await self.fetch(HEADS)
        return all((await self.count()).values()) and all(
            {row["daemon"] for row in found} == {EXPORTER, FORWARDER}
            for found in (described, heads)
        )


async def play(directory: Path, url: str, password: str, *, once: bool) -> int:
    """Start everything and show the arriving rows. Raises DemoError."""
    service = f"demo-service-{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        aws = await enter(embedded())
        await enter(bucket(aws))
        messages = await enter(queue(aws))
        session = await enter(aiohttp.ClientSession())
        store_url = await enter(running_store(directory, url))
        store = HttpStore(store_url, session, password=password)
        found = RunRows(store, service)
        token = secrets.token_urlsafe()
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        settings = aws.environ() | {
            "BYOC_PLANE_STORE_URL": store_url,
            "BYOC_PLANE_STORE_PASSWORD": password,
            "BYOC_PLANE_NAME": service,
            "BYOC_PLANE_QUEUE_URL": messages.url,
            "BYOC_PLANE_TOKEN": token,
            "BYOC_PLANE_SIGNING_SECRET": secret,
            "BYOC_PLANE_EVENTS_LISTEN": "127.0.0.1:0",
        }
        parts = ["receiver", "consumer"]
        plane = await enter(running_plane(parts, directory / PLANE_LOG, settings))
        _say(f"store    {store_url}  (curl {store_url} --data 'SELECT * FROM fleet_now')")
        _say(f"service  {service}")
        _say(f"metrics  {plane.metrics_url}")
        _say(f"fleet    {plane.fleet_url}")
        clickhouse = await enter(FakeClickHouse())
        clickhouse.server.rows = HEALTHY
        target = f"plane-{os.getpid()}"  # comm holds 15 bytes
        agents = aws.environ() | _agent_settings(service, target, messages.url, clickhouse.url)
        agents |= {
            "BYOC_ALERTS_URL": plane.events_url,
            "BYOC_ALERTS_TOKEN": token,
            "BYOC_ALERTS_SIGNING_SECRET": secret,
            "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
            "BYOC_ALERTS_FINGERPRINT_SECRET": secrets.token_urlsafe(32),
            "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
            "BYOC_ALERTS_ANNOTATIONS": "summary",
        }
        names = (SCRAPER, EXPORTER, FORWARDER)
        daemons = await enter(Daemons(names, agents, directory, session))
        await daemons.start()
        await enter(running_workload(target, directory, 1))
        stop = asyncio.Event()
        loading = asyncio.ensure_future(load_usage(store, aws, stop))
        stack.push_async_callback(lambda: loading)
        stack.callback(stop.set)
        await _notify(daemons, Alertmanager(session))
        await wait_until_all_arrive(found, directory, ONCE_SECONDS)
        if not once:
            await _show_until_cancelled(found)
        _say("read back: " + ", ".join(f"{t} {n} rows" for t, n in (await found.count()).items()))
        for query in (FLEET, AGENTS):
            for row in await found.fetch(query):
                _say(json.dumps(row))
        heads = "".join(f"{row['head']}\n" for row in await found.fetch(HEADS))
        await daemons.stop()
        _say(f"heads    {confirm_heads(directory / 'state', heads)} confirmed by the ledgers")
        if code := await plane.stop():
            last = tail(directory / PLANE_LOG)
            raise DemoError(f"the control plane ended with exit code {code}; last lines:\n{last}")
    return 0


def _agent_settings(
    service: str, target: str, queue_url: str, clickhouse_url: str
) -> dict[str, str]:
    return {
        "BYOC_ORGANIZATION_ID": ORGANIZATION,
        "BYOC_SERVICE_ID": service,
        "BYOC_REPLICA": "demo-replica-0",
        "BYOC_REGION": REGION,
        "BYOC_LISTEN": "127.0.0.1:0",
        "BYOC_BILLING_BUCKET": BUCKET,
        "BYOC_BILLING_TARGET": f"process:{target}",
        "BYOC_STATE_QUEUE_URL": queue_url,
        "BYOC_CLICKHOUSE_URL": clickhouse_url,
        **billing_scenes.SETTINGS,
        **state_scenes.SETTINGS,
        **alert_scenes.SETTINGS,
    }


async def _notify(daemons: Daemons, alertmanager: Alertmanager) -> None:
    """Hand one alert to the forwarder once its webhook listens."""
    while not (webhook := _webhook(await daemons.status())):  # noqa: ASYNC110  another process
        await asyncio.sleep(0.2)
    await alertmanager.notify(webhook, alert_scenes.READONLY, "firing")


def _webhook(status: Mapping[str, Any]) -> str:
    return str(status.get(FORWARDER, {}).get("webhook_address", ""))


async def wait_until_all_arrive(found: RunRows, directory: Path, seconds: float) -> None:
    """Wait for the rows. Raises DemoError with the last lines of each log: they are deleted."""
    try:
        async with asyncio.timeout(seconds):
            while not await found.are_complete():  # noqa: ASYNC110  another process
                await asyncio.sleep(0.5)
    except TimeoutError:
        arrived = (await found.count(), await found.fetch(AGENTS))
        logs = await asyncio.to_thread(_last_lines, directory)
        raise DemoError(f"not all streams arrived: {arrived}\n{logs}") from None


def _last_lines(directory: Path) -> str:
    return "\n".join(f"{log.name}:\n{tail(log)}" for log in sorted(directory.glob("*.log")))


def is_described(row: Mapping[str, Any]) -> bool:
    """Return whether a row of `agents_now` has what the newest messages of a daemon say of it."""
    return (
        row["agent_version"] == __version__
        and HASH.fullmatch(row["configuration_sha256"]) is not None
        and int(row["ledger_size"]) > 0
        and ROOT.fullmatch(row["ledger_root"]) is not None
    )


def confirm_heads(state: Path, text: str) -> int:
    """Return how many heads the ledgers have. Raises DemoError for one that they do not have."""
    confirmed, kept = 0, parse_heads(text)
    for name in (EXPORTER, FORWARDER):
        own = kept.of_ledger(name)
        verdict = verify(state / name / "ledger", own)
        if not own.heads or not verdict.ok:
            raise DemoError(f"{name}: {len(own.heads)} heads; {'; '.join(verdict.problems)}")
        confirmed += verdict.heads
    return confirmed


async def _show_until_cancelled(found: RunRows) -> None:
    _say("Ctrl-C ends it")
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    while not stopped.is_set():
        for row in await found.fetch(FLEET):
            _say(json.dumps(row))
        try:
            await asyncio.wait_for(stopped.wait(), 10)
        except TimeoutError:
            continue


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; return 0 once the tables have rows of all three streams."""
    parser = argparse.ArgumentParser(prog="make control-plane", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after all rows have arrived")
    parser.add_argument(
        "--store",
        default="",
        help="URL of a ClickHouse; BYOC_PLANE_STORE_PASSWORD has its password",
    )
    options = parser.parse_args(argv)
    password = os.environ.get("BYOC_PLANE_STORE_PASSWORD", "") if options.store else ""
    forget_accounts(os.environ)
    with tempfile.TemporaryDirectory(prefix="byoc-plane-") as directory:
        try:
            return asyncio.run(play(Path(directory), options.store, password, once=options.once))
        except (DemoError, StoreError) as error:
            sys.stderr.write(f"control-plane: {error}\n")
            return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
