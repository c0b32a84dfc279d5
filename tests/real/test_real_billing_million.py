"""A million records through the audit and `usage`: memory, time, and the totals of ClickHouse."""

import json
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import chdb.session
import pytest

from byoc_agents.billing.record import UsageRecord
from lab.fakes.billing import ReplicaHistory, objects
from tests.real.test_real_chdb import SQL, load, rows, statements, stored

pytestmark = pytest.mark.real

REPLICAS = 10  # the last three are another service's
OBJECTS = 334  # of each replica
RECORDS = 300  # of each object, at most
MAX_BYTES = 24 * 1024**2  # the ids are 8 MiB, one object with its records and the imports the rest
MAX_USAGE_BYTES = 64 * 1024**2  # of the whole process, Python included
MAX_USAGE_SECONDS = 60.0  # of CPU: a machine that does other things as well needs longer
# Runs a command, and prints the memory before it, the most memory and the CPU time.
MEASURED = """
import sys, time
import byoc_agents.usage
from byoc_agents.app.cli import main
def kib(name):
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name))
start = kib("VmRSS:")
code = main(sys.argv[1:])
print(start, kib("VmHWM:"), time.process_time(), file=sys.stderr)
sys.exit(code)
"""


def records_of(history: ReplicaHistory, number: int) -> list[UsageRecord]:
    """Return the records of one object, in which something may happen."""
    if number == 200 and history.seed == 3:
        return [history.measured() for _ in range(RECORDS)][:-1]  # one is missing
    records = []
    if number % 100 == 60:
        records.append(history.lose_state(usec=3_000_000))
    if number % 20 == 10:
        records.append(history.gap("target_unreadable", usec=7_000_000))
    if number % 50 == 30:
        records.append(history.gap("target_restarted", period_ms=5_000))
        history.restart()
    return [*records, *(history.measured() for _ in range(RECORDS - len(records)))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a million records; in key order the pods' objects are mixed."""
    root = tmp_path_factory.mktemp("million")
    for seed in range(REPLICAS):
        history = ReplicaHistory(
            service_id="service-1" if seed < REPLICAS - 3 else "service-2",
            replica=f"r-{seed}",
            pod_uid=f"uid-{seed}",
            seed=seed,
        )
        for number in range(OBJECTS):
            stored(root, objects(records_of(history, number), size=RECORDS))
    return root


class Run(NamedTuple):
    """How `byoc-agents usage` ended."""

    code: int
    usage: Any
    start_kib: int  # resident before the first object
    most_kib: int  # at most
    cpu_seconds: float


@pytest.fixture(scope="module")
def run(directory: Path) -> Run:
    """Run the command once, in a process that has held nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "usage", str(directory), "--json"],
        capture_output=True,
        check=False,
    )
    start_kib, most_kib, cpu_seconds = done.stderr.split()
    usage = json.loads(done.stdout, parse_float=Decimal)
    found = Run(done.returncode, usage, int(start_kib), int(most_kib), float(cpu_seconds))
    print(
        f"usage: {found.most_kib / 1024:.1f} MiB at most,"
        f" {(found.most_kib - found.start_kib) / 1024:.1f} MiB above the start,"
        f" {found.cpu_seconds:.1f} s of CPU"
    )
    return found


def test_a_million_records_cost_24_mebibytes_at_most(run: Run) -> None:
    """Measured as resident memory: what the decompressor and the allocator keep counts as well.

    `verify` holds no more: it keeps the sums of all days in one.
    """
    assert run.code == 1
    assert run.usage["records"] == REPLICAS * OBJECTS * RECORDS - 1
    assert run.usage["problems"] == {"missing_sequence": 1}
    assert (run.most_kib - run.start_kib) * 1024 < MAX_BYTES
    assert run.most_kib * 1024 <= MAX_USAGE_BYTES


def test_a_million_records_take_a_minute_at_most(run: Run) -> None:
    assert run.cpu_seconds <= MAX_USAGE_SECONDS


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, directory: Path) -> Iterator[Any]:
    """Return a session with the million records in the billing team's table."""
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    for statement in statements("table.sql"):
        session.query(statement)
    load(session, f"file(\n    '{directory}/v1/**/*.jsonl.{{zst,gz}}'")
    yield session
    session.close()


def test_usage_of_a_million_records_is_that_of_the_table(run: Run, table: Any) -> None:
    days = {
        (day["organization_id"], day["service_id"], day["date"]): day for day in run.usage["days"]
    }
    assert len(days) > 2 * OBJECTS * RECORDS // 1440
    totals = (SQL / "totals.sql").read_text().rstrip().rstrip(";")
    found = rows(
        table,
        "SELECT organization_id, service_id, toString(toDate(minute)) date, sum(records) records,"
        " sum(core_seconds) core_seconds, sum(byte_seconds) byte_seconds,"
        " sum(allocated_core_seconds) allocated_core_seconds,"
        " sum(allocated_byte_seconds) allocated_byte_seconds,"
        " sum(measured_milliseconds) measured, sum(gap_milliseconds) gap"
        f" FROM ({totals}) GROUP BY ALL ORDER BY ALL",
    )
    assert len(found) == len(days)
    for row in found:
        day = days[row["organization_id"], row["service_id"], row["date"]]
        for name in (
            *("records", "core_seconds", "byte_seconds"),
            *("allocated_core_seconds", "allocated_byte_seconds"),
        ):
            assert Decimal(row[name]) == day[name], (row["date"], name)
        assert Decimal(row["measured"]) == day["measured_seconds"] * 1000
        gaps = sum(day["gap_seconds"].values()) + day["covered_gap_seconds"]
        assert Decimal(row["gap"]) == gaps * 1000
    assert sum(Decimal(row["gap"]) for row in found) > 0
