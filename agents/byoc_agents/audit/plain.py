"""Recognize objects in which the audit finds no fault, with a third of its CPU.

Nearly every object is plain: the records of one pod, each sound by itself, in the order of their
sequences and periods, without a gap of a kind in `SOFT_GAPS`. For these, order alone excludes
duplicates and overlaps, so none of the audit's state is needed. Each record is checked by the same
functions as in the audit. Whatever is not plain is left to the audit, which decides.
"""

from collections.abc import Sequence

from byoc_agents.audit.sequences import SOFT_GAPS
from byoc_agents.audit.validate import (
    decode,
    find_contradiction,
    find_impossible_cpu,
    find_misplacement,
    period,
)
from byoc_agents.billing.objects import parse_key
from byoc_agents.billing.record import cpu_bound


def are_plain(objects: Sequence[tuple[str, Sequence[bytes]]]) -> bool:
    """Return whether all objects are plain: then the audit finds no fault in or between them.

    `objects` are keys and records of one pod and hour, in the order of their keys. A missing
    sequence is not a fault of an object.
    """
    last_epoch = last_sequence = last_end_ms = -1
    ids: set[str] = set()
    records = 0
    for key, lines in objects:
        name = parse_key(key)
        if name is None or name.shared or (name.epoch, name.first) <= (last_epoch, last_sequence):
            return False
        last_epoch, last_sequence = name.epoch, name.first - 1
        for line in lines:
            try:
                record = decode(line)
                span = period(record.data)
            except ValueError:
                return False
            usage = record.data
            if (
                usage.sequence <= last_sequence
                or span.start_ms < last_end_ms
                or usage.gap_reason in SOFT_GAPS
                or find_contradiction(record, span)
                or find_misplacement(usage, name, span.start_ms)
                or find_impossible_cpu(usage, cpu_bound(usage))
            ):
                return False
            last_sequence, last_end_ms = usage.sequence, span.end_ms
            ids.add(record.id)
        records += len(lines)
    return len(ids) == records
