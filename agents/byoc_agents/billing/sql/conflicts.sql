-- Records that came twice with other figures under one id. There should be none; one row here is a
-- reason to run `byoc-agents verify` before anything is billed. Run it before a merge hides one.
SELECT
    organization_id,
    source,
    id,
    count() AS rows,
    groupUniqArray((cpu_core_seconds, memory_byte_seconds, charge_period_end, epoch, sequence))
        AS figures,
    groupUniqArray(object) AS objects
FROM byoc_usage
GROUP BY organization_id, source, id
HAVING length(figures) > 1
ORDER BY organization_id, source, id;
