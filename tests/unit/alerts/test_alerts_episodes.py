"""Episodes: alerts that fire again, ends that are never received, and the heartbeat's summary."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.alerts.forwarder import HeartbeatSender
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolFullError
from tests.unit.alerts.relay_harness import RULES, Harness, Memory, alert

WINDOW_MS, REMINDER_MS = 360_000, 900_000
FIRST_END, SECOND_END = "2026-11-23T19:10:14.988Z", "2026-11-23T19:40:14.988Z"


@pytest.fixture
def harness() -> Harness:
    return Harness(Memory())


@pytest.fixture
async def durable(tmp_path: Path) -> AsyncIterator[Harness]:
    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as spool:
        yield Harness(spool)


def resolved(ends_at: str = FIRST_END, **changes: Any) -> dict[str, Any]:
    return alert(status="resolved", endsAt=ends_at, **changes)


async def reported(harness: Harness) -> list[tuple[str, str]]:
    events = [event["data"] for event in await harness.events()]
    return [(data["status"], data["starts_at"][11:16]) for data in events]


async def send_heartbeat(harness: Harness) -> dict[str, Any]:
    sender = HeartbeatSender(
        RULES.origin,
        harness.relay,
        harness.spool,
        harness.clock,
        intervals=HeartbeatIntervals(60, 300),
    )
    await sender.send()
    data: dict[str, Any] = (await harness.events())[-1]["data"]
    return data


async def test_a_firing_long_after_the_end_is_a_new_fact_at_once(harness: Harness) -> None:
    await harness.accept(resolved())
    harness.clock.ms += WINDOW_MS
    assert await harness.accept(alert()) == 1
    assert await harness.reported() == ["firing Down", "resolved Down", "firing Down"]
    assert len({event["id"] for event in await harness.events()}) == 3


async def test_an_unconfirmed_firing_that_is_not_retracted_is_a_new_fact(
    durable: Harness,
) -> None:
    await durable.accept(resolved())
    durable.clock.ms += WINDOW_MS - 1
    assert await durable.accept(alert()) == 0
    assert durable.outcomes() == {"relayed": 1, "unconfirmed": 1}
    received_at_ms = durable.clock.ms
    durable.clock.ms += WINDOW_MS - 1
    durable.restart()
    assert await durable.relay.confirm_reopened() == 0
    durable.clock.ms += 1
    durable.restart()
    assert await durable.relay.confirm_reopened() == 1
    assert await durable.relay.confirm_reopened() == 0
    again = (await durable.events())[-1]["data"]
    assert (again["status"], again["received_at"]) == ("firing", "2026-11-23T19:12:24.987Z")
    assert received_at_ms + WINDOW_MS == durable.clock.ms
    durable.clock.ms += REMINDER_MS
    durable.restart()
    await durable.accept(alert())
    await durable.accept(resolved(SECOND_END))
    notifications = [e["data"]["notification"] for e in await durable.events()]
    assert notifications == ["transition"] * 3 + ["reminder", "transition"]
    assert (await durable.reported())[-2:] == ["firing Down", "resolved Down"]
    assert len({event["id"] for event in await durable.events()}) == 5


async def test_a_copy_that_alertmanager_retracts_is_never_reported(durable: Harness) -> None:
    await durable.accept(resolved())
    await durable.accept(alert())
    durable.clock.ms += WINDOW_MS - 1
    await durable.accept(resolved())
    durable.restart()
    durable.clock.ms += WINDOW_MS
    assert await durable.relay.confirm_reopened() == 0
    assert await durable.reported() == ["firing Down", "resolved Down"]


async def test_a_later_end_confirms_the_beginning_before_it(harness: Harness) -> None:
    await harness.accept(resolved())
    await harness.accept(alert())
    assert await harness.accept(resolved(SECOND_END)) == 2
    assert await harness.reported() == ["firing Down", "resolved Down"] * 2
    assert await harness.accept(resolved(SECOND_END), resolved()) == 0


async def test_an_old_end_does_not_end_the_next_beginning(harness: Harness) -> None:
    await harness.accept(resolved())
    harness.clock.ms += WINDOW_MS
    await harness.accept(alert())
    assert await harness.accept(resolved()) == 0
    assert (await send_heartbeat(harness))["open_episodes"] == 1


async def test_a_copy_that_is_retracted_too_late_is_ended(harness: Harness) -> None:
    await harness.accept(resolved())
    for _ in range(2):
        await harness.accept(alert())
        harness.clock.ms += WINDOW_MS
        assert await harness.relay.confirm_reopened() == 1
        harness.restart()
        assert await harness.accept(resolved()) == 1
        assert await harness.accept(resolved()) == 0
    assert await harness.reported() == ["firing Down", "resolved Down"] * 3
    assert len({event["id"] for event in await harness.events()}) == 6


async def test_it_fires_again_any_number_of_times(harness: Harness) -> None:
    for minute in range(10, 16):
        await harness.accept(alert())
        harness.restart()
        await harness.accept(resolved(f"2026-11-23T19:{minute}:00Z"))
        harness.clock.ms += WINDOW_MS
    assert await harness.reported() == ["firing Down", "resolved Down"] * 6
    assert len({event["id"] for event in await harness.events()}) == 12


async def test_two_forwarders_give_a_beginning_after_an_end_the_same_id() -> None:
    """Even if one of them missed an earlier end."""
    one, other = Harness(Memory()), Harness(Memory())
    await one.accept(resolved("2026-11-23T19:07:00Z"))
    one.clock.ms += WINDOW_MS
    await one.accept(alert())
    other.clock.ms += 15_000
    for harness in (one, other):
        await harness.accept(resolved())
        harness.clock.ms += WINDOW_MS
        await harness.accept(alert())
        await harness.accept(resolved(SECOND_END))
    ids = [[event["id"] for event in await harness.events()][-2:] for harness in (one, other)]
    assert ids[0] == ids[1]


async def test_a_confirmed_beginning_that_cannot_be_stored_is_reported_later(
    harness: Harness,
) -> None:
    await harness.accept(resolved())
    await harness.accept(alert())
    harness.clock.ms += WINDOW_MS
    harness.spool.refusal = SpoolFullError("full")
    with pytest.raises(SpoolFullError):
        await harness.relay.confirm_reopened()
    harness.spool.refusal = None
    assert await harness.relay.confirm_reopened() == 1


async def test_the_heartbeat_confirms_and_counts(harness: Harness) -> None:
    await harness.accept(resolved())
    await harness.accept(alert())
    assert (await send_heartbeat(harness))["open_episodes"] == 0
    harness.clock.ms += WINDOW_MS
    assert (await send_heartbeat(harness))["open_episodes"] == 1
    assert [event["type"] for event in await harness.events()][-2:] == [
        "byoc.alert.v1",
        "byoc.alert.heartbeat.v1",
    ]


async def test_a_later_start_ends_the_earlier_episode(durable: Harness) -> None:
    await durable.accept(alert())
    durable.restart()
    await durable.accept(alert(startsAt="2026-11-23T19:30:00Z"))
    assert await reported(durable) == [
        ("firing", "19:05"),
        ("resolved", "19:05"),
        ("firing", "19:30"),
    ]
    ended = (await durable.events())[1]
    assert ended["data"]["end_inferred"] is True
    assert ended["data"]["reconstructed"] is False
    assert ended["data"]["ends_at"] is None
    assert ended["time"] == ended["data"]["received_at"]
    assert await durable.accept(resolved()) == 0
    assert (await send_heartbeat(durable))["open_episodes"] == 1
    inferred = [e["data"].get("end_inferred") for e in await durable.events()]
    assert inferred == [False, True, False, None]


async def test_a_later_episode_with_only_its_end_received_ends_the_earlier_one(
    harness: Harness,
) -> None:
    await harness.accept(alert())
    await harness.accept(resolved(SECOND_END, startsAt="2026-11-23T19:30:00Z"))
    assert [status for status, _ in await reported(harness)] == ["firing", "resolved"] * 2
    assert (await send_heartbeat(harness))["open_episodes"] == 0


async def test_a_later_start_drops_a_copy_that_was_not_confirmed(harness: Harness) -> None:
    await harness.accept(resolved())
    await harness.accept(alert())
    await harness.accept(alert(startsAt="2026-11-23T19:30:00Z"))
    harness.clock.ms += WINDOW_MS
    assert await harness.relay.confirm_reopened() == 0


async def test_an_earlier_start_that_still_fires_is_the_same_episode(harness: Harness) -> None:
    """Alertmanager merges overlapping alerts and keeps the earliest start."""
    await harness.accept(alert(startsAt="2026-11-23T19:06:00Z"))
    assert await harness.accept(alert()) == 0
    harness.clock.ms += REMINDER_MS
    assert await harness.accept(alert()) == 1
    assert await harness.accept(resolved()) == 1
    assert await reported(harness) == [
        ("firing", "19:06"),
        ("firing", "19:06"),
        ("resolved", "19:06"),
    ]


async def test_an_earlier_episode_that_comes_late_is_reported_and_ends_nothing(
    harness: Harness,
) -> None:
    await harness.accept(alert(startsAt="2026-11-23T19:30:00Z"))
    assert await harness.accept(resolved()) == 2
    assert await reported(harness) == [
        ("firing", "19:30"),
        ("firing", "19:05"),
        ("resolved", "19:05"),
    ]
    assert (await send_heartbeat(harness))["open_episodes"] == 1


async def test_state_of_0_1_0_is_continued(harness: Harness) -> None:
    await harness.accept(alert(), alert("Other"), resolved())
    facts = [key.rpartition("/")[2] for key in harness.spool.kept]
    harness.spool.kept = {f"told/{event_id}": b"%d" % harness.clock.ms for event_id in facts}
    harness.restart()
    harness.clock.ms += WINDOW_MS
    assert await harness.accept(alert("Other")) == 0
    assert (await send_heartbeat(harness))["open_episodes"] == 1
    assert await harness.accept(alert()) == 1
    harness.restart()
    assert (await send_heartbeat(harness))["open_episodes"] == 2


async def test_the_digest_is_computed_as_documented(harness: Harness) -> None:
    assert (await send_heartbeat(harness))["open_digest"] == hashlib.sha256(b"").hexdigest()[:32]
    await harness.accept(alert("B"), alert("A"), alert("Gone"))
    await harness.accept(resolved(labels={"alertname": "Gone", "severity": "critical"},
                                fingerprint=alert("Gone")["fingerprint"]))  # fmt: skip
    rows = sorted(f"{alert(name)['fingerprint']} 2026-11-23T19:05:54.988Z" for name in "AB")
    data = await send_heartbeat(harness)
    assert data["open_episodes"] == 2
    assert data["open_digest"] == hashlib.sha256("\n".join(rows).encode()).hexdigest()[:32]


async def test_an_episode_without_an_event_for_seven_days_is_not_counted(harness: Harness) -> None:
    await harness.accept(alert())
    harness.clock.ms += 7 * 86_400_000
    assert (await send_heartbeat(harness))["open_episodes"] == 1
    harness.clock.ms += 1
    assert (await send_heartbeat(harness))["open_episodes"] == 0


async def test_a_heartbeat_counts_pending_commits(harness: Harness) -> None:
    commit, started, gate = harness.spool.commit, asyncio.Event(), asyncio.Event()

    async def slow(change: WriteBatch) -> None:
        started.set()
        await gate.wait()
        await commit(change)

    await harness.accept(alert("Other"))
    harness.spool.commit = slow
    accepting = asyncio.create_task(harness.accept(alert()))
    await started.wait()
    assert harness.relay.open_episodes()[0] == 2
    gate.set()
    await accepting
    assert harness.relay.open_episodes()[0] == 2
