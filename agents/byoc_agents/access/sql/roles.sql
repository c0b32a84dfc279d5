-- What each role of the access policy may read, and the limits of a grant's queries. Run it after
-- views.sql, as an administrator, on every replica. It may be run again: every role then has exactly
-- these grants.
-- Never grant a source (REMOTE, URL, FILE, S3 ...) to these roles. With READ ON REMOTE,
-- clusterAllReplicas() reads every table of the cluster, because the other servers run the query as the
-- cluster's own user. The broker refuses to open while a role has another grant than these.
CREATE SETTINGS PROFILE OR REPLACE byoc_access SETTINGS
    readonly = 1 CONST,
    allow_ddl = 0 CONST,
    allow_introspection_functions = 0 CONST,
    format_display_secrets_in_show_and_select = 0 CONST,
    max_execution_time = 60 CONST,
    timeout_overflow_mode = 'throw' CONST,
    max_memory_usage = 2000000000 CONST,
    max_threads = 2 CONST,
    max_concurrent_queries_for_user = 2 CONST,
    priority = 10 CONST,
    max_rows_to_read = 100000000 CONST,
    read_overflow_mode = 'throw' CONST,
    max_result_rows = 10000 CONST,
    max_result_bytes = 10000000 CONST,
    result_overflow_mode = 'throw' CONST,
    log_queries = 1 CONST,
    log_queries_probability = 1 CONST,
    log_queries_min_type = 'QUERY_START' CONST,
    log_queries_min_query_duration_ms = 0 CONST,
    log_queries_cut_to_length = 100000 CONST;

CREATE ROLE IF NOT EXISTS byoc_access_metrics;
REVOKE ALL ON *.* FROM byoc_access_metrics;
GRANT SELECT ON byoc_access.metrics TO byoc_access_metrics;
GRANT SELECT ON byoc_access.events TO byoc_access_metrics;
GRANT SELECT ON byoc_access.asynchronous_metrics TO byoc_access_metrics;
GRANT SELECT ON byoc_access.errors TO byoc_access_metrics;
GRANT SELECT ON byoc_access.disks TO byoc_access_metrics;

CREATE ROLE IF NOT EXISTS byoc_access_reader;
REVOKE ALL ON *.* FROM byoc_access_reader;
GRANT byoc_access_metrics TO byoc_access_reader;
GRANT SELECT ON byoc_access.query_log TO byoc_access_reader;
GRANT SELECT ON byoc_access.processes TO byoc_access_reader;
GRANT SELECT ON byoc_access.merges TO byoc_access_reader;
GRANT SELECT ON byoc_access.mutations TO byoc_access_reader;
GRANT SELECT ON byoc_access.parts TO byoc_access_reader;
GRANT SELECT ON byoc_access.replicas TO byoc_access_reader;
GRANT SELECT ON byoc_access.replication_queue TO byoc_access_reader;
GRANT SELECT ON byoc_access.tables TO byoc_access_reader;
GRANT SELECT ON byoc_access.columns TO byoc_access_reader;

CREATE ROLE IF NOT EXISTS byoc_access_shape;
REVOKE ALL ON *.* FROM byoc_access_shape;
GRANT byoc_access_reader TO byoc_access_shape;
GRANT SELECT ON byoc_access.query_shape TO byoc_access_shape;

CREATE ROLE IF NOT EXISTS byoc_access_text;
REVOKE ALL ON *.* FROM byoc_access_text;
GRANT byoc_access_shape TO byoc_access_text;
GRANT SELECT ON byoc_access.query_text TO byoc_access_text;
