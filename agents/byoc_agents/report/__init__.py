"""`byoc-agents ledger show | verify | report`: what left, for the people who may ask.

Reads `<state_dir>/<agent>/ledger/` of one or several agents, also while they run, and writes
nothing there.
"""

from byoc_agents.report.cli import main

__all__ = ["main"]
