-- Loads each new object of one month by itself: one queue per month, so that Keeper never has more than its
-- limit of objects to remember, and no object is read again. Replace YEAR and MONTH too (2026 and 11), create
-- the next month's queue before it begins, and drop a queue when the last objects of its month have arrived.
-- Limits:
-- - 1,000,000 objects per month: 268 replicas at 120 objects per day and 31 days. Beyond it the oldest objects are
--   read again (which the table forgives), without an end: let the control plane compact them, and use
--   s3queue_archives.sql (docs/control-plane.md).
-- - Each poll lists everything below v1/, and asks for this month's objects only.
-- - A queue that is dropped and created again reads its month once more.
-- Not 'ordered': it skips an object whose key sorts before one that was read, and the keys of several pods do
-- not arrive in their order. Without a TTL, because after it an object would be read again. Objects are kept:
-- `verify` reads them.
CREATE TABLE byoc_usage_queue_YEAR_MONTH
(
    line String
)
ENGINE = S3Queue(
    'https://BUCKET.s3.REGION.amazonaws.com/v1/**/date=YEAR-MONTH-*/**/*.jsonl.zst', 'LineAsString')
SETTINGS
    mode = 'unordered',
    after_processing = 'keep',
    tracked_files_limit = 1000000,
    tracked_file_ttl_sec = 0;

CREATE MATERIALIZED VIEW byoc_usage_queue_YEAR_MONTH_view TO byoc_usage_lines AS
SELECT line, _path AS object
FROM byoc_usage_queue_YEAR_MONTH;
