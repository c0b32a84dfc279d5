-- Loads each new archive of one year by itself, if the control plane compacts the objects
-- (docs/control-plane.md): use it instead of s3queue.sql, and replace YEAR (2026). Create the next year's queue
-- before it begins, and drop a queue when nothing of its year is outstanding.
-- Limits:
-- - 1,000,000 archives per year: 113 per hour. A shard writes one archive per hour, another one for objects that
--   came later, and one for each 50,000 objects or 64 MiB. Beyond it the oldest archives are read again (which
--   the table forgives), without an end.
-- - A record is loaded when its hour has been archived: two hours after the end of the hour by default.
-- - Each poll lists this year's archives and manifests only.
-- - A queue that is dropped and created again reads its year once more.
-- Not 'ordered': a late archive of an earlier hour would be skipped. Without a TTL, because after it an archive
-- would be read again. Archives are kept: `verify` reads them.
CREATE TABLE byoc_archive_queue_YEAR
(
    specversion String,
    id String,
    source String,
    type LowCardinality(String),
    subject String,
    time DateTime64(3, 'UTC'),
    datacontenttype LowCardinality(String),
    data Tuple(
        organization_id String,
        service_id String,
        replica String,
        region LowCardinality(String),
        `k8s.pod.uid` String,
        `k8s.container.name` LowCardinality(String),
        `container.id` String,
        charge_period_start DateTime64(3, 'UTC'),
        charge_period_end DateTime64(3, 'UTC'),
        elapsed_milliseconds UInt64,
        allocated Tuple(
            cpu_millicores Nullable(UInt64),
            memory_bytes Nullable(UInt64),
            source LowCardinality(String),
            counted_milliseconds Nullable(Int64)),
        used Tuple(
            cpu_core_seconds Decimal(38, 6),
            memory_byte_seconds UInt128,
            memory_max_bytes UInt64),
        counter Tuple(
            start Nullable(Decimal(38, 6)),
            end Nullable(Decimal(38, 6))),
        source LowCardinality(String),
        incarnation String,
        samples Tuple(expected UInt32, observed UInt32),
        quality LowCardinality(String),
        gap_reason LowCardinality(String),
        restart_observed Bool,
        source_changed Bool,
        clock_step_milliseconds Int64,
        epoch UInt64,
        sequence UInt64,
        machine_cpus Nullable(Int64),
        counter_milliseconds Nullable(Int64))
)
ENGINE = S3Queue(
    'https://BUCKET.s3.REGION.amazonaws.com/v1/archive/date=YEAR-*/**/*.jsonl.zst', 'JSONEachRow')
SETTINGS
    mode = 'unordered',
    after_processing = 'keep',
    tracked_files_limit = 1000000,
    tracked_file_ttl_sec = 0,
    date_time_input_format = 'best_effort';

CREATE MATERIALIZED VIEW byoc_archive_queue_YEAR_view TO byoc_usage AS
SELECT
    source,
    id,
    data.organization_id AS organization_id,
    data.service_id AS service_id,
    data.replica AS replica,
    data.region AS region,
    data.`k8s.pod.uid` AS pod_uid,
    data.`k8s.container.name` AS container_name,
    data.`container.id` AS container_id,
    data.charge_period_start AS charge_period_start,
    data.charge_period_end AS charge_period_end,
    data.elapsed_milliseconds AS elapsed_milliseconds,
    data.allocated.cpu_millicores AS allocated_cpu_millicores,
    data.allocated.memory_bytes AS allocated_memory_bytes,
    data.allocated.source AS allocated_source,
    data.allocated.counted_milliseconds AS allocated_counted_milliseconds,
    data.used.cpu_core_seconds AS cpu_core_seconds,
    data.used.memory_byte_seconds AS memory_byte_seconds,
    data.used.memory_max_bytes AS memory_max_bytes,
    data.counter.start AS counter_start_core_seconds,
    data.counter.end AS counter_end_core_seconds,
    data.source AS usage_source,
    data.incarnation AS incarnation,
    data.samples.expected AS samples_expected,
    data.samples.observed AS samples_observed,
    data.quality AS quality,
    data.gap_reason AS gap_reason,
    data.restart_observed AS restart_observed,
    data.source_changed AS source_changed,
    data.clock_step_milliseconds AS clock_step_milliseconds,
    data.epoch AS epoch,
    data.sequence AS sequence,
    data.machine_cpus AS machine_cpus,
    data.counter_milliseconds AS counter_milliseconds,
    _path AS object
FROM byoc_archive_queue_YEAR
WHERE type = 'byoc.billing.usage.v1'
    AND source = concat('/organizations/', data.organization_id, '/services/', data.service_id,
        '/replicas/', data.replica)
    -- A customer may write below its own folder only. So no record there is of another one.
    AND has(
        ['', data.organization_id],
        extract(_path, '(?:^|/)v1/(?:account=[0-9]{12}/)?org=([^/]+)/'));
