"""The states of requests for access in ClickHouse: one row per request, whatever the order."""

import itertools
import json
from collections.abc import Iterator

import chdb.session
import msgspec
import pytest

from byoc_agents.access.events import message_of
from byoc_agents.access.machine import State
from byoc_control_plane.fleet import GRANTS, MAX_ROWS, OVERDUE_COUNT, fill_query
from byoc_control_plane.rows import build_row, build_sent
from lab.fakes.core import START_MS
from tests.real.control_plane_tables import empty, rows, store_rows
from tests.real.test_real_control_plane_fleet import PANELS, expand
from tests.unit.access.access_documents import AUDIENCE, GRANT_ID, grant_of, request_of

pytestmark = pytest.mark.real

STEPS = (State.PENDING, State.APPROVED, State.OPENING, State.OPEN, State.CLOSING, State.COLLECTING)
COUNTS = {"queries": 3, "failed_logins": 0, "result_rows": 7}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


def lines(*states: State, reason: str = "revoked: done (by anna)") -> list[bytes]:
    """Return the rows of these states, each a second after the one before."""
    found = []
    for number, state in enumerate(states):
        grant = grant_of(state, since_ms=START_MS + 1000 * number, reason=reason)
        body = message_of(grant, "org-1", "svc-1", COUNTS).body
        found.append(build_row(body, START_MS + 60_000).line)
    return found


def sent(at_ms: int) -> bytes:
    return build_sent(request_of(), at_ms).line


def page(engine: chdb.session.Session, organization: str = "") -> list[dict[str, object]]:
    return ask(engine, fill_query(GRANTS, START_MS, "2026-01-01", organization))


def ask(engine: chdb.session.Session, query: str) -> list[dict[str, object]]:
    settings = "output_format_json_quote_64bit_integers=0"
    text = str(engine.query(f"{query} SETTINGS {settings}", "JSONEachRow"))
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("order", [1, -1])
def test_a_request_has_one_row_with_all_its_states(
    engine: chdb.session.Session, order: int
) -> None:
    """Also if the events arrive in the reverse order, and some of them twice."""
    empty(engine)
    made = [sent(START_MS - 5000), *lines(*STEPS, State.CLOSED)]
    for line in [*made[::order], made[1], made[-1], sent(START_MS - 1000)]:
        store_rows(engine, "byoc_grants", [line])
    (row,) = rows(engine, "SELECT * FROM grants_now")
    assert (row["organization_id"], row["service_id"], row["grant_id"]) == (
        *("org-1", "svc-1", GRANT_ID),
    )
    assert (row["engineer"], row["ticket"]) == ("eng-8841", "CS-1234")
    assert (row["state"], row["reason"], row["record"]) == ("closed", "revoked", "complete")
    assert row["ended"] in {1, "1"}
    assert {name: int(n) for name, n in row["counts"].items()} == COUNTS
    (shown,) = page(engine)
    assert (shown["sent_ms"], shown["opened_ms"]) == (START_MS - 5000, START_MS + 3000)
    assert (shown["since_ms"], shown["queries"], shown["rows_read"]) == (START_MS + 6000, 3, 7)
    assert page(engine, "org-2") == []


@pytest.mark.parametrize("state", [state for state in State if state is not State.RECEIVED])
def test_every_state_of_the_broker_is_known_to_the_view(
    engine: chdb.session.Session, state: State
) -> None:
    """A state that the view does not know would never be shown as the newest."""
    empty(engine)
    store_rows(engine, "byoc_grants", [sent(START_MS - 5000), *lines(state)])
    (row,) = rows(engine, "SELECT state FROM grants_now")
    assert row["state"] == state.value


@pytest.mark.parametrize(
    ("states", "reason", "expected"),
    [
        ((), "", ("sent", "", 0)),
        ((State.PENDING,), "needs_approval", ("pending", "needs_approval", 0)),
        ((State.PENDING, State.DENIED), "denied: no (by anna)", ("denied", "denied", 1)),
        ((State.PENDING, State.LAPSED), "not_answered", ("lapsed", "not_answered", 1)),
        ((*STEPS[:4],), "opened", ("open", "opened", 0)),
        ((*STEPS, State.CLOSED), "expired", ("closed", "expired", 1)),
        ((*STEPS, State.CLOSED), "kill_switch: kill-switch", ("closed", "kill_switch", 1)),
        ((*STEPS, State.CLOSED), "withdrawn (by vendor)", ("closed", "withdrawn", 1)),
    ],
)
def test_the_state_and_the_end_of_each_request(
    engine: chdb.session.Session,
    states: tuple[State, ...],
    reason: str,
    expected: tuple[str, str, int],
) -> None:
    empty(engine)
    store_rows(engine, "byoc_grants", [sent(START_MS), *lines(*states, reason=reason)])
    (shown,) = page(engine)
    assert (shown["state"], shown["reason"], shown["ended"]) == expected


def test_open_grants_come_first_on_the_page(engine: chdb.session.Session) -> None:
    empty(engine)
    for state, number in itertools.product((State.CLOSED, State.OPEN), range(2)):
        grant = grant_of(state, id=f"{state}-{number}", since_ms=START_MS + number)
        body = message_of(grant, "org-1", "svc-1", {}).body
        store_rows(engine, "byoc_grants", [build_row(body, START_MS).line])
    found = [row["grant_id"] for row in page(engine)]
    assert found == ["open-1", "open-0", "closed-1", "closed-0"]
    assert msgspec.json.decode(lines(State.OPEN)[0])["event"]


def count_overdue(
    engine: chdb.session.Session, now_ms: int = START_MS, organization: str = ""
) -> object:
    (row,) = ask(engine, fill_query(OVERDUE_COUNT, now_ms, "2026-01-01", organization))
    return row["overdue_grants"]


@pytest.mark.parametrize("state", [state for state in State if state is not State.RECEIVED])
def test_access_is_overdue_more_than_a_minute_after_its_end(
    engine: chdb.session.Session, state: State
) -> None:
    empty(engine)
    ends_ms = START_MS + 600_000
    grant = grant_of(state, since_ms=START_MS, reason="", end_ms=ends_ms)
    body = message_of(grant, "org-1", "svc-1", {}).body
    store_rows(engine, "byoc_grants", [build_row(body, START_MS).line])
    waits = state in {State.OPENING, State.OPEN, State.CLOSING}
    assert count_overdue(engine, ends_ms + 60_000) == 0
    assert count_overdue(engine, ends_ms + 60_001) == int(waits)
    assert count_overdue(engine, ends_ms + 60_001, "org-2") == 0


def test_waiting_requests_do_not_hide_access_that_is_overdue(engine: chdb.session.Session) -> None:
    empty(engine)
    made = [("late", State.OPEN, START_MS - 7_200_000, START_MS - 3_600_000)]
    made += [(f"waits-{number}", State.PENDING, START_MS, 0) for number in range(MAX_ROWS)]
    lines = []
    for name, state, since_ms, ends_ms in made:
        grant = grant_of(state, id=name, since_ms=since_ms, reason="", end_ms=ends_ms)
        lines.append(build_row(message_of(grant, "org-1", "svc-1", {}).body, START_MS).line)
    store_rows(engine, "byoc_grants", lines)
    found = page(engine)
    assert len(found) == MAX_ROWS
    assert (found[0]["grant_id"], found[0]["overdue"]) == ("late", 1)
    assert not any(row["overdue"] for row in found[1:])
    assert count_overdue(engine) == 1


DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("organization", "expected"),
    [
        ("", "3154"),
        ("org-1", "314"),
        ("org-2", "5"),
        ("org-3", ""),
    ],
)
def test_the_dashboard_lists_grants_that_are_open_or_ended_in_its_range(
    engine: chdb.session.Session, organization: str, expected: str
) -> None:
    """The range is a week: 2 ended before it, and 1 is open since then. 1 and 3 are overdue."""
    empty(engine)
    long_ago_ms = START_MS - 30 * DAY_MS
    made = (
        ("1", State.OPEN, "org-1", long_ago_ms),
        ("2", State.CLOSED, "org-1", long_ago_ms),
        ("3", State.OPEN, "org-1", START_MS),
        ("4", State.CLOSED, "org-1", START_MS),
        ("5", State.PENDING, "org-2", START_MS + 2000),
    )
    for name, state, owner, since_ms in made:
        request = request_of(id=GRANT_ID[:-1] + name, audience={**AUDIENCE, "organization": owner})
        grant = grant_of(state, id=request.id, since_ms=since_ms, reason="expired")
        body = message_of(grant, owner, "svc-1", COUNTS).body
        asked = build_sent(request, since_ms - 1000)
        store_rows(engine, "byoc_grants", [asked.line, build_row(body, START_MS).line])
    (panel,) = (one for one in PANELS if one["title"] == "Access")
    now = f"fromUnixTimestamp64Milli(toInt64({START_MS + 2 * 3_600_000}))"
    query = expand(panel["targets"][0]["rawSql"], organization).replace("now64(3)", now)
    found = ask(engine, query)
    assert "".join(str(row["grant_id"])[-1] for row in found) == expected
    shown = {row["grant_id"]: row for row in page(engine, organization)}
    for row in found:
        same = ("engineer", "ticket", "role", "state", "reason", "queries", "rows_read")
        assert [row[name] for name in same] == [shown[row["grant_id"]][name] for name in same]
        ended = row["state"] == "closed"  # a broker counts when access has ended
        assert (row["queries"], row["rows_read"]) == ((3, 7) if ended else (0, 0))
        assert (row["engineer"], row["ticket"]) == ("eng-8841", "CS-1234")
        assert (row["opened_at"] is not None) == (row["state"] == "open")
