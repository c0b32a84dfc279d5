"""The identity that is sent: keyed, the same for all forwarders, stable across an upgrade."""

import msgspec
import pytest

from byoc_agents.alerts.events import alert_id
from byoc_agents.alerts.identity import identities
from byoc_agents.alerts.payload import Received, read
from tests.unit.alerts.relay_harness import RULES, Harness, Memory, alert, body

SECRET, OTHER = "s" * 32, "t" * 32


def harness(*secrets: str, spool: Memory | None = None) -> Harness:
    made = Harness(spool or Memory())
    made.rules = msgspec.structs.replace(RULES, fingerprint_secrets=secrets)
    made.restart()
    return made


def received() -> Received:
    return read(body(alert())).alerts[0]


async def test_neither_the_fingerprint_nor_an_unkeyed_hash_of_it_is_sent() -> None:
    keyed, plain = harness(SECRET), harness()
    for one in (keyed, plain):
        await one.accept(alert(status="resolved"))
    (began, _), (old, _) = await keyed.events(), await plain.events()
    assert began["data"]["fingerprint"] == began["subject"] != alert()["fingerprint"]
    assert began["id"] != old["id"]
    assert "byoc" not in began["id"]


async def test_two_forwarders_with_the_same_secret_give_the_same_ids() -> None:
    first, second, third = harness(SECRET), harness(SECRET), harness(OTHER)
    for one in (first, second, third):
        await one.accept(alert())
    ids = [(await one.events())[0]["id"] for one in (first, second, third)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("before", [(), (OTHER,)], ids=["0.1.0", "another secret"])
async def test_an_episode_keeps_its_identity_until_its_end(before: tuple[str, ...]) -> None:
    spool = Memory()
    old = harness(*before, spool=spool)
    await old.accept(alert())
    new = harness(SECRET, *before, spool=spool)
    await new.accept(alert(), alert("Later"))
    await new.accept(alert(status="resolved"), alert("Later", status="resolved"))
    events = await new.events()
    assert [event["data"]["labels"]["alertname"] for event in events] == [
        *("Down", "Later", "Down", "Later"),
    ]
    began, later, ended, later_ended = [event["subject"] for event in events]
    assert began == ended
    assert later == later_ended
    unkeyed = alert("Later")["fingerprint"]
    assert later != unkeyed


async def test_a_later_start_ends_the_episode_under_its_own_identity() -> None:
    spool = Memory()
    old = harness(OTHER, spool=spool)
    await old.accept(alert())
    new = harness(SECRET, OTHER, spool=spool)
    await new.accept(alert() | {"startsAt": "2026-11-23T20:00:00Z"})
    events = await new.events()
    began, ended, later = [(e["data"]["status"], e["subject"]) for e in events]
    assert (began[0], ended[0], later[0]) == ("firing", "resolved", "firing")
    assert events[1]["data"]["end_inferred"]
    assert began[1] == ended[1] != later[1]


def test_the_receivers_name_is_keyed_too() -> None:
    current, plain = identities([SECRET], "byoc")
    assert plain.receiver == "byoc"
    assert "byoc" not in current.receiver
    keyed, unkeyed = (
        alert_id(
            RULES.origin,
            receiver,
            current.fingerprint_of(received()),
            starts_at_ms=received().starts_at_ms,
            status="firing",
        )
        for receiver in (current.receiver, "byoc")
    )
    assert keyed != unkeyed
