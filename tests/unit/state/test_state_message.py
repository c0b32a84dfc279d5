"""The messages: their schema, their numbers, and no text of the server in them."""

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest

from byoc_agents.message import Message
from byoc_agents.state.assess import Memory, ServiceState, ShutdownScope, assess
from byoc_agents.state.message import (
    MAX_GROUP,
    SCHEMAS,
    STATE,
    SUMMARY,
    MessageKind,
    Position,
    StateEvent,
    StateIdentity,
    SummaryEvent,
    build_schemas,
    message_group,
    state_message,
    summary_message,
)
from byoc_agents.state.observation import (
    Figures,
    Login,
    Ping,
    ProbeSource,
    SourceResult,
    StateObservation,
)
from byoc_agents.state.summary import SummaryState, summarize
from byoc_agents.state.thresholds import PollTime, ReasonCode, Thresholds

WHO = StateIdentity(organization_id="org", service_id="svc", region="eu-west-1")
NOON_MS = 1_795_435_200_000
BAD = StateObservation(
    ping=Ping.OK,
    login=Login.OK,
    sources={ProbeSource.QUERIES: SourceResult.OK, ProbeSource.DISKS: SourceResult.DENIED},
    figures=Figures(readonly_replicas=2, lost_parts=1),
    version="24.8.4.13",
    uptime_seconds=12,
)
DEAD = StateObservation(ping=Ping.REFUSED)


def made(
    observation: StateObservation = BAD,
    kind: MessageKind = "transition",
    position: Position | None = None,
    replica: str = "r-0",
) -> Message:
    now = PollTime(NOON_MS, 0)
    assessment, memory = assess(
        observation,
        Memory(state=ServiceState.RUNNING),
        Thresholds(),
        now,
        shutdown=ShutdownScope.POD,
    )
    return state_message(
        WHO,
        replica,
        kind,
        observation=observation,
        assessment=assessment,
        memory=memory,
        position=position or Position(epoch=7),
        heartbeat_seconds=60,
        now_ms=NOON_MS,
    )


def validate(message: Message) -> None:
    schema = json.loads((SCHEMAS / f"{message.type}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(message.body))


@pytest.mark.parametrize("name", [f"{STATE}.json", f"{SUMMARY}.json"])
def test_the_schema_file_matches_the_structs(name: str) -> None:
    assert json.loads((SCHEMAS / name).read_text()) == json.loads(
        json.dumps(build_schemas()[name])
    ), "run `python -m byoc_agents.state.message`"


@pytest.mark.parametrize("observation", [BAD, DEAD], ids=["bad", "dead"])
def test_a_message_fits_its_schema(observation: StateObservation) -> None:
    validate(made(observation))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("data", "state"), "fine"),
        (("data", "reasons", 0, "code"), "SECRET"),
        (("data", "reasons", 1, "missing"), ["my_table"]),
        (("data", "sequence"), "1"),
        (("type",), "byoc.other.v1"),
        (("id",), None),
    ],
    ids=str,
)
def test_the_schema_refuses_any_other_value(path: tuple[str | int, ...], value: Any) -> None:
    body = json.loads(made().body)
    place = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    schema = json.loads((SCHEMAS / f"{STATE}.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(body)


def test_a_message_has_state_reasons_and_position() -> None:
    data = json.loads(made(position=Position(epoch=7, sequence=3, transitions=2, lost=1)).body)[
        "data"
    ]
    assert (data["state"], data["previous_state"], data["healthy"]) == (
        "stopping",
        "running",
        False,
    )
    codes = [reason["code"] for reason in data["reasons"]]
    assert codes == ["DATA_LOSS", "OBSERVABILITY_PARTIAL", "READONLY_REPLICA", "AGENT_STOPPING"]
    assert data["reasons"][1]["missing"] == ["system.disks"]
    assert data["reasons"][2] | {"since": ""} == {
        "code": "READONLY_REPLICA",
        "value": 2,
        "threshold": 1,
        "since": "",
        "detail": None,
        "missing": [],
    }
    numbers = ("epoch", "sequence", "transition", "lost_transitions")
    assert [data[name] for name in numbers] == [7, 3, 3, 1]
    assert data["state_since"] == data["observed_at"] == "2026-11-23T12:00:00.000Z"


def test_a_dead_servers_message_has_the_outcome_of_its_ping() -> None:
    now = PollTime(NOON_MS, 0)
    _, memory = assess(DEAD, Memory(), Thresholds(), now)
    assessment, memory = assess(DEAD, memory, Thresholds(), PollTime(NOON_MS + 2000, 2 * 10**9))
    position = Position(epoch=7)
    message = state_message(
        WHO,
        "r-0",
        "transition",
        observation=DEAD,
        assessment=assessment,
        memory=memory,
        position=position,
        heartbeat_seconds=60,
        now_ms=NOON_MS + 2000,
    )
    validate(message)
    (reason,) = json.loads(message.body)["data"]["reasons"]
    assert (reason["code"], reason["detail"]) == (ReasonCode.PING_FAILED, "refused")


def test_the_id_follows_from_place_and_numbers_alone() -> None:
    first = made()
    assert first == made()
    assert first.id == json.loads(first.body)["id"]
    others = [
        made(position=Position(epoch=8)),
        made(position=Position(epoch=7, sequence=1)),
        made(replica="r-1"),
    ]
    assert len({first.id, *(other.id for other in others)}) == 4


def test_a_heartbeat_replaces_an_unsent_one_of_its_replica_and_a_transition_nothing() -> None:
    heartbeat, other = made(kind="heartbeat"), made(kind="heartbeat", replica="r-1")
    assert heartbeat.replaces
    assert heartbeat.replaces != other.replaces
    assert made().replaces == ""


def test_order_is_kept_per_replica() -> None:
    assert made().group == "svc/r-0"
    long = message_group("s" * 128, "r" * 128)
    assert len(long) <= MAX_GROUP
    assert long != message_group("s" * 128, "r" * 127)


R, D, F, S, X = (
    ServiceState.RUNNING,
    ServiceState.DEGRADED,
    ServiceState.FAILED,
    ServiceState.STARTING,
    ServiceState.STOPPING,
)
SUMMARIES = [
    ([R, R, R], SummaryState.RUNNING),
    ([R, D, R], SummaryState.DEGRADED),
    ([D, D], SummaryState.DEGRADED),
    ([R, F], SummaryState.PARTIALLY_RUNNING),
    ([D, F], SummaryState.PARTIALLY_RUNNING),
    ([R, S], SummaryState.PARTIALLY_RUNNING),
    ([R, X], SummaryState.PARTIALLY_RUNNING),
    ([F, F], SummaryState.FAILED),
    ([F, S], SummaryState.FAILED),
    ([S, S], SummaryState.STARTING),
    ([X, X], SummaryState.STOPPING),
]


@pytest.mark.parametrize(("states", "expected"), SUMMARIES, ids=str)
def test_a_services_state_follows_from_its_replicas(
    states: list[ServiceState | None], expected: SummaryState
) -> None:
    summary = summarize(states)
    assert summary
    assert summary.state is expected
    assert sum(summary.replicas.values()) == len(states)
    message = summary_message(
        WHO,
        "transition",
        summary=summary,
        position=Position(epoch=7),
        heartbeat_seconds=60,
        now_ms=NOON_MS,
    )
    validate(message)
    assert message.group == "svc/"


def test_a_service_with_an_unknown_replica_has_no_summary() -> None:
    assert summarize([R, None]) is None
    assert summarize([]) is None


TEXTS = {"organization_id", "service_id", "replica", "region", "version", "kind"}
TIMES = {"state_since", "since", "observed_at"}
ENVELOPE = {"specversion", "id", "source", "type", "subject", "time", "datacontenttype"}


def free_texts(schema: dict[str, Any]) -> set[str]:
    """Return the names of all properties that may hold any string."""
    found = set()
    for definition in schema["$defs"].values():
        for name, kind in definition.get("properties", {}).items():
            if kind.get("type") == "string" and not {"enum", "pattern"} & kind.keys():
                found.add(name)
    return found


@pytest.mark.parametrize("struct", [StateEvent, SummaryEvent])
def test_no_other_field_can_hold_a_text(struct: type[msgspec.Struct]) -> None:
    assert free_texts(msgspec.json.schema(struct)) <= TEXTS | TIMES | ENVELOPE
