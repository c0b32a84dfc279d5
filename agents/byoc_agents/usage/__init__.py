"""`byoc-agents usage`: the CPU and memory of each service by UTC day, used and allocated.

    ledger or objects -> Audit by day -> UsageReport -> text, JSON or HTML

The records are read and judged as `byoc-agents verify` does, and summed as `totals.sql` does.
"""

from byoc_agents.usage.cli import main
from byoc_agents.usage.report import Amounts, UsageReport

__all__ = ["Amounts", "UsageReport", "main"]
