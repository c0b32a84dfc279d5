"""The access broker: time-limited access of the vendor's engineers, opened by the customer.

Reading order: `envelope` (signatures), `documents` (the signed requests and approvals), `policy`
(the customer's file), `machine` (the states of a grant), `grants` (their durable form), `authority`
(the certificates), `clickhouse_sql` (the statements), `server_checks` (the checks of a server),
`clickhouse_admin` and `clickhouse_server` (the interface to a server, and HTTP), `control_files`
and `orders` (the customer's files), `events`, `broker` (does the work of each state). The other
daemons import none of this.
"""
