-- Totals by service and minute, each record once. A record longer than a minute (estimated over a
-- backlog, at most an hour) counts in the minute of its start.
SELECT
    organization_id,
    service_id,
    toStartOfMinute(charge_period_start) AS minute,
    count() AS records,
    sum(cpu_core_seconds) AS core_seconds,
    sum(memory_byte_seconds) AS byte_seconds,
    sumIf(
        toDecimal128(ifNull(allocated_cpu_millicores, 0), 6) * period_milliseconds,
        quality != 'gap') / 1000000 AS allocated_core_seconds,
    sumIf(
        toDecimal128(ifNull(allocated_memory_bytes, 0), 3) * period_milliseconds,
        quality != 'gap') / 1000 AS allocated_byte_seconds,
    sumIf(period_milliseconds, quality = 'measured') AS measured_milliseconds,
    sumIf(period_milliseconds, quality = 'estimated') AS estimated_milliseconds,
    sumIf(period_milliseconds, quality = 'gap') AS gap_milliseconds
FROM byoc_usage FINAL
GROUP BY organization_id, service_id, minute
ORDER BY organization_id, service_id, minute;
