"""Old messages that are stored again, and times that are in the future, in the views."""

import json
import time
from collections.abc import Iterator
from typing import Any

import chdb.session
import pytest

from byoc_agents.app.cloudevents import rfc3339
from byoc_control_plane.fleet import DAYS, MAX_ROWS, read_fleet
from byoc_control_plane.fleet_page import render_fleet
from byoc_control_plane.progress import AHEAD, DELAYED, PROGRESS
from byoc_control_plane.rows import build_row
from lab.control_plane.fleet_rows import usage_line
from lab.control_plane.messages import Replica
from lab.control_plane.processes import ROOT
from lab.fakes.billing import NOON_MS, ReplicaHistory
from tests.real.control_plane_tables import (
    SessionStore,
    empty,
    record_progress,
    rows,
    store_events,
    store_rows,
)

pytestmark = pytest.mark.real

DAY_MS = 86_400_000
MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


@pytest.fixture
def database(engine: chdb.session.Session) -> chdb.session.Session:
    return empty(engine)


def import_event(database: chdb.session.Session, body: bytes, now_ms: int) -> None:
    """Insert an event as `byoc-control-plane import` does."""
    row = build_row(body, now_ms, imported=True)
    store_rows(database, row.table, [row.line])


def silent(database: chdb.session.Session) -> list[str]:
    return [row["replica"] for row in rows(database, "SELECT replica FROM silent_now")]


def supervised(database: chdb.session.Session) -> list[str]:
    found = rows(database, "SELECT replica FROM agents_now WHERE supervised")
    return [row["replica"] for row in found]


def delays(database: chdb.session.Session) -> list[Any]:
    found = rows(database, "SELECT state_delay_seconds AS s FROM slo_daily")
    return [float(row["s"]) for row in found]


def test_an_import_of_a_stored_message_does_not_end_a_silence(
    database: chdb.session.Session,
) -> None:
    body = Replica().message(NOON_MS)
    store_events(database, [body], NOON_MS)
    record_progress(database, NOON_MS + DAY_MS)
    assert silent(database) == ["r-0"]
    import_event(database, body, NOON_MS + DAY_MS)
    assert silent(database) == ["r-0"]


def test_an_import_of_new_messages_ends_a_silence_if_they_are_recent(
    database: chdb.session.Session,
) -> None:
    replica = Replica()
    store_events(database, [replica.message(NOON_MS)], NOON_MS)
    for sent_ms, expected in ((NOON_MS + MINUTE_MS, ["r-0"]), (NOON_MS + DAY_MS - 1000, [])):
        import_event(database, replica.message(sent_ms), NOON_MS + DAY_MS)
        record_progress(database, NOON_MS + DAY_MS)
        assert silent(database) == expected


def test_an_import_of_an_old_message_does_not_supervise_a_retired_daemon(
    database: chdb.session.Session,
) -> None:
    replica = Replica()
    body, unseen = replica.message(NOON_MS), replica.message(NOON_MS + MINUTE_MS)
    store_events(database, [body], NOON_MS)
    database.query(
        "INSERT INTO byoc_agents (organization_id, service_id, replica, daemon, retired_at)"
        " VALUES ('org-1', 'service-1', 'r-0', 'state-exporter', '2026-11-23 12:02:00')"
    )
    for old in (body, unseen):
        import_event(database, old, NOON_MS + DAY_MS)
        assert supervised(database) == []
    import_event(database, replica.message(NOON_MS + 3 * MINUTE_MS), NOON_MS + DAY_MS)
    assert supervised(database) == ["r-0"]


def test_an_import_of_an_old_stop_does_not_end_the_supervision_of_a_daemon_that_started_again(
    database: chdb.session.Session,
) -> None:
    """Its clock is earlier since then, so its numbers are lower."""
    before, after = Replica(epoch=NOON_MS + DAY_MS), Replica(epoch=NOON_MS)
    stop = before.message(NOON_MS, "stopping")
    store_events(database, [stop], NOON_MS)
    store_events(database, [after.message(NOON_MS + 1000)], NOON_MS + 1000)
    import_event(database, stop, NOON_MS + 2000)
    assert supervised(database) == ["r-0"]


@pytest.mark.parametrize("order", [(500, DAY_MS, 2 * DAY_MS), (DAY_MS, 500, 2 * DAY_MS)])
def test_the_delay_is_that_of_the_earliest_arrival(
    database: chdb.session.Session, order: tuple[int, ...]
) -> None:
    body, found = Replica().message(NOON_MS), []
    for delay_ms in order:
        import_event(database, body, NOON_MS + delay_ms)
        found += delays(database)
    earliest = [min(order[: n + 1]) / 1000 for n in range(len(order))]
    assert found == earliest
    for _ in range(2):  # the same after a merge
        database.query("OPTIMIZE TABLE byoc_state FINAL")
        assert delays(database) == [0.5]


# Times in the future. The server has the clock of this machine.


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.parametrize("merged", [False, True])
def test_a_clock_that_was_ahead_once_does_not_stop_the_judging(
    database: chdb.session.Session, *, merged: bool
) -> None:
    now = now_ms()
    store_events(database, [Replica().message(now - DAY_MS)], now - DAY_MS)
    record_progress(database, now + DAY_MS, steady_ms=now + DAY_MS)
    record_progress(database, now + DAY_MS, steady_ms=now + DAY_MS, consumer="gone")
    record_progress(database, now + DAY_MS, steady_ms=now + DAY_MS, organization="org-1")
    assert silent(database) == []  # nobody else receives
    assert rows(database, PROGRESS) == []
    assert rows(database, DELAYED) == []
    record_progress(database, now, steady_ms=now - DAY_MS)
    if merged:
        database.query("OPTIMIZE TABLE byoc_progress FINAL")
    assert silent(database) == ["r-0"]
    (found,) = rows(database, PROGRESS)
    assert int(found["at_ms"]) == now
    (ahead,) = rows(database, AHEAD)
    assert ahead["stream"] == "state"
    assert DAY_MS / 1000 - 60 < float(ahead["ahead_seconds"]) <= DAY_MS / 1000


def test_the_statements_of_the_documentation_remove_what_is_ahead(
    database: chdb.session.Session,
) -> None:
    page = (ROOT / "docs" / "control-plane.md").read_text()
    now = now_ms()
    record_progress(database, now + DAY_MS)
    record_progress(database, now, consumer="b")
    names = {"organization_id": "org-1", "service_id": "s", "daemon": "state-exporter"}
    for replica, seen_ms in (("wrong", now + DAY_MS), ("right", now)):
        row = names | {"replica": replica, "last_seen": rfc3339(seen_ms)}
        store_rows(database, "byoc_agents", [json.dumps(row).encode()])
    for statement in (
        "DELETE FROM byoc_progress WHERE at > now64(3)",
        "ALTER TABLE byoc_agents DELETE WHERE last_seen > now64(3) + INTERVAL 1 MINUTE",
    ):
        assert statement in page
        database.query(f"{statement} SETTINGS mutations_sync = 1")
    assert [row["consumer"] for row in rows(database, "SELECT * FROM byoc_progress")] == ["b"]
    assert [row["replica"] for row in rows(database, "SELECT * FROM byoc_agents")] == ["right"]


def test_times_of_clocks_that_agree_are_not_ahead(database: chdb.session.Session) -> None:
    now = now_ms()
    record_progress(database, now - 2000)
    record_progress(database, now - 2000, stream="alerts")
    found = {row["stream"]: float(row["ahead_seconds"]) for row in rows(database, AHEAD)}
    assert found == {"state": 0, "alerts": 0}


def test_a_message_that_arrived_in_the_future_hides_a_silence_for_a_minute_at_most(
    database: chdb.session.Session,
) -> None:
    now, replica = now_ms(), Replica()
    store_events(database, [replica.message(now)], now + DAY_MS)
    (row,) = rows(database, "SELECT toUnixTimestamp64Milli(last_seen) AS ms FROM agents_now")
    assert now <= int(row["ms"]) <= now_ms() + MINUTE_MS
    (stored,) = rows(database, "SELECT toUnixTimestamp64Milli(arrived_at) AS ms FROM byoc_state")
    assert int(stored["ms"]) == now + DAY_MS


def usage(owner: str, at_ms: int, sequence: int) -> bytes:
    history = ReplicaHistory(
        organization_id=owner,
        service_id="svc",
        replica="r-0",
        pod_uid="uid-0",
        now_ms=at_ms,
        born_ms=at_ms,
        epoch=NOON_MS - DAY_MS,
        sequence=sequence,
    )
    return usage_line(history.measured())


async def test_usage_of_future_days_does_not_hide_what_is_missing_today(
    database: chdb.session.Session,
) -> None:
    """More future days than the table has rows; the record after each has one before it missing."""
    known = [usage("org-1", NOON_MS + number, number) for number in (0, 1, 5)]
    ahead = [
        usage("org-2", NOON_MS + number * DAY_MS, 2 * number) for number in range(MAX_ROWS + 9)
    ]
    store_rows(database, "byoc_usage", [*known, *ahead])
    store_events(database, [Replica().message(NOON_MS)], NOON_MS)
    since = rfc3339(NOON_MS - DAYS * DAY_MS)[:10]
    found = await read_fleet(SessionStore(database), NOON_MS, since)
    today, tomorrow = rfc3339(NOON_MS)[:10], rfc3339(NOON_MS + DAY_MS)[:10]
    assert [row["date"] for row in found.gaps] == [tomorrow, today]
    assert [row["missing"] for row in found.gaps] == [1, 3]
    assert [row["date"] for row in found.slo] == [tomorrow, today]
    missing = {row["organization_id"]: row["missing"] for row in found.incomplete}
    assert missing == {"org-1": 3, "org-2": 1}
    assert "4 usage records missing in 14 days" in render_fleet(found)


@pytest.mark.parametrize(
    ("stream", "ago_ms", "delayed"),
    [
        ("state", 59_999, 1),
        ("state", 60_000, 0),
        ("alerts", 64_999, 1),  # this stream is received up to 5 seconds ago only
        ("alerts", 65_000, 0),
        ("other", 0, 0),  # not received at all
    ],
)
async def test_an_organization_is_delayed_up_to_a_minute_before_the_progress_of_its_stream(
    database: chdb.session.Session, stream: str, ago_ms: int, delayed: int
) -> None:
    record_progress(database, NOON_MS)
    record_progress(database, NOON_MS - 5_000, stream="alerts")
    until_ms = NOON_MS - ago_ms
    record_progress(database, until_ms, stream=stream, steady_ms=until_ms, organization="org-1")
    found = await read_fleet(SessionStore(database), NOON_MS, "2026-01-01")
    assert [(row["until_ms"], row["delayed"]) for row in found.delayed] == [(until_ms, delayed)]
    assert found.delayed_count == [{"delayed_organizations": delayed}]


async def test_each_delayed_organization_is_counted_and_comes_before_the_others(
    database: chdb.session.Session,
) -> None:
    """The delay of the alerts is earlier than all of those of the states, which have ended."""
    record_progress(database, NOON_MS)
    record_progress(database, NOON_MS - 600_000, stream="alerts")
    made = [
        *(("state", f"ended-{number}", NOON_MS - 60_000) for number in range(MAX_ROWS)),
        *(("alerts", f"late-{number}", NOON_MS - 600_000) for number in range(MAX_ROWS + 50)),
    ]
    lines = [
        json.dumps(
            {
                "stream": stream,
                "consumer": "a",
                "at": rfc3339(at_ms),
                "steady_since": rfc3339(at_ms),
                "redelivery_seconds": 30,
                "organization_id": owner,
            }
        ).encode()
        for stream, owner, at_ms in made
    ]
    store_rows(database, "byoc_progress", lines)
    found = await read_fleet(SessionStore(database), NOON_MS, "2026-01-01")
    assert found.delayed_count == [{"delayed_organizations": MAX_ROWS + 50}]
    assert {row["stream"] for row in found.delayed} == {"alerts"}
    own = await read_fleet(SessionStore(database), NOON_MS, "2026-01-01", "late-3")
    assert own.delayed_count == [{"delayed_organizations": 1}]
