"""The page and the dashboard of the fleet on ClickHouse's engine, and the page in a browser."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import chdb.session
import msgspec
import pytest
import yaml

import byoc_control_plane
from byoc_control_plane.fleet import MAX_ROWS, QUERIES, Fleet, read_fleet
from byoc_control_plane.fleet_access import PATH, FleetAccess
from byoc_control_plane.fleet_page import render_fleet
from byoc_control_plane.metrics import PlaneMetrics, serve_metrics
from byoc_control_plane.store import HttpStore, create_tables, fetch_rows
from lab.control_plane import pictures
from lab.control_plane.chdb_http import serving_chdb
from lab.control_plane.fleet_rows import DELAYED_MS, END_MS, store_fleet
from lab.control_plane.page import run as measure_page
from lab.control_plane.processes import ROOT, plane_environment
from lab.dashboard.queries import View, fill_query
from lab.demo.process import started, written
from lab.fakes.core import FakeClock
from lab.real.parts.chromium import Tab, tab
from lab.real.parts.compose import compose
from tests.real.control_plane_tables import SessionStore as _Direct
from tests.real.control_plane_tables import empty
from tests.real.test_real_ledger_report import BLOCKED, CONTRAST, OVERFLOW

pytestmark = pytest.mark.real

REPLICAS = 300
SINCE = "2026-11-10"
BOARD = Path(byoc_control_plane.__file__).parent / "dashboards" / "byoc-fleet.json"
COMPOSE = ROOT / "control-plane" / "compose.yaml"
SOURCE = {"type": "grafana-clickhouse-datasource", "uid": "${datasource}"}
# Of Grafana's getValueFormats, those that a figure of this dashboard may have.
UNITS = {"short", "s", "percentunit", "locale", "dateTimeFromNow", "dateTimeAsIso"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


@pytest.fixture(scope="module")
def full(engine: chdb.session.Session) -> _Direct:
    """Return the store with a fleet of the simulation."""
    store = _Direct(empty(engine))
    asyncio.run(store_fleet(store, REPLICAS))
    return store


async def read(store: _Direct, organization: str = "") -> Fleet:
    return await read_fleet(store, END_MS + 5_000, SINCE, organization)


async def test_the_page_has_the_figures_of_the_fleet(full: _Direct) -> None:
    found = await read(full)
    (counts,) = found.counts
    assert counts["replicas"] == REPLICAS
    assert counts["organizations"] == 3
    silent = [n for n in range(REPLICAS) if n % 97 == 1]
    assert {row["replica"] for row in found.silent} == {f"r-{n}" for n in silent}
    assert counts["silent"] == len(silent)
    assert sorted(row["replicas"] for row in found.customers) == [100, 100, 100]
    assert len(found.replicas) == MAX_ROWS
    assert {row["replica"] for row in found.replicas[: len(silent)]} == {f"r-{n}" for n in silent}
    late = {"organization_id": "org-1", "stream": "state", "until_ms": DELAYED_MS}
    assert found.delayed == [late | {"delayed": 0}]
    assert found.delayed_count == [{"delayed_organizations": 0}]
    versions = {(row["daemon"], row["version"]): row["daemons"] for row in found.versions}
    assert versions["state-exporter", "0.2.1"] == len(range(0, REPLICAS, 7))
    assert sum(n for (daemon, _), n in versions.items() if daemon == "alert-forwarder") == 100
    unbilled = len([n for n in range(REPLICAS) if n % 41 == 40])
    ages = {row["class"]: row["replicas"] for row in found.ages}
    assert ages == {0: REPLICAS - unbilled, 5: unbilled}
    assert sum(row["unbilled"] for row in found.customers) == unbilled
    (gaps,) = found.gaps
    holes = len([n for n in range(REPLICAS) if n % 53 == 2 and n % 41 != 40])
    stated = len([n for n in range(REPLICAS) if n % 53 == 1 and n % 41 != 40])
    assert (gaps["missing"], gaps["gaps"]) == (holes, 60 * stated)
    assert sum(row["missing"] for row in found.incomplete) == holes
    (slo,) = found.slo
    assert 0 < slo["state_delay"] < 4
    assert slo["alert_delay"] == 0.9
    assert 0.9 < slo["complete"] < 1


async def test_the_page_of_an_organization_has_its_own_rows_only(full: _Direct) -> None:
    found = await read(full, "org-1")
    assert found.counts[0]["replicas"] == 100
    for name in ("customers", "silent", "delayed", "replicas", "incomplete"):
        assert {row["organization_id"] for row in getattr(found, name)} == {"org-1"}, name
    assert sum(row["daemons"] for row in found.versions) < sum(
        row["daemons"] for row in (await read(full)).versions
    )
    assert (await read(full, "org-2")).delayed == []
    assert (await read(full, "nobody")).counts[0]["replicas"] == 0


# The dashboard.


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text())
    return found


PANELS = board()["panels"]


def expand(sql: str, organization: str = "", *, zone_days: int = 0) -> str:
    """Return a query as Grafana sends it: the macros of its plugin for ClickHouse.

    `zone_days`: how far the date in the browser's time zone is from that in UTC.
    """
    week_ms, day_ms = 7 * 86_400_000, 86_400_000
    return fill_query(
        sql,
        View(
            from_ms=END_MS - week_ms,
            to_ms=END_MS + day_ms,
            organization=organization,
            zone_days=zone_days,
        ),
    )


@pytest.mark.parametrize("organization", ["", "org-1"])
@pytest.mark.parametrize("panel", PANELS, ids=lambda one: one["title"])
async def test_every_panel_asks_what_clickhouse_answers(
    full: _Direct, panel: dict[str, Any], organization: str
) -> None:
    for target in panel["targets"]:
        found = await fetch_rows(full, expand(target["rawSql"], organization))
        named = {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]}
        if panel["title"] == "Access":  # this fleet has no grants: test_real_control_plane_grants
            assert found == []
            continue
        assert found or panel["title"] == "Rejected"
        assert named <= found[0].keys()
        if panel["type"] == "timeseries":
            assert all(row["time"].startswith("2026-11-23") for row in found)
            assert all(
                isinstance(v, int | float) for r in found for k, v in r.items() if k != "time"
            )
        if panel["type"] == "stat":
            assert len(found) == 1
            assert len(found[0]) == 1


async def test_the_dashboard_has_the_figures_of_the_page(full: _Direct) -> None:
    page = await read(full)
    (counts,) = page.counts

    async def ask(title: str, organization: str = "") -> list[dict[str, Any]]:
        (panel,) = (one for one in PANELS if one["title"] == title)
        query = expand(panel["targets"][0]["rawSql"], organization)
        now = f"fromUnixTimestamp64Milli(toInt64({END_MS}))"  # this fleet is of a fixed day
        return await fetch_rows(full, query.replace("now64(3)", now))

    assert await ask("Replicas") == [{"replicas": counts["replicas"]}]
    assert await ask("Replicas", "org-1") == [{"replicas": 100}]
    assert await ask("Not healthy") == [{"unhealthy": counts["replicas"] - counts["healthy"]}]
    assert await ask("Silent") == [{"silent": counts["silent"]}]
    assert await ask("Dead letters") == [{"letters": counts["dead_letters"]}]
    assert [
        row["messages_of"] for row in await ask("Reception") if row["messages_of"] != "all"
    ] == [row["organization_id"] for row in page.delayed]
    assert len(await ask("Fleet")) == counts["replicas"]
    assert [row["missing"] for row in await ask("Missing usage records")] == [
        row["missing"] for row in page.gaps
    ]
    assert [row["complete"] for row in await ask("SLO: usage that arrived")] == [
        row["complete"] for row in page.slo
    ]


@contextmanager
def time_zone(engine: chdb.session.Session, name: str) -> Iterator[None]:
    """Let the server be in another time zone than UTC."""
    engine.query(f"SET session_timezone = '{name}'")
    try:
        yield
    finally:
        engine.query("SET session_timezone = ''")


@pytest.mark.parametrize("name", ["Asia/Kathmandu", "America/Los_Angeles", "Pacific/Kiritimati"])
async def test_a_server_in_another_time_zone_shows_the_same(
    full: _Direct, engine: chdb.session.Session, name: str
) -> None:
    async def ask(panel: dict[str, Any]) -> list[dict[str, Any]]:
        query = expand(panel["targets"][0]["rawSql"])
        if panel["type"] == "timeseries":  # Grafana gets moments, not texts
            query = f"SELECT * REPLACE toUnixTimestamp(time) AS time FROM ({query})"
        return await fetch_rows(full, query)

    expected = [await ask(panel) for panel in PANELS]
    page = await read(full)
    with time_zone(engine, name):
        (zone,) = await fetch_rows(full, "SELECT timezone() AS name, toString(now()) AS now")
        assert zone["name"] == name
        for panel, rows in zip(PANELS, expected, strict=True):
            found = await ask(panel)
            if panel["type"] == "timeseries":
                assert found == rows, panel["title"]
            assert len(found) == len(rows), panel["title"]
        assert await read(full) == page


@pytest.mark.parametrize("zone_days", [-1, 1])
async def test_a_browser_in_another_time_zone_shows_the_same(full: _Direct, zone_days: int) -> None:
    """Grafana writes the first day of the range in the browser's zone."""
    for panel in PANELS:
        sql = panel["targets"][0]["rawSql"]
        if "${__from" in sql:
            found = await fetch_rows(full, expand(sql, zone_days=zone_days))
            assert found == await fetch_rows(full, expand(sql)), panel["title"]


async def test_every_panel_has_a_response_without_any_rows(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "lab.control_plane.chdb_http", str(tmp_path / "chdb")]
    log = tmp_path / "chdb.log"
    async with (
        started(argv, log, plane_environment()) as child,
        aiohttp.ClientSession() as client,
    ):
        store = HttpStore((await written(log, "http://", child, 60)).strip(), client)
        await create_tables(store)
        for panel in PANELS:
            await fetch_rows(store, expand(panel["targets"][0]["rawSql"]))
        found = await read_fleet(store, END_MS, SINCE)
        assert found.counts[0]["replicas"] == 0
        assert "No daemon has sent a message yet." in render_fleet(found)


def test_the_dashboard_is_one_that_grafana_accepts() -> None:
    found = board()
    assert found["uid"] == BOARD.stem
    source, organization = found["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", SOURCE["type"])
    assert organization["datasource"] == SOURCE
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert panel["datasource"] == SOURCE
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        for override in panel["fieldConfig"]["overrides"]:
            units = {one["value"] for one in override["properties"] if one["id"] == "unit"}
            assert units <= UNITS
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24  # columns of Grafana's grid
        assert not cells & taken
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"] == SOURCE
            assert target["format"] == (0 if panel["type"] == "timeseries" else 1)


async def test_the_variable_lists_the_organizations(full: _Direct) -> None:
    query = board()["templating"]["list"][1]["query"]
    found = await fetch_rows(full, query)
    assert [row["organization_id"] for row in found] == ["org-0", "org-1", "org-2"]


def test_what_the_page_shows_is_in_the_dashboard_too() -> None:
    asked = " ".join(panel["targets"][0]["rawSql"] for panel in PANELS)
    views = re.compile(r"(?:FROM|JOIN) (\w+)")
    shown = set(views.findall(" ".join(QUERIES.values()))) - {"horizons"}
    assert shown <= set(views.findall(asked))


def test_the_compose_file_provisions_it() -> None:
    program = [str(compose()), "-f", str(COMPOSE), "--profile", "queue", "config"]
    secrets = {
        "BYOC_PLANE_STORE_PASSWORD": "p",
        "BYOC_PLANE_READ_TOKEN": "r",
        "BYOC_PLANE_TOKEN": "t",
        "BYOC_PLANE_SIGNING_SECRET": "s",
        "GRAFANA_PASSWORD": "g",
    }
    plain = {name: text for name, text in os.environ.items() if not name.startswith("BYOC_")}
    done = subprocess.run(program, env=plain | secrets, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    for name, published in (("receiver", {"8443", "9465"}), ("grafana", {"3000"})):
        ports = services[name]["ports"]
        assert {one["published"] for one in ports} == published
        assert {one["host_ip"] for one in ports} == {"127.0.0.1"}
    assert "ports" not in services["clickhouse"]
    mounts = {one["target"]: Path(one["source"]) for one in services["grafana"]["volumes"]}
    provider = yaml.safe_load(mounts["/etc/grafana/provisioning/dashboards/byoc.yaml"].read_text())
    boards = mounts[provider["providers"][0]["options"]["path"]]
    assert [path.name for path in boards.glob("*.json")] == [BOARD.name]
    sources = yaml.safe_load(mounts["/etc/grafana/provisioning/datasources/byoc.yaml"].read_text())
    (source,) = sources["datasources"]
    assert source["type"] == SOURCE["type"]
    users = COMPOSE.parent / "clickhouse" / "grafana.xml"
    assert f"<{source['jsonData']['username']}>" in users.read_text()
    for name in secrets:
        without = plain | {key: text for key, text in secrets.items() if key != name}
        refused = subprocess.run(program, env=without, capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        assert f"variable {name}" in refused.stderr.replace('"', "")


async def test_the_measurement_of_the_page_has_the_history_that_it_states(tmp_path: Path) -> None:
    """`python -m lab.control_plane.page --copies 2` has each row three times."""
    found = []
    for copies in (0, 2):
        directory = tmp_path / str(copies)
        directory.mkdir()
        found.append(await measure_page(directory, 20, copies, 1))
    for name in ("records", "messages"):
        once, thrice = (int(str(one[name])) for one in found)
        assert thrice == 3 * once > 0
    assert set(msgspec.convert(found[1]["query_seconds"], dict[str, float])) == set(QUERIES)


# The page in a browser.


@asynccontextmanager
async def serving(session: chdb.session.Session) -> AsyncIterator[str]:
    """Serve the page over ClickHouse's HTTP interface; yield its URL."""
    clock = FakeClock(wall_ms=END_MS + 5_000)
    async with serving_chdb(session) as server, aiohttp.ClientSession() as client:
        metrics = PlaneMetrics()
        access = FleetAccess(HttpStore(server.http.url, client), clock, metrics, lambda: "")
        async with serve_metrics(metrics, ("127.0.0.1", 0), {PATH: access.handle}) as (host, port):
            yield f"http://{host}:{port}{PATH}"


@pytest.fixture
async def browser() -> AsyncIterator[Tab]:
    async with tab() as page:
        yield page


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_can_be_read_and_loads_nothing_else(
    engine: chdb.session.Session, browser: Tab, scheme: str
) -> None:
    """WCAG AA: 4.5 for every text; nothing is cut off on a small screen."""
    async with serving(engine) as url:
        await browser.look(1440, 900, scheme)
        await browser.open(url)
        assert await browser.evaluate("document.querySelectorAll('section').length") == 9
        assert await browser.evaluate("document.querySelectorAll('#replicas tbody tr').length") == (
            MAX_ROWS
        )
        ratio, text = await browser.evaluate(CONTRAST)
        assert ratio >= 4.5, text
        for width in (1440, 768, 390):
            await browser.look(width, 900, scheme)
            assert await browser.evaluate(OVERFLOW) <= 0, width
        assert browser.console == []
        assert set(browser.requests) == {url}
        await browser.open(f"{url}?organization=org-1")
        assert await browser.evaluate("document.querySelectorAll('section').length") == 8
        assert await browser.evaluate(BLOCKED) == "img-src"


def test_the_pictures_of_the_documentation_can_be_made_again(tmp_path: Path) -> None:
    """The command that wrote them, with fewer replicas: two schemes, two different pictures."""
    assert pictures.main(["--replicas", "20", "--directory", str(tmp_path)]) == 0
    for directory in (tmp_path, pictures.PLACE):
        found = {path.name: path.read_bytes() for path in directory.glob("fleet-*")}
        assert sorted(found) == ["fleet-dark.webp", "fleet-light.webp"]
        assert len(set(found.values())) == 2
        for body in found.values():
            assert (body[:4], body[8:16]) == (b"RIFF", b"WEBPVP8X")
            width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (24, 27))
            assert width == pictures.WIDTH
            assert height > 2 * pictures.HEIGHT  # the whole page, not its first window
            assert 20_000 < len(body) <= pictures.MAX_BYTES
