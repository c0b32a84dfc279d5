"""The identity that leaves: keyed, the same for all forwarders, kept over an upgrade."""

import msgspec
import pytest

from byoc_agents.alerts.events import alert_id
from byoc_agents.alerts.identity import identities
from byoc_agents.alerts.payload import Received, read
from tests.unit.alerts.relay_world import RULES, Memory, World, alert, body

SECRET, OTHER = "s" * 32, "t" * 32


def world(*secrets: str, spool: Memory | None = None) -> World:
    made = World(spool or Memory())
    made.rules = msgspec.structs.replace(RULES, fingerprint_secrets=secrets)
    made.restarted()
    return made


def received() -> Received:
    return read(body(alert())).alerts[0]


async def test_neither_the_fingerprint_nor_what_is_made_of_it_leaves() -> None:
    keyed, plain = world(SECRET), world()
    for one in (keyed, plain):
        await one.accept(alert(status="resolved"))
    (began, _), (old, _) = await keyed.events(), await plain.events()
    assert began["data"]["fingerprint"] == began["subject"] != alert()["fingerprint"]
    assert began["id"] != old["id"]
    assert "byoc" not in began["id"]


async def test_two_forwarders_with_the_same_secret_give_the_same_ids() -> None:
    first, second, third = world(SECRET), world(SECRET), world(OTHER)
    for one in (first, second, third):
        await one.accept(alert())
    ids = [(await one.events())[0]["id"] for one in (first, second, third)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("before", [(), (OTHER,)], ids=["0.1.0", "another secret"])
async def test_an_episode_keeps_its_identity_until_its_end(before: tuple[str, ...]) -> None:
    spool = Memory()
    old = world(*before, spool=spool)
    await old.accept(alert())
    new = world(SECRET, *before, spool=spool)
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


def test_the_receivers_name_is_keyed_too() -> None:
    current, plain = identities([SECRET], received(), "byoc")
    assert plain.receiver == "byoc"
    assert "byoc" not in current.receiver
    assert alert_id(RULES.origin, current.receiver, received(), "firing") != alert_id(
        RULES.origin, "byoc", received(), "firing"
    )
