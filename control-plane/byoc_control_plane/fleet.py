"""What the page of the fleet shows: one query per table, each with a bound on its rows.

The queries read the views of `sql/` only, as the Grafana dashboard does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from byoc_control_plane.progress import PROGRESS
from byoc_control_plane.store import Store, fetch_rows

FleetRows = Sequence[Mapping[str, Any]]

MAX_ROWS = 200  # of each table; the first are those that need a person
DAYS = 14

# {own} is a condition on the organization, or nothing. Days end with {tomorrow}: records of later
# days are of a wrong clock, and each customer can send any number of such days.
TOMORROW = "toDate(toDateTime(intDiv({now_ms}, 1000), 'UTC')) + 1"
# When the messages of an organization alone had waited last, by stream. `delayed`: they wait now,
# by the time up to which the stream is received; as the rule ByocCustomerDelayed.
DELAYS = """\
(
    SELECT
        organization_id,
        stream,
        until_ms,
        received_ms > 0 AND until_ms > received_ms - 60000 AS delayed
    FROM
    (
        SELECT organization_id, stream, toUnixTimestamp64Milli(max(steady_since)) AS until_ms
        FROM byoc_progress FINAL
        WHERE organization_id != '' AND at <= now64(3) + INTERVAL 1 MINUTE {own}
        GROUP BY organization_id, stream
    ) AS waited
    LEFT JOIN
    (
        SELECT stream, toUnixTimestamp64Milli(max(at)) AS received_ms
        FROM byoc_progress FINAL
        WHERE organization_id = '' AND at <= now64(3) + INTERVAL 1 MINUTE
        GROUP BY stream
    ) AS received USING (stream)
)"""
# Access was opened, and a minute after its agreed end the broker has not reported an end; as its
# metric byoc_access_overdue_seconds.
OVERDUE = """\
(state IN ('opening', 'open', 'closing')
    AND ifNull(toUnixTimestamp64Milli(ends_at), 0) BETWEEN 1 AND {now_ms} - 60001)"""
COUNTS = """\
SELECT
    count() AS replicas,
    countIf(ifNull(healthy, false)) AS healthy,
    uniqExact(organization_id) AS organizations,
    sum(length(silent_daemons)) AS silent,
    sum(backlog_records) AS backlog_records,
    sum(dead_letters) AS dead_letters
FROM fleet_now
WHERE 1 {own}"""
REJECTED = """\
SELECT count() AS rejected
FROM byoc_rejected FINAL
WHERE arrived_at >= toDateTime('{since} 00:00:00', 'UTC')"""
CUSTOMERS = """\
SELECT
    organization_id,
    uniqExact(service_id) AS services,
    count() AS replicas,
    countIf(NOT ifNull(healthy, false)) AS unhealthy,
    sum(length(silent_daemons)) AS silent,
    sum(backlog_records) AS backlog_records,
    countIf(toUnixTimestamp64Milli(billed_until) = 0) AS unbilled,
    minIf(toUnixTimestamp64Milli(billed_until), toUnixTimestamp64Milli(billed_until) > 0)
        AS billed_until_ms
FROM fleet_now
WHERE 1 {own}
GROUP BY organization_id
ORDER BY silent > 0 DESC, unhealthy > 0 DESC, organization_id
LIMIT {rows}"""
SILENT = """\
SELECT organization_id, service_id, replica, daemon, silent_seconds, allowed_seconds,
    toUnixTimestamp64Milli(last_seen) AS seen_ms
FROM silent_now
WHERE 1 {own}
ORDER BY silent_seconds DESC, organization_id, service_id, replica, daemon
LIMIT {rows}"""
DELAYED = """\
SELECT organization_id, stream, until_ms, delayed
FROM {delays}
ORDER BY delayed DESC, until_ms DESC, organization_id, stream
LIMIT {rows}"""
DELAYED_COUNT = """\
SELECT uniqExact(organization_id) AS delayed_organizations
FROM {delays}
WHERE delayed"""
REPLICAS = """\
SELECT
    organization_id,
    service_id,
    replica,
    region,
    state,
    ifNull(healthy, false) AS healthy,
    reasons,
    version,
    silent_daemons,
    toUnixTimestamp64Milli(state_exporter_seen) AS state_exporter_seen_ms,
    toUnixTimestamp64Milli(alert_forwarder_seen) AS alert_forwarder_seen_ms,
    toUnixTimestamp64Milli(billed_until) AS billed_until_ms,
    backlog_records,
    dead_letters
FROM fleet_now
WHERE 1 {own}
ORDER BY notEmpty(silent_daemons) DESC, healthy, dead_letters > 0 DESC, billed_until,
    organization_id, service_id, replica
LIMIT {rows}"""
VERSIONS = """\
SELECT
    daemon,
    agent_version AS version,
    count() AS daemons,
    toUnixTimestamp64Milli(min(last_seen)) AS oldest_seen_ms
FROM agents_now
WHERE supervised {own}
GROUP BY daemon, version
ORDER BY daemon DESC, daemons DESC, version
LIMIT {rows}"""
SERVERS = """\
SELECT version, count() AS replicas
FROM fleet_now
WHERE 1 {own}
GROUP BY version
ORDER BY replicas DESC, version
LIMIT {rows}"""
AGES = """\
SELECT
    multiIf(until_ms = 0, 5, age < 900, 0, age < 3600, 1, age < 21600, 2, age < 86400, 3, 4)
        AS class,
    count() AS replicas
FROM
(
    SELECT
        toUnixTimestamp64Milli(billed_until) AS until_ms,
        ({now_ms} - until_ms) / 1000 AS age
    FROM fleet_now
    WHERE 1 {own}
)
GROUP BY class
ORDER BY class"""
GAPS = """\
SELECT
    toString(day) AS date,
    sum(records) AS usage_records,
    sum(missing_sequences) AS missing,
    toFloat64(sum(uncovered_seconds)) AS uncovered,
    toFloat64(sum(gap_seconds)) AS gaps
FROM billing_completeness_since(since = '{since}')
WHERE day > toDate('{since}') AND day <= {tomorrow} {own}
GROUP BY day
ORDER BY day DESC
LIMIT {rows}"""
INCOMPLETE = """\
SELECT
    organization_id,
    service_id,
    sum(records) AS usage_records,
    sum(missing_sequences) AS missing,
    toFloat64(sum(uncovered_seconds)) AS uncovered,
    toFloat64(sum(gap_seconds)) AS gaps
FROM billing_completeness_since(since = '{since}')
WHERE day > toDate('{since}') AND day <= {tomorrow} {own}
GROUP BY organization_id, service_id
HAVING missing > 0 OR uncovered > 0 OR gaps > 0
ORDER BY missing DESC, uncovered DESC, gaps DESC, organization_id, service_id
LIMIT {rows}"""
SLO = """\
SELECT
    toString(day) AS date,
    sum(slo.state_messages) AS messages,
    max(state_delay_seconds) AS state_delay,
    max(alert_delay_seconds) AS alert_delay,
    min(usage_complete_ratio) AS complete
FROM slo_since(since = '{since}') AS slo
WHERE day > toDate('{since}') AND day <= {tomorrow} {own}
GROUP BY day
ORDER BY day DESC
LIMIT {rows}"""
GRANTS = """\
SELECT
    organization_id,
    service_id,
    grant_id,
    engineer,
    ticket,
    role,
    state,
    reason,
    ended,
    {overdue} AS overdue,
    toUnixTimestamp64Milli(since) AS since_ms,
    ifNull(toUnixTimestamp64Milli(sent_at), 0) AS sent_ms,
    ifNull(toUnixTimestamp64Milli(opened_at), 0) AS opened_ms,
    ifNull(toUnixTimestamp64Milli(ends_at), 0) AS ends_ms,
    counts['queries'] AS queries,
    counts['result_rows'] AS rows_read,
    record
FROM grants_now
WHERE (NOT ended OR since >= toDateTime('{since} 00:00:00', 'UTC')) {own}
ORDER BY overdue DESC, ended, since DESC, organization_id, service_id, grant_id
LIMIT {rows}"""
OVERDUE_COUNT = """\
SELECT count() AS overdue_grants
FROM grants_now
WHERE {overdue} {own}"""
QUERIES = {
    "counts": COUNTS,
    "rejected": REJECTED,
    "progress": PROGRESS,
    "customers": CUSTOMERS,
    "silent": SILENT,
    "delayed": DELAYED,
    "delayed_count": DELAYED_COUNT,
    "replicas": REPLICAS,
    "versions": VERSIONS,
    "servers": SERVERS,
    "ages": AGES,
    "gaps": GAPS,
    "incomplete": INCOMPLETE,
    "slo": SLO,
    "grants": GRANTS,
    "overdue_count": OVERDUE_COUNT,
}


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of each query, read at `now_ms`."""

    now_ms: int  # milliseconds since 1970
    organization: str  # the only one that is shown, or empty
    counts: FleetRows
    rejected: FleetRows
    progress: FleetRows
    customers: FleetRows
    silent: FleetRows
    delayed: FleetRows
    delayed_count: FleetRows
    replicas: FleetRows
    versions: FleetRows
    servers: FleetRows
    ages: FleetRows
    gaps: FleetRows
    incomplete: FleetRows
    slo: FleetRows
    grants: FleetRows
    overdue_count: FleetRows


def fill_query(query: str, now_ms: int, since: str, organization: str = "") -> str:
    """Return a query of QUERIES as ClickHouse executes it.

    `since` is a date. `organization` must be a name that `settings.name` accepts: it holds no
    character that could end the text.
    """
    own = f"AND organization_id = '{organization}'" if organization else ""
    query = query.replace("{delays}", DELAYS).replace("{overdue}", OVERDUE)
    filled = query.replace("{own}", own).replace("{rows}", str(MAX_ROWS))
    filled = filled.replace("{tomorrow}", TOMORROW)
    return filled.replace("{since}", since).replace("{now_ms}", str(now_ms))


async def read_fleet(store: Store, now_ms: int, since: str, organization: str = "") -> Fleet:
    """Read all tables, one query at a time. Raises as `Store.run`."""
    found: dict[str, FleetRows] = {}
    for table, query in QUERIES.items():
        found[table] = await fetch_rows(store, fill_query(query, now_ms, since, organization))
    return Fleet(now_ms=now_ms, organization=organization, **found)
