"""The audit: it reads objects in any order and returns a report."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from byoc_agents.audit.reconcile import conclude
from byoc_agents.audit.replica import ReplicaAudit, ReplicaName, UsageSums
from byoc_agents.audit.report import Finding, Findings, ProblemKind, Report, stamp
from byoc_agents.audit.sequences import CUT_GAPS, SOFT_GAPS, Link, Load, load_of, run_of
from byoc_agents.audit.state import AuditState
from byoc_agents.audit.validate import (
    CheckedPeriod,
    decode,
    find_contradiction,
    find_impossible_cpu,
    find_misplacement,
    period,
)
from byoc_agents.billing.objects import ObjectKey, TornObjectError, parse_key, unseal
from byoc_agents.billing.record import Usage, UsageRecord, cpu_bound

RECENT_IDS = 32_768  # two generations of these are kept, 8 MiB: an hour of 500 replicas


class ServiceDay(NamedTuple):
    """A service and a UTC day, days since 1970."""

    organization_id: str
    service_id: str
    day: int


class Intake:
    """Reads one object. A record that is invalid by itself is in no total and in no lane.

    With `fitness_only`, nothing is summed, and neighboring records are not compared.
    """

    def __init__(
        self, evidence: AuditState, key: str, name: ObjectKey, *, fitness_only: bool = False
    ) -> None:
        self._evidence = evidence
        self._fitness_only = fitness_only
        self._key = key
        self._name = name
        self._claim = evidence.claim(name)
        self._claim.named.add(name.first, name.last + 1)
        self._before: dict[tuple[str, int], int] = {}  # the last sequence read, by pod and epoch
        self._misplaced = False
        self._counted: set[ReplicaName] = set()

    def read(self, body: bytes) -> None:
        """Read all records."""
        try:
            lines = unseal(self._key, body)
        except TornObjectError as error:
            self.report_torn(str(error))
            return
        self.audit_lines(lines)

    def audit_lines(self, lines: Sequence[bytes]) -> None:
        """Audit the records of a whole body."""
        expected = self._name.last + 1 - self._name.first
        if self._name.shared and len(lines) != expected:
            self._report_damage(
                "altered_object", f"{len(lines)} records, expected {expected} by its key"
            )
        for number, line in enumerate(lines, 1):
            self._evidence.records += 1
            try:
                record = decode(line)
                span = period(record.data)
            except ValueError as error:  # msgspec's errors are ValueErrors
                self.report_torn(f"line {number}: {error}")
                continue
            self._record(record, line, span)

    def report_torn(self, detail: str) -> None:
        """Report damage by which any of the object's sequences may be lost."""
        self._report_damage("torn_object", detail)

    def _report_damage(self, kind: ProblemKind, detail: str) -> None:
        self._claim.damaged.add(self._name.first, self._name.last + 1)
        self._evidence.findings.add(
            Finding(
                kind=kind,
                organization_id=self._name.organization_id,
                service_id=self._name.service_id,
                epoch=self._name.epoch,
                first_sequence=self._name.first,
                last_sequence=self._name.last,
                key=self._key,
                detail=detail,
            )
        )

    def _record(self, record: UsageRecord, line: bytes, span: CheckedPeriod) -> None:
        usage = record.data
        if detail := find_contradiction(record, span):
            self._mark_damaged(usage)
            self._find("altered_record", usage, span, detail=detail)
        elif detail := find_misplacement(usage, self._name, span.start_ms):
            self._mark_damaged(usage)
            if not self._misplaced:
                self._report_damage("altered_object", detail)
            self._misplaced = True
        elif kind := self._evidence.recent.check_duplicate(record.id, line):
            self._find(kind, usage, span)
        else:
            self._check_order(usage)
            self._add_valid(usage, span, record.id)

    def _check_order(self, usage: Usage) -> None:
        lane = (usage.pod_uid or usage.replica, usage.epoch)
        if usage.sequence < (before := self._before.get(lane, -1)):
            self._report_damage("altered_object", f"sequence {usage.sequence} after {before}")
        self._before[lane] = usage.sequence

    def _mark_damaged(self, usage: Usage) -> None:
        """Mark the sequence as damaged, so that it is not reported as missing too."""
        claims = [self._evidence.claim_of(usage)]
        claims += [] if self._name.shared else [self._claim]
        for claim in claims:
            claim.damaged.add(usage.sequence, usage.sequence + 1)

    def _add_valid(self, usage: Usage, span: CheckedPeriod, name: str) -> None:
        replica = self._evidence.replica(usage)
        timeline = replica.timeline(usage)
        held = self._holds(replica, usage)
        if held and timeline.knows(usage, *span):
            self._find("duplicate_uncompared", usage, span)
            return
        for twice in timeline.add(usage, *span):
            self._find("overlap", usage, CheckedPeriod(*twice))
        bound = cpu_bound(usage)
        detail = find_impossible_cpu(usage, bound)
        if held:
            self._find("duplicate_sequence", usage, span)
        elif self._fitness_only:
            replica.sequences(usage.epoch).add(usage.sequence, usage.sequence + 1)
        else:
            load = Load() if detail else load_of(usage, *span, name, bound)
            self._check_links(replica, usage, span, load)
        if detail:
            self._find(
                "impossible_cpu",
                usage,
                span,
                core_seconds=usage.used.cpu_core_seconds,
                detail=f"record {name}: {detail}",
            )
        if self._fitness_only:
            return
        if detail:
            replica.sums_at(span.start_ms).exclude(usage)
        elif bound:
            replica.note_cpus(usage)
            replica.add(usage, *span, name, bound)
        else:
            replica.sums_at(span.start_ms).add(usage, *span)
            timeline.add_soft(usage, *span)
        self._evidence.service_objects[replica.name[:2]] += not self._counted
        replica.objects += replica.name not in self._counted
        self._counted.add(replica.name)

    def _holds(self, replica: ReplicaAudit, usage: Usage) -> bool:
        """Return whether a sound record with this sequence was read before."""
        if self._fitness_only:
            sequence = usage.sequence
            return bool(replica.sequences(usage.epoch).overlap(sequence, sequence + 1))
        return replica.lane(usage.epoch).holds(usage.sequence)

    def _check_links(
        self, replica: ReplicaAudit, usage: Usage, span: CheckedPeriod, load: Load
    ) -> None:
        links = replica.lane(usage.epoch).add(run_of(usage, *span, load))
        if (
            usage.quality == "gap"
            and usage.counter
            and usage.gap_reason not in SOFT_GAPS + CUT_GAPS
        ):
            rise = usage.counter.end - usage.counter.start
            links += [Link("unrecorded", *span, rise)] if rise else []
        for link in links:
            if link.kind == "unrecorded":
                replica.note_unrecorded(link)
            else:
                between = CheckedPeriod(link.start_ms, link.end_ms)
                self._find(link.kind, usage, between, core_seconds=link.core_seconds)

    def _find(self, kind: ProblemKind, usage: Usage, span: CheckedPeriod, **more: Any) -> None:
        finding = Finding(
            kind=kind,
            organization_id=usage.organization_id,
            service_id=usage.service_id,
            replica=usage.replica,
            epoch=usage.epoch,
            first_sequence=usage.sequence,
            last_sequence=usage.sequence,
            start=stamp(span.start_ms),
            end=stamp(span.end_ms),
            key=self._key,
            **more,
        )
        self._evidence.findings.add(finding)


class Audit:
    """Reads the objects of a bucket one by one.

    `partial`: the beginning is left out on purpose, so an epoch need not begin with sequence 0.
    Every duplicate is found; those at most `recent_ids` records apart are also compared. With
    `by_day`, `report_days` can be used: about 600 bytes for each replica and day. With
    `fitness_only`, `found` has what is wrong with objects and pairs of them; there is no report.
    """

    def __init__(
        self,
        *,
        partial: bool = False,
        by_day: bool = False,
        fitness_only: bool = False,
        recent_ids: int = RECENT_IDS,
    ) -> None:
        self._fitness_only = fitness_only
        self._evidence = AuditState(partial=partial, by_day=by_day, recent_ids=recent_ids)

    @property
    def objects(self) -> int:
        """Return the number of objects that were read."""
        return self._evidence.objects

    def add(self, key: str, body: bytes) -> None:
        """Read one object. Problems become findings; nothing is raised."""
        if intake := self._intake(key):
            intake.read(body)

    def add_lines(self, key: str, lines: Sequence[bytes]) -> None:
        """Audit the records of an object that an archive holds. Raises nothing."""
        if intake := self._intake(key):
            intake.audit_lines(lines)

    def claim(self, key: str) -> None:
        """Expect the records that a key names. Their object may follow, and is counted then."""
        if name := parse_key(key):
            self._evidence.claim(name).named.add(name.first, name.last + 1)

    def find_torn(self, key: str, detail: str) -> None:
        """Report a damaged archive or manifest, whose objects are not known."""
        self._evidence.findings.add(Finding(kind="torn_object", key=key, detail=detail))

    def refuse(self, key: str, detail: str) -> None:
        """Record an object whose bytes could not be read completely."""
        if intake := self._intake(key):
            intake.report_torn(detail)

    @property
    def found(self) -> Findings:
        """Return what is wrong so far, without what only shows when everything has been read."""
        return self._evidence.findings

    def report(self, target: str) -> Report:
        """End the audit and return its report."""
        return conclude(self._evidence, target)

    def report_days(self, target: str) -> tuple[Report, dict[ServiceDay, UsageSums]]:
        """End an audit `by_day`: return its report, and the sums of each service and UTC day.

        A record belongs to the day of its start, as in `totals.sql`.
        """
        report = conclude(self._evidence, target)
        days: dict[ServiceDay, UsageSums] = {}
        for name, replica in self._evidence.replicas.items():
            for day, sums in replica.sums.items():
                place = ServiceDay(name.organization_id, name.service_id, day)
                days.setdefault(place, UsageSums()).merge(sums)
        return report, dict(sorted(days.items()))

    def _intake(self, key: str) -> Intake | None:
        self._evidence.objects += 1
        name = parse_key(key)
        if name is None:
            self._evidence.findings.add(Finding(kind="foreign_object", key=key))
            return None
        return Intake(self._evidence, key, name, fitness_only=self._fitness_only)
