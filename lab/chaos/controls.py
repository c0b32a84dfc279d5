"""Negative controls: the evidence of a run, altered in one place. The oracle must notice each."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from lab.chaos import oracle
from lab.chaos.allocated import allocated
from lab.chaos.evidence import ALERT, Evidence
from lab.chaos.order import ordered
from lab.chaos.outages import Outage
from lab.chaos.target import Incarnation

Check = Callable[[Evidence], Iterator[str]]
Control = tuple[str, Check, Evidence]


def controls(found: Evidence) -> list[Control]:
    """Return (the alteration, the check that must notice it, the altered evidence)."""
    return [*_billing(found), *_states(found), *_alerts(found), *_dead(found), *_rest(found)]


def unnoticed(found: Evidence) -> list[str]:
    """Return the controls that the oracle did not notice."""
    return [name for name, check, altered in controls(found) if not list(check(altered))]


def _billing(found: Evidence) -> Iterator[Control]:
    keys = sorted(found.objects)
    middle = keys[len(keys) // 2]
    rest = {key: body for key, body in found.objects.items() if key != middle}
    again = middle.replace("/service=service/", "/service=service/again/")
    doubled = {**found.objects, again: found.objects[middle]}
    *before, last = found.incarnations
    more = [*before, Incarnation(last.inode, last.cpu_usec + 1)]
    yield "an object is dropped", oracle.billing, replace(found, objects=rest)
    yield "an object is there twice", oracle.billing, replace(found, objects=doubled)
    yield (
        "an object was written twice",
        oracle.billing,
        replace(found, writes=found.writes + found.writes),
    )
    yield "a microsecond is missing", oracle.billing, replace(found, incarnations=more)
    longest = max(found.incarnations, key=lambda one: one.seconds)
    short = [replace(one, seconds=0.001) if one is longest else one for one in found.incarnations]
    yield "a size counts without its container", allocated, replace(found, incarnations=short)
    other = {middle: found.objects[middle] + b"-"}
    yield "a restart hid other bytes", oracle.billing, replace(found, before=[other])


def _states(found: Evidence) -> Iterator[Control]:
    states = found.states
    number = next(n for n, one in enumerate(states) if one["data"]["kind"] == "transition")
    strict = ordered(states, found.ledger, damaged=bool(found.damaged))
    first, second = next(
        (a, b) for a, b in pairwise(map(states.index, strict)) if states[a]["id"] != states[b]["id"]
    )
    swapped = [*states]
    swapped[first], swapped[second] = states[second], states[first]
    twice = states[number] | {"time": "another"}
    yield "a transition is dropped", oracle.states, replace(found, states=_without(states, number))
    yield "two states are swapped", oracle.states, replace(found, states=swapped)
    more = [_with_more_lost(one) for one in states]
    yield "lost changes are counted wrongly", oracle.states, replace(found, states=more)
    yield "an id has two contents", oracle.states, replace(found, states=[*states, twice])
    blind = Outage("clickhouse_killed", oracle.REPORT_SECONDS, "running")
    yield "an outage is not reported", oracle.outages, replace(found, outages=[blind])
    yield "its end is not reported", oracle.outages, replace(found, last_word="failed PING_FAILED")


def _alerts(found: Evidence) -> Iterator[Control]:
    events = found.events
    number = next(n for n, one in enumerate(events) if _ends_what_was_in_time(found, one))
    early = [events[number], *_without(events, number)]
    other = [*events, events[number] | {"id": "another"}]
    yield "an alert is dropped", oracle.alerts, replace(found, events=_without(events, number))
    yield "an alert has two ids", oracle.alerts, replace(found, events=other)
    yield "an end comes before its beginning", oracle.alerts, replace(found, events=early)


def _dead(found: Evidence) -> Iterator[Control]:
    billing, alert = (oracle.BILLING, found.events[0]["id"]), (oracle.ALERTS, "another")
    yield "usage is a dead letter", oracle.dead_letters, replace(found, dead={billing})
    yield "a dead letter never comes", oracle.dead_letters, replace(found, dead={alert})
    alone = replace(found, dead=set(), logged_dead=_ids_of_alerts(found))
    yield "a dead letter came by itself", oracle.dead_letters, alone
    yield "a dead letter is left", oracle.dead_letters, replace(found, dead_left=1)


def _rest(found: Evidence) -> Iterator[Control]:
    (name, (before, after)), *_ = found.figures.items()
    grown = replace(after, fds=before.fds + 100)
    unannounced = [one for one in found.ledger if one.get("id") != found.events[0]["id"]]
    yield "a send was not announced", oracle.ledger, replace(found, ledger=unannounced)
    yield "a process died of a signal", oracle.processes, replace(found, ends={name: [-7]})
    yield "records are left over", oracle.processes, replace(found, backlogs={name: 1})
    yield "descriptors leak", oracle.growth, replace(found, figures={name: (before, grown)})


def _ends_what_was_in_time(found: Evidence, event: dict[str, Any]) -> bool:
    """Return whether an event ends an alert whose beginning was not refused at first."""
    ended = [one for one in oracle.facts_of([event]) if one.status == "resolved"]
    return any(oracle.begun(one) not in oracle.late_facts(found) for one in ended)


def _ids_of_alerts(found: Evidence) -> set[str]:
    return {one["id"] for one in found.events if one["type"] == ALERT}


def _with_more_lost(state: dict[str, Any]) -> dict[str, Any]:
    data = state["data"]
    lost = data["lost_transitions"] + data["sequence"]
    return state | {"data": data | {"lost_transitions": lost}}


def _without(items: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return items[:number] + items[number + 1 :]
