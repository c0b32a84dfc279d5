"""Heartbeats describe their sender; messages of 0.1.0, which do not, are still read."""

import hashlib
import re
from pathlib import Path

import msgspec
import pytest

from byoc_agents.alerts.events import HeartbeatEvent
from byoc_agents.app import cli
from byoc_agents.app.cloudevents import Agent, encode
from byoc_agents.app.run import configure
from byoc_agents.schema import EXAMPLES
from byoc_agents.state.message import StateEvent, SummaryEvent

KINDS = (StateEvent, SummaryEvent, HeartbeatEvent)
OLD = Path(__file__).parents[2] / "upgrade/versions/0.1.0"
ENVIRONMENT = {
    "BYOC_ORGANIZATION_ID": "org",
    "BYOC_SERVICE_ID": "svc",
    "BYOC_REGION": "eu-west-1",
    "BYOC_REPLICA": "r-0",
    "BYOC_STATE_QUEUE_URL": "file:///queue",
    "BYOC_CLICKHOUSE_PASSWORD": "secret",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_without_a_sender_is_read(kind: type[msgspec.Struct]) -> None:
    (event,) = (event for event in EXAMPLES.values() if isinstance(event, kind))
    fields = msgspec.json.decode(encode(event))
    assert fields["data"].pop("agent")["ledger_size"] == 20_852
    old = msgspec.json.decode(msgspec.json.encode(fields), type=kind)
    assert old.data.agent is None  # type: ignore[attr-defined]


def test_messages_that_0_1_0_has_stored_are_read() -> None:
    text = (OLD / "state-exporter" / "spool.sql").read_text()
    stored = re.findall(r"'byoc.service.state.v1',X'([0-9A-F]+)'", text)
    events = [msgspec.json.decode(bytes.fromhex(body), type=StateEvent) for body in stored]
    assert {event.data.agent for event in events} == {None}


@pytest.mark.parametrize("field", ["configuration_sha256", "ledger_root"])
def test_no_field_of_the_sender_can_hold_a_text(field: str) -> None:
    agent = EXAMPLES["byoc.service.state.v1"].data.agent  # type: ignore[attr-defined]
    fields = msgspec.to_builtins(agent)
    assert msgspec.convert(fields, Agent) == agent
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields | {field: "a text"}, Agent)


def test_the_configuration_hash_is_of_what_check_config_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["check-config", "state-exporter"]) == 0
    printed = capsys.readouterr().out
    configuration = configure(["state-exporter"], ENVIRONMENT)
    assert "secret" not in printed
    assert hashlib.sha256(printed.encode()).digest() == (
        hashlib.sha256(configuration.text().encode()).digest()
    )
