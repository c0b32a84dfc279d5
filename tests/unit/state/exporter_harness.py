"""An exporter over real spool files and scripted servers, on a clock that the test moves."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.app.metrics import Metrics
from byoc_agents.clickhouse import ClickHouseUnreachableError
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolFullError, SpoolUnavailableError
from byoc_agents.ledger.recent import RecentSend, StreamPosition
from byoc_agents.message import Message
from byoc_agents.state.exporter import Exporter, PolledReplica
from byoc_agents.state.message import StateIdentity
from byoc_agents.state.message_stream import MessageStream
from byoc_agents.state.probes import Prober
from byoc_agents.state.thresholds import Thresholds
from lab.fakes.core import FakeClock
from lab.fakes.state import HEALTHY, ScriptedServer

NAME = "state-exporter"
WHO = StateIdentity(organization_id="org", service_id="svc", region="eu-west-1")
MORE_BYTES = 1 << 20


class Harness:
    """One exporter over real spool files, scripted servers and a clock that the test moves."""

    def __init__(self, spool: Spool, clock: FakeClock, servers: dict[str, ScriptedServer]) -> None:
        self.spool = spool
        self.clock = clock
        self.servers = servers
        self.metrics = Metrics()
        self.sent: list[Message] = []  # messages that the ledger has recorded as sent
        self.exporter = self.start()

    def start(self) -> Exporter:
        """Create an exporter, as a new process does."""
        replicas = [
            PolledReplica(name, Prober(server, clock=self.clock), self._stream(f"replica/{name}"))
            for name, server in self.servers.items()
        ]
        self.exporter = Exporter(
            who=WHO,
            replicas=replicas,
            thresholds=Thresholds(),
            poll_seconds=10,
            clock=self.clock,
            summary=self._stream("service") if len(self.servers) > 1 else None,
        )
        return self.exporter

    def _stream(self, name: str) -> MessageStream:
        return MessageStream(
            NAME,
            f"state/{name}",
            intervals=HeartbeatIntervals(60, 300),
            spool=self.spool,
            clock=self.clock,
            metrics=self.metrics,
            sent=lambda: [
                RecentSend(m.id, m.stream, StreamPosition(m.epoch, m.sequence), m.events)
                for m in self.sent
            ],
        )

    @property
    def server(self) -> ScriptedServer:
        return next(iter(self.servers.values()))

    async def poll(self, seconds: float = 10) -> bool:
        await self.clock.advance(seconds)
        return await self.exporter.tick()

    async def unsent(self) -> list[dict[str, Any]]:
        """Return the data of all messages in the spool, oldest first."""
        messages: list[Message] = await self.spool.peek(1000, 1 << 30)
        return [json.loads(message.body)["data"] for message in messages]

    async def said(self) -> list[tuple[str, str]]:
        return [(data["kind"], data["state"]) for data in await self.unsent()]

    @property
    def status(self) -> dict[str, Any]:
        """Return what /status shows of the first replica."""
        shown: dict[str, Any] = json.loads(json.dumps(self.exporter.status()))
        first: dict[str, Any] = next(iter(shown["replicas"].values()))
        return first

    def stop_server(self) -> None:
        self.server.ping_error = ClickHouseUnreachableError("")

    def start_server(self, uptime: int = 4000) -> None:
        self.server.ping_error = None
        self.server.rows["uptime"] = str(uptime)


class Brittle(Spool):
    """A spool that refuses commits if a test sets it to, before or after they are made."""

    full = False
    lose_results = False

    async def commit(self, change: WriteBatch) -> None:
        if self.full:
            raise SpoolFullError("full")
        await super().commit(change)
        if self.lose_results:
            raise SpoolUnavailableError("made, but nobody knows")


def healthy() -> ScriptedServer:
    return ScriptedServer(rows=dict(HEALTHY))


@asynccontextmanager
async def harness(place: Path, *names: str, max_bytes: int = MORE_BYTES) -> AsyncIterator[Harness]:
    clock = FakeClock()
    async with Spool(place, max_bytes=max_bytes, clock=clock) as spool:
        yield Harness(spool, clock, {name: healthy() for name in names or ("r-0",)})
