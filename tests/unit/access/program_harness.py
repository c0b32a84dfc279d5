"""The program `byoc-agents run access-broker` as a process, between fakes of its partners."""

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from byoc_agents.access.authority import create_authority
from byoc_agents.access.orders import Order, OrderFolder
from byoc_agents.durable.store import SpoolStore
from byoc_agents.ledger.format import FactLine, LedgerLine, ReceiptLine, decode
from byoc_agents.ledger.segments import Segments
from lab.fakes.access import FakeClickHouseServer
from lab.fakes.http import FakeHttp, Reply, Request
from tests.unit.access.access_documents import policy_text, request_envelope

LIMIT_SECONDS = 30.0
SECRET = "whsec_" + "c2VjcmV0" * 5


class ControlPlane:
    """It lists envelopes, and keeps the events that it receives."""

    def __init__(self) -> None:
        self.http = FakeHttp(apply=self._apply)
        self.envelopes: list[bytes] = []
        self.events: list[dict[str, Any]] = []
        self.polls: list[Request] = []
        self.stores_events = True
        self.proves = True  # its responses name the delivery that they are about

    def _apply(self, request: Request) -> Reply:
        if request.method == "GET":
            self.polls.append(request)
            etag = f'"{len(self.envelopes)}"'
            if request.headers.get("if-none-match") == etag:
                return Reply(304, {"etag": etag})
            body = b'{"envelopes":[%s]}' % b",".join(self.envelopes)
            return Reply(200, {"content-type": "application/json", "etag": etag}, body)
        if not self.stores_events:
            return Reply(503)
        found = json.loads(request.body)
        self.events += [one["data"] for one in (found if isinstance(found, list) else [found])]
        return Reply(204, {"webhook-id": request.headers["webhook-id"]} if self.proves else {})

    def states(self) -> list[str]:
        return [event["state"] for event in self.events]


class Program:
    """The state directory and the fakes: they survive the process."""

    def __init__(self, directory: Path, replicas: Sequence[str] = ("r0", "r1")) -> None:
        self.directory = directory
        self.servers = {name: FakeClickHouseServer(now_ms) for name in replicas}
        self.plane = ControlPlane()
        self.policy = directory / "policy.yaml"
        self.policy.write_text(policy_text())
        (directory / "ca").mkdir()
        create_authority(directory / "ca", "svc-1", now_ms() - 86_400_000)
        self.process: asyncio.subprocess.Process
        self.url = ""

    @property
    def state(self) -> Path:
        return self.directory / "state" / "access-broker"

    @property
    def kill_switch(self) -> Path:
        return self.state / "kill-switch"

    def environ(self) -> dict[str, str]:
        servers = ",".join(f"{name}={one.http.url}" for name, one in self.servers.items())
        return {
            "PATH": os.environ["PATH"],
            "BYOC_ORGANIZATION_ID": "org-1",
            "BYOC_SERVICE_ID": "svc-1",
            "BYOC_REGION": "eu-west-1",
            "BYOC_REPLICA": "broker",
            "BYOC_STATE_DIR": str(self.directory / "state"),
            "BYOC_LISTEN": "127.0.0.1:0",
            "BYOC_ACCESS_POLICY_FILE": str(self.policy),
            "BYOC_ACCESS_CA_DIR": str(self.directory / "ca"),
            "BYOC_ACCESS_SERVERS": servers,
            "BYOC_ACCESS_PASSWORD": "secret-of-the-broker",
            "BYOC_ACCESS_EVENTS_URL": f"{self.plane.http.url}/events",
            "BYOC_ACCESS_REQUESTS_URL": f"{self.plane.http.url}/requests",
            "BYOC_ACCESS_POLL_SECONDS": "5",
            "BYOC_ACCESS_TOKEN": "token-of-the-vendor",
            "BYOC_ACCESS_SIGNING_SECRET": SECRET,
        }

    @asynccontextmanager
    async def fakes(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for http in (self.plane.http, *(one.http for one in self.servers.values())):
                await stack.enter_async_context(http)
            (self.directory / "state").mkdir(exist_ok=True)
            yield

    @asynccontextmanager
    async def running(self, **environ: str) -> AsyncIterator[None]:
        """Run the program until the end of the block, and stop it if it still runs."""
        log = self.directory / "log"
        with log.open("wb") as stream:
            command = (sys.executable, "-m", "byoc_agents.app.cli", "run", "access-broker")
            env = self.environ() | environ
            self.process = await asyncio.create_subprocess_exec(
                *command, env=env, stdout=stream, stderr=stream
            )
        try:
            self.url = await until(lambda: listening(log), self.process)
            yield
        except BaseException:
            answers = {path.name: path.read_text() for path in self.state.glob("answers/*")}
            sys.stdout.write(f"{log.read_text()}\nanswers: {answers}\n")
            raise
        finally:
            if self.process.returncode is None:
                self.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(LIMIT_SECONDS):
                await self.process.wait()

    def orders(self) -> OrderFolder:
        folder = OrderFolder(self.state)
        folder.create()
        return folder

    async def order(self, order: Order, name: str) -> str:
        folder = self.orders()
        folder.place(name, order)
        return str(await until(lambda: folder.take_answer(name), self.process))

    async def page(self, path: str) -> str:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return await response.text()

    async def metric(self, line: str) -> float | None:
        """Return the value of a series, by its text with the labels."""
        found = re.search(rf"^{re.escape(line)} (\S+)$", await self.page("/metrics"), re.MULTILINE)
        return float(found[1]) if found else None

    @property
    def users(self) -> dict[str, list[str]]:
        return {name: sorted(one.users) for name, one in self.servers.items()}

    def request(self, **changes: Any) -> bytes:
        now = now_ms()  # read once: the text has full seconds, and must not fall into this one
        return request_envelope(start_ms=now - now % 1000 + 1000, **changes)

    def lines(self) -> list[LedgerLine]:
        segments = Segments(self.state / "ledger")
        found = [
            decode(raw)
            for number in segments.numbers()
            for raw in segments.path(number).read_bytes().splitlines()
        ]
        return [line for line in found if line is not None]

    def facts(self) -> list[FactLine]:
        return [line for line in self.lines() if isinstance(line, FactLine)]

    def errors(self) -> list[str]:
        """Return the errors of the deliveries, as the ledger has them."""
        receipts = [line for line in self.lines() if isinstance(line, ReceiptLine)]
        return [ended.detail for line in receipts for ended in line.outcomes if ended.detail]

    def stored(self) -> dict[str, dict[str, Any]]:
        """Return id -> grant, as the store has it."""
        with closing(self._open_store()) as store:
            found = [msgspec.json.decode(raw) for raw in store.state("access/grant/").values()]
        return {grant["id"]: grant for grant in found}

    def queued(self) -> list[dict[str, Any]]:
        """Return the events that wait in the spool."""
        with closing(self._open_store()) as store:
            messages = store.peek(1000, 1 << 24)
        return [msgspec.json.decode(message.body)["data"] for message in messages]

    def _open_store(self) -> SpoolStore:
        return SpoolStore(self.state / "spool.db", max_bytes=1 << 62)

    async def command(self, *argv: str) -> tuple[int | None, str]:
        """Run `byoc-agents access` next to the broker; return its exit code and its output."""
        env = {"PATH": os.environ["PATH"], "BYOC_STATE_DIR": str(self.directory / "state")}
        made = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "byoc_agents.app.cli", "access", *argv),
            env=env,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await made.communicate()
        return made.returncode, out.decode()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def listening(log: Path) -> str:
    found = re.search(r'"host": ?"([^"]+)", ?"port": ?(\d+)', log.read_text())
    found = found or re.search(r"admin\.listening\s.*host=(\S+) port=(\d+)", log.read_text())
    return f"http://{found[1]}:{found[2]}" if found else ""


async def until(met: Callable[[], Any], process: asyncio.subprocess.Process | None = None) -> Any:
    """Return the first true result, asked every 20 ms; fail if the process ends meanwhile."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not (found := met()):
            assert process is None or process.returncode is None, "the program has ended"
            await asyncio.sleep(0.02)
        return found
