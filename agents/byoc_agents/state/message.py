"""The messages `byoc.service.state.v1` and `byoc.service.summary.v1`. This file is the allow-list.

Every field is a value of a closed set, a number, a time or a setting of the exporter; none of them
can hold a text of the server. `python -m byoc_agents.state.message` writes the JSON Schemas.
"""

import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from byoc_agents.app.cloudevents import Agent, Event, encode, rfc3339, source_uri, stable_id
from byoc_agents.delivery.sink import Message
from byoc_agents.state.assess import Assessment, Memory, ServiceState
from byoc_agents.state.observation import Ping, ProbeSource, StateObservation
from byoc_agents.state.summary import ServiceSummary, SummaryState
from byoc_agents.state.thresholds import ReasonCode

STATE: Literal["byoc.service.state.v1"] = "byoc.service.state.v1"
SUMMARY: Literal["byoc.service.summary.v1"] = "byoc.service.summary.v1"
SCHEMAS = Path(__file__).parent / "schema"
MAX_GROUP = 128  # characters of a MessageGroupId; SQS SendMessage

MessageKind = Literal["transition", "heartbeat"]


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """The next numbers of a stream. Stored in the same commit as the message they number."""

    epoch: int  # creation of the spool, milliseconds since 1970; a new epoch starts at sequence 0
    sequence: int = 0  # of the next message
    transitions: int = 0  # published so far
    lost: int = 0  # changes for which the spool had no room
    published: str = msgspec.field(default="", name="told")  # state key of the last message


class ReasonV1(msgspec.Struct, frozen=True, kw_only=True):
    """One reason. `value` and `threshold` are in the unit of the code's figure."""

    code: ReasonCode
    value: float
    threshold: float
    since: str  # RFC 3339 UTC: when the value passed the threshold
    detail: Ping | None = None  # PING_FAILED: how
    missing: tuple[
        ProbeSource, ...
    ] = ()  # OBSERVABILITY_PARTIAL: the sources that could not be read


class StateV1(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of a message about one replica."""

    organization_id: str
    service_id: str
    replica: str
    region: str
    kind: MessageKind
    state: ServiceState
    state_since: str  # RFC 3339 UTC
    previous_state: ServiceState | None  # None: not known
    healthy: bool  # running, every source was read, no reason
    reasons: tuple[ReasonV1, ...]
    version: str  # digits and dots; empty = not seen
    uptime_seconds: int | None
    observed_at: str  # RFC 3339 UTC
    heartbeat_seconds: float  # the next message comes within this; longer silence is an alarm
    epoch: int  # milliseconds since 1970
    sequence: int  # plus one per message; a gap = a heartbeat replaced by a later one
    transition: int
    lost_transitions: int
    agent: Agent | None = None  # 0.1.0 has none


class SummaryV1(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of a message about a service: from an exporter that polls all its replicas."""

    organization_id: str
    service_id: str
    region: str
    kind: MessageKind
    state: SummaryState
    replicas: dict[ServiceState, int]  # number of replicas per state; together all that are polled
    observed_at: str
    heartbeat_seconds: float
    epoch: int
    sequence: int
    transition: int
    lost_transitions: int
    agent: Agent | None = None  # 0.1.0 has none


class StateEvent(Event, frozen=True, kw_only=True):
    """The CloudEvents envelope of a replica's state."""

    type: Literal["byoc.service.state.v1"] = STATE
    data: StateV1


class SummaryEvent(Event, frozen=True, kw_only=True):
    """The CloudEvents envelope of a service's summary."""

    type: Literal["byoc.service.summary.v1"] = SUMMARY
    data: SummaryV1


class StateIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The service that the messages are about, their longest interval, and their sender."""

    organization_id: str
    service_id: str
    region: str
    heartbeat_seconds: float
    agent: Agent | None = None


def state_message(  # noqa: PLR0913  one argument per part of the message
    who: StateIdentity,
    replica: str,
    kind: MessageKind,
    *,
    observation: StateObservation,
    assessment: Assessment,
    memory: Memory,
    position: Position,
    now_ms: int,
) -> Message:
    """Return the encoded message about one replica. `assessment.state` must be known."""
    assert assessment.state is not None  # noqa: S101  nothing is published before
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
        version=observation.version,
        uptime_seconds=observation.uptime_seconds,
        observed_at=rfc3339(now_ms),
        heartbeat_seconds=who.heartbeat_seconds,
        agent=who.agent,
        **_position_fields(position, kind),
    )
    event = StateEvent(
        id=_event_id(STATE, who, replica, position),
        source=source_uri(who.organization_id, who.service_id, replica),
        subject=replica,
        time=data.observed_at,
        data=data,
    )
    return _encode_message(event, kind, message_group(who.service_id, replica), now_ms)


def summary_message(
    who: StateIdentity, kind: MessageKind, summary: ServiceSummary, position: Position, now_ms: int
) -> Message:
    """Return the encoded message about a service."""
    data = SummaryV1(
        organization_id=who.organization_id,
        service_id=who.service_id,
        region=who.region,
        kind=kind,
        state=summary.state,
        replicas=summary.replicas,
        observed_at=rfc3339(now_ms),
        heartbeat_seconds=who.heartbeat_seconds,
        agent=who.agent,
        **_position_fields(position, kind),
    )
    event = SummaryEvent(
        id=_event_id(SUMMARY, who, "", position),
        source=f"/organizations/{who.organization_id}/services/{who.service_id}",
        subject=who.service_id,
        time=data.observed_at,
        data=data,
    )
    return _encode_message(event, kind, message_group(who.service_id, ""), now_ms)


def message_group(service_id: str, replica: str) -> str:
    """Return the MessageGroupId: SQS keeps the order within a replica, and within the summary."""
    name = f"{service_id}/{replica}"
    return name if len(name) <= MAX_GROUP else stable_id(name)


def _position_fields(position: Position, kind: MessageKind) -> dict[str, int]:
    return {
        "epoch": position.epoch,
        "sequence": position.sequence,
        "transition": position.transitions + (kind == "transition"),
        "lost_transitions": position.lost,
    }


def _event_id(kind: str, who: StateIdentity, replica: str, position: Position) -> str:
    numbers = (str(position.epoch), str(position.sequence))
    return stable_id(kind, who.organization_id, who.service_id, replica, *numbers)


def _encode_message(
    event: StateEvent | SummaryEvent, kind: MessageKind, group_id: str, now_ms: int
) -> Message:
    """Encode the event. A later heartbeat replaces an unsent one, never a transition."""
    replaces = f"{event.type} {group_id}" if kind == "heartbeat" else ""
    body = encode(event)
    return Message(event.id, event.type, body, now_ms, group=group_id, replaces=replaces)


def build_schemas() -> dict[str, dict[str, Any]]:
    """Return file name -> JSON Schema (2020-12), generated from the structs of the messages."""
    built = {}
    for name, struct in ((STATE, StateEvent), (SUMMARY, SummaryEvent)):
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
        built[f"{name}.json"] = head | msgspec.json.schema(struct)
    return built


def main() -> None:
    """Write the package's schema files."""
    SCHEMAS.mkdir(exist_ok=True)
    for name, schema in build_schemas().items():
        (SCHEMAS / name).write_text(json.dumps(schema, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
