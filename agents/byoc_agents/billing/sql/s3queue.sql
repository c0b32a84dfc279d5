-- Loads each new object of one month by itself: one queue per month, so that Keeper never has more than its
-- limit of objects to remember, and no object is read again. Replace YEAR and MONTH too (2026 and 11), create
-- the next month's queue before it begins, and drop a queue when the last objects of its month have arrived.
-- Limits:
-- - 1,000,000 objects per month: 336 replicas at 96 objects per day and 31 days. Beyond it the oldest objects are
--   read again (which the table forgives), without an end: let the control plane compact them, and use
--   s3queue_archives.sql (docs/control-plane.md).
-- - Each poll lists everything below v1/, and asks for this month's objects only.
-- - A queue that is dropped and created again reads its month once more.
-- Not 'ordered': it skips an object whose key sorts before one that was read, and the keys of several pods do
-- not arrive in their order. Without a TTL, because after it an object would be read again. Objects are kept:
-- `verify` reads them.
CREATE TABLE byoc_usage_queue_YEAR_MONTH
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
    'https://BUCKET.s3.REGION.amazonaws.com/v1/**/date=YEAR-MONTH-*/**/*.jsonl.zst', 'JSONEachRow')
SETTINGS
    mode = 'unordered',
    after_processing = 'keep',
    tracked_files_limit = 1000000,
    tracked_file_ttl_sec = 0,
    date_time_input_format = 'best_effort';

CREATE MATERIALIZED VIEW byoc_usage_queue_YEAR_MONTH_view TO byoc_usage AS
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
FROM byoc_usage_queue_YEAR_MONTH
WHERE type = 'byoc.billing.usage.v1'
    AND source = concat('/organizations/', data.organization_id, '/services/', data.service_id,
        '/replicas/', data.replica)
    -- A customer may write below its own folder only. So no record there is of another one.
    AND has(
        ['', data.organization_id],
        extract(_path, '(?:^|/)v1/(?:account=[0-9]{12}/)?org=([^/]+)/'));
