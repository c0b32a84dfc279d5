"""One event of each type, made up: the structs are real, so a new field has to appear here."""

from decimal import Decimal

from byoc_agents.alerts.dedup import summarize
from byoc_agents.alerts.events import (
    ALERT,
    HEARTBEAT,
    WATCHDOG,
    Alert,
    AlertEvent,
    Heartbeat,
    HeartbeatEvent,
    Watchdog,
    WatchdogEvent,
)
from byoc_agents.app.cloudevents import Agent, Event, source_uri
from byoc_agents.billing.record import TYPE as USAGE
from byoc_agents.billing.record import (
    Allocated,
    Counter,
    Resized,
    Samples,
    Usage,
    UsageRecord,
    Used,
)
from byoc_agents.state.assess import ServiceState
from byoc_agents.state.message import (
    STATE,
    SUMMARY,
    ReasonV1,
    StateEvent,
    StateV1,
    SummaryEvent,
    SummaryV1,
)
from byoc_agents.state.observation import Ping, ProbeSource
from byoc_agents.state.summary import SummaryState
from byoc_agents.state.thresholds import ReasonCode

ORGANIZATION, SERVICE, REGION, REPLICA = "org-1", "svc-1", "eu-central-1", "clickhouse-0"
NOON = "2026-11-23T12:00:00.000Z"
EPOCH_MS = 1_795_435_200_000
FINGERPRINT = "9c1f2b7a64d0e583"

_SERVICE_URI = f"/organizations/{ORGANIZATION}/services/{SERVICE}"
_REPLICA_URI = source_uri(ORGANIZATION, SERVICE, REPLICA)


def _id(digit: str) -> str:
    return digit * 32


_USAGE = UsageRecord(
    id=_id("1"),
    source=_REPLICA_URI,
    type=USAGE,
    subject="clickhouse",
    time="2026-11-23T12:01:00.000Z",
    data=Usage(
        organization_id=ORGANIZATION,
        service_id=SERVICE,
        replica=REPLICA,
        region=REGION,
        pod_uid="3a44ae1e-66f9-8a14-823f-648873640a95",
        container_name="clickhouse",
        container_id="4" * 64,
        charge_period_start=NOON,
        charge_period_end="2026-11-23T12:01:00.000Z",
        elapsed_milliseconds=60_000,
        allocated=Allocated(
            cpu_millicores=4000,
            memory_bytes=17_179_869_184,
            source="cgroup",
            cpu_source="cgroup",
            memory_source="cgroup",
            counted_milliseconds=60_000,
            resized=Resized(
                cpu_millicores_start=4000,
                cpu_millicores_end=4000,
                memory_bytes_start=17_179_869_184,
                memory_bytes_end=34_359_738_368,
            ),
        ),
        used=Used(
            cpu_core_seconds=Decimal("91.500000"),
            memory_byte_seconds=515_396_075_520,
            memory_max_bytes=9_663_676_416,
        ),
        counter=Counter(start=Decimal("1840.250000"), end=Decimal("1931.750000")),
        source="cgroup.v2",
        incarnation="cgroup.v2:5d0c81f2-1a-48731",
        samples=Samples(expected=12, observed=12),
        quality="measured",
        restart_observed=False,
        source_changed=False,
        clock_step_milliseconds=0,
        epoch=EPOCH_MS,
        sequence=1440,
        machine_cpus=8,
        counter_milliseconds=60_000,
    ),
)

_AGENT = Agent(
    version="0.2.0",
    configuration_sha256="5d41f6a1c0b97e38" * 4,
    ledger_size=20_852,
    ledger_root="k1lCnHqzbRZvVVDkRRzPAmh+I0xu6ZkYyWz5uBZm0qQ=",
)

_STATE = StateEvent(
    id=_id("2"),
    source=_REPLICA_URI,
    subject=REPLICA,
    time=NOON,
    data=StateV1(
        organization_id=ORGANIZATION,
        service_id=SERVICE,
        replica=REPLICA,
        region=REGION,
        kind="transition",
        state=ServiceState.DEGRADED,
        state_since=NOON,
        previous_state=ServiceState.RUNNING,
        healthy=False,
        reasons=(
            ReasonV1(
                code=ReasonCode.PING_FAILED,
                value=3.0,
                threshold=3.0,
                since="2026-11-23T11:59:40.000Z",
                detail=Ping.TIMEOUT,
                missing=(ProbeSource.METRICS,),
            ),
        ),
        version="26.3.1.1",
        uptime_seconds=86_400,
        observed_at=NOON,
        heartbeat_seconds=60.0,
        epoch=EPOCH_MS,
        sequence=2880,
        transition=5,
        lost_transitions=0,
        agent=_AGENT,
    ),
)

_SUMMARY = SummaryEvent(
    id=_id("3"),
    source=_SERVICE_URI,
    subject=SERVICE,
    time=NOON,
    data=SummaryV1(
        organization_id=ORGANIZATION,
        service_id=SERVICE,
        region=REGION,
        kind="heartbeat",
        state=SummaryState.DEGRADED,
        replicas={ServiceState.RUNNING: 2, ServiceState.DEGRADED: 1},
        observed_at=NOON,
        heartbeat_seconds=60.0,
        epoch=EPOCH_MS,
        sequence=2880,
        transition=5,
        lost_transitions=0,
        agent=_AGENT,
    ),
)

_LABELS = {"alertname": "ClickHouseReadonlyReplica", "severity": "critical", "pod": REPLICA}

_ALERT = AlertEvent(
    id=_id("5"),
    source=f"{_SERVICE_URI}/alerts",
    subject=FINGERPRINT,
    time="2026-11-23T11:58:00.000Z",
    data=Alert(
        organization_id=ORGANIZATION,
        service_id=SERVICE,
        region=REGION,
        status="firing",
        notification="transition",
        reconstructed=False,
        fingerprint=FINGERPRINT,
        starts_at="2026-11-23T11:58:00.000Z",
        ends_at=None,
        received_at="2026-11-23T11:58:05.250Z",
        labels=_LABELS,
        annotations={"summary": "A replica has been read-only for 2 minutes."},
        cut=["annotations.summary"],
        withheld=[],
        group_truncated_alerts=0,
    ),
)

_WATCHDOG = WatchdogEvent(
    id=_id("6"),
    source=f"{_SERVICE_URI}/alerts",
    subject=FINGERPRINT,
    time=NOON,
    data=Watchdog(
        organization_id=ORGANIZATION,
        service_id=SERVICE,
        region=REGION,
        status="firing",
        fingerprint=FINGERPRINT,
        starts_at="2026-11-01T08:00:00.000Z",
        received_at=NOON,
        labels={"alertname": "Watchdog", "severity": "none"},
    ),
)

_HEARTBEAT = HeartbeatEvent(
    id=_id("7"),
    source=_REPLICA_URI,
    subject=REPLICA,
    time=NOON,
    data=Heartbeat(
        organization_id=ORGANIZATION,
        service_id=SERVICE,
        region=REGION,
        replica=REPLICA,
        started_at="2026-11-20T06:30:00.000Z",
        sequence=5400,
        interval_seconds=60.0,
        stopping=False,
        last_notification_at="2026-11-23T11:59:30.000Z",
        last_watchdog_at="2026-11-23T11:59:30.000Z",
        backlog_records=0,
        dead_letters=0,
        open_episodes=1,
        open_digest=summarize([(FINGERPRINT, "2026-11-23T11:58:00.000Z")])[1],
        agent=_AGENT,
    ),
)

EXAMPLES: dict[str, Event] = {
    USAGE: _USAGE,
    STATE: _STATE,
    SUMMARY: _SUMMARY,
    ALERT: _ALERT,
    WATCHDOG: _WATCHDOG,
    HEARTBEAT: _HEARTBEAT,
}
"""Event type -> an event of it. The keys are all that the three daemons can send."""
