-- One row a usage record. (source, id) is the key of a record: a row that comes twice is kept once,
-- at a merge or with FINAL. Decimals and whole numbers only: money depends on these figures.
CREATE TABLE IF NOT EXISTS byoc_usage
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

-- Lines that are not loaded, such as one with a figure that does not fit its column: a customer may write any
-- bytes below its own folder. `reason` says what is wrong. They are in no total, and a line that is read
-- twice is kept once.
CREATE TABLE IF NOT EXISTS byoc_usage_rejected
(
    organization_id LowCardinality(String),
    object String,
    id String,
    reason LowCardinality(String),
    line String CODEC(ZSTD(3)),
    line_hash UInt64,
    arrived_at DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (organization_id, object, line_hash)
TTL toDateTime(arrived_at) + INTERVAL 400 DAY;

-- Every way to load inserts the lines of the objects here. Nothing is stored: the views store each line as a row
-- of byoc_usage or of byoc_usage_rejected.
CREATE TABLE IF NOT EXISTS byoc_usage_lines
(
    line String,
    object String
)
ENGINE = Null;

CREATE TABLE IF NOT EXISTS byoc_usage_read
(
    source String,
    id String,
    organization_id String,
    service_id String,
    replica String,
    region String,
    pod_uid String,
    container_name String,
    container_id String,
    charge_period_start DateTime64(3, 'UTC'),
    charge_period_end DateTime64(3, 'UTC'),
    elapsed_milliseconds UInt64,
    allocated_cpu_millicores Nullable(UInt64),
    allocated_memory_bytes Nullable(UInt64),
    allocated_source String,
    allocated_counted_milliseconds Nullable(Int64),
    cpu_core_seconds Decimal(38, 6),
    memory_byte_seconds UInt128,
    memory_max_bytes UInt64,
    counter_start_core_seconds Nullable(Decimal(38, 6)),
    counter_end_core_seconds Nullable(Decimal(38, 6)),
    usage_source String,
    incarnation String,
    samples_expected UInt32,
    samples_observed UInt32,
    quality String,
    gap_reason String,
    restart_observed Bool,
    source_changed Bool,
    clock_step_milliseconds Int64,
    epoch UInt64,
    sequence UInt64,
    machine_cpus Nullable(Int64),
    counter_milliseconds Nullable(Int64),
    object String,
    folder String,
    reason String,
    line String
)
ENGINE = Null;

-- ClickHouse takes an integer that does not fit its column for a smaller one, and cuts decimals. So each number is
-- read as its own text: `marked` is the line with "#" before each number, boolean and null, in quotes. A figure
-- counts if its column gives the same text again. The first rule that is true gives the `reason`: an array, because
-- multiIf evaluates the rest of its conditions separately, which takes fifty times as long.
CREATE MATERIALIZED VIEW IF NOT EXISTS byoc_usage_read_from_lines TO byoc_usage_read AS
WITH
    replaceRegexpAll(
        line,
        '([A-Za-z0-9_.]"[ \\t\\r]*:[ \\t\\r]*)(-?(?:0|[1-9][0-9]*)(?:[.][0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)([ \\t\\r]*[,}])',
        '\\1"#\\2"\\3') AS marked,
    JSONExtract(
        marked,
        'Tuple(
            specversion String,
            id String,
            source String,
            type String,
            subject String,
            time String,
            datacontenttype String,
            data Tuple(
                organization_id String,
                service_id String,
                replica String,
                region String,
                `k8s.pod.uid` String,
                `k8s.container.name` String,
                `container.id` String,
                charge_period_start String,
                charge_period_end String,
                elapsed_milliseconds String,
                allocated Tuple(
                    cpu_millicores String,
                    memory_bytes String,
                    source String,
                    cpu_source String,
                    memory_source String,
                    counted_milliseconds String,
                    resized Tuple(
                        cpu_millicores_start String,
                        cpu_millicores_end String,
                        memory_bytes_start String,
                        memory_bytes_end String)),
                used Tuple(
                    cpu_core_seconds String,
                    memory_byte_seconds String,
                    memory_max_bytes String),
                counter Tuple(start String, `end` String),
                source String,
                incarnation String,
                samples Tuple(expected String, observed String),
                quality String,
                gap_reason String,
                restart_observed String,
                source_changed String,
                clock_step_milliseconds String,
                epoch String,
                sequence String,
                machine_cpus String,
                counter_milliseconds String))') AS record,
    tupleElement(record, 'data') AS data,
    tupleElement(data, 'allocated') AS size,
    tupleElement(size, 'resized') AS resized,
    tupleElement(data, 'used') AS used,
    tupleElement(data, 'counter') AS counter,
    tupleElement(data, 'samples') AS samples,
    [
        JSONExtractKeys(marked),
        JSONExtractKeys(marked, 'data'),
        JSONExtractKeys(marked, 'data', 'allocated'),
        JSONExtractKeys(marked, 'data', 'allocated', 'resized'),
        JSONExtractKeys(marked, 'data', 'used'),
        JSONExtractKeys(marked, 'data', 'counter'),
        JSONExtractKeys(marked, 'data', 'samples')
    ] AS keys,
    has(keys[3], 'resized') AND JSONExtractString(marked, 'data', 'allocated', 'resized') != '#null'
        AS is_resized,
    JSONExtractString(marked, 'data', 'counter') != '#null' AS has_counter,
    extract(object, '(?:^|/)v1/(?:account=[0-9]{12}/)?org=([^/]+)/') AS folder_organization,
    parseDateTime64BestEffortOrZero(data.charge_period_start, 3, 'UTC') AS start_time,
    parseDateTime64BestEffortOrZero(data.charge_period_end, 3, 'UTC') AS end_time
SELECT
    record.source AS source,
    record.id AS id,
    data.organization_id AS organization_id,
    data.service_id AS service_id,
    data.replica AS replica,
    data.region AS region,
    data.`k8s.pod.uid` AS pod_uid,
    data.`k8s.container.name` AS container_name,
    data.`container.id` AS container_id,
    start_time AS charge_period_start,
    end_time AS charge_period_end,
    toUInt64OrZero(substring(data.elapsed_milliseconds, 2)) AS elapsed_milliseconds,
    toUInt64OrNull(substring(size.cpu_millicores, 2)) AS allocated_cpu_millicores,
    toUInt64OrNull(substring(size.memory_bytes, 2)) AS allocated_memory_bytes,
    size.source AS allocated_source,
    toInt64OrNull(substring(size.counted_milliseconds, 2)) AS allocated_counted_milliseconds,
    toDecimal128OrZero(substring(used.cpu_core_seconds, 2), 6) AS cpu_core_seconds,
    toUInt128OrZero(substring(used.memory_byte_seconds, 2)) AS memory_byte_seconds,
    toUInt64OrZero(substring(used.memory_max_bytes, 2)) AS memory_max_bytes,
    toDecimal128OrNull(substring(counter.start, 2), 6) AS counter_start_core_seconds,
    toDecimal128OrNull(substring(tupleElement(counter, 'end'), 2), 6) AS counter_end_core_seconds,
    data.source AS usage_source,
    data.incarnation AS incarnation,
    toUInt32OrZero(substring(samples.expected, 2)) AS samples_expected,
    toUInt32OrZero(substring(samples.observed, 2)) AS samples_observed,
    data.quality AS quality,
    data.gap_reason AS gap_reason,
    data.restart_observed = '#true' AS restart_observed,
    data.source_changed = '#true' AS source_changed,
    toInt64OrZero(substring(data.clock_step_milliseconds, 2)) AS clock_step_milliseconds,
    toUInt64OrZero(substring(data.epoch, 2)) AS epoch,
    toUInt64OrZero(substring(data.sequence, 2)) AS sequence,
    toInt64OrNull(substring(data.machine_cpus, 2)) AS machine_cpus,
    toInt64OrNull(substring(data.counter_milliseconds, 2)) AS counter_milliseconds,
    object,
    if(folder_organization = '', data.organization_id, folder_organization) AS folder,
    arrayFirst(rule -> rule.1, [
        (NOT match(line, '^[ \\t\\r]*[{]'), 'invalid JSON'),
        (NOT isValidJSON(marked), 'invalid JSON'),
        (arrayExists(names -> length(names) != length(arrayDistinct(names)), keys), 'a key is given twice'),
        (record.type != 'byoc.billing.usage.v1', 'another type'),
        (NOT hasAll(keys[1], ['id', 'source', 'time', 'data']), 'a field is missing'),
        (NOT hasAll(keys[2], [
            'organization_id', 'service_id', 'replica', 'region', 'k8s.pod.uid', 'k8s.container.name',
            'container.id', 'charge_period_start', 'charge_period_end', 'elapsed_milliseconds', 'allocated',
            'used', 'counter', 'source', 'incarnation', 'samples', 'quality', 'restart_observed',
            'source_changed', 'clock_step_milliseconds', 'epoch', 'sequence']), 'a field is missing'),
        (NOT hasAll(keys[3], ['cpu_millicores', 'memory_bytes', 'source']), 'a field is missing'),
        (is_resized AND NOT hasAll(keys[4], [
            'cpu_millicores_start', 'cpu_millicores_end', 'memory_bytes_start', 'memory_bytes_end']),
            'a field is missing'),
        (NOT hasAll(keys[5], ['cpu_core_seconds', 'memory_byte_seconds', 'memory_max_bytes']),
            'a field is missing'),
        (has_counter AND NOT hasAll(keys[6], ['start', 'end']), 'a field is missing'),
        (NOT hasAll(keys[7], ['expected', 'observed']), 'a field is missing'),
        (match(line, '"(#|\\\\u0023)'), 'a text begins with #'), -- it would look like a marked number
        (arrayExists(
            text -> startsWith(text, '#'),
            [record.id, record.source, record.subject, record.time, data.organization_id, data.service_id,
                data.replica, data.region, data.`k8s.pod.uid`, data.`k8s.container.name`, data.`container.id`,
                data.incarnation]), 'a text is expected'),
        (match(
            line,
            '"(id|time|subject|region|incarnation|k8s[.]pod[.]uid|k8s[.]container[.]name|container[.]id)"[ \\t\\r]*:[ \\t\\r]*[\\[{]'),
            'a text is expected'),
        (has(keys[1], 'specversion') AND record.specversion != '1.0', 'an unknown value'),
        (has(keys[1], 'datacontenttype') AND record.datacontenttype != 'application/json', 'an unknown value'),
        (size.source NOT IN ('cgroup', 'clickhouse', 'downward_api', 'unknown'), 'an unknown value'),
        (has(keys[3], 'cpu_source') AND size.cpu_source NOT IN
            ('cgroup', 'cgroup_ancestor', 'clickhouse', 'downward_api', 'unknown', '#null'), 'an unknown value'),
        (has(keys[3], 'memory_source') AND size.memory_source NOT IN
            ('cgroup', 'cgroup_ancestor', 'clickhouse', 'downward_api', 'unknown', '#null'), 'an unknown value'),
        (data.source NOT IN ('cgroup.v2', 'cgroup.v1', 'clickhouse', 'process', 'none'), 'an unknown value'),
        (data.quality NOT IN ('measured', 'estimated', 'gap'), 'an unknown value'),
        (data.gap_reason NOT IN (
            '', 'no_checkpoint', 'spool_corrupt', 'target_absent', 'target_unreadable', 'target_restarted',
            'counter_fell', 'counter_impossible', 'source_changed', 'clock_step', 'target_removed',
            'suspended'), 'an unknown value'),
        (data.restart_observed NOT IN ('#true', '#false'), 'an unknown value'),
        (data.source_changed NOT IN ('#true', '#false'), 'an unknown value'),
        (arrayExists(
            text -> text != concat('#', toString(toUInt64OrZero(substring(text, 2)))),
            arrayConcat(
                [data.elapsed_milliseconds, used.memory_max_bytes, data.epoch, data.sequence],
                arrayFilter(text -> text != '#null', [size.cpu_millicores, size.memory_bytes]))),
            'a figure does not fit its column'),
        (arrayExists(
            text -> text != concat('#', toString(toInt64OrZero(substring(text, 2)))),
            arrayConcat(
                [data.clock_step_milliseconds],
                arrayFilter(text -> text != '#null', arrayConcat(
                    if(has(keys[3], 'counted_milliseconds'), [size.counted_milliseconds], []),
                    if(has(keys[2], 'machine_cpus'), [data.machine_cpus], []),
                    if(has(keys[2], 'counter_milliseconds'), [data.counter_milliseconds], []),
                    if(is_resized, [
                        resized.cpu_millicores_start, resized.cpu_millicores_end, resized.memory_bytes_start,
                        resized.memory_bytes_end], []))))), 'a figure does not fit its column'),
        (used.memory_byte_seconds
            != concat('#', toString(toUInt128OrZero(substring(used.memory_byte_seconds, 2)))),
            'a figure does not fit its column'),
        (arrayExists(
            text -> text != concat('#', toString(toUInt32OrZero(substring(text, 2)))),
            [samples.expected, samples.observed]), 'a figure does not fit its column'),
        (arrayExists(
            text -> NOT match(text, '^#-?[0-9]{1,20}([.][0-9]{1,6})?$'),
            arrayConcat(
                [used.cpu_core_seconds],
                if(has_counter, [counter.start, tupleElement(counter, 'end')], []))),
            'a figure does not fit its column'),
        (data.charge_period_start != concat(replaceOne(toString(start_time), ' ', 'T'), 'Z'),
            'a time does not fit its column'),
        (data.charge_period_end != concat(replaceOne(toString(end_time), ' ', 'T'), 'Z'),
            'a time does not fit its column'),
        -- A customer may write below its own folder only. So no record there is of another one.
        (NOT has(['', data.organization_id], folder_organization), 'another organization'),
        (record.source != concat('/organizations/', data.organization_id, '/services/', data.service_id,
            '/replicas/', data.replica), 'another source'),
        (record.id != lower(hex(substring(SHA256(arrayStringConcat(arrayConcat(
            [
                record.type, data.organization_id, data.service_id,
                if(data.`k8s.pod.uid` = '', data.replica, data.`k8s.pod.uid`),
                if(data.`container.id` = '', data.incarnation, data.`container.id`),
                data.charge_period_start
            ],
            if(data.quality = 'gap', ['gap', data.gap_reason, data.charge_period_end], [])), '\n')), 1, 16))),
            'another id'),
        (is_resized AND arrayExists(
            (counted, first, last) -> startsWith(first, '#-') OR startsWith(last, '#-')
                OR counted != multiIf(
                    first = '#null' OR last = '#null', '#null',
                    toInt64OrZero(substring(first, 2)) < toInt64OrZero(substring(last, 2)), first,
                    last),
            [size.cpu_millicores, size.memory_bytes],
            [resized.cpu_millicores_start, resized.memory_bytes_start],
            [resized.cpu_millicores_end, resized.memory_bytes_end]), 'the sizes contradict each other'),
        (true, '')
    ]).2 AS reason,
    line
FROM byoc_usage_lines;

CREATE MATERIALIZED VIEW IF NOT EXISTS byoc_usage_from_read TO byoc_usage AS
SELECT * EXCEPT (folder, reason, line)
FROM byoc_usage_read
WHERE reason = '';

CREATE MATERIALIZED VIEW IF NOT EXISTS byoc_usage_rejected_from_read TO byoc_usage_rejected AS
SELECT
    folder AS organization_id,
    object,
    substring(id, 1, 256) AS id,
    reason,
    substring(line, 1, 16384) AS line,
    cityHash64(byoc_usage_read.line) AS line_hash,
    now64(3, 'UTC') AS arrived_at
FROM byoc_usage_read
WHERE reason != '';
