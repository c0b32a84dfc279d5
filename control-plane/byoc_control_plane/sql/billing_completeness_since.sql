-- What is missing from the usage records, by service and day, from the day `since` on: the verifier's
-- rules as SQL. Usage: SELECT * FROM billing_completeness_since(since = '2026-11-01').
-- missing_sequences: numbers of an epoch that no record has. uncovered_seconds: time between the
-- first and the last record of a container that no record covers, and that no missing sequence
-- explains. gap_seconds: time that the records themselves state as not measured, each reason once.
-- A missing sequence counts on the day of the record after it. A record that was never sent, or is
-- only in a damaged object, cannot be found in a table of records: `byoc-agents verify` reads the objects.
-- Time is judged up to tomorrow by the server's clock: two records of one container, of 1970 and of 2099, would make
-- 47,000 days of it. The records and missing sequences of later days are counted.
-- Records are read that end on the day before `since` or later, so the cost grows with the days asked for:
-- of earlier records, only two columns. The first number of an epoch that is older than that is not judged:
-- what a replica lost in an absence over that whole day is in billing_completeness_daily only.
CREATE VIEW IF NOT EXISTS billing_completeness_since AS
WITH
    (toInt64(toUInt16({since:Date})) - 1) * 86400000 AS begin_ms,
    toUInt64(toUInt16({since:Date})) AS first_day,
    toUInt64(toUInt16(toDate(now(), 'UTC'))) + 2 AS end_day,
    read AS
    (
        SELECT
            organization_id, service_id, replica, pod_uid, container_name, epoch, sequence, quality,
            gap_reason, charge_period_start, charge_period_end
        FROM byoc_usage FINAL
        WHERE charge_period_start >= toDateTime64({since:Date}, 3, 'UTC') - INTERVAL 1 DAY
        UNION ALL
        SELECT DISTINCT -- a gap may be as long as a container has run: it began before, and ends later
            organization_id, service_id, replica, pod_uid, container_name, epoch, sequence, quality,
            gap_reason, charge_period_start, charge_period_end
        FROM byoc_usage
        WHERE charge_period_start < toDateTime64({since:Date}, 3, 'UTC') - INTERVAL 1 DAY
            AND charge_period_end > toDateTime64({since:Date}, 3, 'UTC') - INTERVAL 1 DAY
    ),
    records AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            if(pod_uid = '', replica, pod_uid) AS pod,
            container_name,
            epoch,
            sequence,
            quality,
            gap_reason,
            gap_reason IN ('no_checkpoint', 'spool_corrupt') AS soft,
            toUnixTimestamp64Milli(charge_period_start) AS start_ms,
            toUnixTimestamp64Milli(charge_period_end) AS end_ms
        FROM read
        WHERE charge_period_start >= toDateTime64('1970-01-01', 3, 'UTC')
            AND charge_period_end <= toDateTime64('2100-01-01', 3, 'UTC')
            AND end_ms - start_ms BETWEEN 1 AND 316224000000 -- as in totals.sql
    ),
    containers AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            pod,
            container_name,
            min(start_ms) AS first_ms,
            max(end_ms) AS last_ms
        FROM records
        GROUP BY organization_id, service_id, replica, pod, container_name
    ),
    ordered AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            epoch,
            toInt64(sequence) AS number,
            start_ms,
            lagInFrame(toNullable(epoch)) OVER earlier AS epoch_before,
            lagInFrame(toNullable(toInt64(sequence))) OVER earlier AS number_before,
            lagInFrame(toNullable(end_ms)) OVER earlier AS end_ms_before
        FROM records
        WINDOW earlier AS (
            PARTITION BY organization_id, service_id, replica
            ORDER BY epoch, sequence
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    ),
    holes AS
    (
        SELECT
            organization_id,
            service_id,
            replica,
            multiIf(
                isNull(epoch_before) AND epoch < begin_ms, 0, -- the records before it are not read
                epoch_before = epoch, number - assumeNotNull(number_before) - 1,
                number) AS missing,
            ifNull(end_ms_before, 0) AS hole_start_ms,
            start_ms AS hole_end_ms
        FROM ordered
        WHERE missing > 0
    ),
    spans AS
    (
        SELECT
            organization_id, service_id, replica, pod, container_name,
            'record' AS what, soft, if(quality = 'gap', gap_reason, '') AS reason, start_ms, end_ms
        FROM records
        UNION ALL
        SELECT
            organization_id, service_id, replica, pod, container_name,
            'hole' AS what, false AS soft, '' AS reason,
            greatest(hole_start_ms, first_ms) AS start_ms, least(hole_end_ms, last_ms) AS end_ms
        FROM containers
        INNER JOIN holes USING (organization_id, service_id, replica)
        UNION ALL
        SELECT
            organization_id, service_id, replica, pod, container_name,
            'whole' AS what, false AS soft, '' AS reason, first_ms AS start_ms, last_ms AS end_ms
        FROM containers
    ),
    days AS
    (
        SELECT
            organization_id, service_id, replica, pod, container_name, what, soft, reason,
            arrayJoin(range(greatest(toUInt64(intDiv(start_ms, 86400000)), first_day),
                least(toUInt64(intDiv(end_ms - 1, 86400000) + 1), end_day))) AS number,
            greatest(start_ms, toInt64(number * 86400000)) AS from_ms,
            least(end_ms, toInt64((number + 1) * 86400000)) AS to_ms
        FROM spans
        WHERE start_ms < end_ms
    ),
    by_container AS
    (
        SELECT
            organization_id,
            service_id,
            number,
            toInt64(intervalLengthSumIf(from_ms, to_ms, what = 'whole')) AS whole_ms,
            toInt64(intervalLengthSumIf(from_ms, to_ms, what != 'whole')) AS known_ms,
            toInt64(intervalLengthSumIf(from_ms, to_ms, what = 'record' AND NOT soft))
                AS covered_ms,
            toInt64(intervalLengthSumIf(from_ms, to_ms, what = 'record'
                AND (NOT soft OR reason = 'no_checkpoint'))) AS with_no_checkpoint_ms,
            toInt64(intervalLengthSumIf(from_ms, to_ms, what = 'record'
                AND (NOT soft OR reason = 'spool_corrupt'))) AS with_spool_corrupt_ms
        FROM days
        GROUP BY organization_id, service_id, replica, pod, container_name, number
    ),
    by_reason AS
    (
        SELECT
            organization_id,
            service_id,
            number,
            toInt64(intervalLengthSum(from_ms, to_ms)) AS stated_ms
        FROM days
        WHERE what = 'record' AND reason != '' AND NOT soft
        GROUP BY organization_id, service_id, replica, pod, container_name, number, reason
    ),
    figures AS
    (
        SELECT
            organization_id, service_id, number,
            toInt64(0) AS missing,
            whole_ms - known_ms AS uncovered_ms,
            with_no_checkpoint_ms + with_spool_corrupt_ms - 2 * covered_ms AS gap_ms,
            toInt64(0) AS records
        FROM by_container
        UNION ALL
        SELECT organization_id, service_id, number, toInt64(0), toInt64(0), stated_ms, toInt64(0)
        FROM by_reason
        UNION ALL
        SELECT
            organization_id, service_id, toUInt64(intDiv(hole_end_ms, 86400000)), missing,
            toInt64(0), toInt64(0), toInt64(0)
        FROM holes
        UNION ALL
        SELECT
            organization_id, service_id, toUInt64(intDiv(start_ms, 86400000)), toInt64(0),
            toInt64(0), toInt64(0), toInt64(1)
        FROM records
    )
SELECT
    organization_id,
    service_id,
    toDate(number) AS day,
    sum(figures.records) AS records,
    sum(missing) AS missing_sequences,
    toDecimal128(sum(uncovered_ms), 3) / 1000 AS uncovered_seconds,
    toDecimal128(sum(gap_ms), 3) / 1000 AS gap_seconds
FROM figures
WHERE number >= toUInt64(toUInt16({since:Date}))
GROUP BY organization_id, service_id, number;
