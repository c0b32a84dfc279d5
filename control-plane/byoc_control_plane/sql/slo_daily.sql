-- slo_since for all days. It reads the whole tables.
CREATE VIEW IF NOT EXISTS slo_daily AS
SELECT * FROM slo_since(since = '1970-01-01');
