"""`byoc-agents ledger`: reads `<state_dir>/<daemon>/ledger/` of one or several daemons.

Works while the daemons run, and writes nothing to their directories.
"""

from byoc_agents.report.cli import main

__all__ = ["main"]
