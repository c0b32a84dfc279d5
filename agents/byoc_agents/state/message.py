"""The messages `byoc.service.state.v1` and `byoc.service.summary.v1`. This file is the allow-list.

Every field is a value of a closed set, a number, a time or a setting of the exporter; none of them
can hold a text of the server. `python -m byoc_agents.state.message` writes the JSON Schemas.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from byoc_agents.app.cloudevents import (
    Agent,
    AgentOrNone,
    Event,
    EventType,
    OrganizationId,
    PodName,
    RegionName,
    ServiceId,
    describe,
    encode,
    rfc3339,
    source_uri,
    stable_id,
)
from byoc_agents.message import Message
from byoc_agents.state.assess import Assessment, Memory, ServiceState
from byoc_agents.state.observation import Ping, ProbeSource, StateObservation
from byoc_agents.state.summary import ServiceSummary, SummaryState
from byoc_agents.state.thresholds import ReasonCode

STATE: Literal["byoc.service.state.v1"] = "byoc.service.state.v1"
SUMMARY: Literal["byoc.service.summary.v1"] = "byoc.service.summary.v1"
SCHEMAS = Path(__file__).parent / "schema"
MAX_GROUP = 128  # characters of a MessageGroupId; SQS SendMessage

MessageKind = Literal["transition", "heartbeat"]
Kind = Annotated[
    MessageKind,
    describe("`transition`: the state or the set of reasons changed. `heartbeat`: not."),
]
ObservedAt = Annotated[str, describe("Time of the observation, RFC 3339, UTC.")]
HeartbeatSeconds = Annotated[
    float,
    describe(
        "The next message comes within this time. It is longer while nothing changes. Longer "
        "silence is an alarm."
    ),
]
Epoch = Annotated[
    int, describe("Creation of the spool. A later epoch numbers its messages from 0.")
]
Sequence = Annotated[
    int,
    describe(
        "Number of the message in its epoch: 0, 1, 2 ... A missing number is a heartbeat that a "
        "later one replaced."
    ),
]
Transition = Annotated[
    int, describe("Number of the last transition in its epoch: 1, 2, 3 ... without a gap.")
]
LostTransitions = Annotated[
    int, describe("Transitions of this epoch for which the spool had no room.")
]


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """The next numbers of a stream. Stored in the same commit as the message they number."""

    epoch: int  # creation of the spool, milliseconds since 1970; a new epoch starts at sequence 0
    sequence: int = 0  # of the next message
    transitions: int = 0  # published so far
    lost: int = 0  # changes for which the spool had no room
    published: str = msgspec.field(default="", name="told")  # state key of the last message


class ReasonV1(msgspec.Struct, frozen=True, kw_only=True):
    """One reason. `value` and `threshold` are in the unit of the code's figure."""

    code: Annotated[ReasonCode, describe("Stable code of the reason.")]
    value: Annotated[float, describe("Observed value, in the unit of the code.")]
    threshold: Annotated[float, describe("Threshold that it passed, in the same unit.")]
    since: Annotated[str, describe("When the value passed the threshold, RFC 3339, UTC.")]
    detail: Annotated[Ping | None, describe("`PING_FAILED`: how it failed.")] = None
    missing: Annotated[
        tuple[ProbeSource, ...],
        describe("`OBSERVABILITY_PARTIAL`: the sources that could not be read."),
    ] = ()


class StateV1(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of a message about one replica."""

    organization_id: OrganizationId
    service_id: ServiceId
    replica: PodName
    region: RegionName
    kind: Kind
    state: Annotated[ServiceState, describe("State of the replica, in ClickHouse Cloud's terms.")]
    state_since: Annotated[str, describe("Start of the state, RFC 3339, UTC.")]
    previous_state: Annotated[
        ServiceState | None, describe("State before this one. Null if it is not known.")
    ]
    healthy: Annotated[
        bool, describe("Whether it is running, every source was read, and there is no reason.")
    ]
    reasons: Annotated[
        tuple[ReasonV1, ...], describe("Why the replica is not healthy. Empty if it is.")
    ]
    version: Annotated[
        str, describe("Version of the server: digits and dots. Empty if it was not seen.")
    ]
    uptime_seconds: Annotated[
        int | None, describe("Time since the server's start. Null if unknown.")
    ]
    observed_at: ObservedAt
    heartbeat_seconds: HeartbeatSeconds
    epoch: Epoch
    sequence: Sequence
    transition: Transition
    lost_transitions: LostTransitions
    agent: AgentOrNone = None


class SummaryV1(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of a message about a service: from an exporter that polls all its replicas."""

    organization_id: OrganizationId
    service_id: ServiceId
    region: RegionName
    kind: Kind
    state: Annotated[SummaryState, describe("State of the service, from those of its replicas.")]
    replicas: Annotated[
        dict[ServiceState, int],
        describe("Number of replicas per state. The sum is the number of polled replicas."),
    ]
    observed_at: ObservedAt
    heartbeat_seconds: HeartbeatSeconds
    epoch: Epoch
    sequence: Sequence
    transition: Transition
    lost_transitions: LostTransitions
    agent: AgentOrNone = None


class StateEvent(Event, frozen=True, kw_only=True):
    """The CloudEvents envelope of a replica's state."""

    type: EventType[Literal["byoc.service.state.v1"]] = STATE
    data: StateV1


class SummaryEvent(Event, frozen=True, kw_only=True):
    """The CloudEvents envelope of a service's summary."""

    type: EventType[Literal["byoc.service.summary.v1"]] = SUMMARY
    data: SummaryV1


class StateIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The service that the messages are about, and their sender."""

    organization_id: str
    service_id: str
    region: str
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
    heartbeat_seconds: float,
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
        heartbeat_seconds=heartbeat_seconds,
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


def summary_message(  # noqa: PLR0913  one argument per part of the message
    who: StateIdentity,
    kind: MessageKind,
    *,
    summary: ServiceSummary,
    position: Position,
    heartbeat_seconds: float,
    now_ms: int,
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
        heartbeat_seconds=heartbeat_seconds,
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
