"""Check the evidence of a run. Every check returns differences as text; none = it holds."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from byoc_agents.audit import Report
from byoc_agents.billing.record import Usage
from lab.chaos.again import is_recorded_twice
from lab.chaos.allocated import allocated
from lab.chaos.evidence import ALERT, Evidence, written
from lab.chaos.facts import Fact, fact
from lab.chaos.lost import miscounted
from lab.chaos.order import ordered
from lab.real.stored import billed, usages, verified

CORES = 2
SAMPLE_SECONDS = 0.5
GOOD_ENDS = {0, -9, -15}  # planned; killed; ended before it handled SIGTERM
NO_DISK = 2  # exit code if the state directory cannot be used
REPORT_SECONDS = 10.0  # from a silent server to the message: a ping's 2 s twice, and 5 to start
MORE = {"fds": 12, "threads": 6, "tasks": 8, "rss_bytes": 24 * 1024**2}  # than before the faults
STATE_TYPE = "byoc.service.state.v1"
BILLING, STATE, ALERTS = "billing-scraper", "state-exporter", "alert-forwarder"


def judged(found: Evidence) -> list[str]:
    """Return every difference from the guarantees."""
    checks = (billing, allocated, states, outages, alerts, dead_letters, ledger, processes, growth)
    return [f"{check.__name__}: {difference}" for check in checks for difference in check(found)]


def billing(found: Evidence) -> Iterator[str]:
    """Check that each second is recorded once, and CPU equals the kernel's to the microsecond."""
    yield from (f"{key} written {n} times" for key, n in found.writes.items() if n != 1)
    for number, stored in enumerate(found.before):
        changed = [key for key, body in stored.items() if found.objects.get(key) != body]
        yield from (f"S3 before kill {number} had {key} with other bytes" for key in changed)
    with tempfile.TemporaryDirectory() as place:
        report = verified(str(written(found.objects, Path(place))))
    again = [
        one for one in report.findings if found.damaged and is_recorded_twice(one, found.objects)
    ]
    for finding in report.findings:
        stated = found.damaged and finding.detail == "stated: spool_corrupt"
        if not stated and finding not in again:
            yield f"verify: {finding}"
    if report.unrecorded and not found.damaged:
        yield f"CPU that no record holds, without any damage: {report.unrecorded}"
    yield from _cpu(
        found, report, sum((one.core_seconds or Decimal(0) for one in again), Decimal(0))
    )


def _cpu(found: Evidence, report: Report, allowed: Decimal) -> Iterator[str]:
    """Check billed + reported as unrecorded + unseen at the ends of containers = kernel's counter.

    `allowed` is the core seconds of allowed findings.
    """
    by_inode: dict[int, list[Usage]] = {}
    for one in usages(found.objects):
        if one.counter and one.quality != "gap":  # a gap's counter has CPU that is not billed
            by_inode.setdefault(int(one.incarnation.rsplit("-", 1)[1]), []).append(one)
    unseen = Decimal(0)
    for place, incarnation in enumerate(found.incarnations):
        records = by_inode.get(incarnation.inode, [])
        truth = Decimal(incarnation.cpu_usec).scaleb(-6)
        first = min((one.counter.start for one in records if one.counter), default=truth)
        last = max((one.counter.end for one in records if one.counter), default=truth)
        if first and not found.damaged and records:
            yield f"incarnation {incarnation.inode} begins at {first} core s, not at 0"
        if place == len(found.incarnations) - 1 and (last != truth or not records):
            yield f"the last one ends at {last if records else 0} core s; the kernel says {truth}"
        unseen += first + truth - last if records else truth
    stated = sum((one.core_seconds for one in report.unrecorded), allowed)
    whole = Decimal(sum(one.cpu_usec for one in found.incarnations)).scaleb(-6)
    if (total := billed(report) + stated + unseen) != whole:
        yield (
            f"billed {billed(report)} + unrecorded {stated} + unseen {unseen} = {total} core s;"
            f" the kernel says {whole}"
        )
    if unseen > (allowed := _gap_seconds(report) * CORES):
        yield f"{unseen} core s unseen at the ends of incarnations; the gaps there allow {allowed}"


def _gap_seconds(report: Report) -> Decimal:
    """Return the seconds without metering, except for the time before the very first sample.

    Time that a clock set forward has skipped counts: after it is set back, that time passes, and a
    container that ends in it has no other time to state.
    """
    ended = {"target_restarted", "target_absent", "target_unreadable", "no_checkpoint"}
    ended |= {"clock_step"}
    return sum((gap.seconds for gap in report.gaps[1:] if gap.reason in ended), Decimal(0))


def states(found: Evidence) -> Iterator[str]:
    """Check that every transition arrived once per id, in order, without a missing number."""
    seen: dict[str, dict[str, Any]] = {}
    for body in found.states:
        if seen.setdefault(body["id"], body) != body:
            yield f"{body['id']} came with two contents"
    epochs: dict[int, list[dict[str, Any]]] = {}
    for body in seen.values():
        epochs.setdefault(body["data"]["epoch"], []).append(body)
    if list(epochs) != sorted(epochs) or (len(epochs) > 1 and not found.damaged):
        yield f"epochs {list(epochs)}"
    for epoch, bodies in epochs.items():
        yield from _epoch(found, epoch, bodies)
    last = list(epochs.values())[-1][-1]["data"] if epochs else {}
    if last.get("state") != "stopping":
        yield f"the last word is {last.get('state')!r}, not 'stopping'"


def _epoch(found: Evidence, epoch: int, bodies: list[dict[str, Any]]) -> Iterator[str]:
    strict = ordered(bodies, found.ledger, damaged=bool(found.damaged))
    sequences = [one["data"]["sequence"] for one in strict]
    if sequences != sorted(sequences):
        yield f"epoch {epoch} out of order: {sequences}"
    reported = [one["data"] for one in bodies]
    numbers = [one["transition"] for one in reported if one["kind"] == "transition"]
    excused = _at_risk(found, epoch)
    wanted = set(range(1, max(numbers, default=0) + 1)) - {one["transition"] for one in excused}
    if len(numbers) != len(set(numbers)) or not wanted <= set(numbers):
        yield f"epoch {epoch}: transitions {numbers}"
    if reported[-1]["lost_transitions"] and not (found.disk_troubles or found.tight):
        yield f"epoch {epoch} lost {reported[-1]['lost_transitions']} transitions"
    if found.damaged:
        return  # the log does not say of which epoch a number is
    logged = {one["sequence"] for one in found.reported if one["kind"] == "transition"}
    if missing := logged - {one["sequence"] for one in reported}:
        yield f"committed and never sent: {sorted(missing)}"
    counts = {one["sequence"]: one["lost_transitions"] for one in reported}
    yield from miscounted(found.changes, counts)


def _at_risk(found: Evidence, epoch: int) -> list[dict[str, Any]]:
    """Return the messages in the exporter's spool when it was damaged, which may be lost."""
    bodies = [json.loads(body) for body in found.at_risk.values() if body.startswith(b"{")]
    data = [one["data"] for one in bodies if one["type"] == STATE_TYPE]
    return [one for one in data if one["epoch"] == epoch]


def outages(found: Evidence) -> Iterator[str]:
    """Check that each visible outage of ClickHouse was reported in time, then its end."""
    for one in found.outages:
        if one.quiet_seconds >= REPORT_SECONDS and "PING_FAILED" not in one.word:
            yield f"{one.kind} for {one.quiet_seconds:.1f} s, and the exporter reports {one.word!r}"
    if not found.last_word.startswith("running"):
        yield f"everything is healthy again, and the exporter reports {found.last_word!r}"


def alerts(found: Evidence) -> Iterator[str]:
    """Check that every accepted alert was delivered once and no other, firing before resolved."""
    arrived = facts_of(found.events)
    yield from (f"{one} delivered {n} times" for one, n in Counter(arrived).items() if n != 1)
    bodies = [json.loads(body) for body in found.at_risk.values() if body.startswith(b"{")]
    lost_by_damage = set(facts_of(bodies)) - set(arrived)
    excused = late_facts(found) | lost_by_damage
    place = {one: number for number, one in enumerate(arrived)}
    for one, number in place.items():
        if begun(one) in excused:
            continue
        if one.status == "resolved" and place.get(begun(one), len(place)) >= number:
            yield f"{one} is not after its beginning"
    if lost := found.accepted - set(arrived) - lost_by_damage:
        yield f"accepted and never delivered: {sorted(map(str, lost))}"
    if invented := set(arrived) - found.offered - {begun(one) for one in found.offered}:
        yield f"delivered and never offered: {sorted(map(str, invented))}"


def facts_of(events: Iterable[dict[str, Any]]) -> list[Fact]:
    return [
        fact(data["fingerprint"], data["starts_at"], data["status"])
        for event in events
        if event["type"] == ALERT
        for data in [event["data"]]
        if data["notification"] == "transition"
    ]


def late_facts(found: Evidence) -> set[Fact]:
    """Return the messages that were rejected, and delivered when they were sent again."""
    return set(facts_of(one for one in found.events if (ALERTS, one["id"]) in found.dead))


def begun(one: Fact) -> Fact:
    """Return the firing alert of a resolved one."""
    return Fact(one.fingerprint, one.starts_at_ms, "firing")


def dead_letters(found: Evidence) -> Iterator[str]:
    """Check that only rejected messages became dead letters, and that all were delivered later."""
    if others := sorted(daemon for daemon, _ in found.dead if daemon != ALERTS):
        yield f"dead letters of {others}"
    arrived = {one["id"] for one in found.events}
    if lost := {one for _, one in found.dead} - arrived - found.at_risk.keys():
        yield f"sent again and never delivered: {sorted(lost)}"
    alive = {one["id"] for one in found.events if one["type"] == ALERT}
    if not found.damaged and (back := found.logged_dead & alive - {one for _, one in found.dead}):
        yield f"dead letters, never sent again, and delivered: {sorted(back)}"
    if found.dead_left:
        yield f"{found.dead_left} dead letters are left"


def ledger(found: Evidence) -> Iterator[str]:
    """Check that the chain is complete, and announces everything that arrived."""
    if found.ledger_verdict:
        yield found.ledger_verdict.strip()
    announced = {send.get("id") for send in found.ledger}
    arrived = {*found.objects, *(one["id"] for one in [*found.states, *found.events])}
    if missing := arrived - announced:
        yield f"arrived and not in the ledger: {sorted(missing)}"


def processes(found: Evidence) -> Iterator[str]:
    """Check that no process ended by itself unless the disk failed, and that none is left."""
    for name, codes in found.ends.items():
        good = GOOD_ENDS | ({NO_DISK} if found.disk_troubles else set())
        if bad := [code for code in codes if code not in good]:
            yield f"{name} ended with {bad}"
    yield from (f"{name} ended with {code}" for name, code in found.last_ends.items() if code)
    yield from (f"{name} kept {n} events" for name, n in found.backlogs.items() if n)
    if missing := {BILLING, STATE, ALERTS} - found.backlogs.keys():
        yield f"never stopped in good order: {missing}"
    yield from found.defects


def growth(found: Evidence) -> Iterator[str]:
    """Check that no process uses more at the end than before the first fault, within `MORE`."""
    for name, (before, after) in found.figures.items():
        for what, more in MORE.items():
            was, now = getattr(before, what), getattr(after, what)
            if now > was + more:
                yield f"{name}: {what} {was} -> {now}, allowed {was + more}"


def checked(found: Evidence) -> dict[str, int]:
    """Return kind -> number of checked items."""
    return {
        "billing records": len(usages(found.objects)),
        "incarnations of the group": len(found.incarnations),
        "state messages": len({one["id"] for one in found.states}),
        "alert facts": len(found.accepted),
        "dead letters": len(found.dead),
        "outages": sum(one.quiet_seconds >= REPORT_SECONDS for one in found.outages),
        "ledger lines": len(found.ledger),
    }
