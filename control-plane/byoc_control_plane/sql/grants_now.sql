-- One row per request for access: its newest state, who asked, and how it ended. `sent` is this side's own
-- state: a broker has been sent the request. Every other state is an event of the broker. States only go
-- forward, so the order of arrival does not matter. `reason` of an ended grant is what ended it: `revoked` or
-- `kill_switch` by the customer, `withdrawn` by the vendor, `expired` by the agreed time.
CREATE VIEW IF NOT EXISTS grants_now AS
WITH
    ['sent', 'pending', 'approved', 'opening', 'open', 'closing', 'collecting', 'rejected', 'denied',
        'lapsed', 'withdrawn', 'failed', 'closed', 'closed_incomplete'] AS states,
    grants AS
    (
        SELECT
            organization_id,
            service_id,
            grant_id,
            argMax(
                (toString(byoc_grants.state), byoc_grants.since, toString(byoc_grants.reason),
                    toString(byoc_grants.role), byoc_grants.duration_seconds,
                    toString(byoc_grants.record), byoc_grants.counts),
                indexOf(states, toString(byoc_grants.state))) AS newest,
            max(byoc_grants.engineer) AS asked_by,
            max(byoc_grants.ticket) AS asked_for,
            minIf(toNullable(byoc_grants.since), byoc_grants.state = 'sent') AS sent,
            minIf(toNullable(byoc_grants.since), byoc_grants.state = 'open') AS opened,
            max(byoc_grants.ends_at) AS agreed_end
        FROM byoc_grants
        GROUP BY organization_id, service_id, grant_id
    )
SELECT
    organization_id,
    service_id,
    grant_id,
    asked_by AS engineer,
    asked_for AS ticket,
    newest.4 AS role,
    newest.5 AS duration_seconds,
    newest.1 AS state,
    newest.2 AS since,
    newest.3 AS reason,
    indexOf(states, newest.1) >= indexOf(states, 'rejected') AS ended,
    sent AS sent_at,
    opened AS opened_at,
    agreed_end AS ends_at,
    newest.7 AS counts,
    newest.6 AS record
FROM grants;
