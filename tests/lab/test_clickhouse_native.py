"""The stand-in's native protocol, through clickhouse-driver: a client that is not ours.

The broker's own statements create and drop the user. The client logs in by its certificate.
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ErrorCodes, NetworkError, ServerException

from byoc_agents.access import clickhouse_sql as sql
from lab.fakes.access import LONG_QUERY, QUERY
from lab.fakes.core import START_MS
from lab.tailnet import certificates
from lab.tailnet.certificates import GRANT
from tests.lab.native_server import MINUTE_SECONDS, USER, Server, ask

OTHER_GRANT = f"{GRANT[:-1]}f"
OTHER_USER = sql.user_name(OTHER_GRANT)
AUTHENTICATION_FAILED, USER_EXPIRED = 516, 720  # newer than the codes of the package


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("certificates")
    certificates.make(place, "svc-1", dt.datetime.now(dt.UTC))
    return place


@pytest.fixture
async def server(files: Path) -> AsyncIterator[Server]:
    made = Server(files)
    async with made.serving():
        yield made


async def code_of(client: Client, query: str = QUERY) -> int:
    """Return the code of the server's error. Fails if there is none."""
    with pytest.raises(ServerException) as error:
        await ask(client, query)
    return int(error.value.code)


async def test_the_certificates_user_logs_in_and_queries(server: Server) -> None:
    await server.create_user()
    client = server.client()
    assert await ask(client) == [(USER,)]
    assert await ask(client) == [(USER,)]
    assert client.connection.server_info.name == "ClickHouse stand-in"
    assert server.fake.logins == 1, "the client kept its session, after a ping"


@pytest.mark.parametrize("certificate", ["", "expired", "foreign"])
async def test_without_a_valid_certificate_the_handshake_fails(
    server: Server, certificate: str
) -> None:
    await server.create_user()
    with pytest.raises((NetworkError, EOFError, OSError)) as error:
        await ask(server.client(certificate))
    assert not isinstance(error.value, ServerException)
    assert server.fake.logins == 0


async def test_a_certificate_logs_in_as_its_own_user_only(server: Server) -> None:
    await server.create_user()
    await server.create_user(OTHER_GRANT)
    for user in (OTHER_USER, "default", ""):
        assert await code_of(server.client(user=user)) == AUTHENTICATION_FAILED
    assert server.fake.logins == 0
    assert await ask(server.client()) == [(USER,)]


async def test_a_live_session_is_refused_at_the_end_of_its_user(server: Server) -> None:
    """At the end that it had at its login. A later end helps a new login only."""
    await server.create_user()
    client = server.client()
    assert await ask(client) == [(USER,)]
    server.fake.users[USER]["valid_until"] = [START_MS // 1000 + 2 * MINUTE_SECONDS]
    server.clock.step_wall(MINUTE_SECONDS - 0.001)
    assert await ask(client) == [(USER,)]
    server.clock.step_wall(0.001)
    assert await code_of(client) == USER_EXPIRED
    assert server.fake.logins == 1, "the session was live"
    assert await ask(client) == [(USER,)], "the client has logged in again"
    server.clock.step_wall(MINUTE_SECONDS)
    assert await code_of(server.client()) == AUTHENTICATION_FAILED


async def test_a_live_session_is_refused_after_its_user_was_dropped(server: Server) -> None:
    """Also if a user of the same name was created since."""
    await server.create_user()
    clients = [server.client(), server.client()]
    for client in clients:
        assert await ask(client) == [(USER,)]
    await server.administer(sql.drop_user(GRANT))
    assert await code_of(clients[0]) == ErrorCodes.UNKNOWN_USER
    assert await code_of(clients[0]) == AUTHENTICATION_FAILED, "a new login"
    await server.create_user()
    assert await code_of(clients[1]) == ErrorCodes.UNKNOWN_USER
    assert server.fake.logins == 2


async def test_a_running_query_ends_by_kill_query_only(server: Server) -> None:
    await server.create_user()
    client = server.client()
    running = asyncio.create_task(code_of(client, LONG_QUERY))
    async with asyncio.timeout(10):
        await server.fake.query_runs.wait()
    await server.administer(sql.drop_user(GRANT))
    server.clock.step_wall(MINUTE_SECONDS)
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(running), 0.2)
    assert not running.done(), "it survives its user and the end"
    await server.administer(sql.kill_queries(GRANT))
    assert await running == ErrorCodes.QUERY_WAS_CANCELLED


async def test_each_query_is_in_query_log(server: Server) -> None:
    await server.create_user()
    client = server.client()
    await ask(client)
    assert await code_of(client, "DROP TABLE t") == ErrorCodes.SYNTAX_ERROR
    kinds = [(row["query"], row["type"]) for row in server.fake.query_log[USER]]
    assert kinds == [
        *((QUERY, "QueryStart"), (QUERY, "QueryFinish")),
        *(("DROP TABLE t", "QueryStart"), ("DROP TABLE t", "ExceptionWhileProcessing")),
    ]


async def test_what_the_stand_in_does_not_speak_is_refused_and_not_guessed(server: Server) -> None:
    await server.create_user()
    client = server.client()
    await ask(client)
    client.connection.compression = True
    assert await code_of(client) == ErrorCodes.NOT_IMPLEMENTED
    with pytest.raises((EOFError, NetworkError)):
        await asyncio.to_thread(
            server.client().execute,
            QUERY,
            external_tables=[{"name": "t", "structure": [("x", "Int8")], "data": [{"x": 1}]}],
        )
