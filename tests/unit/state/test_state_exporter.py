"""The exporter's specification: its messages, their times and order, and what survives."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.store import ROW_OVERHEAD_BYTES
from byoc_agents.errors import SpoolError
from byoc_agents.message import Message
from tests.unit.state.exporter_harness import Harness, harness


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness(tmp_path) as made:
        yield made


async def test_the_first_message_is_a_transition_and_the_next_a_heartbeat(
    one: Harness,
) -> None:
    for _ in range(6):
        await one.poll(10)
    assert await one.said() == [("transition", "running")]
    await one.poll(10)
    assert await one.said() == [("transition", "running"), ("heartbeat", "running")]


async def test_a_change_is_published_at_once_and_in_order(one: Harness) -> None:
    await one.poll()
    one.server.rows["system.metrics.ReadonlyReplica"] = "1"
    await one.poll()
    one.stop_server()
    assert await one.poll(), "it hurries"
    await one.poll(2)
    one.start_server(uptime=5)
    await one.poll()
    one.server.rows |= {"uptime": "200", "system.metrics.ReadonlyReplica": "0"}
    await one.poll(200)
    await one.poll(30)
    states = ["running", "degraded", "failed", "starting", "degraded", "running"]
    assert await one.said() == [("transition", state) for state in states]
    unsent = await one.unsent()
    assert [data["sequence"] for data in unsent] == list(range(6))
    assert [data["transition"] for data in unsent] == list(range(1, 7))
    assert unsent[2]["previous_state"] == "degraded"


async def test_another_reason_is_a_transition_too(one: Harness) -> None:
    one.server.rows["system.metrics.ReadonlyReplica"] = "1"
    await one.poll()
    one.server.rows["system.metrics.ZooKeeperSession"] = "0"
    await one.poll()
    assert await one.said() == [("transition", "degraded")] * 2


async def test_one_lost_ping_publishes_nothing(one: Harness) -> None:
    await one.poll()
    one.stop_server()
    await one.poll()
    one.start_server()
    await one.poll(1)
    assert await one.said() == [("transition", "running")]


async def test_while_nothing_can_be_sent_transitions_stay_and_heartbeats_collapse(
    one: Harness,
) -> None:
    for lag in ("0", "900", "0"):
        one.server.rows["system.asynchronous_metrics.ReplicasMaxAbsoluteDelay"] = lag
        for _ in range(90):  # a quarter of an hour
            await one.poll(10)
    said = await one.said()
    assert [state for kind, state in said if kind == "transition"] == [
        "running",
        "degraded",
        "running",
    ]
    assert said.count(("heartbeat", "running")) == 1
    assert len(said) == 4
    last = (await one.unsent())[-1]
    assert last["sequence"] > 30, "the replaced ones are seen as a gap"
    assert last["transition"] == 3, "and that no transition is missing is seen as well"


async def test_a_new_process_continues_at_the_position_of_the_last_one(one: Harness) -> None:
    one.server.rows["system.metrics.ReadonlyReplica"] = "1"
    await one.poll()
    one.start()
    await one.poll()
    one.server.rows["system.metrics.ReadonlyReplica"] = "0"
    await one.poll(31)
    await one.poll(31)
    unsent = await one.unsent()
    assert [(d["kind"], d["state"], d["sequence"]) for d in unsent] == [
        ("transition", "degraded", 0),
        ("heartbeat", "degraded", 1),
        ("transition", "running", 2),
    ]
    assert unsent[0]["reasons"][0]["since"] == unsent[1]["reasons"][0]["since"]


async def test_a_stop_is_published_with_its_evidence(one: Harness) -> None:
    await one.poll()
    await one.exporter.finish()
    last = (await one.unsent())[-1]
    assert (last["kind"], last["state"]) == ("transition", "stopping")
    assert [reason["code"] for reason in last["reasons"]] == ["AGENT_STOPPING"]


async def test_without_room_the_stop_is_published_at_the_second_attempt(one: Harness) -> None:
    await one.poll()
    size = one.spool.max_bytes - one.spool.totals.bytes - ROW_OVERHEAD_BYTES
    await one.spool.put(Message("large", "t", b"x" * size, created_at_ms=1))
    with pytest.raises(SpoolError, match="1 last messages were not stored"):
        await one.exporter.finish()
    await one.spool.remove(["large"])
    await one.exporter.finish()
    assert (await one.unsent())[-1]["state"] == "stopping"


async def test_a_stop_before_the_first_poll_publishes_nothing(one: Harness) -> None:
    await one.exporter.finish()
    assert await one.said() == []


async def test_a_lost_spool_begins_a_new_epoch_with_a_transition(one: Harness) -> None:
    await one.poll()
    before = (await one.unsent())[0]
    for suffix in ("", "-wal", "-shm"):
        one.spool.path.with_name(one.spool.path.name + suffix).unlink(missing_ok=True)
    await one.poll(60)
    await one.poll(10)
    *_, after = await one.unsent()  # what could be salvaged comes first
    assert (after["kind"], after["sequence"], after["transition"]) == ("transition", 0, 1)
    assert after["epoch"] > before["epoch"]


async def test_a_position_of_another_version_starts_a_new_epoch(one: Harness) -> None:
    await one.poll()
    await one.spool.commit(WriteBatch(state={"state/replica/r-0/position": b"?"}))
    one.start()
    await one.poll()
    first, second = await one.unsent()
    assert first["epoch"] < second["epoch"]
    assert second["sequence"] == 0


async def test_each_replica_has_its_own_stream_and_the_service_another(tmp_path: Path) -> None:
    async with harness(tmp_path, "r-0", "r-1") as many:
        await many.poll()
        many.stop_server()
        await many.poll()
        await many.poll(2)
        unsent = await many.unsent()
    streams: dict[str, list[tuple[str, int]]] = {}
    for data in unsent:
        stream = streams.setdefault(data.get("replica", "service"), [])
        stream.append((data["state"], data["sequence"]))
    assert streams == {
        "r-0": [("running", 0), ("failed", 1)],
        "r-1": [("running", 0)],
        "service": [("running", 0), ("partially_running", 1)],
    }
    assert unsent[-1]["replicas"] == {"running": 1, "failed": 1}


async def test_an_exporter_of_many_does_not_call_them_stopping_when_it_stops(
    tmp_path: Path,
) -> None:
    async with harness(tmp_path, "r-0", "r-1") as many:
        await many.poll()
        await many.exporter.finish()
        unsent = await many.unsent()
    assert [d["state"] for d in unsent if "replica" in d] == ["running"] * 4
    assert unsent[-1]["reasons"][0]["code"] == "AGENT_STOPPING"


async def test_it_polls_at_its_interval_and_faster_if_the_state_may_change(one: Harness) -> None:
    running = asyncio.create_task(one.exporter.run())
    waits = []
    for look in range(5):
        (wait,) = await one.clock.parked()
        waits.append(wait)
        if look == 1:
            one.stop_server()
        await one.clock.advance(wait)
    running.cancel()
    assert waits == [10, 10, 1, 1, 10]


async def test_status_shows_the_observation_and_no_secret(one: Harness) -> None:
    assert one.exporter.status() == {"replicas": {"r-0": {"state": None}}}
    await one.poll()
    status = one.exporter.status()["replicas"]["r-0"]
    assert (status["state"], status["healthy"], status["version"]) == ("running", True, "24.8.4.13")
    assert status["sources"]["system.metrics"] == "ok"
    json.dumps(status)
