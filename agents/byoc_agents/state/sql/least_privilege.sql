-- The user of the state exporter: it is granted the columns that the queries read, of nine system
-- tables, and nothing else. The billing scraper with BYOC_BILLING_TARGET=clickhouse:URL reads three
-- of them: events, asynchronous_metrics and metrics.
-- The grants of columns bind only if the server has select_from_system_db_requires_grant (in
-- access_control_improvements; config.xml of the packages sets it). Without it every user reads
-- nearly all of system, such as the texts of queries in query_log.
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

-- Without it the tables below leave the rows of other tables out, without an error. With it the
-- login can list the names of all databases and tables, but read no column of them.
GRANT SHOW TABLES ON *.* TO byoc_state_exporter;

GRANT SELECT(metric, value) ON system.metrics TO byoc_state_exporter;
GRANT SELECT(event, value) ON system.events TO byoc_state_exporter;
GRANT SELECT(metric, value) ON system.asynchronous_metrics TO byoc_state_exporter;
GRANT SELECT(total_space, free_space) ON system.disks TO byoc_state_exporter;
GRANT SELECT(name, value, remote) ON system.errors TO byoc_state_exporter;
GRANT SELECT(is_readonly, is_session_expired, absolute_delay, queue_size) ON system.replicas TO byoc_state_exporter;
GRANT SELECT(active, engine, database, table, partition_id) ON system.parts TO byoc_state_exporter;
GRANT SELECT(is_done, is_killed, create_time) ON system.mutations TO byoc_state_exporter;
GRANT SELECT(reason) ON system.detached_parts TO byoc_state_exporter;
-- What it costs: SELECT count(), sum(query_duration_ms), sum(read_rows) FROM system.query_log
-- WHERE log_comment = 'byoc-state-exporter' AND type = 'QueryFinish' AND event_date = today()
