"""`byoc-agents usage`: what it reads, prints and returns."""

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from byoc_agents.billing.archive import ArchiveBuilder, ArchiveKey, Shard
from byoc_agents.billing.record import GapReason, UsageRecord
from byoc_agents.errors import Reason
from byoc_agents.ledger import FileLedger
from byoc_agents.message import Message, Outcome
from byoc_agents.usage import main
from byoc_agents.usage.page import GAP_MEANINGS
from lab.fakes.billing import NOON_MS, ReplicaHistory, eventful, objects
from lab.fakes.core import START_MS, FakeClock
from tests.unit.ledger.ledger_fakes import QuickDisk
from tests.unit.report.ledger_example import send, trouble

BEFORE_MIDNIGHT_MS = NOON_MS + (11 * 60 + 50) * 60_000
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a call of the command that gives its exit code, stdout and stderr."""

    def call(*argv: object, **more: Any) -> tuple[int, str, str]:
        capsys.readouterr()  # what the making of the input has printed
        code = main([str(part) for part in argv], **more)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def stored(root: Path, messages: Sequence[Message]) -> Path:
    for message in messages:
        path = root / message.id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message.body)
    return root


def two_days() -> list[UsageRecord]:
    """Return 41 records: ten minutes before midnight, and the others after it."""
    return list(eventful(ReplicaHistory(now_ms=BEFORE_MIDNIGHT_MS, born_ms=BEFORE_MIDNIGHT_MS)))


def figures(out: str) -> Any:
    return json.loads(out, parse_float=Decimal)


async def kept_in(
    state_dir: Path,
    messages: Sequence[Message],
    outcomes: Sequence[Outcome | None] = (None,),
    *,
    keep_bodies: bool = True,
) -> Path:
    """Send each message once for each outcome; None is a success."""
    ledger = FileLedger(
        state_dir / "billing-scraper" / "ledger",
        clock=FakeClock(wall_ms=START_MS),
        max_bytes=1 << 30,
        keep_bodies=keep_bodies,
        disk=QuickDisk(),
    )
    async with ledger:
        for message in messages:
            for outcome in outcomes:
                await send(ledger, "s3://usage", [message], outcome)
    return state_dir


# Figures.


def test_each_record_counts_on_the_day_of_its_start(run: Run, tmp_path: Path) -> None:
    records = two_days()
    code, out, err = run(stored(tmp_path, objects(records)), "--json")
    assert (code, err) == (0, "")
    usage = figures(out)
    assert [day["date"] for day in usage["days"]] == ["2026-11-23", "2026-11-24"]
    for day in usage["days"]:
        own = [r.data for r in records if r.data.charge_period_start.startswith(day["date"])]
        assert day["records"] == len(own)
        assert day["core_seconds"] == sum(one.used.cpu_core_seconds for one in own)
        assert day["byte_seconds"] == sum(one.used.memory_byte_seconds for one in own)
        measured_ms = sum(one.elapsed_milliseconds for one in own if one.quality != "gap")
        assert day["allocated_core_seconds"] == 4 * Decimal(measured_ms) / 1000
        assert day["allocated_byte_seconds"] == (16 << 30) * Decimal(measured_ms) / 1000
    assert usage["days"][0]["records"] == 10


def test_hours_are_the_exact_seconds_rounded_to_six_digits(run: Run, tmp_path: Path) -> None:
    usage = figures(run(stored(tmp_path, objects(two_days())), "--json")[1])
    for one in [*usage["days"], *usage["services"]]:
        for hours, seconds, unit in (
            ("core_hours", "core_seconds", 3600),
            ("gib_hours", "byte_seconds", 3600 * 2**30),
            ("allocated_core_hours", "allocated_core_seconds", 3600),
            ("allocated_gib_hours", "allocated_byte_seconds", 3600 * 2**30),
        ):
            exact = Fraction(one[seconds]) / unit
            assert abs(Fraction(one[hours]) - exact) <= Fraction(1, 2_000_000)
            assert one[hours].as_tuple().exponent == -6


def test_a_gap_counts_where_no_other_record_covers_it(run: Run, tmp_path: Path) -> None:
    """A lost state directory states a gap back to the container's birth, on the day of that."""
    first, second = figures(run(stored(tmp_path, objects(two_days())), "--json")[1])["days"]
    assert first["gap_seconds"] == {}
    assert second["gap_seconds"] == {
        "no_checkpoint": 60,
        "target_restarted": 5,
        "target_unreadable": 60,
    }
    assert second["covered_gap_seconds"] == 6 * 60 - 5  # of the container's uptime, recorded before


def test_a_service_has_the_sums_of_its_days(run: Run, tmp_path: Path) -> None:
    records = [*two_days(), *eventful(ReplicaHistory(service_id="service-2", seed=5))]
    usage = figures(run(stored(tmp_path, objects(records)), "--json")[1])
    assert [one["service_id"] for one in usage["services"]] == ["service-1", "service-2"]
    for total in usage["services"]:
        days = [day for day in usage["days"] if day["service_id"] == total["service_id"]]
        assert total["date"] == ""
        for name in ("records", "core_seconds", "byte_seconds", "allocated_core_seconds"):
            assert total[name] == sum(day[name] for day in days)


def test_the_text_has_a_table_for_each_service(run: Run, tmp_path: Path) -> None:
    code, out, err = run(stored(tmp_path, objects(two_days())))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{tmp_path}: 9 objects, 41 records"
    assert lines[2] == "org-1/service-1"
    assert [line.split()[0] for line in lines[4:7]] == ["2026-11-23", "2026-11-24", "all"]
    assert "target_unreadable 60.000 s" in lines[5]
    assert "gaps over time that other records cover: 355.000 s" in lines[7]
    assert lines[-1] == "OK: no missing, duplicate or damaged records"


# Sources.


def test_archives_count_like_their_objects(run: Run, tmp_path: Path) -> None:
    messages = objects(two_days())
    wanted = figures(run(stored(tmp_path / "objects", messages), "--json")[1])
    builder = ArchiveBuilder()
    for message in messages:
        builder.add(message.id, message.body)
    manifest, body = builder.finish()
    name = ArchiveKey("v1/", "2026-11-23", "23", Shard(0, 1))
    root = stored(tmp_path / "both", messages[:2])  # as after a crash of the compactor
    (root / name.folder).mkdir(parents=True)
    (root / name.body).write_bytes(body)
    (root / name.manifest).write_bytes(manifest.encode())
    assert figures(run(root, "--json")[1])["days"] == wanted["days"]


async def test_kept_bodies_count_once_however_often_they_were_sent(
    run: Run, tmp_path: Path
) -> None:
    messages = objects(two_days())
    _, out, _ = run(stored(tmp_path / "objects", messages), "--json")
    outcomes = [trouble(Reason.TIMEOUT, "no response"), None, trouble(Reason.REJECTED, "denied")]
    state_dir = await kept_in(tmp_path / "state", messages, outcomes)
    code, found, _ = run(state_dir, "--json")
    assert code == 0
    assert figures(found) == figures(out) | {"target": str(state_dir)}
    assert run(state_dir / "billing-scraper")[0] == 0
    assert run(environ={"BYOC_STATE_DIR": str(state_dir)})[0] == 0


async def test_since_and_until_choose_days(run: Run, tmp_path: Path) -> None:
    messages = objects(two_days())
    state_dir = await kept_in(tmp_path / "state", messages)
    for target in (stored(tmp_path / "objects", messages), state_dir):
        for bounds, date in (
            (("--until", "2026-11-24"), "2026-11-23"),
            (("--since", "2026-11-24"), "2026-11-24"),
        ):
            code, out, _ = run(target, *bounds, "--json")
            assert [day["date"] for day in figures(out)["days"]] == [date]
            assert code == 0


# Problems.


def test_damage_returns_1_and_is_shown(run: Run, tmp_path: Path) -> None:
    messages = objects(two_days())
    root = stored(tmp_path, messages)
    (root / messages[3].id).write_bytes(b"x")
    code, out, _ = run(root)
    assert code == 1
    assert "problem torn_object: 1" in out
    assert messages[3].id in out
    assert out.endswith("FAILED: 1 problem found\n")
    code, out, _ = run(root, "--json")
    assert (code, figures(out)["problems"]) == (1, {"torn_object": 1})


async def test_a_changed_body_is_in_no_figure(run: Run, tmp_path: Path) -> None:
    """Another sound object in its place: only the ledger's hash shows it."""
    messages = objects(two_days())
    state_dir = await kept_in(tmp_path, messages)
    (segment,) = (state_dir / "billing-scraper" / "ledger" / "bodies").iterdir()
    changed, other = sorted(segment.iterdir())[:2]
    changed.write_bytes(other.read_bytes())
    code, out, _ = run(state_dir, "--json")
    assert (code, figures(out)["problems"]) == (1, {"torn_object": 1})
    assert str(changed) in run(state_dir)[1]


async def test_a_body_that_was_removed_is_missing(run: Run, tmp_path: Path) -> None:
    state_dir = await kept_in(tmp_path, objects(two_days()))
    (segment,) = (state_dir / "billing-scraper" / "ledger" / "bodies").iterdir()
    next(segment.iterdir()).unlink()
    code, out, _ = run(state_dir, "--json")
    usage = figures(out)
    assert (code, usage["problems"]) == (1, {"missing_sequence": 1})
    assert usage["unkept_records"] == 41 - usage["records"] > 0
    assert f"{usage['unkept_records']} records have no kept body" in run(state_dir)[1]


async def test_a_ledger_without_bodies_returns_2_and_names_the_setting(
    run: Run, tmp_path: Path
) -> None:
    state_dir = await kept_in(tmp_path, objects(two_days()), keep_bodies=False)
    code, out, err = run(state_dir)
    assert (code, out) == (2, "")
    assert "41 billing records, none in a kept body" in err
    assert "expected BYOC_LEDGER_KEEP_BODIES=true" in err
    assert str(state_dir) in err


async def test_a_ledger_of_another_daemon_returns_2(run: Run, tmp_path: Path) -> None:
    state_dir = await kept_in(tmp_path, [])
    code, out, err = run(state_dir)
    assert (code, out) == (2, "")
    assert f"{state_dir}: no billing record: expected a state directory" in err


def test_a_directory_without_billing_objects_returns_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    code, out, err = run(tmp_path)
    assert (code, out) == (2, "")
    assert f"{tmp_path}: no billing record: expected a state directory" in err


USAGE_ERRORS = {
    "no directory": (["/nowhere/at/all"], "/nowhere/at/all: expected a directory"),
    "no bucket": (["s3:///v1"], "s3:///v1 names no bucket"),
    "no time": ([".", "--since", "yesterday"], "yesterday"),
    "two forms": ([".", "--json", "--html", "-"], "not allowed with"),
}


@pytest.mark.parametrize(("argv", "reason"), USAGE_ERRORS.values(), ids=USAGE_ERRORS)
def test_bad_usage_returns_2_and_says_why(run: Run, argv: list[str], reason: str) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert "byoc-agents usage: error:" in err
    assert reason in err


def test_help_returns_0_and_names_the_default(run: Run) -> None:
    code, out, _ = run("--help", environ={"BYOC_STATE_DIR": "/srv/state"})
    assert code == 0
    assert "BYOC_STATE_DIR, now" in " ".join(out.split())
    assert "/srv/state" in out
    assert "example: byoc-agents usage" in out


# The page.


class Texts(HTMLParser):
    """Collects the texts of table rows, and all attributes that could load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in {"src", "href", "srcset", "action"}]
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data: str) -> None:
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())


def test_the_page_has_the_days_and_gaps_and_loads_nothing(run: Run, tmp_path: Path) -> None:
    root = stored(tmp_path / "objects", objects(two_days()))
    file = tmp_path / "usage.html"
    code, out, err = run(root, "--html", file)
    assert (code, out, err) == (0, "", "")
    page = Texts(file.read_text())
    assert all(link.startswith("#") for link in page.links)
    usage = figures(run(root, "--json")[1])
    (total,) = usage["services"]
    rows = {row[0]: row for row in page.rows}
    for day in [*usage["days"], total]:
        row = rows[day["date"] or "all days"]
        assert row[1:5] == [
            f"{day[name]:,.3f}"
            for name in (
                *("core_hours", "allocated_core_hours"),
                *("gib_hours", "allocated_gib_hours"),
            )
        ]
    assert "target_unreadable 60 s" in rows["2026-11-24"]
    assert rows["2026-11-24 00:02:00"][1:5] == [
        *("2026-11-24 00:03:00", "60", "target_unreadable"),
        GAP_MEANINGS["target_unreadable"],
    ]
    assert run(root, "--html", "-")[1].startswith("<!doctype html>")


def test_the_page_shows_problems(run: Run, tmp_path: Path) -> None:
    messages = objects(two_days())
    root = stored(tmp_path, messages)
    (root / messages[3].id).unlink()
    code, out, _ = run(root, "--html", "-")
    assert code == 1
    assert "the figures may be incomplete" in out
    assert "problem missing_sequence: 1" in out


def test_a_page_that_cannot_be_written_returns_2(run: Run, tmp_path: Path) -> None:
    root = stored(tmp_path / "objects", objects(two_days()))
    code, out, err = run(root, "--html", tmp_path / "no" / "usage.html")
    assert (code, out) == (2, "")
    assert f"--html {tmp_path}/no/usage.html: No such file or directory" in err


def test_every_reason_of_a_gap_has_a_meaning() -> None:
    assert GAP_MEANINGS.keys() == set(get_args(GapReason)) - {""}
