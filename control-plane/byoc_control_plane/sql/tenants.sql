-- A customer reads its own rows only. Create one user per organization, named like the organization
-- id, and grant it byoc_tenant: the same statements serve any number of customers. The views read
-- the tables with the rights of the person who asks, so the policies hold there too.
CREATE ROLE IF NOT EXISTS byoc_tenant;
CREATE ROW POLICY IF NOT EXISTS byoc_tenant ON byoc_usage, byoc_usage_rejected, byoc_state, byoc_alerts, byoc_agents,
        byoc_replicas, byoc_grants, byoc_progress
    USING organization_id = currentUser() TO byoc_tenant;
CREATE ROW POLICY IF NOT EXISTS byoc_vendor ON byoc_usage, byoc_usage_rejected, byoc_state, byoc_alerts, byoc_agents,
        byoc_replicas, byoc_grants, byoc_progress
    USING 1 TO ALL EXCEPT byoc_tenant;
GRANT SELECT ON byoc_usage TO byoc_tenant;
GRANT SELECT ON byoc_usage_rejected TO byoc_tenant;
GRANT SELECT ON byoc_state TO byoc_tenant;
GRANT SELECT ON byoc_alerts TO byoc_tenant;
GRANT SELECT ON byoc_agents TO byoc_tenant;
GRANT SELECT ON agents_now TO byoc_tenant;
GRANT SELECT ON byoc_grants TO byoc_tenant;
GRANT SELECT ON grants_now TO byoc_tenant;
GRANT SELECT ON ledger_heads TO byoc_tenant;
GRANT SELECT ON billing_totals TO byoc_tenant;
GRANT SELECT ON billing_completeness_since TO byoc_tenant;
GRANT SELECT ON billing_completeness_daily TO byoc_tenant;
GRANT SELECT ON slo_since TO byoc_tenant;
GRANT SELECT ON slo_daily TO byoc_tenant;
