-- The user of the state exporter: it is granted nine system tables and nothing else.
-- Run it as an administrator, with another password, on every replica (or with ON CLUSTER).
-- At readonly = 1 the client itself can set nothing, so the limits and the comment stand here.
CREATE SETTINGS PROFILE IF NOT EXISTS byoc_state_exporter SETTINGS
    max_execution_time = 4,
    max_memory_usage = 200000000,
    max_result_rows = 100,
    max_result_bytes = 65536,
    max_threads = 1,
    max_concurrent_queries_for_user = 4,
    priority = 10,
    log_queries = 1,
    log_comment = 'byoc-state-exporter',
    readonly = 1;

CREATE USER IF NOT EXISTS byoc_state_exporter
    IDENTIFIED WITH sha256_password BY 'CHANGE_ME'
    HOST LOCAL
    SETTINGS PROFILE 'byoc_state_exporter';

-- Without it the tables below leave the rows of other tables out, without an error.
GRANT SHOW TABLES ON *.* TO byoc_state_exporter;

GRANT SELECT ON system.metrics TO byoc_state_exporter;
GRANT SELECT ON system.events TO byoc_state_exporter;
GRANT SELECT ON system.asynchronous_metrics TO byoc_state_exporter;
GRANT SELECT ON system.disks TO byoc_state_exporter;
GRANT SELECT ON system.errors TO byoc_state_exporter;
GRANT SELECT ON system.replicas TO byoc_state_exporter;
GRANT SELECT ON system.parts TO byoc_state_exporter;
GRANT SELECT ON system.mutations TO byoc_state_exporter;
GRANT SELECT ON system.detached_parts TO byoc_state_exporter;
-- What it costs: SELECT count(), sum(query_duration_ms), sum(read_rows) FROM system.query_log
-- WHERE log_comment = 'byoc-state-exporter' AND type = 'QueryFinish' AND event_date = today()
