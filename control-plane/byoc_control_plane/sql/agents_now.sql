-- One row per replica and daemon, from its newest message: the highest number counts. The interval is
-- the longer one of the two newest, by number and by time: they differ if a heartbeat arrives late, or
-- if a daemon that lost its disk starts again with an earlier clock and so with lower numbers. Then its
-- stop does not count either.
CREATE VIEW IF NOT EXISTS agents_now AS
WITH
    daemons AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            daemon,
            min(byoc_agents.first_seen) AS first_at,
            max(byoc_agents.last_seen) AS last_at,
            max(byoc_agents.retired_at) AS retired,
            max(byoc_agents.latest) AS newest,
            max(byoc_agents.recent) AS arrived,
            max(byoc_agents.agent) AS described
        FROM byoc_agents
        GROUP BY organization_id, service_id, replica, daemon
    )
SELECT
    organization_id,
    service_id,
    replica,
    daemon,
    first_at AS first_seen,
    last_at AS last_seen,
    retired AS retired_at,
    greatest(newest.3, arrived.3) AS heartbeat_seconds,
    newest.4 AND (arrived.4 OR arrived.2 = newest.1) AS stopping,
    last_at > retired AND NOT stopping AS supervised,
    described.3 AS agent_version,
    described.4 AS configuration_sha256,
    described.5 AS ledger_size,
    described.6 AS ledger_root
FROM daemons;
