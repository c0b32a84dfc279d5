-- The heads of the ledgers in the customers' accounts, as the daemons have sent them: each size and root
-- once. `head` is a line for `byoc-agents ledger verify --heads`.
CREATE VIEW IF NOT EXISTS ledger_heads AS
WITH heads AS
(
    SELECT
        organization_id, service_id, replica, 'state-exporter' AS daemon, ledger_size, ledger_root,
        arrived_at
    FROM byoc_state
    WHERE ledger_size > 0
    UNION ALL
    SELECT
        organization_id, service_id, replica, 'alert-forwarder', ledger_size, ledger_root, arrived_at
    FROM byoc_alerts
    WHERE ledger_size > 0
)
SELECT
    organization_id,
    service_id,
    replica,
    daemon,
    ledger_size,
    ledger_root,
    min(arrived_at) AS received_at,
    concat(toString(ledger_size), ' ', ledger_root, ' ', organization_id, '/', service_id, '/', replica,
        '/', daemon) AS head
FROM heads
GROUP BY organization_id, service_id, replica, daemon, ledger_size, ledger_root;
