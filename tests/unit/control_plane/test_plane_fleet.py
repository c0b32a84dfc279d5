"""The page of the fleet: who may read it, how often ClickHouse is asked, and what it shows."""

import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from byoc_control_plane.fleet import MAX_ROWS, QUERIES, Fleet, fill_query
from byoc_control_plane.fleet_access import FRESH_SECONDS, MAX_PAGES, PATH, FleetAccess
from byoc_control_plane.fleet_page import format_age, page_policy, page_style, render_fleet
from byoc_control_plane.metrics import PlaneMetrics, serve_metrics
from byoc_control_plane.store import StoreError
from lab.control_plane.memory_store import MemoryStore
from lab.fakes.core import START_MS, FakeClock

EMPTY = {
    "replicas": 0,
    "healthy": 0,
    "organizations": 0,
    "silent": 0,
    "backlog_records": 0,
    "dead_letters": 0,
}
ATTACK = "<script>alert('x')</script>\"&"


class Harness:
    """The page over a store in memory, which counts the queries."""

    def __init__(self, token: str = "") -> None:
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.metrics = PlaneMetrics()
        self.queries: list[str] = []
        self.store.results = [
            ("AS rejected", [{"rejected": 0}]),
            ("AS delayed_organizations", [{"delayed_organizations": 0}]),
            ("AS overdue_grants", [{"overdue_grants": 0}]),
            ("uniqExact(organization_id) AS organizations", [EMPTY]),
        ]
        self.token = token
        self.access = FleetAccess(self, self.clock, self.metrics, lambda: self.token)
        self.url = ""
        self.session: aiohttp.ClientSession

    async def run(self, statement: str, data: bytes = b"") -> bytes:
        self.queries.append(statement)
        return await self.store.run(statement, data)

    async def get(self, query: str = "", **headers: str) -> tuple[int, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(f"{self.url}{query}", headers=named) as response:
            return response.status, await response.text()


@asynccontextmanager
async def serving(token: str = "") -> AsyncIterator[Harness]:
    harness = Harness(token)
    pages = {PATH: harness.access.handle}
    async with (
        serve_metrics(harness.metrics, ("127.0.0.1", 0), pages) as (host, port),
        aiohttp.ClientSession() as harness.session,
    ):
        harness.url = f"http://{host}:{port}{PATH}"
        yield harness


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"reader:{password}".encode()).decode()


async def test_without_a_token_only_this_machine_reads() -> None:
    async with serving() as harness:
        assert (await harness.get())[0] == 200
        for headers in (
            {"X_Forwarded_For": "203.0.113.9"},  # a proxy on this machine
            {"Forwarded": "for=203.0.113.9"},
            {"X_Real_IP": "203.0.113.9"},
            {"Host": "rebound.example.com"},  # a page of another site, by DNS rebinding
            {"Host": "203.0.113.9:9465"},
            {"Host": "[::1"},
        ):
            status, text = await harness.get(**headers)
            assert status == 403, headers
            assert "expected" in text
        for host in ("localhost:9465", "127.0.0.1", "[::1]:9465"):
            assert (await harness.get(Host=host))[0] == 200


class _Elsewhere:
    """A request of a client that is not on this machine."""

    def __init__(self, **headers: str) -> None:
        self.method, self.remote = "GET", "192.0.2.7"
        self.headers = {"Host": "127.0.0.1:9465"} | headers
        self.query: dict[str, str] = {}


async def test_a_client_elsewhere_needs_the_token() -> None:
    request: Any = _Elsewhere()
    response = await Harness().access.handle(request)
    assert response.status == 403
    assert "BYOC_PLANE_READ_TOKEN" in str(response.text)
    known: Any = _Elsewhere(Authorization="Bearer tok")
    assert (await Harness("tok").access.handle(known)).status == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer first", 200),
        ("bearer second", 200),
        (basic("second"), 200),
        ("", 401),
        ("Bearer ", 401),
        ("Bearer other", 401),
        ("Bearer first second", 401),
        (basic("other"), 401),
        ("Basic first", 401),
        ("Basic /w==", 401),
        ("Digest first", 401),
    ],
)
async def test_with_a_token_everybody_needs_it(authorization: str, status: int) -> None:
    async with serving("first\nsecond") as harness:
        assert (await harness.get(Authorization=authorization))[0] == status
        assert bool(harness.queries) == (status == 200)


async def test_a_browser_is_asked_for_the_token_and_a_new_one_counts_at_once() -> None:
    async with serving("old") as harness:
        async with harness.session.get(harness.url) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"].startswith("Basic realm=")
            assert response.headers["Cache-Control"] == "no-store"
        assert (await harness.get(Authorization=basic("old")))[0] == 200
        harness.token = "new"
        assert (await harness.get(Authorization=basic("old")))[0] == 401
        assert (await harness.get(Authorization=basic("new")))[0] == 200


async def test_it_may_load_nothing_and_be_framed_by_nobody() -> None:
    async with serving() as harness, harness.session.get(harness.url) as response:
        policy = response.headers["Content-Security-Policy"]
        assert policy == page_policy()
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        for name in ("X-Content-Type-Options", "Referrer-Policy", "Cross-Origin-Resource-Policy"):
            assert response.headers[name]
        text = await response.text()
        assert f"<style>{page_style()}</style>" in text
        assert not re.search(r"(?:src|href)=\"(?!#|\?)", text)


async def test_it_is_read_only() -> None:
    async with serving() as harness:
        for method in ("POST", "PUT", "DELETE"):
            async with harness.session.request(method, harness.url) as response:
                assert response.status == 405
        assert harness.queries == []
        await harness.get()
        assert all(re.match(r"(?:SELECT|WITH)\b", query) for query in harness.queries)


async def test_reloading_asks_clickhouse_no_more_often_than_it_can() -> None:
    async with serving() as harness:
        await harness.get()
        once = len(harness.queries)
        assert once == len(QUERIES)
        await harness.get()
        assert len(harness.queries) == once
        await harness.clock.advance(FRESH_SECONDS + 0.1)
        await harness.get()
        assert len(harness.queries) == 2 * once
        for number in range(MAX_PAGES + 1):  # the first is forgotten, and so is read again
            await harness.get(f"?organization=org-{number}")
        before = len(harness.queries)
        await harness.get(f"?organization=org-{MAX_PAGES}")
        assert len(harness.queries) == before
        await harness.get()
        assert len(harness.queries) == before + once


@pytest.mark.parametrize("organization", ["a' OR '1", "a\\", "%0a", "a;b", "x" * 129])
async def test_an_organization_that_is_no_name_reaches_no_query(organization: str) -> None:
    async with serving() as harness:
        status, text = await harness.get(f"?organization={organization}")
        assert status == 400
        assert text.startswith("400: organization: invalid value: allowed are")
        assert harness.queries == []


async def test_a_store_that_does_not_respond_is_reported_and_not_remembered() -> None:
    async with serving() as harness:
        harness.store.error = StoreError("away")
        status, text = await harness.get()
        assert (status, text) == (503, "503: ClickHouse does not respond: see the log\n")
        harness.store.error = None
        assert (await harness.get())[0] == 200


async def test_other_paths_need_no_token() -> None:
    async with serving("tok") as harness:
        for path in ("/metrics", "/healthz"):
            async with harness.session.get(harness.url.replace(PATH, path)) as response:
                assert response.status == 200


def fleet(**rows: Any) -> Fleet:
    """Return a fleet of one replica, with other rows."""
    names: dict[str, Any] = {name: [] for name in QUERIES}
    names |= {
        "counts": [EMPTY | {"replicas": 1, "healthy": 1, "organizations": 1}],
        "rejected": [{"rejected": 0}],
        "delayed_count": [{"delayed_organizations": 0}],
        "overdue_count": [{"overdue_grants": 0}],
    }
    return Fleet(now_ms=START_MS, **({"organization": ""} | names | rows))


def hostile(**numbers: Any) -> list[dict[str, Any]]:
    """Return one row whose texts are all an attack."""
    texts = (
        *("organization_id", "service_id", "replica", "region", "state", "version", "daemon"),
        *("date", "stream", "grant_id", "engineer", "ticket", "role", "reason", "record"),
    )
    counts = (
        *("services", "replicas", "unhealthy", "silent", "backlog_records", "unbilled"),
        *("silent_seconds", "allowed_seconds", "seen_ms", "healthy", "dead_letters", "class"),
        *("billed_until_ms", "state_exporter_seen_ms", "alert_forwarder_seen_ms", "daemons"),
        *("usage_records", "missing", "uncovered", "gaps", "messages"),
        *("state_delay", "alert_delay", "complete", "at_ms", "steady_ms", "until_ms"),
        *("since_ms", "sent_ms", "opened_ms", "ends_ms", "queries", "rows_read", "ended"),
        *("delayed", "overdue"),
    )
    lists = {"reasons": [ATTACK], "silent_daemons": [ATTACK]}
    return [dict.fromkeys(texts, ATTACK) | dict.fromkeys(counts, 1) | lists | numbers]


def test_every_text_is_escaped() -> None:
    tables = (
        *("progress", "customers", "silent", "replicas", "versions", "servers", "ages"),
        *("gaps", "incomplete", "slo", "delayed"),
    )
    text = render_fleet(fleet(organization=ATTACK, **{name: hostile() for name in tables}))
    text += render_fleet(fleet(customers=hostile()))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 20
    assert "?organization=" not in text  # no link to what could not be asked for


def test_an_organization_links_to_its_own_page() -> None:
    text = render_fleet(fleet(customers=hostile(organization_id="org-1")))
    assert '<a href="?organization=org-1">org-1</a>' in text


def test_an_empty_store_says_what_to_expect() -> None:
    text = render_fleet(fleet(counts=[EMPTY]))
    assert "No daemon has sent a message yet." in text
    assert "No receiver and no consumer has run against this ClickHouse." in text
    assert "✓" not in text
    own = render_fleet(fleet(counts=[EMPTY], organization="org-1"))
    assert "No daemon of this organization has sent a message." in own


def test_the_verdict_names_each_problem() -> None:
    assert "✓ every daemon reports, every replica is healthy" in render_fleet(fleet())
    counts = EMPTY | {"replicas": 3, "healthy": 1, "silent": 1, "dead_letters": 4}
    text = render_fleet(
        fleet(
            counts=[counts],
            rejected=[{"rejected": 2}],
            gaps=hostile(missing=5),
            ages=[{"class": number, "replicas": number} for number in range(6)],
            progress=[
                {"stream": "state", "at_ms": START_MS - 61_000, "steady_ms": 0},
                {"stream": "alerts", "at_ms": START_MS, "steady_ms": START_MS - 1000},
            ],
        )
    )
    for problem in (
        "✗ 7 problems",
        "9 replicas without usage of the last day",
        "state messages: nothing received for 61 s; silence is not judged meanwhile",
        "1 daemon silent",
        "2 replicas not healthy",
        "4 dead letters in the forwarders&#x27; spools",
        "5 usage records missing in 14 days",
        "2 messages rejected in 14 days: see byoc_rejected",
    ):
        assert problem in text
    assert '<span class="badge failed">stopped</span>' in text
    good, bad = (
        '<meter max="15" value="3">',
        '<meter max="15" value="4" low="0" high="0" optimum="0">',
    )
    assert good in text
    assert bad in text
    assert '<span class="badge open">behind</span>' in text


@pytest.mark.parametrize(("delayed", "badge"), [(1, "open"), (0, "ok")])
def test_an_organization_that_is_delayed_is_a_problem(delayed: int, badge: str) -> None:
    late = {"organization_id": "org-1", "stream": "state", "until_ms": START_MS, "delayed": delayed}
    count = [{"delayed_organizations": 250 * delayed}]  # more than the table shows
    text = render_fleet(fleet(delayed=[late], delayed_count=count))
    section = text.partition('<section id="delayed">')[2].partition("</section>")[0]
    status = "delayed" if delayed else "ended"
    assert f'<span class="badge {badge}">{status}</span>' in section
    assert '<a href="?organization=org-1">org-1</a>' in section
    problem = "messages of 250 organizations delayed; silence there is not judged meanwhile"
    assert (problem in text) == bool(delayed)


def test_without_a_delayed_organization_the_page_says_so() -> None:
    assert "No organization&#x27;s messages were delayed." in render_fleet(fleet())


@pytest.mark.parametrize(("healthy", "badge"), [(1, "ok"), (0, "failed")])
def test_a_replica_that_runs_and_is_not_healthy_says_both(healthy: int, badge: str) -> None:
    replica = hostile(silent_daemons=[], reasons=[], state="running", healthy=healthy)
    text = render_fleet(fleet(replicas=replica))
    shown = "running" if healthy else "running, not healthy"
    assert f'<span class="badge {badge}">{shown}</span>' in text


def test_a_table_that_is_cut_says_so() -> None:
    counts = EMPTY | {"replicas": 1000, "healthy": 1000}
    text = render_fleet(fleet(counts=[counts], replicas=hostile() * MAX_ROWS))
    assert f"The first {MAX_ROWS} of 1,000." in text


def test_every_query_is_bounded() -> None:
    for name, query in QUERIES.items():
        filled = fill_query(query, START_MS, "2026-11-01", "org-1")
        assert "{" not in filled
        groups = {"counts", "rejected", "progress", "ages"}  # one row, or one per fixed word
        groups |= {"delayed_count", "overdue_count"}
        assert (f"LIMIT {MAX_ROWS}" in filled) == (name not in groups), name
        unowned = {"rejected", "progress"}
        assert ("organization_id = 'org-1'" in filled) == (name not in unowned), name


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (45, "45 s"), (120, "2 min"), (7_199, "120 min"), (9_000, "2.5 h"),
     (172_800, "2.0 d"), (86_400_000, "1,000.0 d")],
)  # fmt: skip
def test_an_age_is_short(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


# Requests for access.


def grant_row(state: str, reason: str, **changes: Any) -> dict[str, Any]:
    fields = {
        "organization_id": "org-1",
        "service_id": "svc-1",
        "grant_id": "0190a7c2",
        "engineer": "eng-8841",
        "ticket": "CS-1234",
        "role": "system-reader",
        "record": "",
        "state": state,
        "reason": reason,
        "ended": 0,
        "since_ms": START_MS,
        "sent_ms": START_MS,
        "opened_ms": 0,
        "ends_ms": 0,
        "queries": 0,
        "rows_read": 0,
        "overdue": 0,
    }
    return fields | changes


def test_without_a_request_the_page_says_nothing_of_access() -> None:
    assert "access" not in render_fleet(fleet()).partition("<main>")[2]


def test_the_state_of_each_request_is_shown() -> None:
    ended = grant_row("closed", "revoked", ended=1, queries=12, rows_read=3400, record="complete")
    text = render_fleet(fleet(grants=[grant_row("pending", "needs_approval"), ended]))
    assert '<a href="#access">Access</a>' in text
    section = text.partition('<section id="access">')[2]
    assert '<span class="badge open">pending</span>' in section
    assert '<span class="badge ok">closed</span><span class="badge open">revoked</span>' in section
    for part in ("eng-8841", "CS-1234", "system-reader", "3,400", "complete"):
        assert part in section
    assert "every daemon reports" in text


def test_it_is_shown_before_any_other_daemon_has_reported() -> None:
    text = render_fleet(fleet(counts=[EMPTY], grants=[grant_row("sent", "")]))
    assert '<a href="#access">Access</a>' in text
    assert '<span class="badge open">sent</span>' in text


def test_access_that_is_not_reported_as_ended_is_a_problem() -> None:
    """The number is of all grants, not of the rows that the table has."""
    late = grant_row("open", "opened", ends_ms=START_MS - 61_000, overdue=1)
    text = render_fleet(fleet(grants=[late], overdue_count=[{"overdue_grants": 250}]))
    assert "250 grants of access not reported as ended in time" in text
    assert '<span class="badge failed">open</span>' in text
    in_time = grant_row("open", "opened", ends_ms=START_MS - 59_000)
    text = render_fleet(fleet(grants=[in_time]))
    assert "not reported as ended" not in text
    assert '<span class="badge open">open</span>' in text
