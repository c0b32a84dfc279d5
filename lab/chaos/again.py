"""Find time that was recorded twice: the clock was set back, then the spool was lost.

The new epoch cannot know how far ahead the old one was. Its records overlap the old ones, and
`verify` has to report that: such a finding is expected. Within one epoch it is a difference.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.audit import Finding
from byoc_agents.audit.sequences import SOFT_GAPS
from lab.real.stored import usages

STEP_MS = 20_000  # more than a run ever sets the clock
KINDS = frozenset({"overlap", "duplicate_conflicting", "missing_sequence"})

Span = tuple[int, int, int, int]  # two epochs; from and to where both lie, milliseconds since 1970


def is_recorded_twice(finding: Finding, objects: Mapping[str, bytes]) -> bool:
    """Return whether a finding is about time that two epochs recorded."""
    if finding.kind not in KINDS or finding.epoch is None:
        return False
    start_ms, end_ms = parse_rfc3339(finding.start), parse_rfc3339(finding.end)
    return any(
        finding.epoch in {one, other} and start_ms < to_ms and end_ms > from_ms
        for one, other, from_ms, to_ms in spans(objects)
    )


def spans(objects: Mapping[str, bytes]) -> Iterator[Span]:
    """Return the times at which two epochs overlap, if no longer than a step of the clock.

    Gaps that may overlap an earlier epoch on purpose are left out.
    """
    ends: dict[int, list[int]] = {}
    for usage in usages(objects):
        if usage.gap_reason not in SOFT_GAPS:
            both = (usage.charge_period_start, usage.charge_period_end)
            ends.setdefault(usage.epoch, []).extend(map(parse_rfc3339, both))
    for (one, these), (other, those) in combinations(sorted(ends.items()), 2):
        from_ms, to_ms = max(min(these), min(those)), min(max(these), max(those))
        if from_ms < to_ms <= from_ms + STEP_MS:
            yield one, other, from_ms, to_ms
