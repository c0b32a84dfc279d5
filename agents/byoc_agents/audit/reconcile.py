"""Build the report from the state of an audit, with the findings that require all objects."""

from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any

from byoc_agents.audit.intervals import Spans
from byoc_agents.audit.replica import ReplicaAudit, ReplicaName, SizelessRecords, Timeline
from byoc_agents.audit.report import (
    EpochEnd,
    Finding,
    Findings,
    Gap,
    ProblemKind,
    Report,
    Unrecorded,
    seconds,
    stamp,
    sum_totals,
)
from byoc_agents.audit.sequences import Hole, Lane, Link, Point, Run, Stretch, link
from byoc_agents.audit.state import AuditState, Claim

BEGINNING, END = -(2**62), 2**62  # of time, if no record bounds it


def conclude(state: AuditState, target: str) -> Report:
    """Return the report. It adds to the findings of the state, so it must be called once."""
    claims: dict[ReplicaName, dict[int, Claim]] = {}
    for (name, epoch), claim in state.claims_by_replica().items():  # once, so this is linear
        claims.setdefault(name, {})[epoch] = claim
    names = sorted({*state.replicas, *claims})
    replicas = [state.replicas.get(name) or ReplicaAudit(name) for name in names]
    epoch_ends: list[EpochEnd] = []
    _find_missing_objects(state)
    for replica in replicas:
        own = claims.get(replica.name, {})
        for found, needed, cpus in replica.decide():
            _refuse(state.findings, replica.name, found, needed, cpus)
        verdict = _Conclusion(state.findings, replica, own, partial=state.partial)
        epoch_ends += verdict.find_epoch_ends()
        for timeline in replica.timelines.values():
            timeline.settle(replica.sums_at)
    totals = [replica.total() for replica in replicas if replica.sums]
    return Report(
        target=target,
        objects=state.objects,
        records=state.records,
        counts=dict(sorted(state.findings.counts.items())),
        findings=state.findings.kept,
        gaps=[gap for replica in replicas for gap in _gaps(replica)],
        unrecorded=[item for replica in replicas for item in _list_unrecorded(replica)],
        epoch_ends=epoch_ends,
        services=sum_totals(totals, state.service_objects),
        replicas=totals,
    )


def _find_missing_objects(state: AuditState) -> None:
    """Report the numbers before the last one of each stream that no shared object has.

    The sequences of the lost records are reported by replica as well, except of its last ones.
    """
    for (organization_id, service_id, epoch), claim in sorted(state.streams.items()):
        missing = claim.named.holes()
        first = min(start for start, _ in claim.named)
        missing.add(first if state.partial else 0, first)
        for start, end in missing:
            state.findings.add(
                Finding(
                    kind="missing_object",
                    organization_id=organization_id,
                    service_id=service_id,
                    epoch=epoch,
                    detail=f"records {start} to {end - 1} of the stream of shared objects",
                )
            )


def _refuse(
    findings: Findings, name: ReplicaName, found: SizelessRecords, needed: int, cpus: int
) -> None:
    """Report records of 0.1.0 that need more CPUs than later records of their pod have."""
    count = found.sums.records
    together = f" and {count - 1} more" if count > 1 else ""
    finding = Finding(
        kind="impossible_cpu",
        **name._asdict(),
        epoch=found.epoch,
        first_sequence=found.sequence,
        last_sequence=found.sequence,
        start=stamp(found.start_ms),
        end=stamp(found.end_ms),
        core_seconds=found.core_seconds,
        detail=f"record {found.record_id}{together}: the CPU used needs {needed} CPUs; "
        f"the machine has {cpus} by other records of the pod",
    )
    findings.add(finding, count)


class _Conclusion:
    """The holes of one replica: in its sequences, between its epochs, and in its time."""

    def __init__(
        self, findings: Findings, replica: ReplicaAudit, claims: dict[int, Claim], *, partial: bool
    ) -> None:
        self._findings = findings
        self._replica = replica
        self._claims = claims
        self._partial = partial
        self._explained = Spans()  # time of records already reported as missing or damaged
        self._epochs = sorted({*replica.lanes, *claims})

    def find_epoch_ends(self) -> list[EpochEnd]:
        """Add the findings and return where epochs ended."""
        for place, epoch in enumerate(self._epochs):
            for hole in self._holes(epoch):
                self._missing(epoch, hole)
                self._explain(place, hole)
            for run in self._lane(epoch).runs:
                if run.load.worst:
                    self._report_overload(epoch, run.load.worst)
        sound = [epoch for epoch in self._epochs if self._lane(epoch).runs]
        pairs = list(pairwise(sound))
        for ended, begun in pairs:
            self._check_succession(ended, begun)
        for (pod, container), timeline in self._replica.timelines.items():
            self._report_uncovered(f"pod {pod} container {container}", timeline)
        return [self._epoch_end(ended, begun) for ended, begun in pairs]

    def _lane(self, epoch: int) -> Lane:
        return self._replica.lanes.get(epoch) or Lane()

    def _holes(self, epoch: int) -> list[Hole]:
        lane = self._lane(epoch)
        claim = self._claims.get(epoch)
        expected = Spans(*claim.named) if claim else Spans()
        if lane.runs:
            first = lane.runs[0].first if self._partial else 0
            expected.add(first, lane.runs[-1].last + 1)
        return lane.holes(expected)

    def _missing(self, epoch: int, hole: Hole) -> None:
        across = link(*_sides(hole), stated=True)
        if across and across.kind == "doubled_cpu":
            self._report_link(across.kind, epoch, across)
        rise = across.core_seconds if across and across.kind == "unrecorded" else None
        claim = self._claims.get(epoch) or Claim()
        for first, end in Spans((hole.first, hole.last + 1)).minus(claim.damaged):
            self._find(
                "missing_sequence",
                epoch=epoch,
                first_sequence=first,
                last_sequence=end - 1,
                start=stamp(hole.left.end_ms if hole.left else None),
                end=stamp(hole.right.start_ms if hole.right else None),
                core_seconds=rise,
                detail=self._name_stated_gap(hole),
            )

    def _name_stated_gap(self, hole: Hole) -> str:
        """Return the gap that the records state for a hole, which is a finding anyway."""
        if not hole.left or not hole.right:
            return ""
        start_ms, end_ms = hole.left.end_ms, hole.right.start_ms
        for timeline in self._replica.timelines.values():
            spans = timeline.stated().get("spool_corrupt", Spans())
            if start_ms < end_ms and not spans.find_uncovered(start_ms, end_ms):
                return "stated: spool_corrupt"
        return ""

    def _report_overload(self, epoch: int, found: Stretch) -> None:
        """Report neighboring records that are possible one by one, but not together."""
        most = Decimal(found.possible_usec + found.slack_usec).scaleb(-6)
        used = Decimal(found.used_usec).scaleb(-6)
        self._find(
            "impossible_cpu",
            epoch=epoch,
            first_sequence=found.first,
            last_sequence=found.last,
            start=stamp(found.start_ms),
            end=stamp(found.end_ms),
            core_seconds=used,
            detail=f"records {found.first_id} to {found.last_id} together: used {used} core "
            f"seconds, expected at most {most}: elapsed time x CPUs x 1.0005, plus slack once; "
            "the totals include these records",
        )

    def _explain(self, place: int, hole: Hole) -> None:
        earlier = [self._lane(epoch).runs[-1:] for epoch in self._epochs[:place]]
        later = [self._lane(epoch).runs[:1] for epoch in self._epochs[place + 1 :]]
        left = hole.left or _last(earlier)
        right = hole.right or _last(later[::-1])
        start_ms = left.end_ms if left else BEGINNING
        self._explained.add(start_ms, right.start_ms if right else END)

    def _check_succession(self, ended: int, begun: int) -> None:
        left, right = self._lane(ended).runs[-1], self._lane(begun).runs[0]
        claim = self._claims.get(ended) or Claim()
        torn_tail = bool(claim.named.overlap(left.last + 1, END))
        stated = left.tail_gap or right.head_gap or right.first > 0 or torn_tail
        apart = link(left.tail, right.head, stated=stated)
        if apart is None:
            return
        if apart.kind == "unrecorded":
            self._replica.note_unrecorded(apart)
        else:
            self._report_link(apart.kind, begun, apart)

    def _epoch_end(self, ended: int, begun: int) -> EpochEnd:
        last = self._lane(ended).runs[-1].last
        name = self._replica.name._asdict()
        return EpochEnd(**name, epoch=ended, last_sequence=last, next_epoch=begun)

    def _report_uncovered(self, where: str, timeline: Timeline) -> None:
        for start_ms, end_ms in timeline.holes().minus(self._explained):
            self._find("uncovered", start=stamp(start_ms), end=stamp(end_ms), detail=where)

    def _report_link(self, kind: ProblemKind, epoch: int, link: Link) -> None:
        self._find(
            kind,
            epoch=epoch,
            start=stamp(link.start_ms),
            end=stamp(link.end_ms),
            core_seconds=link.core_seconds,
        )

    def _find(self, kind: ProblemKind, **fields: Any) -> None:
        self._findings.add(Finding(kind=kind, **self._replica.name._asdict(), **fields))


def _sides(hole: Hole) -> tuple[Point | None, Point | None]:
    left, right = hole.left, hole.right
    return left.tail if left else None, right.head if right else None


def _last(runs: Sequence[Sequence[Run]]) -> Run | None:
    """Return the only run of the last non-empty list."""
    return next((found[0] for found in reversed(runs) if found), None)


def _gaps(replica: ReplicaAudit) -> list[Gap]:
    gaps = [
        Gap(
            **replica.name._asdict(),
            reason=reason,
            start=stamp(start_ms),
            end=stamp(end_ms),
            seconds=seconds(end_ms - start_ms),
        )
        for timeline in replica.timelines.values()
        for reason, spans in timeline.stated().items()
        for start_ms, end_ms in spans
    ]
    return sorted(gaps, key=lambda gap: gap.start)


def _list_unrecorded(replica: ReplicaAudit) -> list[Unrecorded]:
    return [
        Unrecorded(
            **replica.name._asdict(),
            start=stamp(found.start_ms),
            end=stamp(found.end_ms),
            core_seconds=found.core_seconds,
        )
        for found in sorted(replica.unrecorded, key=lambda found: found.start_ms)
    ]
