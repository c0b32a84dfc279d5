"""Check the allocated memory, which a customer is billed for.

It counts again from the periods alone, and compares with the real age of each incarnation of the
metered group: every second of an incarnation counts once, and no other second counts.
"""

from collections.abc import Iterator, Sequence
from decimal import Decimal

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.audit.sequences import SOFT_GAPS
from byoc_agents.billing.record import Usage
from lab.chaos.evidence import Evidence
from lab.real.stored import usages

LIMIT_BYTES = 1 << 30  # that the downward API tells the scraper
SLACK_MS = 1500  # two samples and the time to make or remove a group, for each incarnation
RECORD_MS = 60  # wall clock and boot clock are read one after the other


def allocated(found: Evidence) -> Iterator[str]:
    """Return the differences as text; an empty list if there are none."""
    records = usages(found.objects)
    for one in records:
        size = one.allocated
        if size.counted_milliseconds and size.memory_bytes != LIMIT_BYTES:
            yield f"{one.charge_period_start}: {size.memory_bytes} bytes, not {LIMIT_BYTES}"
    by_epoch: dict[int, list[Usage]] = {}
    for one in records:
        by_epoch.setdefault(one.epoch, []).append(one)
    counted: dict[int, int] = {}  # inode -> milliseconds
    for lane in by_epoch.values():
        lane.sort(key=lambda one: one.sequence)
        for inode, chain in chains(lane):
            counted[inode] = counted.get(inode, 0) + milliseconds(chain)
            yield from _differs(chain)
    yield from _against_the_kernel(found, records, counted)


def chains(lane: Sequence[Usage]) -> Iterator[tuple[int, list[Usage]]]:
    """Yield each incarnation's inode, and its records in an epoch with the gaps before them.

    The gap before an incarnation's first record may count for it: it existed before it was read.
    """
    names = [one.incarnation for one in lane if one.quality != "gap"]
    after = 0
    for name in dict.fromkeys(names):
        places = [
            n for n, one in enumerate(lane) if one.quality != "gap" and one.incarnation == name
        ]
        yield int(name.rsplit("-", 1)[1]), [*lane[after : places[-1] + 1]]
        after = places[-1] + 1


def milliseconds(chain: Sequence[Usage]) -> int:
    """Return how long the size counts, without gaps that may overlap other records."""
    hard = (one for one in chain if one.gap_reason not in SOFT_GAPS)
    return sum(one.allocated.counted_milliseconds or 0 for one in hard)


def _differs(chain: Sequence[Usage]) -> Iterator[str]:
    """Check an incarnation between its first and its last record, if no clock was set meanwhile."""
    first = next(n for n, one in enumerate(chain) if one.quality != "gap")
    within = chain[first:]
    set_clock = any(one.gap_reason == "clock_step" or one.clock_step_milliseconds for one in within)
    held = any(
        one.quality != "gap" and abs(one.elapsed_milliseconds - period_ms(one)) > RECORD_MS
        for one in within[1:]
    )
    if set_clock or held:
        return
    late_ms = milliseconds(chain[:first])
    whole_ms = sum(map(period_ms, within))
    counted_ms = milliseconds(chain) - late_ms
    if not 0 <= whole_ms - counted_ms <= SLACK_MS and counted_ms < whole_ms:
        yield f"{within[0].incarnation}: {counted_ms} ms count of {whole_ms} ms that it was there"
    if counted_ms > whole_ms + SLACK_MS:
        yield f"{within[0].incarnation}: {counted_ms} ms count, but it was there {whole_ms} ms"


def _against_the_kernel(
    found: Evidence, records: Sequence[Usage], counted: dict[int, int]
) -> Iterator[str]:
    seconds_of = {one.inode: one.seconds for one in found.incarnations if one.seconds}
    for inode, seconds in seconds_of.items():
        most_ms = seconds * 1000 + SLACK_MS
        if counted.get(inode, 0) > most_ms:
            yield f"incarnation {inode}: {counted[inode]} ms count, of {seconds:.1f} s"
    if found.damaged or not seconds_of:
        return
    stated_ms = sum(
        period_ms(one)
        for one in records
        if one.quality == "gap" and not one.allocated.counted_milliseconds
    )
    whole_ms = Decimal(sum(seconds_of.values())) * 1000
    soft_ms = sum(
        one.allocated.counted_milliseconds or 0 for one in records if one.gap_reason in SOFT_GAPS
    )
    total_ms = sum(counted.values()) + soft_ms
    least_ms = whole_ms - stated_ms - SLACK_MS * len(seconds_of)
    if total_ms < least_ms:
        yield f"{total_ms} ms count, {stated_ms} ms are gaps: of {whole_ms:.0f} ms in all"


def period_ms(one: Usage) -> int:
    """Return the length of a record's period, milliseconds."""
    return parse_rfc3339(one.charge_period_end) - parse_rfc3339(one.charge_period_start)
