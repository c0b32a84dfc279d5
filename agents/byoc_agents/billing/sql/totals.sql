-- Totals by service and minute, each record once. A record longer than a minute (estimated over a
-- backlog, at most an hour) counts in the minute of its start.
-- A record that contradicts itself (`altered_record` of `byoc-agents verify`) is in `altered_records` only.
-- A record with more CPU than its machine has is in `excluded_*` only. A record of 0.1.0 does not
-- say how many CPUs that is: other records of the pod do, in the table, else 2048 is the bound. Allocated = size x counted
-- time; time without a known size is in `unknown_allocated_*`. no_checkpoint and spool_corrupt gaps
-- count only where no other record of the container does. ClickHouse 25.8 takes `records.*` for the
-- column of the result, so the records have the second name `every`.
WITH
    judged AS
    (
        SELECT
            *,
            period_milliseconds,
            gap_reason IN ('no_checkpoint', 'spool_corrupt') AS soft,
            if(pod_uid = '', replica, pod_uid) AS pod,
            toUnixTimestamp64Milli(charge_period_start) AS start_ms,
            toUnixTimestamp64Milli(charge_period_end) AS end_ms,
            multiIf(source_changed OR usage_source = 'clickhouse', 10000, 50) AS slack_ms,
            quality != 'gap' AND (counter_milliseconds IS NOT NULL OR quality = 'measured')
                AS bounded,
            ifNull(counter_milliseconds, toInt64(elapsed_milliseconds)) + slack_ms AS each_cpu_ms,
            -- Rules of audit/validate.py: first those of any record, then those of usage and of a gap.
            toDecimal256(ifNull(counter_start_core_seconds, 0), 6) AS counter_start,
            toDecimal256(ifNull(counter_end_core_seconds, 0), 6) AS counter_end,
            charge_period_start >= toDateTime64('1970-01-01', 3, 'UTC')
            AND charge_period_end <= toDateTime64('2100-01-01', 3, 'UTC')
            AND end_ms - start_ms BETWEEN 1 AND 316224000000
            AND elapsed_milliseconds <= 316224000000
            AND ifNull(counter_milliseconds, 0) BETWEEN 0 AND 316224000000
            AND ifNull(allocated_counted_milliseconds, 0) BETWEEN 0 AND 316224000000
            AND ifNull(allocated_cpu_millicores, 0) <= 1000000000000
            AND ifNull(allocated_memory_bytes, 0) <= 9223372036854775807
            AND ifNull(machine_cpus, 1) BETWEEN 1 AND 1000000
            AND memory_max_bytes <= 9223372036854775807
            AND memory_byte_seconds <= toUInt128('79228162514264337593543950336')
            AND cpu_core_seconds >= 0
            AND cpu_core_seconds < toDecimal128('1000000000000000', 6)
            AND counter_start BETWEEN 0 AND toDecimal128('999999999999999.999999', 6)
            AND counter_end BETWEEN 0 AND toDecimal128('999999999999999.999999', 6)
            AND epoch <= 9223372036854775807
            AND sequence <= 9223372036854775807
            AND clock_step_milliseconds >= -9223372036854775807
            AND samples_observed
                <= 100 + intDiv(greatest(toInt64(elapsed_milliseconds), end_ms - start_ms), 10)
            AND (quality = 'gap') = (gap_reason != '')
            AND if(
                quality = 'gap',
                cpu_core_seconds = 0 AND memory_byte_seconds = 0 AND counter_end >= counter_start,
                usage_source != 'none'
                    AND counter_start_core_seconds IS NOT NULL
                    AND counter_end - counter_start = cpu_core_seconds
                    AND memory_byte_seconds * 1000
                        <= toUInt128(memory_max_bytes) * (elapsed_milliseconds + 1)
                    AND (quality != 'measured' OR counter_milliseconds IS NULL
                        OR clock_step_milliseconds != 0
                        OR end_ms - start_ms <= toInt64(elapsed_milliseconds)
                            + 1000 * (toInt64(samples_observed) + 1)
                            + intDiv(toInt64(elapsed_milliseconds), 1000)))
                AS sound
        FROM byoc_usage FINAL
    ),
    records AS
    (
        SELECT *, period_milliseconds FROM judged WHERE sound
    ),
    machines AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            pod,
            maxIf(machine_cpus, bounded
                AND cpu_core_seconds * 1000 <= toDecimal128(machine_cpus, 6) * each_cpu_ms)
                AS known_cpus
        FROM records
        GROUP BY organization_id, service_id, replica, pod
    ),
    usage AS
    (
        SELECT
            every.*,
            bounded AND cpu_core_seconds * 1000
                > toDecimal128(coalesce(machine_cpus, known_cpus, 2048), 6) * each_cpu_ms
                AS impossible
        FROM records AS every
        LEFT JOIN machines USING (organization_id, service_id, replica, pod)
    ),
    covered AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            pod,
            container_name,
            gap.source AS source,
            gap.id AS id,
            toInt64(intervalLengthSumIf(
                greatest(gap.start_ms, other.start_ms), least(gap.end_ms, other.end_ms),
                other.start_ms < gap.end_ms AND other.end_ms > gap.start_ms
                    AND (NOT other.soft OR (
                        ifNull(other.allocated_counted_milliseconds, 0) > 0
                        AND (other.epoch, other.sequence) < (gap.epoch, gap.sequence)))))
                AS covered_ms
        FROM usage AS gap
        INNER JOIN usage AS other USING (organization_id, service_id, replica, pod, container_name)
        WHERE gap.soft
        GROUP BY organization_id, service_id, replica, pod, container_name, source, id
    ),
    counted AS
    (
        SELECT
            usage.*,
            multiIf(
                soft, if(ifNull(allocated_counted_milliseconds, 0) > 0,
                    end_ms - start_ms - covered_ms, 0),
                ifNull(allocated_counted_milliseconds,
                    if(quality = 'gap', 0, end_ms - start_ms))) AS counted_ms
        FROM usage
        LEFT JOIN covered
            USING (organization_id, service_id, replica, pod, container_name, source, id)
    )
SELECT
    organization_id,
    service_id,
    minute,
    sum(figures.records) AS records,
    sum(figures.core_seconds) AS core_seconds,
    sum(figures.byte_seconds) AS byte_seconds,
    sum(figures.allocated_core_seconds) AS allocated_core_seconds,
    sum(figures.allocated_byte_seconds) AS allocated_byte_seconds,
    sum(figures.measured_milliseconds) AS measured_milliseconds,
    sum(figures.estimated_milliseconds) AS estimated_milliseconds,
    sum(figures.gap_milliseconds) AS gap_milliseconds,
    sum(figures.unknown_allocated_cpu_milliseconds) AS unknown_allocated_cpu_milliseconds,
    sum(figures.unknown_allocated_memory_milliseconds) AS unknown_allocated_memory_milliseconds,
    sum(figures.excluded_records) AS excluded_records,
    sum(figures.excluded_core_seconds) AS excluded_core_seconds,
    sum(figures.altered_records) AS altered_records
FROM
(
    SELECT
        organization_id,
        service_id,
        toStartOfMinute(charge_period_start) AS minute,
        countIf(NOT impossible) AS records,
        sumIf(cpu_core_seconds, NOT impossible) AS core_seconds,
        sumIf(memory_byte_seconds, NOT impossible) AS byte_seconds,
        sumIf(toDecimal128(ifNull(allocated_cpu_millicores, 0), 6) * counted_ms,
            NOT impossible) / 1000000 AS allocated_core_seconds,
        sumIf(toDecimal128(ifNull(allocated_memory_bytes, 0), 3) * counted_ms,
            NOT impossible) / 1000 AS allocated_byte_seconds,
        sumIf(period_milliseconds, quality = 'measured' AND NOT impossible) AS measured_milliseconds,
        sumIf(period_milliseconds, quality = 'estimated' AND NOT impossible) AS estimated_milliseconds,
        sumIf(period_milliseconds, quality = 'gap') AS gap_milliseconds,
        sumIf(counted_ms, allocated_cpu_millicores IS NULL AND NOT impossible)
            AS unknown_allocated_cpu_milliseconds,
        sumIf(counted_ms, allocated_memory_bytes IS NULL AND NOT impossible)
            AS unknown_allocated_memory_milliseconds,
        countIf(impossible) AS excluded_records,
        sumIf(cpu_core_seconds, impossible) AS excluded_core_seconds,
        0 AS altered_records
    FROM counted
    GROUP BY organization_id, service_id, minute

    UNION ALL
    SELECT
        organization_id,
        service_id,
        -- the minute of a time that is out of bounds would be any minute
        toStartOfMinute(
            least(
                greatest(charge_period_start, toDateTime64('1970-01-01', 3, 'UTC')),
                toDateTime64('2099-12-31 23:59:00', 3, 'UTC'))) AS minute,
        0 AS records,
        0 AS core_seconds,
        0 AS byte_seconds,
        0 AS allocated_core_seconds,
        0 AS allocated_byte_seconds,
        0 AS measured_milliseconds,
        0 AS estimated_milliseconds,
        0 AS gap_milliseconds,
        0 AS unknown_allocated_cpu_milliseconds,
        0 AS unknown_allocated_memory_milliseconds,
        0 AS excluded_records,
        0 AS excluded_core_seconds,
        count() AS altered_records
    FROM judged
    WHERE NOT sound
    GROUP BY organization_id, service_id, minute
) AS figures
GROUP BY organization_id, service_id, minute
ORDER BY organization_id, service_id, minute;
