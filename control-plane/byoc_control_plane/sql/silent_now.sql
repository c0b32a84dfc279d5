-- Daemons whose messages have stopped. Time counts up to the newest progress of the stream and from
-- the later of two moments: the last message, and the beginning of uninterrupted reception. A daemon
-- is silent after three heartbeats, each as long as its newest message states, and never before a message
-- that was lost with a consumer could have been delivered again.
CREATE VIEW IF NOT EXISTS silent_now AS
WITH
    horizons AS
    (
        SELECT stream, max(at) AS horizon FROM byoc_progress GROUP BY stream
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
        WHERE at >= horizon - INTERVAL 10 SECOND
        GROUP BY stream
    )
SELECT
    organization_id,
    service_id,
    replica,
    daemon,
    last_seen,
    (toUnixTimestamp64Milli(now_at) - toUnixTimestamp64Milli(greatest(last_seen, steady))) / 1000
        AS silent_seconds,
    greatest(3 * heartbeat_seconds, heartbeat_seconds + redelivery) AS allowed_seconds
FROM
(
    SELECT *, if(daemon = 'alert-forwarder', 'alerts', 'state') AS stream
    FROM agents_now
    WHERE supervised
) AS daemons
INNER JOIN progress USING (stream)
WHERE silent_seconds > allowed_seconds;
