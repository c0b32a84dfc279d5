"""Proves from a bucket alone that its billing records are whole, single and unaltered.

    readers -> Audit -> (intake: one object) -> evidence -> conclude -> Report -> text or JSON

A bucket cannot show a loss of the newest records of the last epoch, as no object's key names them,
nor changed figures without a second source (memory, size, quality) if their object's digest was
computed again.
"""

from byoc_agents.audit.audit import Audit
from byoc_agents.audit.cli import main
from byoc_agents.audit.report import Finding, Report, Total

__all__ = ["Audit", "Finding", "Report", "Total", "main"]
