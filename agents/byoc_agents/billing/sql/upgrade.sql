-- Adds the columns that a byoc_usage table of version 0.1.0 does not have, in the places of
-- table.sql. It changes nothing in a newer table.
-- Afterwards run table.sql, which creates what else is missing. Drop the queue and its view and create them again
-- with s3queue.sql, else they store records unchecked. Then run load.sql once: in rows that were loaded before, the
-- new columns are NULL, as in records of 0.1.0.
ALTER TABLE byoc_usage
    ADD COLUMN IF NOT EXISTS allocated_counted_milliseconds Nullable(Int64)
        AFTER allocated_source,
    ADD COLUMN IF NOT EXISTS machine_cpus Nullable(Int64) AFTER sequence,
    ADD COLUMN IF NOT EXISTS counter_milliseconds Nullable(Int64) AFTER machine_cpus;
