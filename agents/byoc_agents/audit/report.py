"""The report of an audit, one struct for people and machines. `--json` prints it unchanged."""

from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Context, Decimal
from typing import Literal

import msgspec

from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.billing.record import GapReason

MAX_FINDINGS = 1000  # kept with their details; beyond that they are only counted

EXACT = Context(prec=100)  # more digits than any sum has

ProblemKind = Literal[
    "foreign_object",  # not the key of a billing object: a reader of *.jsonl.zst skips it
    "torn_object",  # a bad frame, a cut last line, bad JSON, or not a usage record
    "altered_object",  # records that do not fit the object's key
    "altered_record",  # a record that contradicts itself
    "impossible_cpu",  # more CPU than the machine has; the record is in no sum
    "missing_sequence",
    "missing_object",  # numbers of shared objects that no object's key has
    "duplicate_identical",  # the same id twice with the same bytes
    "duplicate_conflicting",  # the same id twice with other bytes
    "duplicate_uncompared",  # a sequence twice, too far apart to have kept the first one's bytes
    "duplicate_sequence",  # a sequence twice, with another id and another period
    "overlap",  # a period that is recorded twice under two ids
    "uncovered",  # time between two records that no gap states
    "lost_cpu",  # the counter rose between two neighboring records
    "doubled_cpu",  # the counter fell: some CPU is in both records
    "unannounced_incarnation",  # another incarnation of the counter that no record announces
]


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One problem. `key` is the object that shows it, if there is one."""

    kind: ProblemKind
    organization_id: str = ""
    service_id: str = ""
    replica: str = ""
    epoch: int | None = None
    first_sequence: int | None = None
    last_sequence: int | None = None
    start: str = ""  # RFC 3339
    end: str = ""
    core_seconds: Decimal | None = None  # by the counters on both sides
    key: str = ""
    detail: str = ""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Time that the records state as not measured. This is not an error."""

    organization_id: str
    service_id: str
    replica: str
    reason: GapReason
    start: str
    end: str
    seconds: Decimal


class Unrecorded(msgspec.Struct, frozen=True, kw_only=True):
    """CPU used across a stated gap: the difference of one incarnation's counter."""

    organization_id: str
    service_id: str
    replica: str
    start: str
    end: str
    core_seconds: Decimal


class EpochEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The state directory was lost or replaced: records that it had not sent are lost."""

    organization_id: str
    service_id: str
    replica: str
    epoch: int
    last_sequence: int
    next_epoch: int


class Total(msgspec.Struct, kw_only=True):
    """Sums over sound records, each id once. `replica` is empty in a service's total.

    Allocated figures are size x counted time. The counted time of records whose size is unknown is
    in `unknown_allocated_*_seconds` (per figure) and in `unallocated_seconds` (either figure).
    Records with more CPU than their machine has are in `excluded_*` only.
    """

    organization_id: str
    service_id: str
    replica: str = ""
    objects: int = 0
    records: int = 0
    first_start: str = ""
    last_end: str = ""
    measured_seconds: Decimal = Decimal(0)
    estimated_seconds: Decimal = Decimal(0)
    cpu_core_seconds: Decimal = Decimal(0)
    memory_byte_seconds: int = 0
    allocated_core_seconds: Decimal = Decimal(0)
    allocated_byte_seconds: Decimal = Decimal(0)
    unallocated_seconds: Decimal = Decimal(0)
    unknown_allocated_cpu_seconds: Decimal = Decimal(0)
    unknown_allocated_memory_seconds: Decimal = Decimal(0)
    excluded_records: int = 0
    excluded_core_seconds: Decimal = Decimal(0)


_SUMMED = tuple(f for f, kind in Total.__annotations__.items() if kind in (int, Decimal))


def sum_totals(totals: Iterable[Total], objects: Mapping[tuple[str, str], int]) -> list[Total]:
    """Return one total for each service, in the order given.

    `objects` are those of each service: one may have records of several replicas.
    """
    services: dict[tuple[str, str], Total] = {}
    for total in totals:
        name = (total.organization_id, total.service_id)
        service = services.setdefault(name, Total(organization_id=name[0], service_id=name[1]))
        for field in _SUMMED:
            before, more = getattr(service, field), getattr(total, field)
            exact = EXACT.add(before, more) if isinstance(before, Decimal) else before + more
            setattr(service, field, exact)
        starts = (service.first_start, total.first_start)  # empty if all its records are excluded
        service.first_start = min(filter(None, starts), default="")
        service.last_end = max(service.last_end, total.last_end)
    for name, service in services.items():
        service.objects = objects[name]
    return list(services.values())


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The whole audit. It is OK when `counts` is empty."""

    target: str
    objects: int
    records: int  # lines read, duplicates and damaged ones included
    counts: dict[str, int]  # findings by kind
    findings: list[Finding]  # the first MAX_FINDINGS
    gaps: list[Gap]
    unrecorded: list[Unrecorded]
    epoch_ends: list[EpochEnd]
    services: list[Total]
    replicas: list[Total]

    @property
    def ok(self) -> bool:
        """Return whether there are no findings."""
        return not self.counts


class Findings:
    """Counts all findings and keeps the first ones."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kept: list[Finding] = []

    def add(self, finding: Finding, count: int = 1) -> None:
        """Count a finding, or the first of several. Keep it if there is room."""
        self.counts[finding.kind] += count
        if len(self.kept) < MAX_FINDINGS:
            self.kept.append(finding)


def stamp(ms: int | None) -> str:
    """Return RFC 3339, or "" for an unknown time."""
    return "" if ms is None else rfc3339(ms)


def seconds(ms: int) -> Decimal:
    """Return exact seconds."""
    return shift_point(ms, 3)


def shift_point(amount: int, digits: int) -> Decimal:
    """Return an integer with its last digits after the point; nothing is rounded."""
    return Decimal(amount).scaleb(-digits, EXACT)
