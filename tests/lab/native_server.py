"""The stand-in with its listener, and clients of its native port, for tests."""

import asyncio
import datetime as dt
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from clickhouse_driver import Client

from byoc_agents.access import clickhouse_sql as sql
from lab.demo.access_server import response_of
from lab.fakes.access import QUERY, FakeClickHouseServer
from lab.fakes.core import START_MS, FakeClock
from lab.tailnet import certificates
from lab.tailnet.certificates import GRANT
from lab.tailnet.listener import listening, strict_context

LOCAL = "127.0.0.1"
USER = sql.user_name(GRANT)
MINUTE_SECONDS = 60


class Server:
    """The stand-in with a clock of the test, and clients of its native port."""

    def __init__(self, files: Path) -> None:
        self.clock = FakeClock()
        self.fake = FakeClickHouseServer(lambda: self.clock.wall_ns() // 1_000_000)
        self.port = self.https_port = 0
        self.clients: list[Client] = []
        self._files = files

    async def create_user(self, grant: str = GRANT, seconds: int = MINUTE_SECONDS) -> None:
        end_ms = START_MS + 1000 * seconds
        user = sql.GrantUser(
            grant_id=grant,
            certificate_uri=f"spiffe://svc-1.byoc/grant/{grant}",
            role=sql.ROLES[1],
            ticket="CS-1",
            valid_until=dt.datetime.fromtimestamp(end_ms / 1000, tz=dt.UTC),
        )
        await self.administer(sql.create_user(user))

    async def administer(self, statement: str) -> None:
        """Run a statement as the broker does, over HTTP."""
        asked = urllib.request.Request(self.fake.http.url, statement.encode())
        with await asyncio.to_thread(urllib.request.urlopen, asked, timeout=10) as reply:
            assert reply.status == 200

    def client(self, certificate: str = "good", user: str = USER) -> Client:
        """Return a client that is not connected yet."""
        client = Client(
            LOCAL,
            self.port,
            user=user,
            secure=True,
            ca_certs=str(self._files / "server-ca.crt"),
            certfile=str(self._files / f"{certificate}.pem") if certificate else None,
            server_hostname=certificates.NAMES[0],
        )
        self.clients.append(client)
        return client

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve the broker and the engineers. Every client is closed at the end."""
        own, key, authority = map(Path, certificates.server_files(self._files))
        context = strict_context(own, key, authority)
        log_in, answer = self.fake.log_in, response_of(self.fake)
        async with self.fake.http, listening(LOCAL, context, answer, (0, 0), log_in) as ports:
            self.port, self.https_port = ports
            yield
            for client in self.clients:
                await asyncio.to_thread(client.disconnect)


async def ask(client: Client, query: str = QUERY) -> list[tuple[str, ...]]:
    """Return the rows of a query."""
    return list(await asyncio.to_thread(client.execute, query))
