"""The control plane's views in the engine of ClickHouse: digit by digit what the verifier says."""

import base64
import json
import random
import re
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import chdb.session
import pytest
from msgspec.structs import replace

from byoc_agents.app.cloudevents import Agent, encode, parse_rfc3339, rfc3339
from byoc_agents.audit import Audit, Report
from byoc_agents.billing.record import UsageRecord
from byoc_agents.message import Message
from byoc_control_plane.progress import DELAYED, PROGRESS
from byoc_control_plane.rows import build_row
from byoc_control_plane.schema import TableEngine, table_statements, tenant_statements
from byoc_control_plane.store import INSERT_SETTINGS
from lab.control_plane.messages import Replica, heartbeat_event, watch_alert
from lab.fakes.billing import NOON_MS, ReplicaHistory, altered, eventful, objects
from tests.real.control_plane_tables import empty, load_usage, record_progress, rows, store_events
from tests.upgrade.golden import GOLDEN

pytestmark = pytest.mark.real

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


@pytest.fixture
def database(engine: chdb.session.Session) -> chdb.session.Session:
    return empty(engine)


def stored(root: Path, messages: list[Message]) -> Path:
    for message in messages:
        path = root / message.id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message.body)
    return root


def audited(place: Path) -> Report:
    audit = Audit()
    for path in sorted(place.rglob("*.jsonl.*")):
        audit.add(str(path.relative_to(place)), path.read_bytes())
    return audit.report("")


def agree(database: chdb.session.Session, report: Report) -> None:
    """Compare the sums of both billing views with the verifier's report, by service."""
    missing: dict[str, int] = {}
    uncovered: dict[str, Decimal] = {}
    gaps: dict[str, Decimal] = {}
    for finding in report.findings:
        if finding.kind == "missing_sequence":
            assert finding.first_sequence is not None
            assert finding.last_sequence is not None
            count = finding.last_sequence - finding.first_sequence + 1
            missing[finding.service_id] = missing.get(finding.service_id, 0) + count
        if finding.kind == "uncovered":
            apart = parse_rfc3339(finding.end) - parse_rfc3339(finding.start)
            lost = uncovered.get(finding.service_id, Decimal(0))
            uncovered[finding.service_id] = lost + Decimal(apart) / 1000
    for gap in report.gaps:
        gaps[gap.service_id] = gaps.get(gap.service_id, Decimal(0)) + gap.seconds
    daily = rows(
        database,
        "SELECT service_id, sum(records) a, sum(missing_sequences) b, sum(uncovered_seconds) c,"
        " sum(gap_seconds) d FROM billing_completeness_daily GROUP BY service_id",
    )
    assert {
        row["service_id"]: (int(row["a"]), int(row["b"]), Decimal(row["c"]), Decimal(row["d"]))
        for row in daily
    } == {
        service.service_id: (
            service.records + service.excluded_records,
            missing.get(service.service_id, 0),
            uncovered.get(service.service_id, Decimal(0)),
            gaps.get(service.service_id, Decimal(0)),
        )
        for service in report.services
    }
    totals = rows(
        database,
        "SELECT service_id, sum(records) a, sum(core_seconds) b, sum(byte_seconds) c,"
        " sum(allocated_core_seconds) d, sum(allocated_byte_seconds) e, sum(excluded_records) f"
        " FROM billing_totals GROUP BY service_id",
    )
    assert {row["service_id"]: [Decimal(row[name]) for name in "abcdef"] for row in totals} == {
        service.service_id: [
            service.records,
            service.cpu_core_seconds,
            service.memory_byte_seconds,
            service.allocated_core_seconds,
            service.allocated_byte_seconds,
            service.excluded_records,
        ]
        for service in report.services
    }


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir()))
def test_the_golden_records_of_each_version_have_the_figures_of_the_verifier(
    database: chdb.session.Session, version: str
) -> None:
    place = GOLDEN / version / "bucket"
    load_usage(database, place)
    report = audited(place)
    assert report.ok
    agree(database, report)


def damaged(seed: int) -> list[UsageRecord]:
    """Return records over two midnights with holes, unstated time, and stated gaps."""
    chance = random.Random(seed)
    found: list[UsageRecord] = []
    for number in range(3):
        history = ReplicaHistory(
            service_id=f"service-{number % 2}",
            replica=f"r-{number}",
            pod_uid=f"uid-{number}" if number else "",
            seed=seed * 7 + number,
            now_ms=NOON_MS + 11 * 3_600_000 + chance.randrange(3_600_000),
        )
        history.born_ms = history.now_ms
        for _ in range(chance.randrange(2, 4)):
            found += eventful(history)
            if chance.random() < 0.6:  # time of which no record speaks
                history.now_ms += chance.randrange(1, DAY_MS)
                found.append(history.measured())
            if chance.random() < 0.4:
                found.append(history.gap("spool_corrupt", period_ms=chance.randrange(1, 200_000)))
    kept = [record for record in found if chance.random() > 0.1 * (seed % 4)]
    return [
        altered(
            record,
            allocated=replace(
                record.data.allocated,
                counted_milliseconds=chance.choice([None, 0, 60_000]),
            ),
        )
        for record in kept
    ]


@pytest.mark.parametrize("seed", range(24))
def test_damaged_records_have_the_figures_of_the_verifier(
    database: chdb.session.Session, tmp_path: Path, seed: int
) -> None:
    place = stored(tmp_path, objects(damaged(seed)))
    report = audited(place)
    for _ in range(2):  # loaded twice: each record counts once
        load_usage(database, place)
        agree(database, report)


def test_figures_are_those_of_their_day(database: chdb.session.Session, tmp_path: Path) -> None:
    """A minute before midnight, then a day and two minutes that no record covers."""
    midnight = NOON_MS + DAY_MS // 2
    history = ReplicaHistory(now_ms=midnight - 60_000)
    first = history.measured()
    history.now_ms = midnight + DAY_MS + 120_000
    history.sequence += 2
    third = history.measured()
    history.now_ms += 5000
    load_usage(database, stored(tmp_path, objects([first, third, history.measured()])))
    columns = "day, records, missing_sequences, uncovered_seconds"
    daily = rows(database, f"SELECT {columns} FROM billing_completeness_daily ORDER BY day")
    assert [list(row.values()) for row in daily] == [
        ["2026-11-23", "1", "0", "0"],
        ["2026-11-24", "0", "0", "0"],  # the missing sequences explain the time
        ["2026-11-25", "2", "2", "5"],
    ]


DAILY = (
    "organization_id, service_id, day, records, missing_sequences, uncovered_seconds, gap_seconds"
)
BY_DAY = "ORDER BY service_id, day"


@pytest.mark.parametrize("seed", range(8))
def test_the_figures_since_a_day_are_those_of_all_days(
    database: chdb.session.Session, tmp_path: Path, seed: int
) -> None:
    """Three days of holes, with records of each replica on every day."""
    chance = random.Random(seed)
    found: list[UsageRecord] = []
    for number in range(2):
        history = ReplicaHistory(
            service_id=f"service-{number}", replica=f"r-{number}", seed=seed + number
        )
        while history.now_ms < NOON_MS + 3 * DAY_MS:
            found.append(history.measured())
            if chance.random() < 0.1:
                found.append(history.gap("spool_corrupt", period_ms=chance.randrange(1, 200_000)))
            history.now_ms += chance.randrange(6 * 3_600_000)
    load_usage(database, stored(tmp_path, objects([one for one in found if chance.random() > 0.2])))
    whole = rows(database, f"SELECT {DAILY} FROM billing_completeness_daily {BY_DAY}")
    assert {row["missing_sequences"] for row in whole} > {"0"}
    for day in ("2026-11-23", "2026-11-24", "2026-11-25", "2026-11-26", "2026-11-27"):
        since = rows(
            database, f"SELECT {DAILY} FROM billing_completeness_since(since = '{day}') {BY_DAY}"
        )
        assert since == [row for row in whole if row["day"] >= day]


def test_what_an_absence_over_the_first_day_lost_is_in_the_figures_of_all_days(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    history = ReplicaHistory()
    first = history.measured()
    history.now_ms += 4 * DAY_MS
    history.sequence += 3
    load_usage(database, stored(tmp_path, objects([first, history.measured(), history.measured()])))
    missing = "SELECT sum(missing_sequences) n FROM"
    assert rows(database, f"{missing} billing_completeness_daily") == [{"n": "3"}]
    for day, count in (("2026-11-24", "3"), ("2026-11-25", "0"), ("2026-11-27", "0")):
        since = f"billing_completeness_since(since = '{day}')"
        assert rows(database, f"{missing} {since}") == [{"n": count}]


def test_a_gap_that_began_before_the_days_read_counts(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    """A scraper is installed next to a server that has run for 30 days, and twice again."""
    history = ReplicaHistory(now_ms=NOON_MS, epoch=NOON_MS)
    history.now_ms -= 30 * DAY_MS
    found = [history.gap("no_checkpoint", period_ms=30 * DAY_MS)]
    found += [history.measured() for _ in range(3)]
    for days in (2, 5):
        history.epoch, history.sequence = history.now_ms + days * DAY_MS, 0
        found.append(history.gap("no_checkpoint", period_ms=days * DAY_MS))
        found += [history.measured() for _ in range(3)]
    place = stored(tmp_path, objects(found))
    for _ in range(2):  # loaded twice
        load_usage(database, place)
    whole = rows(database, f"SELECT {DAILY} FROM billing_completeness_daily {BY_DAY}")
    assert {row["missing_sequences"] for row in whole} == {"0"}
    for day in sorted({row["day"] for row in whole})[1:]:
        since = rows(
            database, f"SELECT {DAILY} FROM billing_completeness_since(since = '{day}') {BY_DAY}"
        )
        assert since == [row for row in whole if row["day"] >= day]


def test_of_earlier_months_the_records_that_end_there_are_not_read(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    history = ReplicaHistory()
    messages = objects([history.measured() for _ in range(50)])
    history.now_ms += 120 * DAY_MS
    load_usage(database, stored(tmp_path, [*messages, *objects([history.measured()])]))
    since = rfc3339(history.now_ms)[:10]
    for view in ("billing_completeness_since", "slo_since"):
        plan = rows(database, f"EXPLAIN indexes = 1 SELECT * FROM {view}(since = '{since}')")
        parts = {word for row in plan for word in re.findall(r"Parts: \d+/\d+", row["explain"])}
        assert "Parts: 1/2" in parts
        assert "Parts: 2/2" not in parts


def test_a_message_that_arrives_twice_is_one_row(database: chdb.session.Session) -> None:
    replica = Replica(replica="r-0", epoch=NOON_MS)
    bodies = [replica.message(NOON_MS + n * 60_000) for n in range(3)]
    bodies += [encode(heartbeat_event(NOON_MS, 0)), encode(watch_alert(NOON_MS, 0))]
    for _ in range(2):
        store_events(database, bodies, NOON_MS)
    for table, count in (("byoc_state", "3"), ("byoc_alerts", "2")):
        assert rows(database, f"SELECT count() n FROM {table} FINAL") == [{"n": count}]
    (row,) = rows(database, "SELECT * FROM byoc_state FINAL ORDER BY sequence LIMIT 1")
    assert row["event"].encode() == bodies[0]
    assert (row["state"], row["kind"], row["sequence"]) == ("running", "transition", "0")


def sender(version: str = "0.2.0", *, configuration: str = "a" * 64, size: int = 1) -> Agent:
    """Return what a daemon says of itself; its ledger has so many lines."""
    root = base64.b64encode(size.to_bytes(32, "big")).decode()
    return Agent(
        version=version,
        configuration_sha256=configuration,
        ledger_size=size,
        ledger_root=root,
    )


def silent(database: chdb.session.Session) -> list[str]:
    found = rows(database, "SELECT replica, daemon FROM silent_now ORDER BY replica, daemon")
    return [f"{row['replica']} {row['daemon']}" for row in found]


def test_events_with_the_times_of_any_clock_are_stored_by_one_insert(
    database: chdb.session.Session,
) -> None:
    """Else the 500 events of a delivery would be answered 503, and sent again, without an end."""
    months = [f"{1970 + n // 12}-{n % 12 + 1:02}-28T12:00:00Z" for n in range(0, 1560, 4)]
    bodies = [
        json.dumps(json.loads(encode(watch_alert(NOON_MS, number))) | {"time": time})
        for number, time in enumerate(months)
    ]
    lines = [build_row(body.encode(), NOON_MS).line.decode() for body in bodies]
    insert = f"INSERT INTO byoc_alerts SETTINGS {INSERT_SETTINGS} FORMAT JSONEachRow"
    database.query("\n".join([insert, *lines]))
    (found,) = rows(database, "SELECT uniqExact(toYYYYMM(time)) AS months FROM byoc_alerts FINAL")
    assert int(found["months"]) == len(months) == 390


def test_a_daemon_is_silent_after_three_heartbeats_of_its_own(
    database: chdb.session.Session,
) -> None:
    fast, slow = Replica(replica="r-0", heartbeat=20), Replica(replica="r-1", heartbeat=60)
    store_events(database, [fast.message(NOON_MS), slow.message(NOON_MS)], NOON_MS)
    store_events(database, [encode(heartbeat_event(NOON_MS, 0))], NOON_MS)
    found = []
    for seconds in (60, 61, 180, 181):
        record_progress(database, NOON_MS + seconds * 1000)
        record_progress(database, NOON_MS + seconds * 1000, stream="alerts", redelivery=60)
        found.append(silent(database))
    everyone = ["clickhouse-0 alert-forwarder", "r-0 state-exporter", "r-1 state-exporter"]
    assert found == [[], ["r-0 state-exporter"], ["r-0 state-exporter"], everyone]
    store_events(database, [slow.message(NOON_MS + 181_000)], NOON_MS + 181_000)
    assert silent(database) == everyone[:2]


def is_first_silent_after(database: chdb.session.Session, from_ms: int, seconds: int) -> bool:
    """Return whether somebody is silent after so many seconds, and nobody a second before."""
    found = []
    for passed in (seconds - 1, seconds):
        database.query("TRUNCATE TABLE byoc_progress")
        for stream, redelivery in (("state", 30), ("alerts", 60)):
            at_ms = from_ms + passed * 1000
            record_progress(database, at_ms, stream=stream, redelivery=redelivery)
        found.append(silent(database))
    return not found[0] and bool(found[1])


def test_the_heartbeat_that_the_newest_message_states_counts(
    database: chdb.session.Session,
) -> None:
    """The first message is of a start, the second of ten minutes later, the third of a change."""
    replica, at_ms = Replica(heartbeat=60), NOON_MS
    for heartbeat, state in ((60, "running"), (300, "running"), (60, "degraded")):
        replica.heartbeat = heartbeat
        store_events(database, [replica.message(at_ms, state)], at_ms)
        assert is_first_silent_after(database, at_ms, 3 * heartbeat + 1)
        at_ms += 600_000


def test_a_message_without_a_stated_time_counts_as_one_of_60_seconds(
    database: chdb.session.Session,
) -> None:
    row = {
        "organization_id": "org-1",
        "service_id": "service-1",
        "replica": "r-0",
        "arrived_at": rfc3339(NOON_MS),
        "time": rfc3339(NOON_MS),
    }
    for table, more in (
        ("byoc_state", {"type": "byoc.service.state.v1", "id": "1"}),
        ("byoc_alerts", {"type": "byoc.alert.heartbeat.v1", "started_at": rfc3339(NOON_MS)}),
    ):
        insert = f"INSERT INTO {table} SETTINGS date_time_input_format='best_effort'"
        database.query(f"{insert} FORMAT JSONEachRow {json.dumps(row | more)}")
    found = rows(database, "SELECT heartbeat_seconds AS s FROM agents_now")
    assert [float(row["s"]) for row in found] == [60, 60]
    assert is_first_silent_after(database, NOON_MS, 181)


def test_a_heartbeat_that_arrives_late_does_not_shorten_the_time(
    database: chdb.session.Session,
) -> None:
    """The queue took it after a timeout, and the exporter had replaced it."""
    replica = Replica(heartbeat=60)
    early = replica.message(NOON_MS)
    late = replica.message(NOON_MS + 60_000)
    replica.heartbeat = 300
    newest = replica.message(NOON_MS + 120_000)
    for number, body in enumerate((early, newest, late)):
        store_events(database, [body], NOON_MS + number * 60_000)
    assert is_first_silent_after(database, NOON_MS + 120_000, 901)


@pytest.mark.parametrize("stopping", [False, True])
def test_a_daemon_that_starts_again_with_an_earlier_clock_is_judged_by_its_new_messages(
    database: chdb.session.Session, *, stopping: bool
) -> None:
    """Its disk is lost too, so its numbers are lower than before."""
    before = heartbeat_event(NOON_MS, 7, stopping=stopping)
    after = heartbeat_event(NOON_MS + 1000, 0, interval=300, started_at="2026-11-23T10:59:00.000Z")
    for body in (before, after):
        store_events(database, [encode(body)], parse_rfc3339(body.time))
    assert is_first_silent_after(database, NOON_MS + 1000, 901)


def test_silence_counts_from_the_beginning_of_uninterrupted_reception(
    database: chdb.session.Session,
) -> None:
    store_events(database, [Replica(heartbeat=60).message(NOON_MS)], NOON_MS)
    back_ms = NOON_MS + 1_800_000  # half an hour without a consumer
    for seconds, expected in ((0, []), (180, []), (181, ["r-0 state-exporter"])):
        record_progress(database, back_ms + seconds * 1000, steady_ms=back_ms)
        assert silent(database) == expected


def test_the_word_of_a_consumer_that_has_gone_does_not_count(
    database: chdb.session.Session,
) -> None:
    store_events(database, [Replica(heartbeat=60).message(NOON_MS)], NOON_MS)
    record_progress(database, NOON_MS + 181_000 - 11_000, consumer="gone", steady_ms=NOON_MS + 170)
    record_progress(database, NOON_MS + 181_000, consumer="alive")
    assert silent(database) == ["r-0 state-exporter"]
    record_progress(database, NOON_MS + 180_000, consumer="behind", steady_ms=NOON_MS + 180_000)
    assert silent(database) == []


def test_a_backlog_of_one_organization_holds_the_judging_of_its_daemons_only(
    database: chdb.session.Session,
) -> None:
    pair = [Replica(replica=f"r-{n}", organization=f"org-{n}").message(NOON_MS) for n in (1, 2)]
    store_events(database, pair, NOON_MS)
    record_progress(database, NOON_MS + 181_000)
    assert silent(database) == ["r-1 state-exporter", "r-2 state-exporter"]
    late_ms = NOON_MS + 120_000
    record_progress(database, late_ms, consumer="b", organization="org-1", steady_ms=late_ms)
    assert silent(database) == ["r-2 state-exporter"]
    record_progress(database, NOON_MS + 300_000)
    assert silent(database) == ["r-2 state-exporter"]
    record_progress(database, NOON_MS + 301_000)
    assert silent(database) == ["r-1 state-exporter", "r-2 state-exporter"]
    # The row of an organization is not progress of the stream.
    record_progress(database, NOON_MS + 900_000, organization="org-3", steady_ms=NOON_MS)
    assert int(rows(database, PROGRESS)[0]["at_ms"]) == NOON_MS + 301_000
    assert {row["organization_id"] for row in rows(database, DELAYED)} == {"org-1", "org-3"}


@pytest.mark.parametrize("ended", ["stopping", "AGENT_STOPPING"])
def test_a_daemon_that_stops_is_never_silent_and_comes_back_with_its_next_message(
    database: chdb.session.Session, ended: str
) -> None:
    replica = Replica(heartbeat=60)
    bodies = [replica.message(NOON_MS), replica.stop(NOON_MS + 1000, ended)]
    store_events(database, bodies[::-1], NOON_MS)  # the stop arrived first: its number is higher
    record_progress(database, NOON_MS + DAY_MS)
    assert silent(database) == []
    store_events(database, [replica.message(NOON_MS + 2000)], NOON_MS + 2000)
    assert silent(database) == ["r-0 state-exporter"]


def test_a_retired_replica_is_not_silent_until_it_is_seen_again(
    database: chdb.session.Session,
) -> None:
    replica = Replica(heartbeat=60)
    store_events(database, [replica.message(NOON_MS)], NOON_MS)
    record_progress(database, NOON_MS + 600_000)
    assert silent(database) == ["r-0 state-exporter"]
    (first,) = rows(database, "SELECT min(first_seen) f FROM byoc_agents")
    names = "organization_id, service_id, replica, daemon"
    database.query(
        f"INSERT INTO byoc_agents ({names}, retired_at) SELECT {names}, now64(3) FROM byoc_agents"
    )
    assert silent(database) == []
    assert rows(database, "SELECT * FROM fleet_now") == []
    assert rows(database, "SELECT min(first_seen) f FROM byoc_agents") == [first]
    later_ms = time.time_ns() // 1_000_000 + 1000  # times of over a minute ahead do not count
    replica.heartbeat = 1
    store_events(database, [replica.message(NOON_MS + 60_000)], later_ms)
    record_progress(database, later_ms + 40_000)
    assert silent(database) == ["r-0 state-exporter"]


def test_the_fleet_is_shown_with_its_newest_state(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    replica = Replica(organization="org-1", service="service-1", replica="clickhouse-0")
    bodies = []
    for number, state in enumerate(("running", "degraded")):
        replica.agent = sender(f"0.2.{number}", configuration="ab"[number] * 64)
        bodies.append(replica.message(NOON_MS + number * 60_000, state=state))
    beat = heartbeat_event(NOON_MS, 3, agent=sender("0.3.0", configuration="c" * 64))
    store_events(database, [*bodies[::-1], encode(beat)], NOON_MS + 61_000)
    load_usage(database, stored(tmp_path, objects([ReplicaHistory().measured()])))
    record_progress(database, NOON_MS + 61_000)
    (row,) = rows(database, "SELECT * FROM fleet_now")
    assert (row["organization_id"], row["state"], row["version"]) == ("org-1", "degraded", "24.8.1")
    assert row["billed_until"] == "2026-11-23 12:01:00.000"
    assert row["alert_forwarder_seen"] == row["state_exporter_seen"] == "2026-11-23 12:01:01.000"
    assert row["silent_daemons"] == []
    assert (row["state_exporter_version"], row["alert_forwarder_version"]) == ("0.2.1", "0.3.0")
    assert row["state_exporter_configuration"] == "b" * 64
    assert row["alert_forwarder_configuration"] == "c" * 64


def test_an_end_far_in_the_future_is_not_the_end_of_the_usage(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    """A clock that is wrong once does not hide that usage is missing since."""
    replica = Replica(organization="org-1", service="service-1", replica="clickhouse-0")
    store_events(database, [replica.message(NOON_MS)], NOON_MS)
    record_progress(database, NOON_MS)
    good, wrong = ReplicaHistory(), ReplicaHistory(pod_uid="another")
    wrong.now_ms = parse_rfc3339("2099-01-01T00:00:00Z")
    load_usage(database, stored(tmp_path, objects([wrong.measured()])))
    (row,) = rows(database, "SELECT billed_until FROM fleet_now")
    assert row["billed_until"] == "1970-01-01 00:00:00.000"  # none
    load_usage(database, stored(tmp_path, objects([good.measured()])))
    (row,) = rows(database, "SELECT billed_until FROM fleet_now")
    assert row["billed_until"] == "2026-11-23 12:01:00.000"
    assert rows(database, "SELECT count() AS n FROM byoc_usage FINAL") == [{"n": "2"}]


def test_each_daemon_is_shown_with_its_newest_ledger(database: chdb.session.Session) -> None:
    replica = Replica(replica="clickhouse-0")
    bodies = []
    for size in (5, 9, 7):  # the last is of a ledger that was begun again
        replica.agent = sender(size=size)
        bodies.append(replica.message(NOON_MS))
    beats = [heartbeat_event(NOON_MS, size, agent=sender(size=size)) for size in (3, 4)]
    store_events(database, [*bodies[::-1], *map(encode, beats)], NOON_MS)
    columns = "daemon, agent_version, configuration_sha256, ledger_size, ledger_root"
    found = rows(database, f"SELECT {columns} FROM agents_now ORDER BY daemon")
    assert [list(row.values()) for row in found] == [
        [daemon, "0.2.0", "a" * 64, str(size), sender(size=size).ledger_root]
        for daemon, size in (("alert-forwarder", 4), ("state-exporter", 7))
    ]
    replica.agent = None  # 0.1.0 again
    store_events(database, [replica.message(NOON_MS)], NOON_MS)
    (row,) = rows(database, f"SELECT {columns} FROM agents_now WHERE daemon = 'state-exporter'")
    assert list(row.values()) == ["state-exporter", "", "", "0", ""]


def test_delays_and_completeness_are_figures_of_a_day(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    replica = Replica(organization="org-1", service="service-1")
    store_events(database, [replica.message(NOON_MS)], NOON_MS + 1500)
    store_events(database, [encode(watch_alert(NOON_MS, 1))], NOON_MS + 2500)
    history = ReplicaHistory()
    kept = [history.measured() for _ in range(4)]
    load_usage(database, stored(tmp_path, objects([*kept[:2], kept[3]])))
    (row,) = rows(database, "SELECT * FROM slo_daily")
    assert row["state_delay_seconds"] == Decimal("1.5")
    assert row["alert_delay_seconds"] == Decimal("2.5")
    assert row["usage_complete_ratio"] == Decimal("0.75")


@pytest.mark.parametrize("kind", ["single", "replicated", "shared"])
def test_every_statement_parses_for_every_engine(
    engine: chdb.session.Session, kind: TableEngine
) -> None:
    """SharedMergeTree and a place for users are not here: those statements are only parsed."""
    for statement in [*table_statements(kind), *tenant_statements()]:
        assert str(engine.query(f"EXPLAIN AST {statement}"))
