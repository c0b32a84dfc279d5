"""Proves from a bucket alone that its billing records are whole, single and unaltered.

    readers -> Audit -> (intake: one object) -> evidence -> conclude -> Report -> text or JSON

What no bucket can show: the newest records of the last epoch, where no object's key names them; and
figures without a second witness (memory, size, quality) in an object that someone sealed anew.
"""

from byoc_agents.audit.audit import Audit
from byoc_agents.audit.cli import main
from byoc_agents.audit.report import Finding, Report, Total

__all__ = ["Audit", "Finding", "Report", "Total", "main"]
