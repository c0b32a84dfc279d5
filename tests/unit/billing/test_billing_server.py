"""ClickHouse's own counters, asked from a loopback server that answers like a real one."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.billing.sources.clickhouse import SQL, ServerSource, figures_of, reading_of
from byoc_agents.billing.sources.reading import Reading, TargetUnreadableError, name_run
from byoc_agents.clickhouse import ClickHouse

BOOT_ID = "8cf25f06-7a2e-4b5b-aef5-5834d36300d2"
NOW_NS = 5_000_000_000_000
MODERN = {
    "OSCPUVirtualTimeMicroseconds": "123456789",
    "MemoryResident": "1.5e9",
    "CGroupMemoryUsed": "1400000000",
    "CGroupMemoryTotal": "8589934592",
    "CGroupMaxCPU": "1.5",
    "MemoryTracking": "1300000000",
    "uptime": "3600",
}


class Now:
    """A clock that stands still."""

    boot_id = BOOT_ID

    def wall_ns(self) -> int:
        raise AssertionError

    def boot_ns(self) -> int:
        return NOW_NS

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


@dataclass
class Server:
    """Answers the one query with the figures it is given."""

    url: str = ""
    figures: dict[str, str] = field(default_factory=lambda: dict(MODERN))
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(await request.text())
        columns = [{"name": "name", "type": "String"}, {"name": "value", "type": "String"}]
        response = {"meta": columns, "data": list(self.figures.items())}
        return web.json_response(response, status=self.status, headers=self.headers)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    script = Server()
    app = web.Application()
    app.router.add_post("/", script.handle)
    async with TestServer(app) as running:
        script.url = str(running.make_url("")).rstrip("/")
        yield script


@pytest.fixture
async def source(server: Server) -> AsyncIterator[ServerSource]:
    async with ClickHouse(server.url) as client:
        yield ServerSource(client, Now())


async def test_one_query_gives_the_reading(server: Server, source: ServerSource) -> None:
    assert await source.read() == Reading(
        source="clickhouse",
        incarnation="8cf25f06",
        container_id="",
        cpu_usec=123_456_789,
        memory_bytes=1_500_000_000,
        born_boot_ns=NOW_NS - 3600 * 10**9,
        cpu_limit_millicores=1500,
        memory_limit_bytes=8 * 1024**3,
        cpu_limit_source="clickhouse",
        memory_limit_source="clickhouse",
        run_name=name_run(BOOT_ID, "", 1400),
    )
    assert [query.removesuffix("\nFORMAT JSONCompact") for query in server.asked] == [SQL.rstrip()]


@pytest.mark.parametrize(
    ("gone", "memory_bytes"),
    [
        ([], 1_500_000_000),
        (["MemoryResident"], 1_400_000_000),
        (["MemoryResident", "CGroupMemoryUsed"], 1_300_000_000),
    ],
)
async def test_an_older_server_has_fewer_words_for_memory(
    server: Server, source: ServerSource, gone: list[str], memory_bytes: int
) -> None:
    for name in gone:
        del server.figures[name]
    assert (await source.read()).memory_bytes == memory_bytes


@pytest.mark.parametrize(
    ("changed", "limits"),
    [
        ({}, (1500, 8 * 1024**3)),
        ({"CGroupMaxCPU": "0"}, (None, 8 * 1024**3)),
        ({"CGroupMemoryTotal": "0"}, (1500, None)),
        ({"CGroupMemoryTotal": "9223372036854771712"}, (1500, None)),
        ({"CGroupMaxCPU": "nan", "CGroupMemoryTotal": "inf"}, (None, None)),
    ],
)
async def test_no_limit_has_several_forms(
    server: Server, source: ServerSource, changed: dict[str, str], limits: tuple[object, object]
) -> None:
    server.figures |= changed
    reading = await source.read()
    assert (reading.cpu_limit_millicores, reading.memory_limit_bytes) == limits


async def test_memory_that_is_tracked_below_zero_is_none(
    server: Server, source: ServerSource
) -> None:
    server.figures = {**MODERN, "MemoryResident": "-5"}
    assert (await source.read()).memory_bytes == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"status": 403, "headers": {"X-ClickHouse-Exception-Code": "516"}}, "BYOC_CLICKHOUSE_USE"),
        (
            {"status": 403, "headers": {"X-ClickHouse-Exception-Code": "497"}},
            "GRANT SELECT.event, value. ON sys",
        ),
        (
            {"status": 404, "headers": {"X-ClickHouse-Exception-Code": "60"}},
            "GRANT SELECT.event, value. ON sys",
        ),
        ({"status": 500, "headers": {"X-ClickHouse-Exception-Code": "241"}}, "code 241$"),
        ({"figures": {"uptime": "1"}}, "schedstat or CAP_NET_ADMIN"),
        ({"figures": MODERN | {"OSCPUVirtualTimeMicroseconds": "nan"}}, "schedstat"),
        ({"figures": {}}, "not ClickHouse's response"),
        ({"figures": MODERN | {"uptime": "1e999999999"}}, "not ClickHouse's response"),
    ],
)
async def test_without_the_counter_there_is_no_reading(
    server: Server, source: ServerSource, change: dict[str, object], text: str
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(TargetUnreadableError, match=text):
        await source.read()


async def test_a_server_that_is_not_there_may_be_running_yet(source: ServerSource) -> None:
    gone = ClickHouse("http://127.0.0.1:1")
    async with gone:
        with pytest.raises(TargetUnreadableError, match=r"ClickHouse\(http://127.0.0.1:1\): /: "):
            await ServerSource(gone, Now()).read()
    source.close()
    assert (await source.read()).source == "clickhouse"


def test_a_counter_beyond_a_float_s_digits_is_exact() -> None:
    figures = figures_of([{"name": n, "value": v} for n, v in MODERN.items()])
    exact = 2**63 + 1
    figures |= figures_of([{"name": "OSCPUVirtualTimeMicroseconds", "value": str(exact)}])
    assert reading_of(figures, NOW_NS, BOOT_ID).cpu_usec == exact


NUMBERS = st.from_regex(r"-?1e-?[0-9]{1,9}", fullmatch=True)
VALUES = st.none() | st.text() | st.floats() | st.integers() | NUMBERS
ROWS = st.lists(
    st.fixed_dictionaries({}, optional={"name": st.sampled_from(sorted(MODERN)), "value": VALUES})
)


@given(ROWS)
def test_no_response_makes_it_crash(rows: list[dict[str, object]]) -> None:
    figures = figures_of([{"name": n, "value": v} for n, v in MODERN.items()]) | figures_of(rows)
    reading = reading_of(figures, NOW_NS, BOOT_ID)
    assert reading.cpu_usec >= 0
    assert reading.memory_bytes >= 0
