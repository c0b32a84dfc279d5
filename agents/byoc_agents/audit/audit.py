"""The audit: it reads objects in any order and returns a report."""

from byoc_agents.audit.evidence import Evidence
from byoc_agents.audit.ingest import Intake
from byoc_agents.audit.reconcile import conclude
from byoc_agents.audit.report import Finding, Report
from byoc_agents.billing.objects import parse_key

RECENT_IDS = 32_768  # two generations of these are kept, 8 MiB: an hour of 500 replicas


class Audit:
    """Reads the objects of a bucket one by one.

    `partial`: the beginning is left out on purpose, so an epoch need not begin with sequence 0.
    Every duplicate is found; those at most `recent_ids` records apart are also compared.
    """

    def __init__(self, *, partial: bool = False, recent_ids: int = RECENT_IDS) -> None:
        self._evidence = Evidence(partial=partial, recent_ids=recent_ids)

    @property
    def objects(self) -> int:
        """Return the number of objects that were read."""
        return self._evidence.objects

    def add(self, key: str, body: bytes) -> None:
        """Read one object. Problems become findings; nothing is raised."""
        if intake := self._intake(key):
            intake.read(body)

    def refuse(self, key: str, detail: str) -> None:
        """Record an object whose bytes could not be read completely."""
        if intake := self._intake(key):
            intake.torn(detail)

    def report(self, target: str) -> Report:
        """End the audit and return its report."""
        return conclude(self._evidence, target)

    def _intake(self, key: str) -> Intake | None:
        self._evidence.objects += 1
        name = parse_key(key)
        if name is None:
            self._evidence.findings.add(Finding(kind="foreign_object", key=key))
            return None
        return Intake(self._evidence, key, name)
