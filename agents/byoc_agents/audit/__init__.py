"""Check from a bucket alone that its billing records are complete, unique and unaltered.

    readers -> Audit -> (intake: one object) -> state -> conclude -> Report -> text or JSON

The audit cannot detect the loss of the newest records of the last epoch, because no object's key
names them. It cannot detect changed figures that have no second source (memory, size, quality) if
the digest of their object was recomputed.
"""

from byoc_agents.audit.audit import Audit
from byoc_agents.audit.cli import main
from byoc_agents.audit.report import Finding, Report, Total

__all__ = ["Audit", "Finding", "Report", "Total", "main"]
