"""The three events that the alert forwarder sends, built from named fields only.

This file is the allow-list. Only labels and annotations with a configured name are sent, with
bounded lengths. Every other field is a time, a number or a value of a closed set. The identity of
an alert contains neither the forwarder's replica nor the time of receipt, so two forwarders behind
two Alertmanagers give the same `source` and `id`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from byoc_agents.alerts.identity import Identity
from byoc_agents.alerts.payload import Received, Status
from byoc_agents.alerts.values import pick
from byoc_agents.app.cloudevents import (
    AgentOrNone,
    Event,
    EventType,
    OrganizationId,
    PodName,
    RegionName,
    ServiceId,
    describe,
    rfc3339,
    source_uri,
    stable_id,
)

ALERT: Literal["byoc.alert.v1"] = "byoc.alert.v1"
WATCHDOG: Literal["byoc.alert.watchdog.v1"] = "byoc.alert.watchdog.v1"
HEARTBEAT: Literal["byoc.alert.heartbeat.v1"] = "byoc.alert.heartbeat.v1"
MAX_LABEL = 256  # characters; Kubernetes names have at most 253
MAX_ANNOTATION = 1024  # characters of a summary for people

Notification = Literal["transition", "reminder"]
Fingerprint = Annotated[
    str,
    describe(
        "Identifies the labels of the alert: an HMAC of Alertmanager's fingerprint with the "
        "customer's secret, 16 hex digits."
    ),
]
Labels = Annotated[dict[str, str], describe("Only the configured names: BYOC_ALERTS_LABELS.")]


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of `byoc.alert.v1`."""

    organization_id: OrganizationId
    service_id: ServiceId
    region: RegionName
    status: Annotated[Status, describe("Status of the alert in Alertmanager.")]
    notification: Annotated[
        Notification,
        describe("`transition`: it began or ended. `reminder`: it still fires, repeated."),
    ]
    reconstructed: Annotated[
        bool, describe("Whether the forwarder saw only the end; this event states the start.")
    ]
    end_inferred: Annotated[
        bool, describe("Whether it is resolved because the alert fires with a later start.")
    ] = False
    fingerprint: Fingerprint
    starts_at: Annotated[
        str,
        describe("Start of the alert, RFC 3339, UTC. With `fingerprint` it identifies an episode."),
    ]
    ends_at: Annotated[
        str | None,
        describe(
            "End of the alert, RFC 3339, UTC. Null while it fires, or if Alertmanager did not "
            "state it."
        ),
    ]
    received_at: Annotated[
        str,
        describe(
            "When the forwarder received it, RFC 3339, UTC. `webhook-timestamp` minus this is its "
            "age at delivery."
        ),
    ]
    labels: Labels
    annotations: Annotated[
        dict[str, str], describe("Only the configured names: BYOC_ALERTS_ANNOTATIONS.")
    ]
    cut: Annotated[
        list[str], describe("The labels.NAME and annotations.NAME that were too long and are cut.")
    ]
    withheld: Annotated[
        list[str],
        describe(
            "The labels.NAME and annotations.NAME that are left out: a default label that does not "
            "match its pattern, or a value that looks like an address or a secret."
        ),
    ] = []
    group_truncated_alerts: Annotated[
        int, describe("Alerts of its group that Alertmanager left out of the same notification.")
    ]


class AlertEvent(Event, frozen=True, kw_only=True):
    """An alert began, still fires, or ended."""

    type: EventType[Literal["byoc.alert.v1"]] = ALERT
    data: Alert


class Watchdog(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of `byoc.alert.watchdog.v1`."""

    organization_id: OrganizationId
    service_id: ServiceId
    region: RegionName
    status: Annotated[
        Status, describe("`resolved`: Alertmanager no longer receives the alert from Prometheus.")
    ]
    fingerprint: Fingerprint
    starts_at: Annotated[str, describe("Start of the alert, RFC 3339, UTC.")]
    received_at: Annotated[str, describe("When the forwarder received it, RFC 3339, UTC.")]
    labels: Labels


class WatchdogEvent(Event, frozen=True, kw_only=True):
    """Prometheus and Alertmanager were running at `received_at`. Only the latest is kept."""

    type: EventType[Literal["byoc.alert.watchdog.v1"]] = WATCHDOG
    data: Watchdog


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of `byoc.alert.heartbeat.v1`."""

    organization_id: OrganizationId
    service_id: ServiceId
    region: RegionName
    replica: PodName
    started_at: Annotated[
        str, describe("Start of the process, RFC 3339, UTC. A new value means a restart.")
    ]
    sequence: Annotated[
        int,
        describe(
            "Number of the heartbeat in this process: 0, 1, 2 ... Only the latest is kept, so "
            "numbers may be missing."
        ),
    ]
    interval_seconds: Annotated[
        float,
        describe("The next heartbeat comes within this time. It is longer while nothing changes."),
    ]
    stopping: Annotated[bool, describe("Whether this is the last one of a planned stop.")]
    last_notification_at: Annotated[
        str | None,
        describe("When Alertmanager last notified this process. Null if it has not yet."),
    ]
    last_watchdog_at: Annotated[
        str | None, describe("When this process last received the Watchdog. Null if not yet.")
    ]
    backlog_records: Annotated[int, describe("Events that are not sent yet.")]
    dead_letters: Annotated[
        int, describe("Events that the receiver rejected for good and the forwarder keeps.")
    ]
    open_episodes: Annotated[
        int | None,
        describe(
            "Number of episodes that were reported as firing and not as resolved. Null in events "
            "of 0.1.0."
        ),
    ] = None
    open_digest: Annotated[
        str | None,
        describe(
            "First 32 hex digits of SHA-256 over these episodes; the contract of the alerts has "
            "the rule. Null in events of 0.1.0."
        ),
    ] = None
    agent: AgentOrNone = None


class HeartbeatEvent(Event, frozen=True, kw_only=True):
    """The forwarder was running at `time`."""

    type: EventType[Literal["byoc.alert.heartbeat.v1"]] = HEARTBEAT
    data: Heartbeat


class Origin(msgspec.Struct, frozen=True):
    """The service and the replica that the events belong to."""

    organization_id: str
    service_id: str
    region: str
    replica: str

    @property
    def alerts_uri(self) -> str:
        """Return the `source` of alerts: the service, not the replica that relays them."""
        return f"/organizations/{self.organization_id}/services/{self.service_id}/alerts"

    def id_of(self, kind: str, *parts: str) -> str:
        """Return an id computed from the kind of event, the service and `parts`."""
        return stable_id(kind, self.organization_id, self.service_id, *parts)


class Allowed(msgspec.Struct, frozen=True):
    """The names of the labels and annotations that may be sent."""

    labels: Sequence[str]
    annotations: Sequence[str]


class Sighting(msgspec.Struct, frozen=True):
    """A reception of alerts: their identity, and when."""

    identity: Identity
    at_ms: int
    group_truncated: int = 0


def alert_id(  # noqa: PLR0913  the parts of the identity
    origin: Origin,
    receiver: str,
    fingerprint: str,
    *,
    starts_at_ms: int,
    status: Status,
    follows_ms: int | None = None,
) -> str:
    """Return the id of one fact: the beginning or the end of an episode of an alert.

    `follows_ms` is the end after which the alert fires again with the same start. It is
    Alertmanager's value, so two forwarders give the same id even if one of them missed other facts.
    """
    first = origin.id_of(ALERT, receiver, fingerprint, str(starts_at_ms), status)
    return first if follows_ms is None else stable_id(first, "reopened", str(follows_ms))


def reminder_id(first_id: str, period: int) -> str:
    """Return the id of a reminder: a hash of the fact's id and the number of its period."""
    return stable_id(first_id, "reminder", str(period))


def build_alert(  # noqa: PLR0913  the alert, its context, and the fact to report
    origin: Origin,
    allowed: Allowed,
    alert: Received,
    seen: Sighting,
    *,
    status: Status,
    event_id: str,
    notification: Notification = "transition",
    end_inferred: bool = False,
) -> AlertEvent:
    """Return the event. `status` differs from the alert's own if its beginning is derived.

    With `end_inferred`, the received alert fires with a later start than that of `alert`.
    """
    labels = pick(alert.labels, allowed.labels, MAX_LABEL, labels=True)
    annotations = pick(alert.annotations, allowed.annotations, MAX_ANNOTATION)
    ends_at_ms = alert.ends_at_ms if status == "resolved" else None
    data = Alert(
        organization_id=origin.organization_id,
        service_id=origin.service_id,
        region=origin.region,
        status=status,
        notification=notification,
        reconstructed=status != alert.status and not end_inferred,
        end_inferred=end_inferred,
        fingerprint=alert.fingerprint,
        starts_at=rfc3339(alert.starts_at_ms),
        ends_at=None if ends_at_ms is None else rfc3339(ends_at_ms),
        received_at=rfc3339(seen.at_ms),
        labels=labels.values,
        annotations=annotations.values,
        cut=_name_paths(labels.cut, annotations.cut),
        withheld=_name_paths(labels.withheld, annotations.withheld),
        group_truncated_alerts=seen.group_truncated,
    )
    return AlertEvent(
        id=event_id,
        source=origin.alerts_uri,
        subject=alert.fingerprint,
        time=rfc3339(_moment(alert, status, notification, seen.at_ms)),
        data=data,
    )


def _moment(alert: Received, status: Status, notification: Notification, at_ms: int) -> int:
    if notification == "reminder":
        return at_ms
    if status == "firing":
        return alert.starts_at_ms
    return at_ms if alert.ends_at_ms is None else alert.ends_at_ms


def build_watchdog(
    origin: Origin, allowed: Allowed, alert: Received, seen: Sighting
) -> WatchdogEvent:
    """Return the event of a Watchdog. Each receipt gives a new event."""
    at = rfc3339(seen.at_ms)
    return WatchdogEvent(
        id=origin.id_of(WATCHDOG, seen.identity.receiver, alert.fingerprint, alert.status, at),
        source=origin.alerts_uri,
        subject=alert.fingerprint,
        time=at,
        data=Watchdog(
            organization_id=origin.organization_id,
            service_id=origin.service_id,
            region=origin.region,
            status=alert.status,
            fingerprint=alert.fingerprint,
            starts_at=rfc3339(alert.starts_at_ms),
            received_at=at,
            labels=pick(alert.labels, allowed.labels, MAX_LABEL, labels=True).values,
        ),
    )


def build_heartbeat(data: Heartbeat, origin: Origin, at_ms: int) -> HeartbeatEvent:
    """Return the heartbeat event of the forwarder."""
    return HeartbeatEvent(
        id=origin.id_of(HEARTBEAT, origin.replica, data.started_at, str(data.sequence)),
        source=source_uri(origin.organization_id, origin.service_id, origin.replica),
        subject=origin.replica,
        time=rfc3339(at_ms),
        data=data,
    )


def _name_paths(labels: Sequence[str], annotations: Sequence[str]) -> list[str]:
    return [f"labels.{name}" for name in labels] + [f"annotations.{name}" for name in annotations]
