"""The relay: what is told, once, in order, and nothing that should not leave."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from agents.alerts import matchers
from agents.alerts.counts import Counts
from agents.alerts.event import MAX_ANNOTATION, MAX_LABEL, Allowed, Origin
from agents.alerts.relay import Relay, Rules
from agents.alerts.schema import components
from agents.alerts.told import Told
from agents.core.change import Change
from agents.core.clock import SystemClock
from agents.core.errors import SpoolFullError, SpoolUnavailableError
from agents.core.metrics import Metrics
from agents.core.sink import Message
from agents.core.spool import Spool

DATA = Path(__file__).parent / "data"
START_MS = 1795460754988
RULES = Rules(
    origin=Origin("org", "svc", "us-east-1", "pod-0"),
    selector=matchers.parse('severity=~"critical|warning"'),
    watchdog=matchers.parse('alertname="Watchdog"'),
    allowed=Allowed(("alertname", "severity", "cluster"), ("summary",)),
    reminder_seconds=900,
)


class Clock(SystemClock):
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.ms = START_MS + 30_000

    def wall_ns(self) -> int:
        return self.ms * 1_000_000


class Memory:
    """Stands for the spool: keeps what is committed, or refuses as told."""

    def __init__(self) -> None:
        self.resets = 0
        self.messages: list[Message] = []
        self.kept: dict[str, bytes] = {}
        self.refusal: Exception | None = None

    async def state(self, prefix: str = "") -> dict[str, bytes]:
        return {key: value for key, value in self.kept.items() if key.startswith(prefix)}

    async def commit(self, change: Change) -> None:
        if self.refusal:
            raise self.refusal
        self.messages += change.messages
        for key, value in change.state.items():
            if value is None:
                self.kept.pop(key, None)
            else:
                self.kept[key] = value


class World:
    """A relay over a spool, and what came out of it."""

    def __init__(self, spool: Any) -> None:
        self.clock = Clock()
        self.spool = spool
        metrics = Metrics()
        self.registry = metrics.registry
        self.counts = Counts(metrics, "alert-forwarder")
        self.relay = self.restarted()

    def restarted(self) -> Relay:
        self.relay = Relay(RULES, self.spool, self.clock, self.counts)
        return self.relay

    async def accept(self, *alerts: Mapping[str, Any], receiver: str = "byoc", **top: Any) -> int:
        whole = {"version": "4", "receiver": receiver, "alerts": list(alerts)} | top
        return await self.relay.accept(json.dumps(whole).encode())

    async def events(self) -> list[dict[str, Any]]:
        if isinstance(self.spool, Memory):
            return [json.loads(message.body) for message in self.spool.messages]
        return [json.loads(message.body) for message in await self.spool.head(1000)]

    async def told(self) -> list[str]:
        events = await self.events()
        return [f"{e['data']['status']} {e['data']['labels']['alertname']}" for e in events]

    def fates(self) -> dict[str, float]:
        samples = [s for family in self.registry.collect() for s in family.samples]
        totals = [s for s in samples if s.name == "byoc_alerts_total"]
        return {s.labels["fate"]: s.value for s in totals if s.value}


@pytest.fixture
def world() -> World:
    return World(Memory())


@pytest.fixture
async def durable(tmp_path: Path) -> AsyncIterator[World]:
    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as spool:
        yield World(spool)


def alert(name: str = "Down", status: str = "firing", **changes: Any) -> dict[str, Any]:
    ended = "2026-11-23T19:10:14.988Z" if status == "resolved" else "0001-01-01T00:00:00Z"
    return {
        "status": status,
        "labels": {"alertname": name, "severity": "critical", "instance": "10.0.0.7:8123"},
        "annotations": {"summary": f"{name} is down", "description": "of db.secret"},
        "startsAt": "2026-11-23T19:05:54.988Z",
        "endsAt": ended,
        "generatorURL": "http://vm:9090/graph",
        "fingerprint": hashlib.sha256(name.encode()).hexdigest()[:16],
    } | changes


async def test_an_alert_is_told_from_allowed_fields_only(world: World) -> None:
    assert await world.accept(alert()) == 1
    (event,) = await world.events()
    assert event["source"] == "/organizations/org/services/svc/alerts"
    assert event["time"] == "2026-11-23T19:05:54.988Z"
    assert event["data"] == {
        "organization_id": "org",
        "service_id": "svc",
        "region": "us-east-1",
        "status": "firing",
        "notification": "transition",
        "reconstructed": False,
        "fingerprint": alert()["fingerprint"],
        "starts_at": "2026-11-23T19:05:54.988Z",
        "ends_at": None,
        "received_at": "2026-11-23T19:06:24.988Z",
        "labels": {"alertname": "Down", "severity": "critical"},
        "annotations": {"summary": "Down is down"},
        "cut": [],
        "group_truncated_alerts": 0,
    }


async def test_the_ids_are_those_of_every_forwarder_and_release(world: World) -> None:
    """A changed id would tell every open alert once more after an upgrade."""
    fixed = {"fingerprint": "b0aa59dc5775f441"}
    await world.accept(alert(status="resolved", **fixed))
    assert [event["id"] for event in await world.events()] == [
        "2ee2448516e374096cac11584f61fe3c",
        "ef80ae3078c2449e08fb35b191cc5f51",
    ]


async def test_retries_the_other_peer_and_a_group_sent_again_are_told_once(world: World) -> None:
    await world.accept(alert())
    await world.accept(alert(), externalURL="http://other-peer")
    await world.accept(alert(), alert("Other"))
    assert await world.told() == ["firing Down", "firing Other"]
    assert world.fates() == {"relayed": 2, "duplicate": 2}


async def test_the_same_alert_twice_in_one_body_is_told_once(world: World) -> None:
    await world.accept(alert(), alert())
    assert await world.told() == ["firing Down"]


async def test_two_peers_at_the_same_moment_are_told_once(durable: World) -> None:
    await asyncio.gather(*(durable.accept(alert(), alert(status="resolved")) for _ in range(8)))
    assert await durable.told() == ["firing Down", "resolved Down"]
    assert durable.fates() == {"relayed": 2, "duplicate": 14}


async def test_when_the_first_of_two_copies_is_not_stored_the_second_is(world: World) -> None:
    refusals = iter([SpoolUnavailableError("once"), None])
    commit = world.spool.commit

    async def slow(change: Change) -> None:
        world.spool.refusal = next(refusals)
        await asyncio.sleep(0)  # the other copy is planned now
        await commit(change)

    world.spool.commit = slow
    outcomes = await asyncio.gather(
        world.accept(alert()), world.accept(alert()), return_exceptions=True
    )
    assert isinstance(outcomes[0], SpoolUnavailableError)
    assert outcomes[1] == 1
    assert await world.told() == ["firing Down"]


async def test_two_receivers_are_told_apart(world: World) -> None:
    await world.accept(alert(), receiver="a")
    await world.accept(alert(), receiver="b")
    first, second = await world.events()
    assert first["id"] != second["id"]
    assert first["data"] == second["data"]


async def test_began_goes_before_ended_also_when_only_the_end_is_seen(world: World) -> None:
    world.clock.ms += 3_600_000
    await world.accept(alert(status="resolved"))
    began, ended = await world.events()
    assert (began["data"]["status"], began["data"]["reconstructed"]) == ("firing", True)
    assert (ended["data"]["status"], ended["data"]["reconstructed"]) == ("resolved", False)
    assert (began["data"]["ends_at"], ended["data"]["ends_at"]) == (
        None,
        "2026-11-23T19:10:14.988Z",
    )
    assert (
        began["data"]["received_at"] == ended["data"]["received_at"] == "2026-11-23T20:06:24.988Z"
    )


async def test_a_beginning_that_comes_after_its_end_is_not_told_again(world: World) -> None:
    await world.accept(alert(status="resolved"))
    world.clock.ms += 3_600_000
    assert await world.accept(alert()) == 0


async def test_the_next_episode_is_told_anew(world: World) -> None:
    await world.accept(alert(status="resolved"))
    await world.accept(alert(startsAt="2026-11-23T19:30:00Z"))
    assert await world.told() == ["firing Down", "resolved Down", "firing Down"]
    assert len({event["id"] for event in await world.events()}) == 3


async def test_repeats_are_kept_as_reminders(world: World) -> None:
    await world.accept(alert())
    for _ in range(2):
        world.clock.ms += 900_000
        await world.accept(alert())
        await world.accept(alert())  # the other peer
    events = await world.events()
    assert [e["data"]["notification"] for e in events] == ["transition", "reminder", "reminder"]
    assert len({e["id"] for e in events}) == 3
    assert events[2]["time"] == events[2]["data"]["received_at"] == "2026-11-23T19:36:24.988Z"


async def test_of_reminders_that_wait_only_the_latest_is_kept(durable: World) -> None:
    await durable.accept(alert())
    for _ in range(3):
        durable.clock.ms += 900_000
        await durable.accept(alert())
    events = await durable.events()
    assert [e["data"]["notification"] for e in events] == ["transition", "reminder"]
    assert events[1]["data"]["received_at"] == "2026-11-23T19:51:24.988Z"


async def test_two_forwarders_give_a_reminder_the_same_id(world: World) -> None:
    other = World(Memory())
    for forwarder, late_ms in ((world, 0), (other, 15_000)):
        await forwarder.accept(alert())
        forwarder.clock.ms += 900_000 + late_ms
        await forwarder.accept(alert())
    ids = [[event["id"] for event in await w.events()] for w in (world, other)]
    assert ids[0] == ids[1]


async def test_what_is_not_selected_is_counted(world: World) -> None:
    low = alert(labels={"alertname": "Low", "severity": "info"})
    assert await world.accept(low, alert()) == 1
    assert world.fates() == {"not_selected": 1, "relayed": 1}


async def test_a_group_that_was_truncated_says_so(world: World) -> None:
    await world.relay.accept(
        (DATA / "alertmanager-webhook-firing-truncated-max_alerts2.json").read_bytes()
    )
    assert [e["data"]["group_truncated_alerts"] for e in await world.events()] == [1, 1]
    assert (
        'byoc_alerts_truncated_total{agent="alert-forwarder"} 1.0'
        in generate_latest(world.registry).decode()
    )


async def test_values_are_cut_and_it_is_said(world: World) -> None:
    long = alert(labels={"alertname": "x" * 9999, "severity": "critical"})
    long["annotations"] = {"summary": "é" * 9999}
    await world.accept(long)
    (event,) = await world.events()
    assert len(event["data"]["labels"]["alertname"]) == MAX_LABEL
    assert len(event["data"]["annotations"]["summary"]) == MAX_ANNOTATION
    assert event["data"]["cut"] == ["labels.alertname", "annotations.summary"]


async def test_a_watchdog_is_latest_only_and_every_sighting_is_new(durable: World) -> None:
    for _ in range(3):
        durable.clock.ms += 60_000
        await durable.accept(alert("Watchdog"))
    (event,) = await durable.events()
    assert event["type"] == "byoc.alert.watchdog.v1"
    assert event["data"]["received_at"] == "2026-11-23T19:09:24.988Z"
    assert durable.relay.last_watchdog_ms == durable.clock.ms


async def test_nothing_is_told_twice_after_a_restart(durable: World) -> None:
    await durable.accept(alert())
    durable.restarted()
    assert await durable.accept(alert(status="resolved")) == 1
    assert await durable.told() == ["firing Down", "resolved Down"]


@pytest.mark.parametrize("refusal", [SpoolFullError("full"), SpoolUnavailableError("read-only")])
async def test_what_was_not_stored_is_not_believed_to_be_told(
    world: World, refusal: Exception
) -> None:
    world.spool.refusal = refusal
    with pytest.raises(type(refusal)):
        await world.accept(alert())
    world.spool.refusal = None
    assert await world.accept(alert()) == 1
    assert await world.told() == ["firing Down"]


async def test_when_the_spool_was_lost_open_alerts_are_told_again(world: World) -> None:
    await world.accept(alert())
    world.spool.kept.clear()
    world.spool.resets += 1
    assert await world.accept(alert()) == 1


async def test_the_memory_is_bounded_and_forgets_the_oldest_on_disk_as_well(tmp_path: Path) -> None:
    async with Spool(tmp_path, max_bytes=1 << 20, clock=SystemClock()) as spool:
        told = Told(max_told=5)
        for number in range(20):
            new = {f"id-{number}": number}
            state = told.state(new, number)
            await spool.commit(Change(state=state))
            told.committed(new, state)
        assert set(await spool.state("told/")) == {f"told/id-{n}" for n in range(15, 20)}
        state = told.state({}, 8 * 24 * 3600 * 1000)
        told.committed({}, state)
        assert len(told) == 0


async def test_every_event_is_as_its_schema_says(world: World) -> None:
    await world.accept(alert(), alert("Watchdog"), alert("Gone", status="resolved"))
    schemas = {"components": {"schemas": components()}}
    names = {"byoc.alert.v1": "AlertEvent", "byoc.alert.watchdog.v1": "WatchdogEvent"}
    for event in await world.events():
        reference = {"$ref": f"#/components/schemas/{names[event['type']]}"}
        jsonschema.validate(event, schemas | reference)


SENTINEL = "s3cr3t"
PLANTED = st.recursive(
    st.one_of(
        st.just(SENTINEL), st.text(max_size=3).map(SENTINEL.__add__), st.none(), st.integers()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.just(f"k{SENTINEL}"), inner, max_size=2)
    ),
    max_leaves=3,
)


def planted(valid: dict[str, Any], *extra: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return the valid fields, each perhaps replaced, and unknown ones beside them."""
    names = [*valid, *extra, f"new{SENTINEL}"]
    return st.dictionaries(st.sampled_from(names), PLANTED, max_size=4).map(valid.__or__)


PLANTED_ALERT = st.builds(
    lambda whole, labels, annotations: whole | {"labels": labels, "annotations": annotations},
    planted(alert(generatorURL=f"http://{SENTINEL}", silenceURL=SENTINEL), "values", "panelURL"),
    planted({"instance": SENTINEL}, "db", "query").map(
        lambda labels: labels | {"alertname": "Down", "severity": "critical"}
    ),
    planted({"description": SENTINEL}, "runbook_url").map(lambda a: a | {"summary": "text"}),
)
PLANTED_BODY = st.builds(
    lambda top, alerts: top | {"alerts": alerts},
    planted({"externalURL": SENTINEL, "groupKey": SENTINEL, "commonLabels": {"a": SENTINEL}},
            "receiver", "truncatedAlerts", "status", "version", "groupLabels"),
    st.lists(PLANTED_ALERT, min_size=1, max_size=3),
)  # fmt: skip


@given(PLANTED_BODY)
def test_nothing_planted_in_the_input_comes_out(body: dict[str, Any]) -> None:
    """Not in the bytes, the ids, the keys on disk, the logs or the metrics."""
    world = World(Memory())
    with structlog.testing.capture_logs() as logs:
        asyncio.run(world.relay.accept(json.dumps(body).encode()))
    assert world.spool.messages or world.fates().get("odd")
    out = (world.spool.messages, world.spool.kept, logs, generate_latest(world.registry))
    assert SENTINEL not in repr(out)
