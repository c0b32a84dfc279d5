"""Plausible messages of the exporter and the forwarder, for tests and for load."""

from dataclasses import dataclass

import msgspec

from byoc_agents.alerts.events import (
    Alert,
    AlertEvent,
    Heartbeat,
    HeartbeatEvent,
    Origin,
    build_heartbeat,
)
from byoc_agents.app.cloudevents import Agent, encode, rfc3339, source_uri, stable_id
from byoc_agents.state.assess import ServiceState
from byoc_agents.state.message import STATE, ReasonV1, StateEvent, StateV1
from byoc_agents.state.thresholds import ReasonCode

ORIGIN = Origin("org-1", "service-1", "eu-west-1", "clickhouse-0")


@dataclass
class Replica:
    """The exporter of one replica: each call returns the next message of its stream."""

    organization: str = "org-1"
    service: str = "service-1"
    replica: str = "r-0"
    heartbeat: float = 60
    agent: Agent | None = None
    epoch: int = 1_795_435_200_000
    sequence: int = 0
    transition: int = 0
    last: str = ""  # the state key of the last message

    @property
    def group(self) -> str:
        """Return the message group of the stream."""
        return f"{self.service}/{self.replica}"

    def message(self, now_ms: int, state: str = "running", *codes: str) -> bytes:
        """Return a heartbeat, or a transition if the state is another one."""
        key = f"{state} {codes}"
        kind = "heartbeat" if key == self.last else "transition"
        self.transition += kind == "transition"
        data = StateV1(
            organization_id=self.organization,
            service_id=self.service,
            replica=self.replica,
            region="eu-west-1",
            kind="heartbeat" if kind == "heartbeat" else "transition",
            state=ServiceState(state),
            state_since=rfc3339(now_ms),
            previous_state=None,
            healthy=state == "running" and not codes,
            reasons=tuple(
                ReasonV1(code=ReasonCode(code), value=1, threshold=0, since=rfc3339(now_ms))
                for code in codes
            ),
            version="24.8.1",
            uptime_seconds=4000,
            observed_at=rfc3339(now_ms),
            heartbeat_seconds=self.heartbeat,
            agent=self.agent,
            epoch=self.epoch,
            sequence=self.sequence,
            transition=self.transition,
            lost_transitions=0,
        )
        event = StateEvent(
            id=self.next_id(),
            source=source_uri(self.organization, self.service, self.replica),
            subject=self.replica,
            time=data.observed_at,
            data=data,
        )
        self.sequence += 1
        self.last = key
        return encode(event)

    def stop(self, now_ms: int, how: str = "stopping") -> bytes:
        """Return the last message of a stop: of the pod, or of an exporter of several servers."""
        if how == "stopping":
            return self.message(now_ms, "stopping", "AGENT_STOPPING")
        return self.message(now_ms, "running", "AGENT_STOPPING")

    def next_id(self) -> str:
        """Return the id of the next message, computed as the exporter does."""
        numbers = (str(self.epoch), str(self.sequence))
        return stable_id(STATE, self.organization, self.service, self.replica, *numbers)


def heartbeat_event(
    now_ms: int,
    sequence: int,
    *,
    origin: Origin = ORIGIN,
    stopping: bool = False,
    interval: float = 60,
    started_at: str = "2026-11-23T11:00:00.000Z",
    agent: Agent | None = None,
) -> HeartbeatEvent:
    """Return a heartbeat of the forwarder."""
    data = Heartbeat(
        organization_id=origin.organization_id,
        service_id=origin.service_id,
        region=origin.region,
        replica=origin.replica,
        started_at=started_at,
        sequence=sequence,
        interval_seconds=interval,
        stopping=stopping,
        last_notification_at=None,
        last_watchdog_at=None,
        backlog_records=0,
        dead_letters=0,
        agent=agent,
    )
    return build_heartbeat(data, origin, now_ms)


def watch_alert(now_ms: int, number: int, *, origin: Origin = ORIGIN) -> AlertEvent:
    """Return an alert that fires since `now_ms`; another number is another alert."""
    fingerprint = f"{number:016x}"
    data = Alert(
        organization_id=origin.organization_id,
        service_id=origin.service_id,
        region=origin.region,
        status="firing",
        notification="transition",
        reconstructed=False,
        fingerprint=fingerprint,
        starts_at=rfc3339(now_ms),
        ends_at=None,
        received_at=rfc3339(now_ms),
        labels={"alertname": "ClickHouseDown", "severity": "critical"},
        annotations={"summary": "A replica does not respond."},
        cut=[],
        withheld=[],
        group_truncated_alerts=0,
    )
    return AlertEvent(
        id=stable_id(fingerprint, data.starts_at),
        source=origin.alerts_uri,
        subject=fingerprint,
        time=data.starts_at,
        data=data,
    )


def message_id(body: bytes) -> str:
    """Return the id of an encoded event."""
    return str(msgspec.json.decode(body)["id"])
