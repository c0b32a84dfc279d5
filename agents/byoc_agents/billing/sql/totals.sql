-- Totals by service and minute, each record once. A record longer than a minute (estimated over a
-- backlog, at most an hour) counts in the minute of its start.
-- A record with more CPU than its machine has is in `excluded_*` only. A record of 0.1.0 does not
-- say how many CPUs that is: other records of the pod do, in the table, else 2048 is the bound. Allocated = size x counted
-- time; time without a known size is in `unknown_allocated_*`. no_checkpoint and spool_corrupt gaps
-- count only where no other record of the container does. ClickHouse 25.8 takes `records.*` for the
-- column of the result, so the records have the second name `every`.
WITH
    records AS
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
            ifNull(counter_milliseconds, toInt64(elapsed_milliseconds)) + slack_ms AS each_cpu_ms
        FROM byoc_usage FINAL
        WHERE -- what `verify` reports as altered or torn is not billed
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
            AND cpu_core_seconds >= 0
            AND cpu_core_seconds < toDecimal128('1000000000000000', 6)
            AND memory_byte_seconds <= toUInt128('79228162514264337593543950336')
            AND (quality = 'gap' OR memory_byte_seconds * 1000
                <= toUInt128(memory_max_bytes) * (elapsed_milliseconds + 1))
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
    sumIf(cpu_core_seconds, impossible) AS excluded_core_seconds
FROM counted
GROUP BY organization_id, service_id, minute
ORDER BY organization_id, service_id, minute;
