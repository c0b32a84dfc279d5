"""The relay reports each fact once and in order, even across restarts and losses."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from byoc_agents.alerts import matchers
from byoc_agents.alerts.dedup import AlertMemory, Episode, Fact
from byoc_agents.app.clock import SystemClock
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import SpoolFullError, SpoolUnavailableError
from tests.unit.alerts.forwarder_settings import settings
from tests.unit.alerts.relay_harness import RULES, Harness, Memory, alert


@pytest.fixture
def harness() -> Harness:
    return Harness(Memory())


@pytest.fixture
async def durable(tmp_path: Path) -> AsyncIterator[Harness]:
    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as spool:
        yield Harness(spool)


async def test_the_ids_are_those_of_every_forwarder_and_release(harness: Harness) -> None:
    """A different id would report every open alert again after an upgrade."""
    fixed = {"fingerprint": "b0aa59dc5775f441"}
    await harness.accept(alert(status="resolved", **fixed))
    assert [event["id"] for event in await harness.events()] == [
        "2ee2448516e374096cac11584f61fe3c",
        "ef80ae3078c2449e08fb35b191cc5f51",
    ]


async def test_retries_copies_of_the_peer_and_repeated_groups_are_reported_once(
    harness: Harness,
) -> None:
    await harness.accept(alert())
    await harness.accept(alert(), externalURL="http://other-peer")
    await harness.accept(alert(), alert("Other"))
    assert await harness.reported() == ["firing Down", "firing Other"]
    assert harness.outcomes() == {"relayed": 2, "duplicate": 2}


async def test_the_same_alert_twice_in_one_body_is_reported_once(harness: Harness) -> None:
    await harness.accept(alert(), alert())
    assert await harness.reported() == ["firing Down"]


async def test_copies_of_two_peers_at_the_same_time_are_reported_once(durable: Harness) -> None:
    await asyncio.gather(*(durable.accept(alert(), alert(status="resolved")) for _ in range(8)))
    assert await durable.reported() == ["firing Down", "resolved Down"]
    assert durable.outcomes() == {"relayed": 2, "duplicate": 7, "unconfirmed": 7}
    durable.clock.ms += 3_600_000
    assert await durable.relay.confirm_reopened() == 0


async def test_the_second_copy_is_stored_if_the_first_is_not(harness: Harness) -> None:
    refusals = iter([SpoolUnavailableError("once"), None])
    commit = harness.spool.commit

    async def slow(change: WriteBatch) -> None:
        harness.spool.refusal = next(refusals)
        await asyncio.sleep(0)  # the other copy is planned meanwhile
        await commit(change)

    harness.spool.commit = slow
    outcomes = await asyncio.gather(
        harness.accept(alert()), harness.accept(alert()), return_exceptions=True
    )
    assert isinstance(outcomes[0], SpoolUnavailableError)
    assert outcomes[1] == 1
    assert await harness.reported() == ["firing Down"]


async def test_alerts_of_two_receivers_have_different_ids(harness: Harness) -> None:
    await harness.accept(alert(), receiver="a")
    await harness.accept(alert(), receiver="b")
    first, second = await harness.events()
    assert first["id"] != second["id"]
    assert first["data"] == second["data"]


async def test_the_beginning_is_derived_if_only_the_end_is_received(harness: Harness) -> None:
    harness.clock.ms += 3_600_000
    await harness.accept(alert(status="resolved"))
    began, ended = await harness.events()
    assert (began["data"]["status"], began["data"]["reconstructed"]) == ("firing", True)
    assert (ended["data"]["status"], ended["data"]["reconstructed"]) == ("resolved", False)
    assert (began["data"]["ends_at"], ended["data"]["ends_at"]) == (
        None,
        "2026-11-23T19:10:14.988Z",
    )
    assert (
        began["data"]["received_at"] == ended["data"]["received_at"] == "2026-11-23T20:06:24.988Z"
    )


async def test_the_next_episode_is_reported(harness: Harness) -> None:
    await harness.accept(alert(status="resolved"))
    await harness.accept(alert(startsAt="2026-11-23T19:30:00Z"))
    assert await harness.reported() == ["firing Down", "resolved Down", "firing Down"]
    assert len({event["id"] for event in await harness.events()}) == 3


async def test_repeats_are_kept_as_reminders(harness: Harness) -> None:
    await harness.accept(alert())
    for _ in range(2):
        harness.clock.ms += 900_000
        await harness.accept(alert())
        await harness.accept(alert())  # the other peer
    events = await harness.events()
    assert [e["data"]["notification"] for e in events] == ["transition", "reminder", "reminder"]
    assert len({e["id"] for e in events}) == 3
    assert events[2]["time"] == events[2]["data"]["received_at"] == "2026-11-23T19:36:24.988Z"


async def test_only_the_latest_of_several_queued_reminders_is_kept(durable: Harness) -> None:
    await durable.accept(alert())
    for _ in range(3):
        durable.clock.ms += 900_000
        await durable.accept(alert())
    events = await durable.events()
    assert [e["data"]["notification"] for e in events] == ["transition", "reminder"]
    assert events[1]["data"]["received_at"] == "2026-11-23T19:51:24.988Z"


async def test_two_forwarders_give_a_reminder_the_same_id(harness: Harness) -> None:
    other = Harness(Memory())
    for forwarder, late_ms in ((harness, 0), (other, 15_000)):
        await forwarder.accept(alert())
        forwarder.clock.ms += 900_000 + late_ms
        await forwarder.accept(alert())
    ids = [[event["id"] for event in await w.events()] for w in (harness, other)]
    assert ids[0] == ids[1]


async def test_alerts_that_are_not_selected_are_counted(harness: Harness) -> None:
    low = alert(labels={"alertname": "Low", "severity": "info"})
    assert await harness.accept(low, alert()) == 1
    assert harness.outcomes() == {"not_selected": 1, "relayed": 1}


@pytest.mark.parametrize(
    ("namespace", "outcomes"),
    [("clickhouse", {"not_selected": 2, "relayed": 1}), ("*", {"relayed": 3})],
)
async def test_clickhouses_alerts_of_another_namespace_are_not_selected(
    namespace: str, outcomes: dict[str, float], harness: Harness
) -> None:
    _, own = settings(BYOC_ALERTS_MATCHERS="", BYOC_ALERTS_NAMESPACE=namespace)
    harness.rules = msgspec.structs.replace(RULES, selector=matchers.parse(own.selected))
    harness.restart()
    labels = {"alertname": "ClickHouseDown", "severity": "critical"}
    for number, where in enumerate(({"namespace": "clickhouse"}, {"namespace": "another"}, {})):
        await harness.accept(alert(labels=labels | where, fingerprint=f"{number:016x}"))
    assert harness.outcomes() == outcomes


async def test_only_the_latest_watchdog_is_kept(durable: Harness) -> None:
    for _ in range(3):
        durable.clock.ms += 60_000
        await durable.accept(alert("Watchdog"))
    (event,) = await durable.events()
    assert event["type"] == "byoc.alert.watchdog.v1"
    assert event["data"]["received_at"] == "2026-11-23T19:09:24.988Z"
    assert durable.relay.last_watchdog_ms == durable.clock.ms


async def test_nothing_is_reported_twice_after_a_restart(durable: Harness) -> None:
    await durable.accept(alert())
    durable.restart()
    assert await durable.accept(alert(status="resolved")) == 1
    assert await durable.reported() == ["firing Down", "resolved Down"]


@pytest.mark.parametrize("refusal", [SpoolFullError("full"), SpoolUnavailableError("read-only")])
async def test_an_alert_that_was_not_stored_is_reported_by_a_retry(
    harness: Harness, refusal: Exception
) -> None:
    harness.spool.refusal = refusal
    with pytest.raises(type(refusal)):
        await harness.accept(alert())
    harness.spool.refusal = None
    assert await harness.accept(alert()) == 1
    assert await harness.reported() == ["firing Down"]


async def test_open_alerts_are_reported_again_after_the_spool_was_lost(harness: Harness) -> None:
    await harness.accept(alert())
    harness.spool.kept.clear()
    harness.spool.corruptions += 1
    assert await harness.accept(alert()) == 1


async def test_the_memory_is_bounded_and_removes_the_oldest_facts_from_disk(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as spool:
        memory = AlertMemory(max_facts=5)

        async def commit(new: dict[str, Fact], at_ms: int) -> None:
            state = memory.state(new, {}, at_ms)
            await spool.commit(WriteBatch(state=state))
            memory.apply_commit(new, {}, state)
            memory.end_commit(state)

        for number in range(20):
            episode = Episode(f"r-{number:016x}", number)
            await commit({f"id-{number}": Fact(number, "firing", episode)}, number)
        stored = await spool.state("fact/")
        assert set(stored) == {f"fact/{n:015d}/id-{n}" for n in range(15, 20)}
        assert (len(memory), memory.episodes.summary(19)[0]) == (5, 5)
        await commit({}, 8 * 24 * 3600 * 1000)
        assert (len(memory), await spool.state("fact/")) == (0, {})
        assert memory.episodes.summary(19)[0] == 0


def test_the_receivers_of_forgotten_alerts_are_forgotten_too() -> None:
    """Alertmanager may have any number of receivers over time."""
    memory = AlertMemory(max_facts=5)
    for number in range(50):
        new = {f"id-{number}": Fact(number, "firing", Episode(f"{number:08x}-{7:016x}", number))}
        state = memory.state(new, {}, number)
        memory.apply_commit(new, {}, state)
        memory.end_commit(state)
        assert f"{number:08x}" in memory.episodes.receivers
        assert len(memory.episodes.receivers) <= 10
    assert {f"{number:08x}" for number in range(45, 50)} <= memory.episodes.receivers


def test_commits_in_progress_do_not_forget_the_same_fact_twice() -> None:
    memory = AlertMemory(max_facts=2)

    def begin(number: int) -> tuple[dict[str, Fact], dict[str, bytes | None]]:
        new = {f"id-{number}": Fact(number, "firing", Episode(f"r-{number:016x}", number))}
        return new, memory.state(new, {}, number)

    for number in range(2):
        new, state = begin(number)
        memory.apply_commit(new, {}, state)
        memory.end_commit(state)
    (_, first), (_, second) = begin(2), begin(3)
    forgotten = [f"fact/{0:015d}/id-0"]
    assert [key for key, value in first.items() if value is None] == forgotten
    assert None not in second.values()
    memory.end_commit(first)  # it failed
    memory.end_commit(second)
    _, third = begin(4)
    assert [key for key, value in third.items() if value is None] == forgotten


async def test_a_fact_that_is_reported_again_has_one_key_even_if_0_1_0_wrote_it(
    tmp_path: Path,
) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as spool:
        await spool.commit(WriteBatch(state={"told/old": b"7", "told/new": b"8"}))
        memory = AlertMemory()
        await memory.load(spool)
        assert (memory.fact("old"), memory.fact("new")) == (Fact(7), Fact(8))
        again = {"old": Fact(9), "new": Fact(10)}
        state = memory.state(again, {}, 10)
        await spool.commit(WriteBatch(state=state))
        memory.apply_commit(again, {}, state)
        assert set(await spool.state("fact/")) == {f"fact/{9:015d}/old", f"fact/{10:015d}/new"}
        assert await spool.state("told/") == {}
        assert (memory.fact("old"), memory.fact("new"), len(memory)) == (Fact(9), Fact(10), 2)
