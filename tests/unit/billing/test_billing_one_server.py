"""If several servers answer under one URL, none of them is billed."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from itertools import cycle, islice

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from byoc_agents.billing.sources.clickhouse import (
    ALONE_RESPONSES,
    OLD_SQL,
    SQL,
    SUCCESSOR_RESPONSES,
    ServerSource,
)
from byoc_agents.billing.sources.reading import Reading, TargetUnreadableError
from byoc_agents.clickhouse import ClickHouse

NS = 1_000_000_000
SAMPLE_SECONDS = 5.0
NOON = 100_000.0  # seconds since boot


class Now:
    """A clock that moves on with each response."""

    boot_id = "8cf25f06-7a2e-4b5b-aef5-5834d36300d2"

    def __init__(self) -> None:
        self.seconds = NOON

    def wall_ns(self) -> int:
        raise AssertionError

    def boot_ns(self) -> int:
        return int(self.seconds * NS)

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


@dataclass
class Replica:
    """One ClickHouse: what it says of itself depends on the clock only."""

    born: float  # seconds since our boot
    cores: float = 1.0
    before: float = 0.0  # core seconds before NOON
    names: dict[str, str] = field(default_factory=dict)
    cpus: int = 0

    def figures(self, now: float) -> dict[str, str]:
        used = self.before + self.cores * (now - max(NOON, self.born))
        shown = {
            "OSCPUVirtualTimeMicroseconds": str(int(used * 1e6)),
            "MemoryResident": "1000",
            "uptime": str(int(now - self.born)),
            "machine_cpus": str(self.cpus),
        }
        return shown | self.names


def named(host: str, uuid: str = "") -> dict[str, str]:
    uuids = {"server_uuid": uuid} if uuid else {}
    return {"host_name": host, **uuids}


UUIDS = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(1, 4)]


class Balancer:
    """Passes each request to the replica that is put behind it."""

    def __init__(self, clock: Now) -> None:
        self.clock = clock
        self.behind = Replica(born=NOON)
        self.old = False  # before serverUUID()
        self.asked: list[str] = []

    async def handle(self, request: web.Request) -> web.Response:
        query = await request.text()
        self.asked.append(query)
        if self.old and "serverUUID" in query:
            return web.Response(status=404, headers={"X-ClickHouse-Exception-Code": "46"})
        columns = [{"name": name, "type": "String"} for name in ("name", "value")]
        figures = self.behind.figures(self.clock.seconds)
        return web.json_response({"meta": columns, "data": list(figures.items())})


class Harness:
    def __init__(self, balancer: Balancer, source: ServerSource) -> None:
        self.balancer = balancer
        self.source = source

    async def ask(self, replica: Replica, *, after: float = SAMPLE_SECONDS) -> Reading | str:
        """Return the reading, or the trouble."""
        self.balancer.clock.seconds += after
        self.balancer.behind = replica
        try:
            return await self.source.read()
        except TargetUnreadableError as error:
            return str(error)

    async def all(self, replicas: Iterable[Replica]) -> list[Reading | str]:
        return [await self.ask(replica) for replica in replicas]


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    balancer = Balancer(Now())
    app = web.Application()
    app.router.add_post("/", balancer.handle)
    async with (
        TestServer(app) as running,
        ClickHouse(str(running.make_url("")).rstrip("/")) as client,
    ):
        yield Harness(balancer, ServerSource(client, balancer.clock))


PAIRS = {
    "by serverUUID": (
        Replica(NOON - 40_000, before=100_000, names=named("ch", UUIDS[0])),
        Replica(NOON - 40_000, before=100_001, names=named("ch", UUIDS[1])),
    ),
    "by host name": (
        Replica(NOON - 40_000, before=100_000, names=named("ch-0")),
        Replica(NOON - 40_000, before=100_001, names=named("ch-1")),
    ),
    "of a copied data directory": (
        Replica(NOON - 40_000, before=100_000, names=named("ch-0", UUIDS[0])),
        Replica(NOON - 40_000, before=100_001, names=named("ch-1", UUIDS[0])),
    ),
    "by uptimes 2 s apart": (
        Replica(NOON - 40_000, before=100_000),
        Replica(NOON - 39_998, before=20_000),
    ),
    "by uptimes 10 min apart": (
        Replica(NOON - 40_000, before=100_000),
        Replica(NOON - 39_400, before=200_000),
    ),
    "by counters alone": (
        Replica(NOON - 40_000, before=100_000),
        Replica(NOON - 40_000, before=20_000),
    ),
}


@pytest.mark.parametrize("how", PAIRS)
async def test_two_servers_in_turn_are_named_and_soon_none_is_read(
    harness: Harness, how: str
) -> None:
    outcomes = await harness.all(islice(cycle(PAIRS[how]), 200))
    assert not [outcome for outcome in outcomes[4:] if isinstance(outcome, Reading)]
    trouble = outcomes[-1]
    assert "more than one server answers under this URL" in str(trouble)
    assert "expected the address of one server" in str(trouble)
    assert {str(outcome) for outcome in outcomes[4:]} == {trouble}, "one text, so it is logged once"
    for replica in PAIRS[how]:
        for name in replica.names.values():
            assert name in str(trouble)


async def test_three_servers_are_as_bad_as_two(harness: Harness) -> None:
    three = [Replica(NOON - 9, names=named(f"ch-{n}", UUIDS[n])) for n in range(3)]
    outcomes = await harness.all(islice(cycle(three), 100))
    assert not [outcome for outcome in outcomes[2:] if isinstance(outcome, Reading)]


async def test_readings_of_two_servers_have_two_incarnations(harness: Harness) -> None:
    first, second = PAIRS["by serverUUID"]
    one = await harness.ask(first)
    for _ in range(SUCCESSOR_RESPONSES):
        two = await harness.ask(second)
    assert isinstance(one, Reading)
    assert isinstance(two, Reading)
    assert one.incarnation.startswith("8cf25f06-")
    assert one.incarnation != two.incarnation


@pytest.mark.parametrize("how", ["by serverUUID", "by host name"])
async def test_a_server_that_takes_another_one_s_place_for_good_is_accepted(
    harness: Harness, how: str
) -> None:
    first, second = PAIRS[how]
    await harness.all([first] * 5)
    outcomes = await harness.all([second] * SUCCESSOR_RESPONSES)
    assert all("another server answers now" in str(outcome) for outcome in outcomes[:-1])
    assert isinstance(outcomes[-1], Reading)
    assert isinstance(await harness.ask(second), Reading)


async def test_one_of_several_is_accepted_when_it_has_long_answered_alone(harness: Harness) -> None:
    first, second = PAIRS["by serverUUID"]
    await harness.all(islice(cycle((first, second)), 10))
    outcomes = await harness.all([first] * ALONE_RESPONSES)
    assert not [outcome for outcome in outcomes[:-1] if isinstance(outcome, Reading)]
    assert isinstance(outcomes[-1], Reading)


async def test_a_pod_that_began_after_the_last_response_is_a_restart(harness: Harness) -> None:
    """A pod that was moved: another host name and, without its volume, another serverUUID."""
    first, _ = PAIRS["by serverUUID"]
    await harness.ask(first)
    moved = Replica(harness.balancer.clock.seconds + 20, names=named("ch", UUIDS[2]))
    assert isinstance(await harness.ask(moved, after=30), Reading)


@pytest.mark.parametrize("names", [{}, named("ch"), named("ch", UUIDS[0])])
async def test_a_restart_of_the_same_server_is_read_at_once(
    harness: Harness, names: dict[str, str]
) -> None:
    first = Replica(NOON - 40_000, before=100_000, names=names)
    before = await harness.ask(first)
    again = Replica(harness.balancer.clock.seconds + 2, names=names)
    after = await harness.ask(again)
    assert isinstance(before, Reading)
    assert isinstance(after, Reading)
    assert after.incarnation == before.incarnation, "its birth distinguishes the two incarnations"


@pytest.mark.parametrize("seconds", [3, 8, 600, 7200])
async def test_a_suspended_machine_is_still_one_server(harness: Harness, seconds: float) -> None:
    """The uptime stands still meanwhile, so the start seems to move on by as much."""
    await harness.all([Replica(NOON - 3600)] * 3)
    awake = Replica(NOON - 3600 + seconds)
    assert isinstance(await harness.ask(awake, after=seconds), Reading)


async def test_the_parts_of_a_second_make_no_second_server(harness: Harness) -> None:
    replica = Replica(NOON - 40_000.25)
    for after in [0.1, 0.7, 0.95, 0.31, 0.049, 59.99] * 20:
        assert isinstance(await harness.ask(replica, after=after), Reading)


async def test_a_clock_that_runs_a_little_fast_makes_no_second_server(harness: Harness) -> None:
    """A day without a response, at 100 parts per million."""
    await harness.ask(Replica(NOON - 40_000))
    assert isinstance(await harness.ask(Replica(NOON - 40_008.6), after=86_400), Reading)


async def test_a_server_from_before_serveruuid_is_asked_without_it(harness: Harness) -> None:
    harness.balancer.old = True
    replica = Replica(NOON, names=named("ch"))
    assert all(isinstance(outcome, Reading) for outcome in await harness.all([replica] * 2))
    asked = [query.removesuffix("\nFORMAT JSONCompact") for query in harness.balancer.asked]
    assert asked == [query.rstrip() for query in (SQL, OLD_SQL, OLD_SQL)]


@pytest.mark.parametrize(("shown", "known"), [(0, None), (96, 96)])
async def test_the_server_says_how_many_cpus_its_machine_has(
    harness: Harness, shown: int, known: int | None
) -> None:
    reading = await harness.ask(Replica(NOON, cpus=shown))
    assert isinstance(reading, Reading)
    assert reading.machine_cpus == known
