"""Three small asyncio daemons beside a ClickHouse server. They only ever dial out.

    source --record--> batcher --batch--> spool (disk, fsync) --oldest first--> shipper --> sink
                                                                                  |          |
                                                                               ledger    egress gate

Read in this order: `agents.billing.agent` (a whole daemon on one screen), `agents.core.spool`,
`agents.core.ship`, then the daemon you came for.
"""

__version__ = "0.1.0"
