"""Time that passed twice: the clock was set back, and the spool was lost before it caught up.

The new epoch cannot know how far ahead the old one was. Its records lie over those, and `verify`
has to say so: then the finding is not a difference. Within one epoch it always is one.
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


def lived_again(finding: Finding, objects: Mapping[str, bytes]) -> bool:
    """Tell whether a finding is of what two epochs recorded, one after the other."""
    if finding.kind not in KINDS or finding.epoch is None:
        return False
    start_ms, end_ms = parse_rfc3339(finding.start), parse_rfc3339(finding.end)
    return any(
        finding.epoch in {one, other} and start_ms < to_ms and end_ms > from_ms
        for one, other, from_ms, to_ms in spans(objects)
    )


def spans(objects: Mapping[str, bytes]) -> Iterator[Span]:
    """Give where two epochs lie over each other, if no longer than a step.

    Left aside are gaps that may lie over an earlier epoch: they reach back on purpose.
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
