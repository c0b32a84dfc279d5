"""The state of an audit between two objects.

Its size depends on the number of replicas, epochs and holes, not on the number of records. Only the
latest ids are kept, to distinguish identical duplicates from conflicting ones.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from byoc_agents.audit.intervals import Spans
from byoc_agents.audit.replica import ReplicaAudit, ReplicaName
from byoc_agents.audit.report import Findings
from byoc_agents.billing.objects import ObjectKey
from byoc_agents.billing.record import Usage


class PodEpoch(NamedTuple):
    """The parts of an object's key without the time and the sequences."""

    organization_id: str
    service_id: str
    pod: str
    epoch: int


@dataclass(slots=True)
class Claim:
    """Sequences that keys list as stored, and sequences of damaged objects or records."""

    named: Spans = field(default_factory=Spans)
    damaged: Spans = field(default_factory=Spans)


class Recent:
    """The latest ids, each with a hash of its record's bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def check_duplicate(
        self, record_id: str, line: bytes
    ) -> Literal["duplicate_identical", "duplicate_conflicting"] | None:
        """Add a record. Return the kind of duplicate, or None if it is new."""
        name, footprint = hash(record_id), hash(line)
        known = self._young.get(name, self._old.get(name))
        if known is not None:
            return "duplicate_identical" if known == footprint else "duplicate_conflicting"
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[name] = footprint
        return None


class AuditState:
    """The evidence of all objects; if `partial`, an epoch need not begin with sequence 0.

    With `by_day` the sums of each replica are kept by UTC day.
    """

    def __init__(self, *, partial: bool, recent_ids: int, by_day: bool = False) -> None:
        self.partial = partial
        self.by_day = by_day
        self.objects = 0
        self.records = 0
        self.findings = Findings()
        self.recent = Recent(recent_ids)
        self.replicas: dict[ReplicaName, ReplicaAudit] = {}
        self.claims: defaultdict[PodEpoch, Claim] = defaultdict(Claim)
        self.service_objects: Counter[tuple[str, str]] = Counter()  # a shared one counts once
        self.streams: defaultdict[tuple[str, str, int], Claim] = defaultdict(Claim)
        self._pods: dict[tuple[str, str, str], str] = {}  # organization, service, pod -> replica
        self._last: tuple[tuple[str, str, str, str], ReplicaAudit] | None = None

    def replica(self, usage: Usage) -> ReplicaAudit:
        """Return the evidence on the replica of a valid record."""
        pod = usage.pod_uid or usage.replica
        place = (usage.organization_id, usage.service_id, pod, usage.replica)
        if self._last and place == self._last[0]:  # as a rule that of the record before
            return self._last[1]
        name = ReplicaName(usage.organization_id, usage.service_id, usage.replica)
        self._pods[place[:3]] = usage.replica
        known = self.replicas.get(name)
        if known is None:
            known = self.replicas[name] = ReplicaAudit(name, by_day=self.by_day)
        self._last = (place, known)
        return known

    def claim(self, key: ObjectKey) -> Claim:
        """Return the claims on the lane that an object's key names, or on its stream if shared."""
        if key.shared:
            return self.streams[key.organization_id, key.service_id, key.epoch]
        return self.claims[PodEpoch(key.organization_id, key.service_id, key.pod, key.epoch)]

    def claim_of(self, usage: Usage) -> Claim:
        """Return the claims on the lane that a record names."""
        pod = usage.pod_uid or usage.replica
        return self.claims[PodEpoch(usage.organization_id, usage.service_id, pod, usage.epoch)]

    def claims_by_replica(self) -> dict[tuple[ReplicaName, int], Claim]:
        """Return the claims by replica and epoch, because a state directory may outlive its pod.

        A pod without a valid record is its own replica.
        """
        found: defaultdict[tuple[ReplicaName, int], Claim] = defaultdict(Claim)
        for (organization_id, service_id, pod, epoch), claim in self.claims.items():
            replica = self._pods.get((organization_id, service_id, pod), pod)
            merged = found[ReplicaName(organization_id, service_id, replica), epoch]
            merged.named.update(claim.named)
            merged.damaged.update(claim.damaged)
        return dict(found)
