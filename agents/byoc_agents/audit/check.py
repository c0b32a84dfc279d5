"""Check the objects of one pod before they are put into an archive."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

from byoc_agents.audit.audit import Audit
from byoc_agents.audit.plain import are_plain
from byoc_agents.audit.report import Findings, ProblemKind
from byoc_agents.billing.objects import TornObjectError, unseal

# Problems between two sound records, whichever objects they are in. An archive holds both records,
# so `verify` reports the same of it.
BETWEEN_RECORDS: frozenset[ProblemKind] = frozenset(
    (
        "missing_sequence",
        "missing_object",
        "uncovered",
        "lost_cpu",
        "doubled_cpu",
        "unannounced_incarnation",
    )
)
# Problems of two objects, of which the audit names the second.
OF_TWO_OBJECTS: frozenset[ProblemKind] = frozenset(
    (
        "duplicate_identical",
        "duplicate_conflicting",
        "duplicate_uncompared",
        "duplicate_sequence",
        "overlap",
    )
)
OF_ONE_OBJECT: frozenset[str] = frozenset(get_args(ProblemKind)) - BETWEEN_RECORDS - OF_TWO_OBJECTS


class Fitness(NamedTuple):
    """The result of a check."""

    unfit: dict[str, str]  # key -> reason, of the objects that must stay as they are
    lines: dict[str, list[bytes]]  # key -> records, of the objects that could be read


def check_fitness(objects: Sequence[tuple[str, bytes]]) -> Fitness:
    """Return which objects must stay as they are, and the records of all that can be read.

    `objects` are keys and bodies of one pod and hour, in the order of their keys. Each is checked
    exactly as `byoc-agents verify` does. If two of them conflict, all of them are unfit: the audit
    cannot say which one is right.
    """
    lines: dict[str, list[bytes]] = {}
    torn: dict[str, str] = {}
    for key, body in objects:
        try:
            lines[key] = unseal(key, body)
        except TornObjectError as error:
            torn[key] = str(error)
    if len(lines) == len(objects) and are_plain(list(lines.items())):
        return Fitness({}, lines)
    found = _audit(objects, lines, torn)
    unfit = {
        finding.key: f"{finding.kind}: {finding.detail}".removesuffix(": ")
        for finding in found.kept
        if finding.kind in OF_ONE_OBJECT
    }
    conflicts = sorted(found.counts.keys() & OF_TWO_OBJECTS)
    if conflicts or sum(found.counts.values()) > len(found.kept):
        reason = f"{', '.join(conflicts) or 'many problems'}: in the objects of this pod and hour"
        unfit = {key: reason for key, _ in objects} | unfit
    return Fitness(unfit, lines)


def _audit(
    objects: Sequence[tuple[str, bytes]],
    lines: Mapping[str, Sequence[bytes]],
    torn: Mapping[str, str],
) -> Findings:
    audit = Audit(partial=True, fitness_only=True)
    for key, _ in objects:
        if key in torn:
            audit.refuse(key, torn[key])
        else:
            audit.add_lines(key, lines[key])
    return audit.found
