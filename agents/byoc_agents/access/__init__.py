"""The access broker: time-limited access of the vendor's engineers, opened by the customer.

Reading order: `envelope` (signatures), `documents` (the signed requests and answers), `policy` (the
customer's file), `machine` (the states of a grant), `grants` (their durable form), `authority` (the
certificates), `servers` (the interface to ClickHouse), `broker` (does the work of each state). The
other daemons import none of this.
"""
