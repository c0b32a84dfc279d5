-- Loads each new archive of one year by itself, if the control plane compacts the objects
-- (docs/control-plane.md): use it instead of s3queue.sql, and replace YEAR (2026). Create the next year's queue
-- before it begins, and drop a queue when nothing of its year is outstanding.
-- Limits:
-- - 1,000,000 archives per year: 113 per hour. A shard writes one archive per hour, another one for objects that
--   came later, and one for each 50,000 objects or 64 MiB. Beyond it the oldest archives are read again (which
--   the table forgives), without an end.
-- - A record is loaded when its hour has been archived: two hours after the end of the hour by default.
-- - Each poll lists this year's archives and manifests only.
-- - A queue that is dropped and created again reads its year once more.
-- Not 'ordered': a late archive of an earlier hour would be skipped. Without a TTL, because after it an archive
-- would be read again. Archives are kept: `verify` reads them.
CREATE TABLE byoc_archive_queue_YEAR
(
    line String
)
ENGINE = S3Queue(
    'https://BUCKET.s3.REGION.amazonaws.com/v1/archive/date=YEAR-*/**/*.jsonl.zst', 'LineAsString')
SETTINGS
    mode = 'unordered',
    after_processing = 'keep',
    tracked_files_limit = 1000000,
    tracked_file_ttl_sec = 0;

CREATE MATERIALIZED VIEW byoc_archive_queue_YEAR_view TO byoc_usage_lines AS
SELECT line, _path AS object
FROM byoc_archive_queue_YEAR;
