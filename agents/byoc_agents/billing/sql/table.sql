-- One row a usage record. (source, id) is the key of a record: a row that comes twice is kept once,
-- at a merge or with FINAL. Decimals and whole numbers only: money depends on these figures.
CREATE TABLE byoc_usage
(
    source LowCardinality(String),
    id String,
    organization_id LowCardinality(String),
    service_id LowCardinality(String),
    replica LowCardinality(String),
    region LowCardinality(String),
    pod_uid String,
    container_name LowCardinality(String),
    container_id String,
    charge_period_start DateTime64(3, 'UTC'),
    charge_period_end DateTime64(3, 'UTC'),
    elapsed_milliseconds UInt64,
    allocated_cpu_millicores Nullable(UInt64),
    allocated_memory_bytes Nullable(UInt64),
    allocated_source LowCardinality(String),
    allocated_counted_milliseconds Nullable(Int64),
    cpu_core_seconds Decimal(38, 6),
    memory_byte_seconds UInt128,
    memory_max_bytes UInt64,
    counter_start_core_seconds Nullable(Decimal(38, 6)),
    counter_end_core_seconds Nullable(Decimal(38, 6)),
    usage_source LowCardinality(String),
    incarnation String,
    samples_expected UInt32,
    samples_observed UInt32,
    quality LowCardinality(String),
    gap_reason LowCardinality(String),
    restart_observed Bool,
    source_changed Bool,
    clock_step_milliseconds Int64,
    epoch UInt64,
    sequence UInt64,
    machine_cpus Nullable(Int64),
    counter_milliseconds Nullable(Int64),
    object String,
    period_milliseconds UInt64 MATERIALIZED
        toUnixTimestamp64Milli(charge_period_end) - toUnixTimestamp64Milli(charge_period_start)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(charge_period_start)
ORDER BY (organization_id, service_id, charge_period_start, source, id);
