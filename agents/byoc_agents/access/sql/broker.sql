-- The broker's own login. Run it after roles.sql, as an administrator, with another password, on every
-- replica.
-- It can create and drop users whose name begins with byoc_grant_, give them the roles below and no
-- other right, and end queries. It cannot alter a user, create a role or grant a privilege. A person
-- who steals this login can create such users, end any query, and read what byoc_access_text reads,
-- because a role that may be given on is active. KILL QUERY needs the column query of processes.
-- The grants on names with a prefix need ClickHouse 24.11 or later, and bind only if the server has
-- select_from_system_db_requires_grant.
CREATE USER IF NOT EXISTS byoc_access_broker
    IDENTIFIED WITH sha256_password BY 'CHANGE_ME'
    GRANTEES NONE;

REVOKE ALL ON *.* FROM byoc_access_broker;
GRANT CREATE USER, DROP USER ON byoc_grant_* TO byoc_access_broker;
GRANT byoc_access_metrics, byoc_access_reader, byoc_access_shape, byoc_access_text TO byoc_access_broker WITH ADMIN OPTION;
GRANT KILL QUERY ON *.* TO byoc_access_broker;
GRANT SYSTEM FLUSH LOGS ON *.* TO byoc_access_broker;
-- To read a created user back, and to check the server before each opening.
GRANT SHOW USERS, SHOW ROLES, SHOW QUOTAS, SHOW SETTINGS PROFILES ON *.* TO byoc_access_broker;
GRANT SHOW TABLES, SHOW COLUMNS ON byoc_access.* TO byoc_access_broker;
GRANT SELECT(name, auth_type, auth_params, valid_until, host_ip, host_names, host_names_regexp, host_names_like, default_roles_all, default_roles_list, grantees_any, grantees_list) ON system.users TO byoc_access_broker;
GRANT SELECT(name) ON system.roles TO byoc_access_broker;
GRANT SELECT(user_name, role_name, granted_role_name, with_admin_option) ON system.role_grants TO byoc_access_broker;
GRANT SELECT(user_name, role_name, access_type, database, table, column, is_partial_revoke, grant_option) ON system.grants TO byoc_access_broker;
GRANT SELECT(profile_name, user_name, role_name, setting_name, value, writability, inherit_profile) ON system.settings_profile_elements TO byoc_access_broker;
GRANT SELECT(name, keys, apply_to_all, apply_to_list, apply_to_except) ON system.quotas TO byoc_access_broker;
GRANT SELECT(quota_name, duration, max_queries, max_result_rows, max_result_bytes, max_execution_time) ON system.quota_limits TO byoc_access_broker;
GRANT SELECT(database, name, engine, as_select, create_table_query) ON system.tables TO byoc_access_broker;
GRANT SELECT(query_id, user, query, elapsed) ON system.processes TO byoc_access_broker;
-- The evidence: the queries of one grant, and its logins.
GRANT SELECT(type, event_date, event_time_microseconds, query_start_time_microseconds, query_duration_ms, query_id, initial_query_id, query, query_kind, normalized_query_hash, databases, tables, columns, exception_code, exception, user, initial_user, address, port, forwarded_for, interface, client_name, http_user_agent, read_rows, read_bytes, result_rows, result_bytes, memory_usage, log_comment) ON system.query_log TO byoc_access_broker;
GRANT SELECT(type, event_date, event_time_microseconds, auth_id, user, auth_type, client_address, client_port, interface, client_name, failure_reason, certificate_subjects, certificate_serial, certificate_issuer, certificate_not_before, certificate_not_after) ON system.session_log TO byoc_access_broker;
GRANT SELECT(database, table, name) ON system.columns TO byoc_access_broker;

-- By user: each grant has its own count. The broker has the roles too, to give them on, so it is excepted.
CREATE QUOTA OR REPLACE byoc_access KEYED BY user_name
    FOR INTERVAL 1 hour MAX queries = 600, result_rows = 200000, result_bytes = 100000000, execution_time = 1800
    TO byoc_access_metrics, byoc_access_reader, byoc_access_shape, byoc_access_text EXCEPT byoc_access_broker;
