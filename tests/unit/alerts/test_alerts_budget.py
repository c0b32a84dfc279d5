"""The daily budget of bytes: its limit, its day, restarts, and what an exhausted one does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from byoc_agents.alerts.budget import DAY_MS, BudgetSpentError
from byoc_agents.app.clock import SystemClock
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolFullError, SpoolUnavailableError
from tests.unit.alerts.relay_harness import RULES, START_MS, Harness, Memory, alert

MIDNIGHT_MS = (START_MS // DAY_MS + 1) * DAY_MS
REFUSED = "byoc_alerts_budget_refusals_total"
USED = "byoc_alerts_budget_used_bytes"


def limited(daily_bytes: int, spool: Any = None) -> Harness:
    """Return a relay with this budget."""
    harness = Harness(spool or Memory())
    harness.rules = msgspec.structs.replace(RULES, daily_bytes=daily_bytes)
    harness.restart()
    return harness


def value(harness: Harness, metric: str) -> float | None:
    return harness.registry.get_sample_value(metric, {"daemon": "alert-forwarder"})


async def measure(*alerts: dict[str, Any]) -> int:
    """Return the bytes of the events that these alerts make."""
    harness = Harness(Memory())
    await harness.accept(*alerts)
    return sum(len(message.body) for message in harness.spool.messages)


async def test_a_day_may_have_exactly_its_bytes_and_not_one_more() -> None:
    size = await measure(alert("A"), alert("B"))
    exact, short = limited(size), limited(size - 1)
    for harness in (exact, short):
        await harness.accept(alert("A"))
    assert await exact.accept(alert("B")) == 1
    with pytest.raises(BudgetSpentError):
        await short.accept(alert("B"))
    assert await short.reported() == ["firing A"]
    assert (value(exact, REFUSED), value(short, REFUSED)) == (0, 1)
    assert exact.relay.status() == {
        "budget_used_bytes": size,
        "budget_bytes": size,
        "budget_resets_at": "2026-11-24T00:00:00.000Z",
    }


async def test_what_adds_no_event_is_accepted_without_a_budget() -> None:
    harness = limited(await measure(alert()))
    await harness.accept(alert())
    assert await harness.accept(alert()) == 0
    assert await harness.accept(alert(labels={"alertname": "Other"})) == 0
    assert harness.outcomes() == {"relayed": 1, "duplicate": 1, "not_selected": 1}


async def test_a_refused_alert_is_reported_by_a_retry_on_the_next_day() -> None:
    harness = limited(await measure(alert("A")))
    await harness.accept(alert("A"))
    harness.clock.ms = MIDNIGHT_MS - 1
    with pytest.raises(BudgetSpentError):
        await harness.accept(alert("B"))
    harness.clock.ms = MIDNIGHT_MS
    assert await harness.accept(alert("B")) == 1
    assert await harness.reported() == ["firing A", "firing B"]


async def test_the_next_day_is_shown_without_a_notification() -> None:
    harness = limited(1 << 20)
    await harness.accept(alert())
    assert value(harness, USED) == await measure(alert())
    harness.clock.ms = MIDNIGHT_MS
    await harness.relay.confirm_reopened()  # before each heartbeat
    assert value(harness, USED) == 0


@pytest.mark.parametrize("back_ms", [60_000, DAY_MS, 40 * DAY_MS])
async def test_a_clock_that_is_set_back_frees_no_byte(back_ms: int) -> None:
    harness = limited(await measure(alert("A")))
    harness.clock.ms = MIDNIGHT_MS + 30_000
    await harness.accept(alert("A"))
    harness.clock.ms -= back_ms
    with pytest.raises(BudgetSpentError):
        await harness.accept(alert("B"))
    harness.restart()
    with pytest.raises(BudgetSpentError):
        await harness.accept(alert("B"))


async def test_a_clock_that_was_far_ahead_does_not_stop_the_alerts_until_that_day() -> None:
    size = await measure(alert("A"))
    harness = limited(size + await measure(alert("C")))
    harness.clock.ms = MIDNIGHT_MS + 1000 * DAY_MS
    await harness.accept(alert("A"))
    harness.clock.ms = MIDNIGHT_MS - 1
    assert await harness.accept(alert("C")) == 1  # the count goes on as that of today
    harness.clock.ms = MIDNIGHT_MS
    assert await harness.accept(alert("B")) == 1


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as made:
        yield made


async def test_a_restart_keeps_the_count(spool: Spool) -> None:
    harness = limited(await measure(alert("A")), spool)
    await harness.accept(alert("A"))
    harness.restart()
    with pytest.raises(BudgetSpentError):
        await harness.accept(alert("B"))


async def test_the_count_is_in_the_file_in_the_commit_of_the_events(tmp_path: Path) -> None:
    """A commit has either both or neither, so a kill cannot part them."""

    class Recorded(Memory):
        """A spool that keeps its commits, and makes them in a real file."""

        def __init__(self, file: Spool) -> None:
            super().__init__()
            self.file = file
            self.commits: list[WriteBatch] = []

        async def commit(self, change: WriteBatch) -> None:
            self.commits.append(change)
            await self.file.commit(change)

    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as made:
        recorded = Recorded(made)
        harness = limited(1 << 20, recorded)
        await harness.accept(alert("A"))
        await harness.accept(alert("B", status="resolved"))
    sizes = [sum(len(message.body) for message in one.messages) for one in recorded.commits]
    stored = [one.state["budget/day"] for one in recorded.commits]
    assert [msgspec.json.decode(one or b"")[1] for one in stored] == [sizes[0], sum(sizes)]
    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as opened:
        assert await opened.state("budget/day") == {"budget/day": stored[-1]}


async def test_notifications_in_progress_count_together(spool: Spool) -> None:
    names = [f"Alert{number}" for number in range(8)]
    sizes = [await measure(alert(name)) for name in names]
    assert len(set(sizes)) == 1
    harness = limited(5 * sizes[0], spool)
    results = await asyncio.gather(
        *(harness.accept(alert(name)) for name in names), return_exceptions=True
    )
    assert results.count(1) == 5
    assert sum(isinstance(one, BudgetSpentError) for one in results) == 3
    assert harness.relay.status()["budget_used_bytes"] == 5 * sizes[0]


@pytest.mark.parametrize("refusal", [SpoolFullError("full"), SpoolUnavailableError("read-only")])
async def test_what_was_not_stored_is_not_counted(refusal: Exception) -> None:
    size = await measure(alert())
    harness = limited(size)
    harness.spool.refusal = refusal
    with pytest.raises(type(refusal)):
        await harness.accept(alert())
    harness.spool.refusal = None
    assert await harness.accept(alert()) == 1
    assert harness.relay.status()["budget_used_bytes"] == size


async def test_a_lost_spool_frees_no_byte_while_the_daemon_runs() -> None:
    harness = limited(await measure(alert("A")))
    await harness.accept(alert("A"))
    harness.spool.kept.clear()
    harness.spool.corruptions += 1
    with pytest.raises(BudgetSpentError):
        await harness.accept(alert("B"))


async def test_an_exhausted_budget_is_logged_once_per_day_and_counted_each_time() -> None:
    harness = limited(await measure(alert("A")))
    await harness.accept(alert("A"))
    with structlog.testing.capture_logs() as logs:
        harness.restart()
        for _ in range(3):
            with pytest.raises(BudgetSpentError):
                await harness.accept(alert("B"))
    (line,) = [one for one in logs if one["event"] == "alerts.budget_spent"]
    assert (line["log_level"], line["resets_at"]) == ("error", "2026-11-24T00:00:00.000Z")
    assert value(harness, REFUSED) == 3


async def test_a_beginning_that_waited_is_reported_when_the_budget_allows_it() -> None:
    """It stays on disk, and the heartbeat does not fail."""
    ended = await measure(alert(status="resolved"))
    harness = limited(ended)
    await harness.accept(alert(status="resolved"))
    harness.clock.ms += 60_000
    await harness.accept(alert())  # too early to be a new fact
    assert harness.outcomes()["unconfirmed"] == 1
    harness.clock.ms += 600_000
    assert await harness.relay.confirm_reopened() == 0
    assert value(harness, REFUSED) == 1
    harness.clock.ms = MIDNIGHT_MS
    harness.restart()
    assert await harness.relay.confirm_reopened() == 1
    assert (await harness.reported())[-1] == "firing Down"


@pytest.mark.parametrize("repeated", [False, True])
async def test_an_alert_that_a_forged_end_ended_is_reported_again(*, repeated: bool) -> None:
    """Who has the token can end an alert that fires, until Alertmanager's next notification."""
    harness = limited(1 << 20)
    await harness.accept(alert())
    await harness.accept(alert(status="resolved"))  # forged
    harness.clock.ms += 60_000
    await harness.accept(alert())  # of Alertmanager, which knows no end
    assert await harness.reported() == ["firing Down", "resolved Down"]
    if repeated:  # then the beginning no longer waits
        await harness.accept(alert(status="resolved"))
    harness.clock.ms += 1000 * int(RULES.reopen_seconds)
    assert await harness.relay.confirm_reopened() == (not repeated)
    assert await harness.accept(alert()) == repeated
    assert (await harness.reported())[-1] == "firing Down"
