"""The statements that the broker sends over HTTP, and what it makes of the responses."""

import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from byoc_agents.access.authority import uri_of_grant
from byoc_agents.access.clickhouse_admin import CollectedLogs, GrantAccount, user_of
from byoc_agents.access.clickhouse_server import MAX_LOG_BYTES, PAGE_ROWS, ClickHouseServer
from byoc_agents.access.clickhouse_sql import BROKER_USER, Names, Storage
from byoc_agents.access.errors import ServerError
from byoc_agents.clickhouse import Bounds, ClickHouse
from lab.fakes.access import FakeClickHouseServer
from lab.fakes.core import START_MS
from lab.fakes.http import always, close, garbage, hang, lose, reply
from tests.unit.access.access_documents import GRANT_ID

USER = user_of(GRANT_ID)
ACCOUNT = GrantAccount(
    grant_id=GRANT_ID,
    certificate_uri=uri_of_grant("svc-1", GRANT_ID),
    role="byoc_access_reader",
    ticket="CS-1234",
    end_ms=START_MS + 3_600_000,
)


@pytest.fixture
async def fake() -> AsyncIterator[FakeClickHouseServer]:
    made = FakeClickHouseServer(lambda: START_MS)
    async with made.http:
        yield made


@pytest.fixture
async def server(fake: FakeClickHouseServer) -> AsyncIterator[ClickHouseServer]:
    async with client(fake) as one, client(fake, seconds=30.0) as logs:
        yield ClickHouseServer("r0", one, logs, Storage.DEFAULT)


def client(fake: FakeClickHouseServer, **bounds: Any) -> ClickHouse:
    limits = Bounds(**{"seconds": 0.5, "response_bytes": 1 << 20} | bounds)
    return ClickHouse(fake.http.url, BROKER_USER, "secret", bounds=limits)


async def test_a_user_is_created_read_back_and_dropped(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    assert await server.find_differences(ACCOUNT) == ["missing"]
    await server.create_user(ACCOUNT)
    assert await server.find_differences(ACCOUNT) == []
    assert await server.list_users() == [USER]
    end = dt.datetime.fromtimestamp(ACCOUNT.end_ms / 1000, tz=dt.UTC)
    assert f"VALID UNTIL '{end:%Y-%m-%dT%H:%M:%SZ}'" in fake.statements[1]
    await server.drop_user(USER)
    await server.drop_user(USER)
    assert await server.list_users() == []


async def test_the_login_is_the_brokers_and_is_in_no_url(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    await server.create_user(ACCOUNT)
    (request,) = fake.http.requests
    assert request.headers["x-clickhouse-user"] == BROKER_USER
    assert "secret" not in request.target


async def test_an_existing_user_stays_and_the_difference_is_found(
    server: ClickHouseServer,
) -> None:
    await server.create_user(msgspec.structs.replace(ACCOUNT, role="byoc_access_text"))
    await server.create_user(ACCOUNT)
    assert await server.find_differences(ACCOUNT) == ["role"]


async def test_the_user_may_be_kept_in_memory(fake: FakeClickHouseServer) -> None:
    async with client(fake) as one:
        await ClickHouseServer("r0", one, one, Storage.MEMORY).create_user(ACCOUNT)
    assert f"{USER} IN memory IDENTIFIED" in fake.statements[0]


async def test_queries_are_listed_and_killed(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.running[USER] = ["q-1", "q-2"]
    assert await server.running_queries(USER) == ["q-1", "q-2"]
    await server.kill_queries(USER)
    assert await server.running_queries(USER) == []


async def test_an_orphan_of_any_name_with_the_prefix_is_dropped(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    await server.drop_user("byoc_grant_by_hand")
    await server.kill_queries("byoc_grant_by_hand")
    assert fake.statements == [
        "DROP USER IF EXISTS byoc_grant_by_hand",
        "KILL QUERY WHERE user = 'byoc_grant_by_hand' ASYNC",
    ]


@pytest.mark.parametrize("user", ["default", "byoc_grant_", "byoc_grant_x; DROP USER y"])
async def test_another_user_is_never_part_of_a_statement(
    fake: FakeClickHouseServer, server: ClickHouseServer, user: str
) -> None:
    for method in (server.drop_user, server.kill_queries, server.running_queries):
        with pytest.raises(ServerError, match="expected"):
            await method(user)
    assert fake.statements == []


async def test_a_role_that_is_not_of_the_shipped_sql_creates_no_user(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    with pytest.raises(ServerError, match="role: expected one of byoc_access_metrics"):
        await server.create_user(msgspec.structs.replace(ACCOUNT, role="admin"))
    assert fake.statements == []


async def test_a_server_with_the_shipped_sql_has_no_problem(server: ClickHouseServer) -> None:
    assert await server.find_problems(plain_names=False, allow_open_system=False) == []


async def test_a_failed_check_has_its_name_and_what_is_expected(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.version = "25.7.1.1"
    (problem,) = await server.find_problems(plain_names=False, allow_open_system=False)
    assert problem.startswith("version: has '25.7.1.1': expected 25.8.19.7")


async def test_plain_views_are_compared_if_the_policy_shows_names(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.names = Names.PLAIN
    assert await server.find_problems(plain_names=True, allow_open_system=False) == []
    assert await server.find_problems(plain_names=False, allow_open_system=False)


FAULTS = {
    "no login": reply(403, {"x-clickhouse-exception-code": "516"}),
    "no grant": reply(403, {"x-clickhouse-exception-code": "497"}),
    "a page of a proxy": reply(502, {}, b"<html>"),
    "no HTTP": garbage(),
    "a closed connection": close,
    "no response in time": hang,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_every_failure_is_one_kind_of_error(
    fake: FakeClickHouseServer, server: ClickHouseServer, fault: Any
) -> None:
    fake.http.script = always(fault)
    calls = (
        server.find_problems(plain_names=False, allow_open_system=False),
        server.read_clock_ms(),
        server.create_user(ACCOUNT),
        server.find_differences(ACCOUNT),
        server.list_users(),
        server.drop_user(USER),
        server.kill_queries(USER),
        server.running_queries(USER),
    )
    for call in calls:
        with pytest.raises(ServerError, match=r"^r0: "):
            await call


@pytest.mark.parametrize("body", [b'{"meta":[],"data":[]}', b'{"meta":[],"data":[[]]}'])
async def test_a_response_of_another_form_is_an_error_of_that_server(
    fake: FakeClickHouseServer, server: ClickHouseServer, body: bytes
) -> None:
    fake.http.script = always(reply(200, {}, body))
    for call in (
        server.find_problems(plain_names=False, allow_open_system=False),
        server.read_clock_ms(),
        server.collect(USER, START_MS),
    ):
        with pytest.raises(ServerError, match="r0: "):
            await call


async def test_after_a_lost_response_the_user_may_exist(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.http.script = always(lose())
    with pytest.raises(ServerError):
        await server.create_user(ACCOUNT)
    assert USER in fake.users


# The logs.


def lines(count: int, text: str = "SELECT 1") -> list[dict[str, Any]]:
    """Return the start and the end of so many queries, as query_log has them."""
    return [
        {"time": n, "type": kind, "query_id": f"q-{n}", "query": text, "result_rows": end}
        for n in range(count)
        for kind, end in (("QueryStart", 0), ("QueryFinish", 5))
    ]


async def collect(server: ClickHouseServer) -> CollectedLogs:
    return await server.collect(USER, START_MS)


async def test_the_lines_of_both_logs_are_collected_after_a_flush(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.query_log[USER] = lines(3)
    fake.session_log = {USER: [{"time": 1, "type": "LoginFailure"}, {"time": 2, "type": "x"}]}
    logs = await collect(server)
    assert fake.statements[0] == "SYSTEM FLUSH LOGS"
    assert [msgspec.json.decode(one)["query_id"] for one in logs.queries.splitlines()] == [
        *("q-0", "q-0", "q-1", "q-1", "q-2", "q-2")
    ]
    assert len(logs.sessions.splitlines()) == 2
    assert logs.counts == {
        "queries": 3,
        "failed": 0,
        "result_rows": 15,
        "result_bytes": 120,
        "failed_logins": 1,
    }
    assert logs.gap == ""


async def test_a_server_without_session_log_has_no_gap_and_no_count_of_logins(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.query_log[USER] = lines(1)
    logs = await collect(server)
    assert (logs.sessions, logs.gap) == (b"", "")
    assert "failed_logins" not in logs.counts


@pytest.mark.parametrize("count", [PAGE_ROWS // 2, PAGE_ROWS // 2 + 1, PAGE_ROWS])
async def test_a_long_log_is_read_in_pages(
    fake: FakeClickHouseServer, server: ClickHouseServer, count: int
) -> None:
    fake.query_log[USER] = lines(count)
    logs = await collect(server)
    assert (len(logs.queries.splitlines()), logs.gap) == (2 * count, "")


async def test_pages_become_smaller_if_a_response_is_too_large(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.query_log[USER] = lines(30, "x" * 100_000)
    logs = await collect(server)
    assert (len(logs.queries.splitlines()), logs.gap) == (60, "")


async def test_the_lines_end_at_the_limit_and_the_record_has_a_gap(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.query_log[USER] = lines(60, "x" * 100_000)
    logs = await collect(server)
    assert MAX_LOG_BYTES < len(logs.queries) < MAX_LOG_BYTES + (1 << 20)
    assert logs.gap == "query_log has more lines than are collected"


async def test_fewer_lines_than_the_server_counts_are_a_gap(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.query_log[USER], fake.hidden_lines = lines(3), 1
    assert (await collect(server)).gap == "query_log has 6 lines, and 5 were read"


async def test_a_server_that_refuses_to_flush_gives_its_lines_and_a_gap(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.query_log[USER], fake.refused["FLUSH LOGS"] = lines(1), 497
    logs = await collect(server)
    assert (len(logs.queries.splitlines()), logs.gap) == (2, "the server refused to write its logs")


async def test_a_server_without_query_log_is_a_gap(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.refused["FROM system.query_log"] = 60
    logs = await collect(server)
    assert (logs.queries, logs.gap) == (b"", "the server has no query_log")


async def test_a_log_that_cannot_be_read_is_tried_again(
    fake: FakeClickHouseServer, server: ClickHouseServer
) -> None:
    fake.refused["FROM system.query_log"] = 241  # memory limit exceeded
    with pytest.raises(ServerError, match="code 241"):
        await collect(server)
