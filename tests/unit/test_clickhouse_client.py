"""The ClickHouse client against real loopback servers with scripted responses."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from byoc_agents.clickhouse import (
    Bounds,
    ClickHouse,
    ClickHouseAuthError,
    ClickHouseError,
    ClickHouseResponseError,
    ClickHouseServerError,
    ClickHouseTimeoutError,
    ClickHouseTooLargeError,
    ClickHouseUnreachableError,
)
from byoc_agents.egress.destinations import clickhouse_destination
from byoc_agents.egress.gate import Gate

SECRET = "hunter2"
SQL = "SELECT secret_column FROM secret_table"
RESPONSE = {"meta": [{"name": "x", "type": "UInt64"}], "data": [["18446744073709551615"]]}


@dataclass
class Scripted:
    """Answers every request with one response and records the requests."""

    status: int = 200
    body: bytes = b"Ok.\n"
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str, bytes, dict[str, str]]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        self.seen.append((request.method, request.path_qs, content, dict(request.headers)))
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@dataclass
class Started:
    script: Scripted
    url: str


def serving(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> TestServer:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    return TestServer(app)


@pytest.fixture
async def server() -> AsyncIterator[Started]:
    script = Scripted()
    async with serving(script.handle) as running:
        yield Started(script, str(running.make_url("")))


@pytest.fixture
async def client(server: Started) -> AsyncIterator[ClickHouse]:
    async with ClickHouse(server.url, "watcher", SECRET) as client:
        yield client


async def test_a_query_carries_the_login_in_headers_and_the_sql_in_the_body(
    server: Started, client: ClickHouse
) -> None:
    server.script.body = json.dumps(RESPONSE).encode()
    rows = await client.query(f"{SQL} WHERE a = {{a:String}};", {"a": "b&c"}, {"max_threads": "1"})
    assert rows == [{"x": 18446744073709551615}]
    method, url, body, headers = server.script.seen[0]
    assert (method, url) == ("POST", "/?param_a=b%26c&wait_end_of_query=1&max_threads=1")
    assert body == f"{SQL} WHERE a = {{a:String}}\nFORMAT JSONCompact".encode()
    assert headers["X-ClickHouse-User"] == "watcher"
    assert headers["X-ClickHouse-Key"] == SECRET
    assert headers["User-Agent"].startswith("byoc-agents/")
    assert SECRET not in url


async def test_columns_come_in_their_own_types(server: Started, client: ClickHouse) -> None:
    kinds = ["UInt64", "Nullable(Int64)", "LowCardinality(Nullable(UInt8))", "Float64", "String"]
    server.script.body = json.dumps(
        {
            "meta": [{"name": str(i), "type": kind} for i, kind in enumerate(kinds)],
            "data": [["1", None, 3, 4, "5"], [1, "-2", None, None, "x"]],
            "rows": 2,
        }
    ).encode()
    assert [list(row.values()) for row in await client.query("SELECT 1")] == [
        [1, None, 3, 4.0, "5"],
        [1, -2, None, None, "x"],
    ]


async def test_ping_and_replicas_status_send_no_login(server: Started, client: ClickHouse) -> None:
    await client.ping()
    assert await client.replicas_status()
    assert [(method, url) for method, url, *_ in server.script.seen] == [
        ("GET", "/ping"),
        ("GET", "/replicas_status"),
    ]
    assert not any("X-ClickHouse-User" in headers for *_, headers in server.script.seen)


async def test_a_lagging_replica_is_a_response_not_an_error(
    server: Started, client: ClickHouse
) -> None:
    server.script.status, server.script.body = 503, b"secret_db.secret_table: Absolute delay: 310."
    assert await client.replicas_status() is False


async def test_every_request_has_its_own_connection(server: Started, client: ClickHouse) -> None:
    await client.ping()
    assert server.script.seen[0][3]["Connection"] == "close"


ERRORS: dict[str, tuple[int, dict[str, str], bytes, type[ClickHouseError]]] = {
    "login, new server": (403, {"X-ClickHouse-Exception-Code": "516"}, b"", ClickHouseAuthError),
    "login, 18.16": (401, {}, b"Code: 194, secret_table", ClickHouseAuthError),
    "password, 18.16": (500, {}, b"Code: 193, e.displayText() = secret_table", ClickHouseAuthError),
    "user unknown": (500, {}, b"Code: 192, e.displayText() = x", ClickHouseAuthError),
    "a proxy's 403": (403, {}, b"<html>", ClickHouseAuthError),
    "no grant": (403, {"X-ClickHouse-Exception-Code": "497"}, b"", ClickHouseServerError),
    "no table": (404, {"X-ClickHouse-Exception-Code": "60"}, b"", ClickHouseServerError),
    "no table, 18.16": (404, {}, b"Code: 60, secret_table", ClickHouseServerError),
    "code in a 200": (200, {"X-ClickHouse-Exception-Code": "241"}, b"", ClickHouseServerError),
    "error after rows": (200, {}, b'{"meta":[],\nCode: 241. DB::Ex', ClickHouseServerError),
    "a proxy's 502": (502, {}, b"<html>", ClickHouseResponseError),
    "another service": (200, {}, b"<html>", ClickHouseResponseError),
    "nested JSON": (200, {}, b'{"data":' + b"[" * 50_000, ClickHouseResponseError),
    "redirect": (307, {"Location": "http://127.0.0.1:1/"}, b"", ClickHouseResponseError),
    "cut": (
        200,
        {},
        b'{"meta":[{"name":"x","type":"UInt64"}],"data":[["1"',
        ClickHouseResponseError,
    ),
    "a cell too few": (
        200,
        {},
        b'{"meta":[{"name":"x","type":"UInt64"}],"data":[[]]}',
        ClickHouseResponseError,
    ),
    "no number": (
        200,
        {},
        b'{"meta":[{"name":"x","type":"UInt64"}],"data":[["secret_table"]]}',
        ClickHouseResponseError,
    ),
    "code garbage": (
        500,
        {"X-ClickHouse-Exception-Code": "secret_table"},
        b"",
        ClickHouseResponseError,
    ),
}


@pytest.mark.parametrize("name", ERRORS)
async def test_every_bad_response_is_one_of_the_six_errors_and_reveals_nothing(
    server: Started, client: ClickHouse, name: str
) -> None:
    status, headers, body, error = ERRORS[name]
    server.script.status, server.script.headers, server.script.body = status, headers, body
    with pytest.raises(ClickHouseError) as caught:
        await client.query(SQL)
    assert type(caught.value) is error
    text = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert "secret" not in text
    assert SECRET not in text
    assert len(server.script.seen) == 1  # neither a redirect followed nor a retry made


async def test_the_code_is_reported(server: Started, client: ClickHouse) -> None:
    server.script.status, server.script.body = 404, b"Code: 60, e.displayText() = x"
    with pytest.raises(ClickHouseServerError, match="status 404, code 60") as caught:
        await client.query(SQL)
    assert caught.value.code == 60


BODIES = {"plain": b"x" * 2000, "bomb": gzip.compress(b"x" * 100_000)}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_response_is_read_up_to_the_bound_only(server: Started, body: bytes) -> None:
    server.script.body = body
    if body[:2] == b"\x1f\x8b":
        server.script.headers = {"Content-Encoding": "gzip"}
    async with ClickHouse(server.url, bounds=Bounds(response_bytes=1000)) as client:
        with pytest.raises(ClickHouseTooLargeError):
            await client.ping()


async def test_a_server_that_never_answers_is_a_timeout() -> None:
    over = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        await over.wait()
        return web.Response()

    async with serving(hang) as running:
        url = str(running.make_url(""))
        async with ClickHouse(url, bounds=Bounds(seconds=0.05)) as client:
            with pytest.raises(ClickHouseTimeoutError):
                await client.query(SQL)
        over.set()


async def test_the_session_given_makes_every_connection(server: Started) -> None:
    made: list[aiohttp.ClientSession] = []

    def session(**options: Any) -> aiohttp.ClientSession:
        made.append(aiohttp.ClientSession(**options))
        return made[-1]

    client = ClickHouse(server.url, session=session)
    assert not made
    await client.ping()
    await client.ping()
    assert len(made) == 1
    await client.close()
    assert made[0].closed
    await client.ping()
    assert len(made) == 2
    await client.close()


async def test_the_gate_allows_its_destination_and_no_other(server: Started) -> None:
    open_gate = Gate([clickhouse_destination(server.url)])
    async with ClickHouse(server.url, session=open_gate.session) as client:
        await client.ping()
    shut_gate = Gate([clickhouse_destination("http://127.0.0.1:1")])
    async with ClickHouse(server.url, session=shut_gate.session) as client:
        with pytest.raises(ClickHouseUnreachableError, match="EgressRefusedError"):
            await client.ping()
    assert len(server.script.seen) == 1
