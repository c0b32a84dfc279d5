"""Run the three daemons as one real process, with fakes of all services they connect to."""

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from byoc_agents.audit import Audit, Report
from byoc_agents.state.message import StateEvent, StateV1
from lab.demo.alertmanager import notification
from lab.demo.control_plane import ControlPlane, control_plane
from lab.fakes.http import WEBHOOK_HEADERS
from lab.fakes.s3 import FakeS3
from lab.fakes.sqs import FakeSqs
from lab.fakes.state import HEALTHY, FakeClickHouse
from lab.real.parts.process import free_port
from lab.real.scraper import PROGRAM, SETTINGS, clean_environ
from lab.real.stored import billed

DAEMONS = ("billing-scraper", "state-exporter", "alert-forwarder")
PATIENCE_SECONDS = 90.0  # for what takes a second or two; the longest back-off we may meet
READONLY = "system.metrics.ReadonlyReplica"


@dataclass
class Daemons:
    """The services, the environment and the daemon of one test."""

    directory: Path
    s3: FakeS3
    sqs: FakeSqs
    clickhouse: FakeClickHouse
    plane: ControlPlane
    session: aiohttp.ClientSession
    environ: Mapping[str, str]
    hook: str = ""
    pages: str = ""
    stored: list[str] = field(default_factory=list)  # alerts that were answered 200
    process: asyncio.subprocess.Process = field(init=False)

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def log(self) -> Path:
        return self.directory / "agents.log"

    async def launch(self, *prefix: str, daemons: Sequence[str] = DAEMONS) -> None:
        """Spawn the process by a command that runs its arguments, with a new log."""
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *prefix, str(PROGRAM), "run", *daemons, stdout=log, stderr=log, env=self.environ
            )

    async def start(self) -> None:
        await self.launch()
        await self.until(self.ready)
        await self.until(self.has_first_state)

    async def has_first_state(self) -> bool:
        """Return whether the first state message has arrived."""
        return bool(self.sqs.messages)

    async def until(self, reached: Callable[[], Any]) -> None:
        """Poll until the answer is true."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await reached():
                assert self.process.returncode is None, self.log.read_text()[-2000:]
                await asyncio.sleep(0.05)

    async def page(self, name: str) -> tuple[int, str]:
        try:
            async with self.session.get(f"{self.pages}/{name}") as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientError:
            return 0, ""

    async def ready(self) -> bool:
        return (await self.page("readyz"))[0] == 200

    async def unready(self) -> bool:
        """Return whether all three daemons report it."""
        code, text = await self.page("readyz")
        return code == 503 and all(f"{name}: spool: " in text for name in DAEMONS)

    async def reason(self, daemon: str) -> str:
        """Return the reason that delays the oldest message of a daemon."""
        code, text = await self.page("status")
        error = json.loads(text)["daemons"][daemon]["last_error"] if code == 200 else None
        return str(error["reason"]) if error else ""

    async def post(self, name: str) -> int:
        """Post one alert as Alertmanager does; return the answer."""
        body = notification(name, 1_795_435_200_000, None)
        async with self.session.post(
            f"{self.hook}/v1/alerts", json=body, headers=WEBHOOK_HEADERS
        ) as answer:
            await answer.read()
        self.stored += [name] if answer.status == 200 else []
        return answer.status

    async def drained(self) -> bool:
        code, text = await self.page("status")
        daemons = json.loads(text)["daemons"].values() if code == 200 else [{}]
        return all(one.get("backlog", {}).get("oldest", "?") is None for one in daemons)

    def toggle_replica(self) -> None:
        """Make the replica of the watched server read-only, or writable again."""
        rows = self.clickhouse.server.rows
        rows[READONLY] = "0" if rows[READONLY] == "1" else "1"

    def audited(self) -> Report:
        audit = Audit()
        for key, body in sorted(self.s3.objects.items()):
            audit.add(key, body)
        return audit.report("bucket")

    def state_messages(self) -> list[StateV1]:
        """Return the state messages in the order of the queue."""
        return [msgspec.json.decode(m.body, type=StateEvent).data for m in self.sqs.messages]

    async def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), PATIENCE_SECONDS)


@asynccontextmanager
async def running_daemons(directory: Path, target: str) -> AsyncIterator[Daemons]:
    """Start the services and the daemons; end them at the exit."""
    async with AsyncExitStack() as stack:
        s3, sqs, clickhouse = FakeS3(), FakeSqs(), FakeClickHouse()
        for fake in (s3, sqs, clickhouse):
            await stack.enter_async_context(fake)
        clickhouse.server.rows = dict(HEALTHY)
        plane, own = await stack.enter_async_context(control_plane())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        pages, hook = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        environ = SETTINGS | own | {
            "BYOC_STATE_DIR": str(directory / "state"),
            "BYOC_LISTEN": pages,
            "BYOC_ALERTS_LISTEN": hook,
            "BYOC_BILLING_BUCKET": "bucket",
            "BYOC_BILLING_TARGET": target,
            "AWS_ENDPOINT_URL_S3": s3.url,
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "BYOC_STATE_QUEUE_URL": sqs.queue_url,
            "BYOC_STATE_POLL_SECONDS": "0.5",
            "BYOC_STATE_LIMITS": "READONLY_REPLICA=1/0/0/0",
            "BYOC_CLICKHOUSE_URL": clickhouse.url,
        }  # fmt: skip
        made = Daemons(directory, s3, sqs, clickhouse, plane, session, clean_environ(environ))
        made.pages, made.hook = f"http://{pages}", f"http://{hook}"
        try:
            await made.start()
            yield made
        finally:
            if made.process.returncode is None:
                made.process.kill()
                await made.process.wait()


def ledger_verifies(state: Path) -> None:
    """Run `byoc-agents ledger verify`, as the customer does."""
    environ = clean_environ({"BYOC_STATE_DIR": str(state)})
    command = [str(PROGRAM), "ledger", "verify"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def assert_alerts(daemons: Daemons) -> None:
    """Compare the alerts answered 200 with those that the control plane received."""
    reported = [one.labels["alertname"] for one in daemons.plane.alerts]
    print(f"{len(daemons.stored)} alerts stored, {len(reported)} received")
    assert len(reported) == len(set(reported)), "an event of the same alert under another id"
    assert set(daemons.stored) <= set(reported)


def assert_billed(daemons: Daemons, truth: int) -> None:
    """Compare the bucket with the kernel's counter, to the microsecond."""
    report = daemons.audited()
    assert report.findings == []
    assert report.unrecorded == []
    assert all(daemons.s3.applied(key) == 1 for key in daemons.s3.objects)
    assert int(billed(report) * 1_000_000) == truth
