-- The tables of the control plane. byoc_usage is the table of byoc_agents/billing/sql/table.sql.
-- {engine} is empty for a single server, Replicated or Shared for a cluster; nothing else differs.
-- A message that arrives twice is one row after a merge or with FINAL: (source, id) is its identity,
-- and all other key columns are the same in every copy.
CREATE TABLE IF NOT EXISTS byoc_state
(
    source String,
    id String,
    type LowCardinality(String),
    time DateTime64(3, 'UTC'),
    arrived_at DateTime64(3, 'UTC'),
    organization_id LowCardinality(String),
    service_id LowCardinality(String),
    replica LowCardinality(String),
    region LowCardinality(String),
    kind LowCardinality(String),
    state LowCardinality(String),
    state_since Nullable(DateTime64(3, 'UTC')),
    healthy Nullable(Bool),
    reasons Array(LowCardinality(String)),
    version LowCardinality(String),
    uptime_seconds Nullable(UInt64),
    heartbeat_seconds Float64,
    epoch UInt64,
    sequence UInt64,
    transition UInt64,
    lost_transitions UInt64,
    stopping Bool,
    agent_version LowCardinality(String),
    configuration_sha256 String,
    ledger_size UInt64,
    ledger_root String,
    event String CODEC(ZSTD(3))
)
ENGINE = {engine}ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (organization_id, service_id, replica, type, epoch, sequence, source, id)
TTL toDateTime(time) + INTERVAL 400 DAY;

CREATE TABLE IF NOT EXISTS byoc_alerts
(
    source String,
    id String,
    type LowCardinality(String),
    time DateTime64(3, 'UTC'),
    arrived_at DateTime64(3, 'UTC'),
    organization_id LowCardinality(String),
    service_id LowCardinality(String),
    replica LowCardinality(String),
    region LowCardinality(String),
    status LowCardinality(String),
    notification LowCardinality(String),
    fingerprint String,
    starts_at Nullable(DateTime64(3, 'UTC')),
    ends_at Nullable(DateTime64(3, 'UTC')),
    received_at Nullable(DateTime64(3, 'UTC')),
    labels Map(LowCardinality(String), String),
    annotations Map(LowCardinality(String), String),
    started_at Nullable(DateTime64(3, 'UTC')),
    sequence UInt64,
    interval_seconds Float64,
    stopping Bool,
    backlog_records UInt64,
    dead_letters UInt64,
    agent_version LowCardinality(String),
    configuration_sha256 String,
    ledger_size UInt64,
    ledger_root String,
    event String CODEC(ZSTD(3))
)
ENGINE = {engine}ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (organization_id, service_id, type, time, source, id)
TTL toDateTime(time) + INTERVAL 400 DAY;

-- One row per replica and daemon: a message enrolls it, and so does nothing else.
-- `latest` is (epoch, sequence, heartbeat_seconds, stopping) of the message with the highest number,
-- and `recent` is (arrived_at, epoch, heartbeat_seconds, stopping) of the one that arrived last. `agent`
-- is (epoch, sequence, version, configuration_sha256, ledger_size, ledger_root), empty from 0.1.0.
-- To end the supervision of a replica that will not return, insert its names with retired_at = now64(3).
-- A later message enrolls it again.
CREATE TABLE IF NOT EXISTS byoc_agents
(
    organization_id LowCardinality(String),
    service_id LowCardinality(String),
    replica LowCardinality(String),
    daemon LowCardinality(String),
    first_seen SimpleAggregateFunction(min, Nullable(DateTime64(3, 'UTC'))),
    last_seen SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    retired_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    latest SimpleAggregateFunction(max, Tuple(UInt64, UInt64, Float64, Bool)),
    recent SimpleAggregateFunction(max, Tuple(DateTime64(3, 'UTC'), UInt64, Float64, Bool)),
    agent SimpleAggregateFunction(max, Tuple(UInt64, UInt64, String, String, UInt64, String))
)
ENGINE = {engine}AggregatingMergeTree
ORDER BY (organization_id, service_id, replica, daemon);

CREATE MATERIALIZED VIEW IF NOT EXISTS byoc_agents_from_state TO byoc_agents AS
WITH if(heartbeat_seconds > 0, heartbeat_seconds, 60) AS seconds
SELECT
    organization_id,
    service_id,
    replica,
    'state-exporter' AS daemon,
    min(toNullable(arrived_at)) AS first_seen,
    max(arrived_at) AS last_seen,
    max((epoch, sequence, seconds, stopping)) AS latest,
    max((arrived_at, epoch, seconds, stopping)) AS recent,
    max((epoch, sequence, toString(agent_version), configuration_sha256, ledger_size, ledger_root))
        AS agent
FROM byoc_state
WHERE type = 'byoc.service.state.v1'
GROUP BY organization_id, service_id, replica;

CREATE MATERIALIZED VIEW IF NOT EXISTS byoc_agents_from_alerts TO byoc_agents AS
WITH
    if(interval_seconds > 0, interval_seconds, 60) AS seconds,
    toUInt64(toUnixTimestamp64Milli(assumeNotNull(started_at))) AS epoch
SELECT
    organization_id,
    service_id,
    replica,
    'alert-forwarder' AS daemon,
    min(toNullable(arrived_at)) AS first_seen,
    max(arrived_at) AS last_seen,
    max((epoch, sequence, seconds, stopping)) AS latest,
    max((arrived_at, epoch, seconds, stopping)) AS recent,
    max((epoch, sequence, toString(agent_version), configuration_sha256, ledger_size, ledger_root))
        AS agent
FROM byoc_alerts
WHERE type = 'byoc.alert.heartbeat.v1'
GROUP BY organization_id, service_id, replica;

-- What `fleet_now` shows of each replica, kept up to date by each insert: its cost grows with the number
-- of replicas, not of messages or records. Rows that were there before this table are not in it.
CREATE TABLE IF NOT EXISTS byoc_replicas
(
    organization_id LowCardinality(String),
    service_id LowCardinality(String),
    replica LowCardinality(String),
    billed_until SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    newest_state AggregateFunction(
        argMax,
        Tuple(String, String, Nullable(DateTime64(3, 'UTC')), Nullable(Bool), Array(String), String),
        Tuple(UInt64, UInt64)),
    newest_forwarder AggregateFunction(
        argMax, Tuple(UInt64, UInt64), Tuple(Nullable(DateTime64(3, 'UTC')), UInt64))
)
ENGINE = {engine}AggregatingMergeTree
ORDER BY (organization_id, service_id, replica);

-- An end far in the future, of a wrong clock, would stay the latest one: it is left out here.
CREATE MATERIALIZED VIEW IF NOT EXISTS byoc_replicas_from_usage TO byoc_replicas AS
SELECT organization_id, service_id, replica,
    maxIf(charge_period_end, charge_period_end < now() + INTERVAL 1 DAY) AS billed_until
FROM byoc_usage
GROUP BY organization_id, service_id, replica;

CREATE MATERIALIZED VIEW IF NOT EXISTS byoc_replicas_from_state TO byoc_replicas AS
SELECT
    organization_id,
    service_id,
    replica,
    argMaxState(
        (toString(region), toString(state), state_since, healthy,
            CAST(reasons, 'Array(String)'), toString(version)),
        (epoch, sequence)) AS newest_state
FROM byoc_state
WHERE type = 'byoc.service.state.v1'
GROUP BY organization_id, service_id, replica;

CREATE MATERIALIZED VIEW IF NOT EXISTS byoc_replicas_from_alerts TO byoc_replicas AS
SELECT
    organization_id,
    service_id,
    replica,
    argMaxState((backlog_records, dead_letters), (started_at, sequence)) AS newest_forwarder
FROM byoc_alerts
WHERE type = 'byoc.alert.heartbeat.v1'
GROUP BY organization_id, service_id, replica;

-- The states of requests for access. A broker's events have numbers about the use, and no query. `engineer`
-- and `ticket` are in the rows `sent` only, which this side writes when a broker is sent a request. `event`
-- of the state `open` has the engineer's certificate.
CREATE TABLE IF NOT EXISTS byoc_grants
(
    source String,
    id String,
    type LowCardinality(String),
    time DateTime64(3, 'UTC'),
    arrived_at DateTime64(3, 'UTC'),
    organization_id LowCardinality(String),
    service_id LowCardinality(String),
    grant_id String,
    state LowCardinality(String),
    since DateTime64(3, 'UTC'),
    reason LowCardinality(String),
    role LowCardinality(String),
    duration_seconds UInt32,
    ends_at Nullable(DateTime64(3, 'UTC')),
    counts Map(LowCardinality(String), UInt64),
    record LowCardinality(String),
    engineer String,
    ticket String,
    event String CODEC(ZSTD(3))
)
ENGINE = {engine}ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (organization_id, service_id, grant_id, state, since, source, id)
TTL toDateTime(time) + INTERVAL 400 DAY;

-- How far each consumer and receiver has come. Silence is counted from these rows, never from the
-- clock of the server: while nobody receives, nobody is silent.
CREATE TABLE IF NOT EXISTS byoc_progress
(
    stream LowCardinality(String),
    consumer String,
    at DateTime64(3, 'UTC'),
    steady_since DateTime64(3, 'UTC'),
    redelivery_seconds Float64
)
ENGINE = {engine}ReplacingMergeTree(at)
ORDER BY (stream, consumer)
TTL toDateTime(at) + INTERVAL 1 DAY;

-- Messages that can never become a row: kept as they came, for a person.
CREATE TABLE IF NOT EXISTS byoc_rejected
(
    stream LowCardinality(String),
    id String,
    arrived_at DateTime64(3, 'UTC'),
    reason String,
    body String CODEC(ZSTD(3))
)
ENGINE = {engine}ReplacingMergeTree
PARTITION BY toYYYYMM(arrived_at)
ORDER BY (stream, id)
TTL toDateTime(arrived_at) + INTERVAL 400 DAY;
