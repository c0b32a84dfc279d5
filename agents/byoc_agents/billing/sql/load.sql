-- Loads the lines of objects: each becomes a row of byoc_usage, or one of byoc_usage_rejected with the reason
-- (table.sql). The ending tells the compression. May be run again over the same objects.
-- An object that cannot be unpacked stops the statement. So run it once per customer, and the others are loaded:
-- v1/org=ORG/**/*.jsonl.{zst,gz}, and v1/archive/**/*.jsonl.zst if the control plane compacts.
-- To read some days only, name them in the path: v1/org=ORG/**/date=2026-11-{01..30}/**/*.jsonl.{zst,gz}.
-- Without use_hive_partitioning = 0, ClickHouse takes org, service, date and hour of the key for columns: 25.8
-- then refuses the statement, because the structure has none of them (code 36), and every version refuses
-- a key with two values of one name (code 117).
INSERT INTO byoc_usage_lines (line, object)
SELECT line, _path
FROM s3(
    'https://BUCKET.s3.REGION.amazonaws.com/v1/**/*.jsonl.{zst,gz}',
    'LineAsString',
    'line String')
SETTINGS use_hive_partitioning = 0;
