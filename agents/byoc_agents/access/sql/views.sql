-- The views through which an engineer of the vendor reads this server. Each lists its columns, so a
-- column that a new version of ClickHouse adds never appears by itself.
-- `byoc-agents access init-sql` prints this file with a random key; run it as an administrator on every
-- replica, with the same key.
-- The views read the system tables with the grants of byoc_access_views. Nobody can log in as it.
SYSTEM FLUSH LOGS;

CREATE USER IF NOT EXISTS byoc_access_views
    IDENTIFIED WITH sha256_hash BY '0000000000000000000000000000000000000000000000000000000000000000'
    HOST NONE
    GRANTEES NONE;

-- The key of the hashed names. Without it a name could be found by hashing likely names.
CREATE DATABASE IF NOT EXISTS byoc_access_key;

CREATE TABLE IF NOT EXISTS byoc_access_key.name_key (first UInt64, second UInt64)
    ENGINE = MergeTree ORDER BY tuple();

INSERT INTO byoc_access_key.name_key
    SELECT FIRST_HALF, SECOND_HALF WHERE (SELECT count() FROM byoc_access_key.name_key) = 0;

-- SHOW TABLES and SHOW COLUMNS: without them the rows of the customer's tables are left out.
REVOKE ALL ON *.* FROM byoc_access_views;
GRANT SHOW TABLES, SHOW COLUMNS ON *.* TO byoc_access_views;
GRANT SELECT(first, second) ON byoc_access_key.name_key TO byoc_access_views;
GRANT SELECT(metric, value) ON system.metrics TO byoc_access_views;
GRANT SELECT(event, value) ON system.events TO byoc_access_views;
GRANT SELECT(metric, value) ON system.asynchronous_metrics TO byoc_access_views;
GRANT SELECT(name, code, value, last_error_time, remote) ON system.errors TO byoc_access_views;
GRANT SELECT(name, type, free_space, total_space, unreserved_space, keep_free_space, is_encrypted, is_read_only, is_remote, is_broken) ON system.disks TO byoc_access_views;
GRANT SELECT(type, event_date, event_time, event_time_microseconds, query_start_time, query_duration_ms, read_rows, read_bytes, written_rows, written_bytes, result_rows, result_bytes, memory_usage, peak_threads_usage, query, normalized_query_hash, query_kind, databases, tables, exception_code, exception, is_initial_query, interface, user, query_id, initial_query_id, ProfileEvents) ON system.query_log TO byoc_access_views;
GRANT SELECT(elapsed, is_initial_query, is_cancelled, interface, user, query_id, initial_query_id, query, query_kind, read_rows, read_bytes, total_rows_approx, written_rows, written_bytes, memory_usage, peak_memory_usage, peak_threads_usage, ProfileEvents) ON system.processes TO byoc_access_views;
GRANT SELECT(database, table, elapsed, progress, num_parts, is_mutation, merge_type, merge_algorithm, total_size_bytes_compressed, total_size_marks, bytes_read_uncompressed, rows_read, bytes_written_uncompressed, rows_written, columns_written, memory_usage) ON system.merges TO byoc_access_views;
GRANT SELECT(database, table, mutation_id, create_time, parts_to_do, is_done, is_killed, latest_fail_time) ON system.mutations TO byoc_access_views;
GRANT SELECT(database, table, partition_id, engine, part_type, active, level, marks, rows, bytes_on_disk, data_compressed_bytes, data_uncompressed_bytes, primary_key_bytes_in_memory, modification_time, remove_time, refcount, disk_name, is_frozen, has_lightweight_delete) ON system.parts TO byoc_access_views;
GRANT SELECT(database, table, engine, is_leader, can_become_leader, is_readonly, is_session_expired, future_parts, parts_to_check, columns_version, queue_size, inserts_in_queue, merges_in_queue, part_mutations_in_queue, queue_oldest_time, inserts_oldest_time, merges_oldest_time, part_mutations_oldest_time, log_max_index, log_pointer, last_queue_update, absolute_delay, total_replicas, active_replicas, lost_part_count) ON system.replicas TO byoc_access_views;
GRANT SELECT(database, table, position, type, create_time, required_quorum, is_detach, is_currently_executing, num_tries, last_exception_time, last_attempt_time, num_postponed, last_postpone_time, merge_type) ON system.replication_queue TO byoc_access_views;
GRANT SELECT(database, name, engine, is_temporary, metadata_modification_time, storage_policy, total_rows, total_bytes, parts, active_parts, total_marks) ON system.tables TO byoc_access_views;
GRANT SELECT(database, table, name, type, position, default_kind, data_compressed_bytes, data_uncompressed_bytes, marks_bytes, is_in_partition_key, is_in_sorting_key, is_in_primary_key, is_in_sampling_key) ON system.columns TO byoc_access_views;

CREATE DATABASE IF NOT EXISTS byoc_access;

-- Role byoc_access_metrics.
CREATE OR REPLACE VIEW byoc_access.metrics
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
SELECT m.metric AS metric, m.value AS value FROM system.metrics AS m;

CREATE OR REPLACE VIEW byoc_access.events
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
SELECT e.event AS event, e.value AS value FROM system.events AS e;

CREATE OR REPLACE VIEW byoc_access.asynchronous_metrics
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
SELECT m.metric AS metric, m.value AS value FROM system.asynchronous_metrics AS m;

CREATE OR REPLACE VIEW byoc_access.errors
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
SELECT
    e.name AS name,
    e.code AS code,
    e.value AS value,
    e.last_error_time AS last_error_time,
    e.remote AS remote
FROM system.errors AS e;

CREATE OR REPLACE VIEW byoc_access.disks
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
SELECT
    d.name AS name,
    d.type AS type,
    d.free_space AS free_space,
    d.total_space AS total_space,
    d.unreserved_space AS unreserved_space,
    d.keep_free_space AS keep_free_space,
    d.is_encrypted AS is_encrypted,
    d.is_read_only AS is_read_only,
    d.is_remote AS is_remote,
    d.is_broken AS is_broken
FROM system.disks AS d;

-- Role byoc_access_reader. `table` is the hash of DATABASE.TABLE in every view. The names of users and
-- the IDs of queries, which clients choose, are hashed with the other key in every case.
CREATE OR REPLACE VIEW byoc_access.query_log
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH
    (SELECT (first, second) FROM byoc_access_key.name_key) AS name_key,
    (SELECT (second, first) FROM byoc_access_key.name_key) AS identity_key
SELECT
    q.type AS type,
    q.event_date AS event_date,
    q.event_time AS event_time,
    q.event_time_microseconds AS event_time_microseconds,
    q.query_start_time AS query_start_time,
    q.query_duration_ms AS query_duration_ms,
    q.read_rows AS read_rows,
    q.read_bytes AS read_bytes,
    q.written_rows AS written_rows,
    q.written_bytes AS written_bytes,
    q.result_rows AS result_rows,
    q.result_bytes AS result_bytes,
    q.memory_usage AS memory_usage,
    q.peak_threads_usage AS peak_threads_usage,
    q.normalized_query_hash AS normalized_query_hash,
    q.query_kind AS query_kind,
    arrayMap(n -> hex(sipHash64Keyed(name_key, n)), q.databases) AS databases,
    arrayMap(n -> hex(sipHash64Keyed(name_key, n)), q.tables) AS tables,
    q.exception_code AS exception_code,
    q.is_initial_query AS is_initial_query,
    q.interface AS interface,
    hex(sipHash64Keyed(identity_key, q.user)) AS user,
    hex(sipHash64Keyed(identity_key, q.query_id)) AS query_id,
    hex(sipHash64Keyed(identity_key, q.initial_query_id)) AS initial_query_id,
    q.ProfileEvents AS ProfileEvents
FROM system.query_log AS q;

CREATE OR REPLACE VIEW byoc_access.processes
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH (SELECT (second, first) FROM byoc_access_key.name_key) AS identity_key
SELECT
    p.elapsed AS elapsed,
    p.is_initial_query AS is_initial_query,
    p.is_cancelled AS is_cancelled,
    p.interface AS interface,
    hex(sipHash64Keyed(identity_key, p.user)) AS user,
    hex(sipHash64Keyed(identity_key, p.query_id)) AS query_id,
    hex(sipHash64Keyed(identity_key, p.initial_query_id)) AS initial_query_id,
    normalizedQueryHash(p.query) AS normalized_query_hash,
    p.query_kind AS query_kind,
    p.read_rows AS read_rows,
    p.read_bytes AS read_bytes,
    p.total_rows_approx AS total_rows_approx,
    p.written_rows AS written_rows,
    p.written_bytes AS written_bytes,
    p.memory_usage AS memory_usage,
    p.peak_memory_usage AS peak_memory_usage,
    p.peak_threads_usage AS peak_threads_usage,
    p.ProfileEvents AS ProfileEvents
FROM system.processes AS p;

CREATE OR REPLACE VIEW byoc_access.merges
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH (SELECT (first, second) FROM byoc_access_key.name_key) AS name_key
SELECT
    hex(sipHash64Keyed(name_key, m.database)) AS database,
    hex(sipHash64Keyed(name_key, concat(m.database, '.', m.table))) AS table,
    m.elapsed AS elapsed,
    m.progress AS progress,
    m.num_parts AS num_parts,
    m.is_mutation AS is_mutation,
    m.merge_type AS merge_type,
    m.merge_algorithm AS merge_algorithm,
    m.total_size_bytes_compressed AS total_size_bytes_compressed,
    m.total_size_marks AS total_size_marks,
    m.bytes_read_uncompressed AS bytes_read_uncompressed,
    m.rows_read AS rows_read,
    m.bytes_written_uncompressed AS bytes_written_uncompressed,
    m.rows_written AS rows_written,
    m.columns_written AS columns_written,
    m.memory_usage AS memory_usage
FROM system.merges AS m;

CREATE OR REPLACE VIEW byoc_access.mutations
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH (SELECT (first, second) FROM byoc_access_key.name_key) AS name_key
SELECT
    hex(sipHash64Keyed(name_key, m.database)) AS database,
    hex(sipHash64Keyed(name_key, concat(m.database, '.', m.table))) AS table,
    m.mutation_id AS mutation_id,
    m.create_time AS create_time,
    m.parts_to_do AS parts_to_do,
    m.is_done AS is_done,
    m.is_killed AS is_killed,
    m.latest_fail_time AS latest_fail_time
FROM system.mutations AS m;

-- A partition's ID can contain values of the partition key, so it is always hashed.
CREATE OR REPLACE VIEW byoc_access.parts
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH
    (SELECT (first, second) FROM byoc_access_key.name_key) AS name_key,
    (SELECT (second, first) FROM byoc_access_key.name_key) AS identity_key
SELECT
    hex(sipHash64Keyed(name_key, p.database)) AS database,
    hex(sipHash64Keyed(name_key, concat(p.database, '.', p.table))) AS table,
    hex(sipHash64Keyed(identity_key, concat(p.database, '.', p.table, '.', p.partition_id))) AS partition_id,
    p.engine AS engine,
    p.part_type AS part_type,
    p.active AS active,
    p.level AS level,
    p.marks AS marks,
    p.rows AS rows,
    p.bytes_on_disk AS bytes_on_disk,
    p.data_compressed_bytes AS data_compressed_bytes,
    p.data_uncompressed_bytes AS data_uncompressed_bytes,
    p.primary_key_bytes_in_memory AS primary_key_bytes_in_memory,
    p.modification_time AS modification_time,
    p.remove_time AS remove_time,
    p.refcount AS refcount,
    p.disk_name AS disk_name,
    p.is_frozen AS is_frozen,
    p.has_lightweight_delete AS has_lightweight_delete
FROM system.parts AS p;

CREATE OR REPLACE VIEW byoc_access.replicas
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH (SELECT (first, second) FROM byoc_access_key.name_key) AS name_key
SELECT
    hex(sipHash64Keyed(name_key, r.database)) AS database,
    hex(sipHash64Keyed(name_key, concat(r.database, '.', r.table))) AS table,
    r.engine AS engine,
    r.is_leader AS is_leader,
    r.can_become_leader AS can_become_leader,
    r.is_readonly AS is_readonly,
    r.is_session_expired AS is_session_expired,
    r.future_parts AS future_parts,
    r.parts_to_check AS parts_to_check,
    r.columns_version AS columns_version,
    r.queue_size AS queue_size,
    r.inserts_in_queue AS inserts_in_queue,
    r.merges_in_queue AS merges_in_queue,
    r.part_mutations_in_queue AS part_mutations_in_queue,
    r.queue_oldest_time AS queue_oldest_time,
    r.inserts_oldest_time AS inserts_oldest_time,
    r.merges_oldest_time AS merges_oldest_time,
    r.part_mutations_oldest_time AS part_mutations_oldest_time,
    r.log_max_index AS log_max_index,
    r.log_pointer AS log_pointer,
    r.last_queue_update AS last_queue_update,
    r.absolute_delay AS absolute_delay,
    r.total_replicas AS total_replicas,
    r.active_replicas AS active_replicas,
    r.lost_part_count AS lost_part_count
FROM system.replicas AS r;

CREATE OR REPLACE VIEW byoc_access.replication_queue
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH (SELECT (first, second) FROM byoc_access_key.name_key) AS name_key
SELECT
    hex(sipHash64Keyed(name_key, r.database)) AS database,
    hex(sipHash64Keyed(name_key, concat(r.database, '.', r.table))) AS table,
    r.position AS position,
    r.type AS type,
    r.create_time AS create_time,
    r.required_quorum AS required_quorum,
    r.is_detach AS is_detach,
    r.is_currently_executing AS is_currently_executing,
    r.num_tries AS num_tries,
    r.last_exception_time AS last_exception_time,
    r.last_attempt_time AS last_attempt_time,
    r.num_postponed AS num_postponed,
    r.last_postpone_time AS last_postpone_time,
    r.merge_type AS merge_type
FROM system.replication_queue AS r;

CREATE OR REPLACE VIEW byoc_access.tables
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH (SELECT (first, second) FROM byoc_access_key.name_key) AS name_key
SELECT
    hex(sipHash64Keyed(name_key, t.database)) AS database,
    hex(sipHash64Keyed(name_key, concat(t.database, '.', t.name))) AS table,
    t.engine AS engine,
    t.is_temporary AS is_temporary,
    t.metadata_modification_time AS metadata_modification_time,
    t.storage_policy AS storage_policy,
    t.total_rows AS total_rows,
    t.total_bytes AS total_bytes,
    t.parts AS parts,
    t.active_parts AS active_parts,
    t.total_marks AS total_marks
FROM system.tables AS t;

-- Of the type only its first word: the values of an Enum and the names in a Tuple are the customer's.
CREATE OR REPLACE VIEW byoc_access.columns
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH (SELECT (first, second) FROM byoc_access_key.name_key) AS name_key
SELECT
    hex(sipHash64Keyed(name_key, c.database)) AS database,
    hex(sipHash64Keyed(name_key, concat(c.database, '.', c.table))) AS table,
    hex(sipHash64Keyed(name_key, concat(c.database, '.', c.table, '.', c.name))) AS column,
    extract(c.type, '^[A-Za-z0-9]+') AS type,
    c.position AS position,
    c.default_kind AS default_kind,
    c.data_compressed_bytes AS data_compressed_bytes,
    c.data_uncompressed_bytes AS data_uncompressed_bytes,
    c.marks_bytes AS marks_bytes,
    c.is_in_partition_key AS is_in_partition_key,
    c.is_in_sorting_key AS is_in_sorting_key,
    c.is_in_primary_key AS is_in_primary_key,
    c.is_in_sampling_key AS is_in_sampling_key
FROM system.columns AS c;

-- Role byoc_access_shape: queries without literals, comments and quoted names. Unquoted names stay. A
-- query that the server could not parse is left out, because its parts are not known; so is the data
-- after an INSERT's FORMAT.
CREATE OR REPLACE VIEW byoc_access.query_shape
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH (SELECT (second, first) FROM byoc_access_key.name_key) AS identity_key
SELECT
    q.type AS type,
    q.event_time AS event_time,
    hex(sipHash64Keyed(identity_key, q.query_id)) AS query_id,
    q.normalized_query_hash AS normalized_query_hash,
    replaceRegexpAll(
        replaceRegexpOne(
            normalizeQuery(q.query),
            if(q.query_kind = 'Insert', '(?is)\\bFORMAT\\s+\\w+.*$', '^$'),
            'FORMAT ?'),
        '`[^`]*`|"[^"]*"|“[^”]*”',
        '`?`') AS shape
FROM system.query_log AS q
WHERE q.type != 'ExceptionBeforeStart';

-- Role byoc_access_text: everything in the text of queries and errors, literals included.
CREATE OR REPLACE VIEW byoc_access.query_text
    DEFINER = byoc_access_views SQL SECURITY DEFINER AS
WITH (SELECT (second, first) FROM byoc_access_key.name_key) AS identity_key
SELECT
    q.type AS type,
    q.event_time AS event_time,
    hex(sipHash64Keyed(identity_key, q.query_id)) AS query_id,
    q.query AS query,
    q.exception AS exception
FROM system.query_log AS q;
