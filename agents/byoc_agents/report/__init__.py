"""`byoc-agents ledger`: reads `<state_dir>/<agent>/ledger/` of one or several agents.

Works while the daemons run, and writes nothing to their directories.
"""

from byoc_agents.report.cli import main

__all__ = ["main"]
