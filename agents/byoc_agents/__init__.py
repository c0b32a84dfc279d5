"""Three small asyncio daemons for a ClickHouse server. They connect out.

They listen for metrics, and alert-forwarder for Alertmanager. The optional broker of
`byoc_agents.access` listens for metrics only.

    source --record--> batcher --batch--> spool (disk, fsync) --oldest first--> shipper --> sink
                                                                                  |          |
                                                                               ledger    egress gate

Read in this order: `byoc_agents.billing.daemon` (how one daemon is wired),
`byoc_agents.durable.spool`, `byoc_agents.delivery.shipper`, then the daemon of interest.
"""

__version__ = "0.2.0"
