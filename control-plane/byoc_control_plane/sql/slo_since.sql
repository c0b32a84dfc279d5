-- Figures for service level objectives, by service and day. A delay is the time from the event in the
-- customer's account to its first arrival here; a ratio is 1 if nothing is missing. From the day `since` on, see
-- billing_completeness_since.
CREATE VIEW IF NOT EXISTS slo_since AS
WITH
    figures AS
    (
        SELECT
            organization_id,
            service_id,
            toDate(time) AS day,
            toUnixTimestamp64Milli(arrived_at) - toUnixTimestamp64Milli(time) AS state_ms,
            NULL AS alert_ms,
            0 AS records,
            0 AS missing,
            1 AS messages
        FROM byoc_state FINAL
        WHERE time >= toDateTime64({since:Date}, 3, 'UTC')
        UNION ALL
        SELECT
            organization_id,
            service_id,
            toDate(time),
            NULL,
            toUnixTimestamp64Milli(arrived_at) - toUnixTimestamp64Milli(assumeNotNull(received_at)),
            0,
            0,
            0
        FROM byoc_alerts FINAL
        WHERE type = 'byoc.alert.v1' AND received_at IS NOT NULL
            AND time >= toDateTime64({since:Date}, 3, 'UTC')
        UNION ALL
        SELECT
            organization_id, service_id, day, NULL, NULL, completeness.records,
            missing_sequences, 0
        FROM billing_completeness_since(since = {since:Date}) AS completeness
    )
SELECT
    organization_id,
    service_id,
    day,
    sum(messages) AS state_messages,
    quantileExact(0.99)(state_ms) / 1000 AS state_delay_seconds,
    quantileExact(0.99)(alert_ms) / 1000 AS alert_delay_seconds,
    sum(figures.records) AS usage_records,
    if(usage_records + sum(missing) = 0, NULL, usage_records / (usage_records + sum(missing)))
        AS usage_complete_ratio
FROM figures
GROUP BY organization_id, service_id, day;
