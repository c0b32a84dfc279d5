-- One row per replica: its newest state, its daemons with version and hash of the configuration, and how
-- far its usage is billed.
CREATE VIEW IF NOT EXISTS fleet_now AS
WITH
    replicas AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            maxIf(last_seen, daemon = 'state-exporter') AS state_seen,
            maxIf(last_seen, daemon = 'alert-forwarder') AS forwarder_seen,
            anyIf((agent_version, configuration_sha256), daemon = 'state-exporter') AS exporter,
            anyIf((agent_version, configuration_sha256), daemon = 'alert-forwarder') AS forwarder,
            max(retired_at) AS retired
        FROM agents_now
        GROUP BY organization_id, service_id, replica
    ),
    states AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            argMax((region, state, state_since, healthy, reasons, version), (epoch, sequence))
                AS newest
        FROM byoc_state
        WHERE type = 'byoc.service.state.v1'
        GROUP BY organization_id, service_id, replica
    ),
    forwarders AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            argMax((backlog_records, dead_letters), (started_at, sequence)) AS newest
        FROM byoc_alerts
        WHERE type = 'byoc.alert.heartbeat.v1'
        GROUP BY organization_id, service_id, replica
    ),
    billed AS
    (
        SELECT organization_id, service_id, replica, max(charge_period_end) AS until
        FROM byoc_usage
        GROUP BY organization_id, service_id, replica
    ),
    silent AS
    (
        SELECT organization_id, service_id, replica, groupArray(daemon) AS daemons
        FROM silent_now
        GROUP BY organization_id, service_id, replica
    )
SELECT
    organization_id,
    service_id,
    replica,
    states.newest.1 AS region,
    states.newest.2 AS state,
    states.newest.3 AS state_since,
    states.newest.4 AS healthy,
    states.newest.5 AS reasons,
    states.newest.6 AS version,
    replicas.state_seen AS state_exporter_seen,
    replicas.forwarder_seen AS alert_forwarder_seen,
    forwarders.newest.1 AS backlog_records,
    forwarders.newest.2 AS dead_letters,
    billed.until AS billed_until,
    silent.daemons AS silent_daemons,
    replicas.exporter.1 AS state_exporter_version,
    replicas.exporter.2 AS state_exporter_configuration,
    replicas.forwarder.1 AS alert_forwarder_version,
    replicas.forwarder.2 AS alert_forwarder_configuration
FROM replicas
LEFT JOIN states USING (organization_id, service_id, replica)
LEFT JOIN forwarders USING (organization_id, service_id, replica)
LEFT JOIN billed USING (organization_id, service_id, replica)
LEFT JOIN silent USING (organization_id, service_id, replica)
WHERE greatest(replicas.state_seen, replicas.forwarder_seen) > replicas.retired;
