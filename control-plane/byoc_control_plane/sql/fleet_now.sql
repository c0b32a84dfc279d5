-- One row per replica: its newest state, its daemons with version and hash of the configuration, and how
-- far its usage is billed.
CREATE VIEW IF NOT EXISTS fleet_now AS
WITH
    daemons AS
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
    replicas AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            max(byoc_replicas.billed_until) AS until,
            argMaxMerge(newest_state) AS state_then,
            argMaxMerge(newest_forwarder) AS forwarder_then
        FROM byoc_replicas
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
    replicas.state_then.1 AS region,
    replicas.state_then.2 AS state,
    replicas.state_then.3 AS state_since,
    replicas.state_then.4 AS healthy,
    replicas.state_then.5 AS reasons,
    replicas.state_then.6 AS version,
    daemons.state_seen AS state_exporter_seen,
    daemons.forwarder_seen AS alert_forwarder_seen,
    replicas.forwarder_then.1 AS backlog_records,
    replicas.forwarder_then.2 AS dead_letters,
    replicas.until AS billed_until,
    silent.daemons AS silent_daemons,
    daemons.exporter.1 AS state_exporter_version,
    daemons.exporter.2 AS state_exporter_configuration,
    daemons.forwarder.1 AS alert_forwarder_version,
    daemons.forwarder.2 AS alert_forwarder_configuration
FROM daemons
LEFT JOIN replicas USING (organization_id, service_id, replica)
LEFT JOIN silent USING (organization_id, service_id, replica)
WHERE greatest(daemons.state_seen, daemons.forwarder_seen) > daemons.retired;
