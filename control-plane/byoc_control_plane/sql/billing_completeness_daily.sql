-- billing_completeness_since for all days. It reads the whole table: the check of a month that is closed,
-- and not a page that is looked at.
CREATE VIEW IF NOT EXISTS billing_completeness_daily AS
SELECT * FROM billing_completeness_since(since = '1970-01-01');
