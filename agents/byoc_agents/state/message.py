"""`byoc.service.state.v1` and `byoc.service.summary.v1`: what leaves. This file is the allow-list.

Every field is a word of a closed set, a number, a time or one of our own settings; there is none
that could hold a text of the server. `python -m byoc_agents.state.message` writes the JSON Schemas.
"""

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from byoc_agents.app.cloudevents import Event, encode, rfc3339, source_uri, stable_id
from byoc_agents.delivery.sink import Message
from byoc_agents.state.assess import Assessment, Memory, State
from byoc_agents.state.observation import Observation, Ping, Source
from byoc_agents.state.summary import Summary, SummaryState
from byoc_agents.state.thresholds import Code

STATE: Literal["byoc.service.state.v1"] = "byoc.service.state.v1"
SUMMARY: Literal["byoc.service.summary.v1"] = "byoc.service.summary.v1"
SCHEMAS = Path(__file__).parent / "schema"
MAX_GROUP = 128  # characters of a MessageGroupId; SQS SendMessage

Kind = Literal["transition", "heartbeat"]


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where a stream stands: durable in the same commit as the message it numbers."""

    epoch: int  # spool's creation, milliseconds since 1970; another one = numbers begin at 0 again
    sequence: int = 0  # of the next message
    transitions: int = 0  # told so far
    lost: int = 0  # changes that were seen but found no room in the spool
    told: str = ""  # what the last message said: another word here is a transition


class ReasonV1(msgspec.Struct, frozen=True, kw_only=True):
    """One reason. `value` and `threshold` are in the unit of the code's figure."""

    code: Code
    value: float
    threshold: float
    since: str  # RFC 3339 UTC: when the value passed the threshold
    detail: Ping | None = None  # PING_FAILED: how
    missing: tuple[Source, ...] = ()  # OBSERVABILITY_PARTIAL: what could not be seen


class StateV1(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of one replica's message."""

    organization_id: str
    service_id: str
    replica: str
    region: str
    kind: Kind
    state: State
    state_since: str  # RFC 3339 UTC
    previous_state: State | None  # None: nothing is known of before
    healthy: bool  # running, all of it was seen, nothing is wrong
    reasons: tuple[ReasonV1, ...]
    version: str  # ClickHouse's, digits and dots; empty = not seen
    uptime_seconds: int | None
    observed_at: str  # RFC 3339 UTC
    heartbeat_seconds: float  # the next message comes within this; longer silence is an alarm
    epoch: int  # milliseconds since 1970; a later one begins the numbers anew
    sequence: int  # grows by one a message; a gap = a heartbeat replaced by a later one
    transition: int  # number of the last transition: 1, 2, 3 ... without a gap in an epoch
    lost_transitions: int  # changes of this epoch that found no room to be kept


class SummaryV1(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of a service's message: only from an exporter that watches all its replicas."""

    organization_id: str
    service_id: str
    region: str
    kind: Kind
    state: SummaryState
    replicas: dict[State, int]  # how many are in which state; together all that are watched
    observed_at: str
    heartbeat_seconds: float
    epoch: int
    sequence: int
    transition: int
    lost_transitions: int


class StateEvent(Event, frozen=True, kw_only=True):
    """The CloudEvents envelope of a replica's state."""

    type: Literal["byoc.service.state.v1"] = STATE
    data: StateV1


class SummaryEvent(Event, frozen=True, kw_only=True):
    """The CloudEvents envelope of a service's summary."""

    type: Literal["byoc.service.summary.v1"] = SUMMARY
    data: SummaryV1


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who speaks, and how often it does at least."""

    organization_id: str
    service_id: str
    region: str
    heartbeat_seconds: float


def state_message(  # noqa: PLR0913  the whole picture goes in
    who: Identity,
    replica: str,
    kind: Kind,
    *,
    seen: Observation,
    assessment: Assessment,
    memory: Memory,
    position: Position,
    now_ms: int,
) -> Message:
    """Return the sealed message of one replica. `assessment.state` must be known."""
    assert assessment.state is not None  # noqa: S101  nothing is sent before
    data = StateV1(
        organization_id=who.organization_id,
        service_id=who.service_id,
        replica=replica,
        region=who.region,
        kind=kind,
        state=assessment.state,
        state_since=rfc3339(memory.state_since_ms),
        previous_state=memory.previous,
        healthy=assessment.healthy,
        reasons=tuple(
            ReasonV1(
                code=reason.code,
                value=reason.value,
                threshold=reason.threshold,
                since=rfc3339(reason.since_ms),
                detail=reason.detail,
                missing=reason.missing,
            )
            for reason in assessment.reasons
        ),
        version=seen.version,
        uptime_seconds=seen.uptime_seconds,
        observed_at=rfc3339(now_ms),
        heartbeat_seconds=who.heartbeat_seconds,
        **_numbers(position, kind),
    )
    event = StateEvent(
        id=_id(STATE, who, replica, position),
        source=source_uri(who.organization_id, who.service_id, replica),
        subject=replica,
        time=data.observed_at,
        data=data,
    )
    return _sealed(event, kind, group(who.service_id, replica), now_ms)


def summary_message(
    who: Identity, kind: Kind, summary: Summary, position: Position, now_ms: int
) -> Message:
    """Return the sealed message of a whole service."""
    data = SummaryV1(
        organization_id=who.organization_id,
        service_id=who.service_id,
        region=who.region,
        kind=kind,
        state=summary.state,
        replicas=summary.replicas,
        observed_at=rfc3339(now_ms),
        heartbeat_seconds=who.heartbeat_seconds,
        **_numbers(position, kind),
    )
    event = SummaryEvent(
        id=_id(SUMMARY, who, "", position),
        source=f"/organizations/{who.organization_id}/services/{who.service_id}",
        subject=who.service_id,
        time=data.observed_at,
        data=data,
    )
    return _sealed(event, kind, group(who.service_id, ""), now_ms)


def group(service_id: str, replica: str) -> str:
    """Return the MessageGroupId: order is kept inside one replica, or inside the summary."""
    name = f"{service_id}/{replica}"
    return name if len(name) <= MAX_GROUP else stable_id(name)


def _numbers(position: Position, kind: Kind) -> dict[str, int]:
    return {
        "epoch": position.epoch,
        "sequence": position.sequence,
        "transition": position.transitions + (kind == "transition"),
        "lost_transitions": position.lost,
    }


def _id(kind: str, who: Identity, replica: str, position: Position) -> str:
    numbers = (str(position.epoch), str(position.sequence))
    return stable_id(kind, who.organization_id, who.service_id, replica, *numbers)


def _sealed(event: StateEvent | SummaryEvent, kind: Kind, group_id: str, now_ms: int) -> Message:
    """Return the message. A later heartbeat replaces an unsent one; a transition never goes."""
    replaces = f"{event.type} {group_id}" if kind == "heartbeat" else ""
    body = encode(event)
    return Message(event.id, event.type, body, now_ms, group=group_id, replaces=replaces)


def schemas() -> dict[str, dict[str, Any]]:
    """Return file name -> JSON Schema (2020-12), generated from the structs that are sent."""
    made = {}
    for name, struct in ((STATE, StateEvent), (SUMMARY, SummaryEvent)):
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
        made[f"{name}.json"] = head | msgspec.json.schema(struct)
    return made


def main() -> None:
    """Write the schema files of the package."""
    SCHEMAS.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (SCHEMAS / name).write_text(json.dumps(schema, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
