"""`byoc-agents access`: the customer's commands next to the access broker.

They read the broker's files and write orders into its directory, so the broker needs no listener.
"""

from byoc_agents.access_commands.cli import main

__all__ = ["main"]
