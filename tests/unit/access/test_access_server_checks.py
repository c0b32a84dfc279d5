"""Each check of a server by its response alone; the engine is in tests/real."""

from typing import Any

import pytest

from byoc_agents.access import clickhouse_sql as sql
from byoc_agents.access.server_checks import (
    check_server,
    judge_broker,
    judge_profile,
    judge_quota,
    judge_version,
    judge_views_user,
)
from byoc_agents.clickhouse import ClickHouse, ClickHouseServerError, Row
from lab.fakes.access import FakeClickHouseServer

FILE_PROBE = "SELECT length(file("

FIXED = ["25.8.19.7", "25.8.20.1", "25.12.9.13", "26.1.5.7", "26.2.4.13", "26.3.1.1", "27.1.1.1"]
NOT_FIXED = [
    "25.8.19.6",
    "25.8.2.1",
    "25.7.99.1",
    "25.9.9.9",
    "25.12.9.12",
    "26.2.4.12",
    "24.8.1.1",
]


@pytest.mark.parametrize("version", FIXED)
def test_a_release_with_the_fix_passes(version: str) -> None:
    assert judge_version(version) == []


@pytest.mark.parametrize("version", [*NOT_FIXED, "", "26", "x.y.z", "25.8"])
def test_a_release_without_the_fix_or_of_an_unknown_form_is_refused(version: str) -> None:
    (problem,) = judge_version(version)
    assert str(problem).startswith(f"version: has {version!r}: expected 25.8.19.7,")


def profile(**changes: str | None) -> list[Row]:
    settings: dict[str, str | None] = {**sql.profile_settings(), **changes}
    return [
        {"setting_name": n, "value": v, "writability": "CONST", "inherit_profile": None}
        for n, v in settings.items()
        if v is not None
    ]


def test_the_shipped_profile_passes() -> None:
    assert judge_profile(profile()) == []


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (profile(readonly="2"), "readonly is 2"),
        (profile(max_execution_time=None), "max_execution_time is missing"),
        (profile(max_insert_threads="1"), "max_insert_threads is not in roles.sql"),
        (
            [
                *profile(log_queries=None),
                {**profile()[0], "setting_name": "log_queries", "value": "1", "writability": None},
            ],
            "log_queries is not constant",
        ),
        (
            [
                *profile(),
                {
                    "setting_name": None,
                    "value": None,
                    "writability": None,
                    "inherit_profile": "default",
                },
            ],
            "inherits default",
        ),
    ],
)
def test_another_profile_is_refused(rows: list[Row], problem: str) -> None:
    (found,) = judge_profile(rows)
    assert str(found) == f"profile: {problem}: expected profile byoc_access"


def quota(**changes: Any) -> list[Row]:
    usual = {
        "keys": ["user_name"],
        "apply_to_list": list(sql.ROLES),
        "apply_to_except": ["byoc_access_broker"],
    }
    return [usual | changes]


LIMITS: list[Row] = [
    {
        "duration": 3600,
        "max_queries": 600,
        "max_result_rows": 1,
        "max_result_bytes": 1,
        "max_execution_time": 1.0,
    }
]


def test_the_shipped_quota_passes() -> None:
    assert judge_quota(quota(), LIMITS) == []


@pytest.mark.parametrize(
    ("quotas", "limits"),
    [
        ([], LIMITS),
        (quota(keys=[]), LIMITS),
        (quota(apply_to_list=list(sql.ROLES[1:])), LIMITS),
        (quota(apply_to_except=["byoc_grant_1"]), LIMITS),
        (quota(), []),
        (quota(), [LIMITS[0] | {"max_result_rows": None}]),
    ],
)
def test_another_quota_is_refused(quotas: list[Row], limits: list[Row]) -> None:
    (found,) = judge_quota(quotas, limits)
    assert found.check == "quota"


LOCKED: Row = {"host_ip": [], "host_names": [], "host_names_regexp": [], "host_names_like": []}


def test_nobody_may_log_in_as_the_views_user() -> None:
    assert judge_views_user([LOCKED]) == []
    for name in LOCKED:
        (found,) = judge_views_user([LOCKED | {name: ["x"]}])
        assert "can log in from some host" in str(found)
    assert "is missing" in str(judge_views_user([])[0])


def grant(access: str, **changes: Any) -> Row:
    usual = {
        "owner": "byoc_access_broker",
        "access_type": access,
        "database": None,
        "table": None,
        "column": None,
        "is_partial_revoke": 0,
        "grant_option": 0,
    }
    return usual | changes


def test_the_broker_may_have_no_further_right() -> None:
    assert judge_broker([grant("CREATE USER"), grant("SELECT", database="system")]) == []
    assert judge_broker([grant("ALTER USER", owner="byoc_access_other")]) == []
    for row, text in (
        (grant("ALTER USER"), "ALTER USER ON *.*"),
        (grant("SELECT", database="shop", table="orders"), "SELECT ON shop.orders"),
        (grant("SELECT"), "SELECT ON *.*"),
        (grant("KILL QUERY", grant_option=1), "KILL QUERY ON *.* WITH GRANT OPTION"),
        (grant("REMOTE"), "REMOTE ON *.*"),
    ):
        (found,) = judge_broker([row])
        assert str(found) == f"broker_grants: also has {text}: expected broker.sql"


async def test_a_query_that_fails_is_not_a_passed_check() -> None:
    """Only the missing grant on the probe says that system is closed."""

    async def fail(text: str) -> list[Row]:
        if "version()" in text:
            return [{"version": "26.9.2.1"}]
        raise ClickHouseServerError("no", code=60)

    with pytest.raises(ClickHouseServerError):
        await check_server(fail)


@pytest.mark.parametrize(("code", "found"), [(None, True), (107, True), (481, True), (497, False)])
async def test_a_server_whose_file_function_asks_for_no_grant_is_refused(
    code: int | None, found: bool
) -> None:
    """497 alone says that it asks for one: with 107 and 481 it has looked for the file."""
    server = FakeClickHouseServer(clock_ms=lambda: 0)
    del server.refused[FILE_PROBE]
    if code is not None:
        server.refused[FILE_PROBE] = code
    async with server.http, ClickHouse(server.http.url) as client:
        problems = await check_server(client.query)
    wanted = (
        "file_function: the function file() reads files without a grant:"
        " expected code 497 for a login without READ ON FILE"
    )
    assert [str(one) for one in problems] == ([wanted] if found else [])


async def test_another_error_of_the_file_function_is_not_a_passed_check() -> None:
    server = FakeClickHouseServer(clock_ms=lambda: 0)
    server.refused[FILE_PROBE] = 241
    async with server.http, ClickHouse(server.http.url) as client:
        with pytest.raises(ClickHouseServerError):
            await check_server(client.query)
