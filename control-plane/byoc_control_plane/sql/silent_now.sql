-- Daemons whose messages have stopped. Time counts up to the newest progress of the stream and from
-- the latest of three moments: the last message, the beginning of uninterrupted reception, and the last
-- time at which messages of this organization had waited here or were refused for their number. A daemon
-- is silent after three heartbeats, each as long as its newest message states, and never before a message
-- that was lost with a consumer could have been delivered again. A time of more than a minute after the
-- server's own is of a wrong clock and does not count.
CREATE VIEW IF NOT EXISTS silent_now AS
WITH
    horizons AS
    (
        SELECT stream, max(at) AS horizon
        FROM byoc_progress FINAL
        WHERE organization_id = '' AND at <= now64(3) + INTERVAL 1 MINUTE
        GROUP BY stream
    ),
    progress AS
    (
        SELECT
            stream,
            any(horizon) AS now_at,
            max(steady_since) AS steady,
            max(redelivery_seconds) AS redelivery
        FROM byoc_progress FINAL
        INNER JOIN horizons USING (stream)
        WHERE organization_id = '' AND at BETWEEN horizon - INTERVAL 10 SECOND AND horizon
        GROUP BY stream
    ),
    delayed AS
    (
        SELECT stream, organization_id, max(steady_since) AS until
        FROM byoc_progress FINAL
        WHERE organization_id != '' AND at <= now64(3) + INTERVAL 1 MINUTE
        GROUP BY stream, organization_id
    )
SELECT
    organization_id,
    service_id,
    replica,
    daemon,
    last_seen,
    (toUnixTimestamp64Milli(now_at)
        - toUnixTimestamp64Milli(greatest(last_seen, steady, delayed.until))) / 1000
        AS silent_seconds,
    greatest(3 * heartbeat_seconds, heartbeat_seconds + redelivery) AS allowed_seconds
FROM
(
    SELECT *, if(daemon = 'alert-forwarder', 'alerts', 'state') AS stream
    FROM agents_now
    WHERE supervised
) AS daemons
INNER JOIN progress USING (stream)
LEFT JOIN delayed USING (stream, organization_id)
WHERE silent_seconds > allowed_seconds;
