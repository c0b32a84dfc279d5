"""The billing team's SQL against the engine of ClickHouse: what it reads is what we wrote."""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import chdb.session
import pytest
from aiobotocore.session import get_session
from moto.server import ThreadedMotoServer
from msgspec.structs import replace

import byoc_agents.billing
from byoc_agents.app.cloudevents import encode, parse_rfc3339
from byoc_agents.audit import Audit, Report
from byoc_agents.audit.validate import (
    MAX_BYTE_SECONDS,
    MAX_BYTES,
    MAX_MACHINE_CPUS,
    MAX_MILLICORES,
    MAX_TIME_MS,
)
from byoc_agents.billing.archive import ArchiveBuilder, ArchiveKey, Shard
from byoc_agents.billing.objects import Compression, SharedNumbers, runs, seal
from byoc_agents.billing.record import Counter, UsageRecord, record_id
from byoc_agents.message import Message
from lab.fakes.billing import NOON_MS, ReplicaHistory, altered, eventful, objects

pytestmark = pytest.mark.real

SQL = Path(byoc_agents.billing.__file__).parent / "sql"
URL = "https://BUCKET.s3.REGION.amazonaws.com"
FINE_USEC = 9_007_199_254_740_993_007  # a counter of 19 digits: no binary float holds it


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


@pytest.fixture
def database(engine: chdb.session.Session) -> chdb.session.Session:
    """Return a session with the billing team's empty table."""
    for statement in statements("table.sql"):
        engine.query(statement)
    for table in ("byoc_usage", "byoc_usage_rejected"):
        engine.query(f"TRUNCATE TABLE {table}")
    return engine


def statements(name: str) -> list[str]:
    return [part for part in (SQL / name).read_text().split(";\n") if part.strip()]


def rows(database: chdb.session.Session, query: str) -> list[dict[str, Any]]:
    """Return rows with every number as its own digits."""
    settings = "output_format_json_quote_decimals=1, output_format_json_quote_64bit_integers=1"
    text = str(database.query(f"{query.rstrip().rstrip(';')} SETTINGS {settings}", "JSONEachRow"))
    return [json.loads(line, parse_float=Decimal) for line in text.splitlines()]


def records() -> list[UsageRecord]:
    histories = [
        ReplicaHistory(replica=f"r-{n}", pod_uid=f"uid-{n}", seed=n, counter_usec=n * FINE_USEC)
        for n in range(2)
    ]
    histories.append(ReplicaHistory(service_id="service-2", seed=7))
    return [record for history in histories for record in eventful(history)]


def audited(messages: list[Message]) -> Report:
    audit = Audit()
    for message in messages:
        audit.add(message.id, message.body)
    report = audit.report("")
    assert report.ok, report.findings
    return report


def stored(root: Path, messages: list[Message]) -> Path:
    for message in messages:
        path = root / message.id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message.body)
    return root


def load(database: chdb.session.Session, source: str) -> None:
    """Run load.sql with another place to read from in the place of the bucket."""
    (statement,) = statements("load.sql")
    opening = f"s3(\n    '{URL}/v1/**/*.jsonl.{{zst,gz}}'"
    assert opening in statement
    database.query(statement.replace(opening, source))


def totals(database: chdb.session.Session) -> dict[str, dict[str, Decimal]]:
    """Return the sums of totals.sql over all minutes, by service."""
    (statement,) = statements("totals.sql")
    found: dict[str, dict[str, Decimal]] = {}
    for row in rows(database, statement):
        sums = found.setdefault(f"{row['organization_id']}/{row['service_id']}", {})
        for name in row.keys() - {"organization_id", "service_id", "minute"}:
            sums[name] = sums.get(name, Decimal(0)) + Decimal(row[name])
    return found


def expected(report: Report) -> dict[str, dict[str, Decimal]]:
    return {
        f"{service.organization_id}/{service.service_id}": {
            "records": Decimal(service.records),
            "core_seconds": service.cpu_core_seconds,
            "byte_seconds": Decimal(service.memory_byte_seconds),
            "allocated_core_seconds": service.allocated_core_seconds,
            "allocated_byte_seconds": service.allocated_byte_seconds,
            "unknown_allocated_cpu_milliseconds": service.unknown_allocated_cpu_seconds * 1000,
            "unknown_allocated_memory_milliseconds": (
                service.unknown_allocated_memory_seconds * 1000
            ),
            "excluded_records": Decimal(service.excluded_records),
            "excluded_core_seconds": service.excluded_core_seconds,
            "measured_milliseconds": service.measured_seconds * 1000,
            "estimated_milliseconds": service.estimated_seconds * 1000,
        }
        for service in report.services
    }


def agree(database: chdb.session.Session, report: Report) -> None:
    """Compare the totals, and the number of records that are in none."""
    found = totals(database)
    for sums in found.values():
        del sums["gap_milliseconds"]  # in the table a gap may lie over records of another epoch
    left_out = sum(int(sums.pop("altered_records")) for sums in found.values())
    (row,) = rows(database, "SELECT count() AS n FROM byoc_usage_rejected FINAL")
    left_out += int(row["n"])
    assert found == expected(report)
    assert left_out == sum(report.counts.get(kind, 0) for kind in ("altered_record", "torn_object"))


def test_an_archive_loads_with_the_same_query_mixed_with_its_objects(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    """As after a crash of the compactor between the archive and the deletion."""
    messages = objects(records())
    builder = ArchiveBuilder()
    for message in messages:
        builder.add(message.id, message.body)
    manifest, body = builder.finish()
    name = ArchiveKey("v1/", "2026-11-23", "12", Shard(0, 1))
    root = stored(tmp_path, messages[::3])
    (tmp_path / name.folder).mkdir(parents=True)
    (tmp_path / name.body).write_bytes(body)
    (tmp_path / name.manifest).write_bytes(manifest.encode())
    load(database, f"file(\n    '{root}/v1/**/*.jsonl.{{zst,gz}}'")
    agree(database, audited(messages))


@pytest.mark.parametrize(
    ("place", "loaded"),
    [
        *(("v1/", True), ("v1/account=111122223333/", True), ("v1/archive/", True)),
        *(("v1/org=org-2/", False), ("v1/org=org-2/service=s/", False)),
        ("v1/account=444455556666/org=org-2/", False),
        ("v1/org=org-2/archive/date=2026-11-23/", False),
    ],
)
def test_a_customers_folder_has_no_records_of_another_one(
    place: str, loaded: bool, database: chdb.session.Session, tmp_path: Path
) -> None:
    (message,) = objects([ReplicaHistory().measured()])
    key = message.id.replace("v1/", place, 1)
    if place == "v1/archive/":  # of any organizations
        key = f"{place}date=2026-11-23/hour=12/shard-0-of-1.jsonl.zst"
    file = tmp_path / key
    file.parent.mkdir(parents=True)
    file.write_bytes(message.body)
    source = f"file(\n    '{tmp_path}/v1/**/*.jsonl.{{zst,gz}}'"
    load(database, source)
    (row,) = rows(database, "SELECT count() AS records FROM byoc_usage FINAL")
    assert int(row["records"]) == int(loaded)


def test_a_record_whose_source_is_not_that_of_its_data_is_not_loaded(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    history = ReplicaHistory(organization_id="org-2")
    foreign = history.measured().source
    own, repeated = (ReplicaHistory(seed=seed).measured() for seed in (1, 2))
    messages = objects([own]), objects([replace(repeated, source=foreign)])
    for number, one in enumerate(messages):
        place = stored(tmp_path / str(number), one)
        load(database, f"file(\n    '{place}/v1/**/*.jsonl.{{zst,gz}}'")
    assert rows(database, "SELECT source FROM byoc_usage") == [{"source": own.source}]


def test_a_customer_that_repeats_the_identity_of_a_gap_does_not_change_another_ones_bill(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    """Such a row of a table that was filled before `load.sql` asked for the source."""
    history = ReplicaHistory(organization_id="org-2")
    gap = history.lose_state(period_ms=600_000)
    size = replace(gap.data.allocated, counted_milliseconds=600_000)
    messages = objects([history.measured(), altered(gap, allocated=size)])
    load(database, f"file('{stored(tmp_path, messages)}/v1/**/*.jsonl.{{zst,gz}}'")
    query = statements("totals.sql")[0].rstrip().rstrip(";")
    query = f"SELECT * FROM ({query}) WHERE organization_id = 'org-2'"
    wanted = rows(database, query)
    assert sum(Decimal(row["allocated_core_seconds"]) for row in wanted) > 0
    for name, quality, reason in (("id", "gap", "no_checkpoint"), ("'other'", "measured", "")):
        database.query(
            "INSERT INTO byoc_usage SELECT * REPLACE('org-1' AS organization_id, 'x' AS replica,"
            " 'x' AS pod_uid, charge_period_start - INTERVAL 1 DAY AS charge_period_start,"
            f" charge_period_end - INTERVAL 1 DAY AS charge_period_end, {name} AS id,"
            f" '{quality}' AS quality, '{reason}' AS gap_reason)"
            " FROM (SELECT * FROM byoc_usage WHERE quality = 'gap' AND organization_id = 'org-2')"
        )
    (added,) = rows(database, "SELECT count() n FROM byoc_usage WHERE organization_id = 'org-1'")
    assert added == {"n": "2"}
    assert rows(database, query) == wanted
    assert rows(database, statements("conflicts.sql")[0]) == []


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_files_give_the_totals_of_the_verifier_however_often_they_are_loaded(
    database: chdb.session.Session, tmp_path: Path, compression: Compression
) -> None:
    messages = objects(records(), compression=compression)
    place = f"file('{stored(tmp_path, messages)}/v1/**/*.jsonl.{{zst,gz}}'"
    load(database, place)
    agree(database, audited(messages))
    load(database, place)
    agree(database, audited(messages))
    assert rows(database, "SELECT count() AS n FROM byoc_usage")[0]["n"] != str(len(records()))
    database.query("OPTIMIZE TABLE byoc_usage FINAL")
    assert rows(database, "SELECT count() AS n FROM byoc_usage")[0]["n"] == str(len(records()))
    assert rows(database, statements("conflicts.sql")[0]) == []


def test_shared_objects_give_the_totals_of_the_verifier(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    histories = [
        ReplicaHistory(replica=f"r{number}", pod_uid="", seed=number) for number in range(3)
    ]
    moments = zip(*map(eventful, histories), strict=True)
    messages, first = [], 0
    for run in runs([encode(record) for moment in moments for record in moment], shared=True):
        numbers = SharedNumbers(name="scraper", epoch=NOON_MS, first=first)
        messages.append(seal(run, created_at_ms=NOON_MS, numbers=numbers))
        first += len(run)
    load(database, f"file('{stored(tmp_path, messages)}/v1/**/*.jsonl.{{zst,gz}}'")
    report = audited(messages)
    assert (report.findings, len(report.replicas)) == ([], 3)
    agree(database, report)


def sized(record: UsageRecord, **fields: object) -> UsageRecord:
    return altered(record, allocated=replace(record.data.allocated, **fields))


def with_cpu(record: UsageRecord, core_seconds: Decimal) -> UsageRecord:
    start = core_seconds.copy_abs()
    counter = Counter(start=start, end=start + core_seconds)
    used = replace(record.data.used, cpu_core_seconds=core_seconds)
    return altered(record, used=used, counter=counter)


def with_memory(record: UsageRecord, byte_seconds: int, largest: int) -> UsageRecord:
    used = replace(record.data.used, memory_byte_seconds=byte_seconds, memory_max_bytes=largest)
    return altered(record, used=used)


BEYOND_BOUNDS = {
    "negative counted time": lambda record: sized(record, counted_milliseconds=-(10**9)),
    "long counted time": lambda record: sized(record, counted_milliseconds=MAX_TIME_MS + 1),
    "large CPU size": lambda record: sized(record, cpu_millicores=MAX_MILLICORES + 1),
    "large memory size": lambda record: sized(record, memory_bytes=MAX_BYTES + 1),
    "machine without CPUs": lambda record: altered(record, machine_cpus=0),
    "machine of many CPUs": lambda record: altered(record, machine_cpus=MAX_MACHINE_CPUS + 1),
    "negative counter time": lambda record: altered(record, counter_milliseconds=-1),
    "long elapsed time": lambda record: altered(record, elapsed_milliseconds=MAX_TIME_MS + 1),
    "long counter time": lambda record: altered(record, counter_milliseconds=MAX_TIME_MS + 1),
    "negative CPU": lambda record: with_cpu(record, Decimal(-500)),
    "much CPU": lambda record: with_cpu(record, Decimal(10) ** 15),
    "memory above its largest": lambda record: with_memory(record, 10**15, 1),
    "much memory": lambda record: with_memory(record, MAX_BYTE_SECONDS + 1, MAX_BYTES),
    "before 1970": lambda record: altered(record, charge_period_start="1969-12-31T23:59:59.999Z"),
    "after 2099": lambda record: altered(record, charge_period_end="2100-01-01T00:00:00.001Z"),
    "long period": lambda record: altered(record, charge_period_start="2016-11-01T00:00:00Z"),
    "empty period": lambda record: altered(
        record, charge_period_start=record.data.charge_period_end
    ),
}


@pytest.mark.parametrize("name", BEYOND_BOUNDS)
def test_what_the_verifier_refuses_is_in_no_total(
    database: chdb.session.Session, tmp_path: Path, name: str
) -> None:
    history = ReplicaHistory()
    sound, refused = history.measured(), BEYOND_BOUNDS[name](history.measured())
    refused = replace(refused, id=record_id(refused.data))
    messages = objects([sound, refused])
    load(database, f"file('{stored(tmp_path, messages)}/v1/**/*.jsonl.{{zst,gz}}'")
    audit = Audit()
    for message in messages:
        audit.add(message.id, message.body)
    report = audit.report("")
    assert report.counts in ({"altered_record": 1}, {"torn_object": 1})
    agree(database, report)


ADDED = ("allocated_counted_milliseconds", "machine_cpus", "counter_milliseconds")


def test_a_table_of_version_0_1_is_upgraded_in_place(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    """Its rows stay; the objects loaded again give the totals of a new table."""
    columns = "SELECT name, type FROM system.columns WHERE table = 'byoc_usage' ORDER BY position"
    now = rows(database, columns)
    messages = objects(random_records(3))
    place = f"file('{stored(tmp_path, messages)}/v1/**/*.jsonl.{{zst,gz}}'"
    load(database, place)
    query = (SQL / "totals.sql").read_text()
    wanted = rows(database, query)
    for name in ADDED:
        database.query(f"ALTER TABLE byoc_usage DROP COLUMN {name}")
    for _ in range(2):  # a second time it changes nothing
        for statement in statements("upgrade.sql"):
            database.query(statement)
    assert rows(database, columns) == now
    assert rows(database, "SELECT DISTINCT machine_cpus m FROM byoc_usage") == [{"m": None}]
    load(database, place)
    assert rows(database, query) == wanted


def random_records(seed: int) -> list[UsageRecord]:
    """Return records with gaps, unknown sizes, counted time and impossible CPU."""
    rng, history, found = random.Random(seed), ReplicaHistory(seed=seed), []
    machine_cpus = rng.choice([2, 3, 64])  # with 2 or 3 some records of 0.1.0 are impossible
    for record in eventful(history):
        usage = record.data
        whole = parse_rfc3339(usage.charge_period_end) - parse_rfc3339(usage.charge_period_start)
        size = replace(
            usage.allocated,
            cpu_millicores=rng.choice([None, 0, 1, 3999]),
            memory_bytes=rng.choice([None, 1, 2**40 + 1]),
            counted_milliseconds=rng.choice([None, 0, whole, whole + 7]),
        )
        cpus, time_ms = rng.choice([(None, None), (1, 0), (machine_cpus, whole)])
        found.append(
            altered(record, allocated=size, machine_cpus=cpus, counter_milliseconds=time_ms)
        )
    return found


@pytest.mark.parametrize("seed", range(20))
def test_random_records_have_the_totals_of_the_verifier(
    database: chdb.session.Session, tmp_path: Path, seed: int
) -> None:
    messages = objects(random_records(seed))
    load(database, f"file('{stored(tmp_path, messages)}/v1/**/*.jsonl.{{zst,gz}}'")
    audit = Audit()
    for message in messages:
        audit.add(message.id, message.body)
    (service,) = audit.report("").services
    query = (SQL / "totals.sql").read_text().rstrip().rstrip(";")
    (summed,) = rows(
        database,
        "SELECT sum(core_seconds) a, sum(allocated_core_seconds) b, sum(allocated_byte_seconds) c,"
        " sum(unknown_allocated_cpu_milliseconds) d, sum(unknown_allocated_memory_milliseconds) e,"
        f" sum(excluded_records) f, sum(excluded_core_seconds) g FROM ({query})",
    )
    assert [Decimal(summed[name]) for name in "abcdefg"] == [
        service.cpu_core_seconds,
        service.allocated_core_seconds,
        service.allocated_byte_seconds,
        service.unknown_allocated_cpu_seconds * 1000,
        service.unknown_allocated_memory_seconds * 1000,
        service.excluded_records,
        service.excluded_core_seconds,
    ]


def test_a_counter_beyond_any_float_is_read_digit_by_digit(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    history = ReplicaHistory(counter_usec=FINE_USEC)
    record = history.measured()
    assert record.data.counter
    load(database, f"file('{stored(tmp_path, objects([record]))}/v1/**/*.jsonl.{{zst,gz}}'")
    query = "SELECT counter_start_core_seconds AS a, counter_end_core_seconds AS b FROM byoc_usage"
    (row,) = rows(database, query)
    assert Decimal(row["a"]) == record.data.counter.start
    assert Decimal(row["b"]) == record.data.counter.end


def test_every_field_reaches_the_table(database: chdb.session.Session, tmp_path: Path) -> None:
    history = ReplicaHistory()
    first, gap = history.measured(), history.gap("target_absent")
    size = replace(first.data.allocated, counted_milliseconds=61_007)
    records = [altered(first, allocated=size, machine_cpus=96, counter_milliseconds=60_123), gap]
    load(database, f"file('{stored(tmp_path, objects(records))}/v1/**/*.jsonl.{{zst,gz}}'")
    for row, record in zip(
        rows(database, "SELECT * FROM byoc_usage ORDER BY sequence"), records, strict=True
    ):
        usage = record.data
        assert (row["id"], row["source"]) == (record.id, record.source)
        assert (row["pod_uid"], row["container_id"]) == (usage.pod_uid, usage.container_id)
        assert (row["quality"], row["gap_reason"]) == (usage.quality, usage.gap_reason)
        assert (int(row["epoch"]), int(row["sequence"])) == (usage.epoch, usage.sequence)
        assert int(row["allocated_memory_bytes"]) == usage.allocated.memory_bytes
        assert int(row["samples_observed"]) == usage.samples.observed
        assert [row["allocated_counted_milliseconds"], row["machine_cpus"]] == [
            None if figure is None else str(figure)
            for figure in (usage.allocated.counted_milliseconds, usage.machine_cpus)
        ]
        assert row["counter_milliseconds"] == (None if record is gap else "60123")
        assert (row["counter_start_core_seconds"] is None) == (usage.counter is None)
        assert row["charge_period_start"].replace(" ", "T") + "Z" == usage.charge_period_start
        assert row["object"].endswith(".jsonl.zst")


def test_figures_that_conflict_under_one_id_are_shown(
    database: chdb.session.Session, tmp_path: Path
) -> None:
    first, second = ReplicaHistory(seed=1).measured(), ReplicaHistory(seed=2).measured()
    for number, record in enumerate((first, second)):
        place = stored(tmp_path / str(number), objects([record]))
        load(database, f"file('{place}/v1/**/*.jsonl.{{zst,gz}}'")
    (row,) = rows(database, statements("conflicts.sql")[0])
    assert row["id"] == first.id == second.id


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


async def upload(url: str, bucket: str, messages: list[Message]) -> None:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    place = {"endpoint_url": url, "region_name": "us-east-1"}
    async with get_session().create_client("s3", **place, **keys) as client:
        await client.create_bucket(Bucket=bucket)
        for message in messages:
            await client.put_object(
                Bucket=bucket,
                Key=message.id,
                Body=message.body,
                ContentType=message.content_type,
            )


def test_a_bucket_gives_the_totals_of_the_verifier(database: chdb.session.Session, s3: str) -> None:
    messages = objects(records())
    asyncio.run(upload(s3, "billing", messages))
    load(database, f"s3('{s3}/billing/v1/**/*.jsonl.{{zst,gz}}', 'test', 'test'")
    agree(database, audited(messages))


def test_the_key_prunes_by_organization_and_date(engine: chdb.session.Session, s3: str) -> None:
    asyncio.run(upload(s3, "pruned", objects(records())))
    query = (
        f"SELECT uniqExact(_path) AS n FROM s3('{s3}/pruned/v1/**/*.jsonl.zst', 'test', 'test', "
        "'JSONEachRow', 'id String') WHERE service = 'service-2' AND date >= '2026-11-23'"
    )
    (row,) = rows(engine, query)
    assert int(row["n"]) == len(objects(list(eventful(ReplicaHistory(service_id="service-2")))))


def test_the_path_of_each_queue_has_the_objects_of_its_period_only(
    engine: chdb.session.Session, s3: str
) -> None:
    """The engine's own patterns, by its table function: S3Queue itself does not start in chdb."""
    days = ("2026-10-31T23:30:00Z", "2026-11-01T00:30:00Z", "2026-11-30T23:30:00Z")
    histories = [ReplicaHistory(now_ms=parse_rfc3339(day)) for day in days]
    sent = objects([history.measured() for history in histories])
    archives = [
        f"v1/archive/date={day}/hour=00/shard-0-of-1.jsonl.zst"
        for day in ("2025-12-31", "2026-01-01", "2026-11-30")
    ]
    others = [archive.replace(".jsonl", ".manifest.json") for archive in archives]
    shared = "v1/account=111122223333/org=o/service=s/date=2026-11-01/hour=00/x.shared.jsonl.zst"
    named = [replace(sent[0], id=key) for key in (*archives, *others, shared)]
    asyncio.run(upload(s3, "period", [*sent, *named]))
    keys = {message.id for message in (*sent, *named)}
    periods = {"s3queue.sql": "/date=2026-11-", "s3queue_archives.sql": "v1/archive/date=2026-"}
    for name, part in periods.items():
        (path,) = re.findall(r"amazonaws\.com/(v1/[^']*)', 'Line", (SQL / name).read_text())
        path = path.replace("YEAR", "2026").replace("MONTH", "11")
        query = (
            f"SELECT DISTINCT _path AS path FROM s3('{s3}/period/{path}', 'test', 'test', "
            "'JSONEachRow', 'id String')"
        )
        found = {row["path"].removeprefix("period/") for row in rows(engine, query)}
        assert found == {key for key in keys if part in key and ".manifest" not in key}
        assert len(found) >= 2


@pytest.mark.parametrize("name", sorted(path.name for path in SQL.glob("*.sql")))
def test_every_statement_parses(engine: chdb.session.Session, name: str) -> None:
    """`test_real_s3queue.py` executes those of S3Queue as far as chdb does."""
    for statement in statements(name):
        assert "Query" in str(engine.query(f"EXPLAIN AST {statement}"))
