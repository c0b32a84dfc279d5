"""`byoc-agents usage` against the engine of ClickHouse, and its page in a real browser."""

import json
import random
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import chdb.session
import pytest

from byoc_agents.billing.record import UsageRecord
from byoc_agents.usage import main
from lab.fakes.billing import NOON_MS, ReplicaHistory, objects
from lab.real.parts.chromium import Tab, tab
from tests.real.test_real_chdb import SQL, load, random_records, rows, statements, stored
from tests.real.test_real_ledger_report import CONTRAST, OVERFLOW, PAINTED

pytestmark = pytest.mark.real

BEFORE_MIDNIGHT_MS = NOON_MS + (11 * 60 + 40) * 60_000
# Time of gaps that may lie over other records, and that no other record covers. Each instant counts
# once: for the gap with the lower epoch and sequence. Written without the WITH of totals.sql.
UNCOVERED = """
SELECT toString(toDate(gap.charge_period_start)) AS date, gap.gap_reason AS reason,
    sum(toUnixTimestamp64Milli(gap.charge_period_end)
        - toUnixTimestamp64Milli(gap.charge_period_start) - gap.covered_ms) AS own_ms
FROM
(
    SELECT gap.id, any(gap.charge_period_start) AS charge_period_start,
        any(gap.charge_period_end) AS charge_period_end, any(gap.gap_reason) AS gap_reason,
        toInt64(intervalLengthSumIf(
            toUnixTimestamp64Milli(greatest(gap.charge_period_start, other.charge_period_start)),
            toUnixTimestamp64Milli(least(gap.charge_period_end, other.charge_period_end)),
            other.charge_period_start < gap.charge_period_end
                AND other.charge_period_end > gap.charge_period_start
                AND (other.gap_reason NOT IN ('no_checkpoint', 'spool_corrupt')
                    OR (other.epoch, other.sequence) < (gap.epoch, gap.sequence)))) AS covered_ms
    FROM (SELECT * FROM byoc_usage FINAL) AS gap
    INNER JOIN (SELECT * FROM byoc_usage FINAL) AS other USING (replica)
    WHERE gap.gap_reason IN ('no_checkpoint', 'spool_corrupt')
    GROUP BY gap.id
) AS gap
GROUP BY date, reason
"""
HARD = """
SELECT toString(toDate(charge_period_start)) AS date, gap_reason AS reason,
    toInt64(sum(period_milliseconds)) AS own_ms
FROM byoc_usage FINAL
WHERE gap_reason NOT IN ('', 'no_checkpoint', 'spool_corrupt') GROUP BY date, reason
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


def eventful_days(seed: int) -> list[UsageRecord]:
    """Return records of one replica over midnight, with state lost again and again."""
    rng = random.Random(seed)
    history = ReplicaHistory(seed=seed, now_ms=BEFORE_MIDNIGHT_MS, born_ms=BEFORE_MIDNIGHT_MS)
    found = []
    for _ in range(12):
        found += [history.measured() for _ in range(rng.randrange(1, 6))]
        event = rng.choice(["lost", "lost", "corrupt", "restart", "unreadable", "days"])
        if event == "lost":
            found.append(history.lose_state(period_ms=rng.randrange(1, 90_000)))
        elif event == "corrupt":
            found.append(history.lose_state("spool_corrupt", period_ms=rng.randrange(1, 90_000)))
        elif event == "restart":
            found.append(history.gap("target_restarted", period_ms=rng.randrange(1, 9_000)))
            history.restart()
        elif event == "unreadable":
            found.append(history.gap("target_unreadable"))
        else:
            found.append(history.gap("target_absent", period_ms=rng.randrange(1, 3 * 86_400_000)))
    return found


def usage_of(root: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return the days of a directory, by date."""
    capsys.readouterr()
    main([str(root), "--json"])
    usage = json.loads(capsys.readouterr().out, parse_float=Decimal)
    return {day["date"]: day for day in usage["days"]}


@pytest.mark.parametrize("make", [eventful_days, random_records])
@pytest.mark.parametrize("seed", range(20))
def test_each_day_has_the_figures_of_the_table(
    make: Any,
    seed: int,
    engine: chdb.session.Session,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for statement in statements("table.sql"):
        engine.query(statement)
    engine.query("TRUNCATE TABLE byoc_usage")
    root = stored(tmp_path, objects(make(seed)))
    load(engine, f"file(\n    '{root}/v1/**/*.jsonl.{{zst,gz}}'")
    totals = (SQL / "totals.sql").read_text().rstrip().rstrip(";")
    names = (
        *("records", "core_seconds", "byte_seconds", "allocated_core_seconds"),
        *("allocated_byte_seconds", "excluded_records", "excluded_core_seconds"),
    )
    milliseconds = (
        *("measured", "estimated", "unknown_allocated_cpu", "unknown_allocated_memory"),
        "gap",
    )
    sums = [f"sum({name}) {name}" for name in names]
    sums += [f"sum({name}_milliseconds) {name}" for name in milliseconds]
    found = rows(
        engine,
        f"SELECT toString(toDate(minute)) date, {', '.join(sums)} FROM ({totals}) GROUP BY 1",
    )
    days = usage_of(root, capsys)
    assert days.keys() == {row["date"] for row in found}
    for row in found:
        day = days[row["date"]]
        assert {name: Decimal(row[name]) for name in names} == {n: day[n] for n in names}
        for name in milliseconds[:-1]:
            assert Decimal(row[name]) == day[f"{name}_seconds"] * 1000, name
        assert Decimal(row["gap"]) == 1000 * (
            sum(day["gap_seconds"].values()) + day["covered_gap_seconds"]
        )
    own = {
        (row["date"], row["reason"]): Decimal(row["own_ms"]) / 1000
        for query in (UNCOVERED, HARD)
        for row in rows(engine, query)
        if int(row["own_ms"])
    }
    assert own == {
        (date, reason): seconds
        for date, day in days.items()
        for reason, seconds in day["gap_seconds"].items()
    }


@pytest.fixture
async def browser() -> AsyncIterator[Tab]:
    async with tab() as page:
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_can_be_read_and_loads_nothing(
    scheme: str, tmp_path: Path, browser: Tab
) -> None:
    """WCAG AA: 4.5 for every text; nothing is cut off on a small screen."""
    file = tmp_path / "usage.html"
    root = stored(tmp_path / "objects", objects(eventful_days(3)))
    assert main([str(root), "--html", str(file)]) == 0
    await browser.look(1280, 900, scheme)
    await browser.open(file.as_uri())
    assert len(await browser.screenshot()) > 20_000
    assert await browser.evaluate(PAINTED) >= 2
    ratio, text = await browser.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    for width in (1280, 768, 390):
        await browser.look(width, 900, scheme)
        assert await browser.evaluate(OVERFLOW) <= 0, width
    assert browser.requests == [file.as_uri()]
    assert browser.console == []
