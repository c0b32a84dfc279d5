"""ClickHouse over HTTP: the requests, and which errors are worth another attempt."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from byoc_agents.app.settings import load
from byoc_agents.errors import ConfigError
from byoc_control_plane.settings import PlaneSettings
from byoc_control_plane.store import (
    HttpStore,
    RowsRefusedError,
    StoreError,
    fetch_rows,
    insert_rows,
    open_store,
)
from lab.fakes.http import Behavior, FakeHttp, Reply, always, close, garbage, hang, redirect
from lab.fakes.http import reply as respond_with


@pytest.fixture
async def fake() -> AsyncIterator[FakeHttp]:
    async with FakeHttp() as fake:
        yield fake


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def store_at(fake: FakeHttp, session: aiohttp.ClientSession) -> HttpStore:
    url = fake.url.replace("//", "//writer@") + "/?database=vendor"
    return HttpStore(url, session, password="pass word", timeout_seconds=0.3)


async def test_rows_are_the_body_and_the_statement_is_a_parameter(
    fake: FakeHttp, session: aiohttp.ClientSession
) -> None:
    await insert_rows(store_at(fake, session), "byoc_state", [b'{"a":1}', b'{"a":2}'])
    (request,) = fake.requests
    assert request.body == b'{"a":1}\n{"a":2}'
    assert "database=vendor" in request.target
    assert "wait_end_of_query=1" in request.target
    assert "INSERT+INTO+byoc_state" in request.target
    assert request.headers["x-clickhouse-user"] == "writer"
    assert request.headers["x-clickhouse-key"] == "pass word"
    assert "pass" not in repr(store_at(fake, session))


async def test_rows_of_a_query_are_read(session: aiohttp.ClientSession) -> None:
    async with FakeHttp(apply=lambda _: Reply(200, {}, b'{"n":1}\n{"n":2}\n')) as fake:
        found = await fetch_rows(store_at(fake, session), "SELECT n FROM t")
    assert found == [{"n": 1}, {"n": 2}]
    assert fake.requests[0].body.startswith(b"SELECT n FROM t SETTINGS ")


@pytest.mark.parametrize("code", [6, 27, 41, 117])
async def test_an_error_in_the_data_is_for_good(
    fake: FakeHttp, session: aiohttp.ClientSession, code: int
) -> None:
    fake.script = always(respond_with(400, {"X-ClickHouse-Exception-Code": str(code)}))
    with pytest.raises(RowsRefusedError):
        await insert_rows(store_at(fake, session), "t", [b"{}"])


@pytest.mark.parametrize(
    "behavior",
    [
        respond_with(500, {"X-ClickHouse-Exception-Code": "241"}),  # MEMORY_LIMIT_EXCEEDED
        respond_with(404, {"X-ClickHouse-Exception-Code": "60"}),  # UNKNOWN_TABLE: an administrator
        respond_with(403, {"X-ClickHouse-Exception-Code": "516"}),  # AUTHENTICATION_FAILED
        respond_with(500, {"X-ClickHouse-Exception-Code": "252"}),  # TOO_MANY_PARTS
        respond_with(503),
        respond_with(204),
        redirect("http://127.0.0.1:1/"),
        close,
        hang,
        garbage(),
    ],
    ids=range(10),
)
async def test_every_other_failure_is_tried_again(
    fake: FakeHttp, session: aiohttp.ClientSession, behavior: Behavior
) -> None:
    fake.script = always(behavior)
    with pytest.raises(StoreError) as raised:
        await insert_rows(store_at(fake, session), "t", [b"{}"])
    assert not isinstance(raised.value, RowsRefusedError)


async def test_the_embedded_store_needs_chdb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "chdb.session", None)
    with pytest.raises(ConfigError, match="BYOC_PLANE_STORE_URL: chdb is not installed"):
        async with open_store(f"chdb:{tmp_path}"):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "http://hunter1:hunter2@[::1/?hunter3",
        "http://hunter1:hunter2@h\u2100x/?hunter3",
        "http://hunter1:hunter2@h:port/?hunter3",
        "http:///?hunter3",
    ],
)
def test_a_malformed_url_of_the_store_is_refused_without_its_user_password_and_query(
    url: str,
) -> None:
    with pytest.raises(ConfigError) as caught:
        load([PlaneSettings], {"BYOC_PLANE_STORE_URL": url}, {})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("BYOC_PLANE_STORE_URL: invalid value '")
    assert "): expected http[s]://" in mistake
    assert "NFKC" not in mistake
    assert "hunter" not in mistake
