"""Heartbeats of the forwarder: each comes within the time that the one before it states."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import pytest

from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.forwarder import HeartbeatSender
from byoc_agents.alerts.relay import Relay
from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.app.metrics import Metrics
from byoc_agents.errors import SpoolFullError
from lab.fakes.core import FakeClock
from tests.unit.alerts.relay_harness import RULES, START_MS, Memory, alert, body

REOPEN_SECONDS = 1230
INTERVALS = HeartbeatIntervals(60, 300)


class Beat(NamedTuple):
    """When a heartbeat was stored, in seconds since the start, and the interval it states."""

    second: float
    stated_seconds: float


class Harness:
    """A relay and the heartbeats of its forwarder, over a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = FakeClock(wall_ms=START_MS)
        self.spool = Memory()
        spool: Any = self.spool
        rules = msgspec.structs.replace(RULES, reopen_seconds=REOPEN_SECONDS)
        counts = Counts(Metrics(), "alert-forwarder")
        self.relay = Relay(rules, spool, self.clock, counts)
        self.sender = HeartbeatSender(
            RULES.origin, self.relay, spool, self.clock, intervals=INTERVALS
        )

    async def accept(self, *alerts: dict[str, Any]) -> int:
        return await self.relay.accept(body(*alerts))

    def beats(self) -> list[Beat]:
        """Return the heartbeats since the last call."""
        events = [json.loads(message.body) for message in self.spool.messages]
        self.spool.messages.clear()
        return [
            Beat(
                (parse_rfc3339(event["time"]) - START_MS) / 1000,
                event["data"]["interval_seconds"],
            )
            for event in events
            if event["type"] == "byoc.alert.heartbeat.v1"
        ]


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    made = Harness()
    running = asyncio.ensure_future(made.sender.run())
    await made.clock.parked()
    yield made
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_heartbeats_slow_down_ten_minutes_after_the_start(harness: Harness) -> None:
    await harness.clock.advance(1500)
    frequent = [Beat(second, 60) for second in range(0, 600, 60)]
    assert harness.beats() == [*frequent, Beat(600, 300), Beat(900, 300), Beat(1200, 300),
                             Beat(1500, 300)]  # fmt: skip


@pytest.mark.parametrize("status", ["firing", "resolved"])
async def test_an_alert_makes_them_frequent_again_within_the_shorter_interval(
    harness: Harness, status: str
) -> None:
    if status == "resolved":
        await harness.accept(alert())
    await harness.clock.advance(1510)
    harness.beats()
    assert await harness.accept(alert(status=status)) == 1
    await harness.clock.advance(1000)
    changed = 1560
    frequent = [Beat(second, 60) for second in range(changed, 2110, 60)]
    assert harness.beats() == [*frequent, Beat(2160, 300), Beat(2460, 300)]


async def test_a_reminder_and_a_watchdog_are_no_change(harness: Harness) -> None:
    await harness.accept(alert())
    await harness.clock.advance(1510)
    harness.beats()
    watchdog = alert("Watchdog", labels={"alertname": "Watchdog"})
    assert await harness.accept(alert(), watchdog) == 2
    await harness.clock.advance(290)
    assert harness.beats() == [Beat(1800, 300)]


async def test_an_alert_that_waits_is_reported_within_the_shorter_interval(
    harness: Harness,
) -> None:
    """With a heartbeat every five minutes too."""
    await harness.accept(alert(status="resolved"))
    await harness.clock.advance(1000)
    assert await harness.accept(alert()) == 0, "it may be a copy"
    await harness.clock.advance(REOPEN_SECONDS - 20)
    reported = [message.created_at_ms for message in harness.spool.messages if not message.replaces]
    assert len(reported) == 2
    await harness.clock.advance(80)
    reported = [message.created_at_ms for message in harness.spool.messages if not message.replaces]
    waited_seconds = (reported[-1] - START_MS) / 1000 - 1000
    assert REOPEN_SECONDS <= waited_seconds <= REOPEN_SECONDS + INTERVALS.seconds
    assert harness.beats()[-1].stated_seconds == 60


async def test_a_heartbeat_that_could_not_be_stored_is_tried_after_the_shorter_interval(
    harness: Harness,
) -> None:
    await harness.clock.advance(1490)
    harness.beats()
    harness.spool.refusal = SpoolFullError("full")
    await harness.clock.advance(120)  # due at 1500
    harness.spool.refusal = None
    await harness.clock.advance(400)
    assert harness.beats() == [Beat(1620, 300), Beat(1920, 300)]


async def test_a_stop_is_stated_at_once(harness: Harness) -> None:
    await harness.clock.advance(1490)
    await harness.sender.send(stopping=True)
    assert json.loads(harness.spool.messages[-1].body)["data"]["stopping"]
