"""Measure `byoc-agents verify`: records per second and peak memory, on one or ten million records.

It also measures the time for the report of a fleet.
"""

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil

from byoc_agents.audit import Audit
from byoc_agents.audit.render import text
from byoc_agents.message import Message
from lab.bench.figures import Row, row
from lab.bench.lab import MIB, Lab
from lab.fakes.billing import ReplicaHistory, objects

REPLICAS, RECORDS = 10, 300  # records of one object
FLEETS, FLEET_RECORDS = (1_000, 100_000), 10  # replicas, each with one object of so many records


def measure(lab: Lab) -> list[Row]:
    """Audit a bucket in the order of its keys. Making the objects does not count."""
    fleets = FLEETS[:1] if lab.quick else FLEETS
    sizes = [100_000] if lab.quick else [millions * 1_000_000 for millions in lab.millions]
    with ProcessPoolExecutor(
        max_workers=1, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as fresh:  # in a process that has held other things, memory means nothing
        concluded = fresh.map(_concluded, fleets)
        return [row for rows in fresh.map(_audited, sizes) for row in rows] + list(concluded)


def _audited(wanted: int) -> list[Row]:
    seconds, most = _audit(wanted)
    title = f"verifier, {wanted:,} records"
    return [
        row("verifier", f"{title}: records per second of CPU", [wanted / seconds], "records/s"),
        row("verifier", f"{title}: memory above the start", [most / MIB], "MiB"),
    ]


def audited_seconds(wanted: int) -> float:
    """Return the CPU seconds of an audit of that many records."""
    return _audit(wanted)[0]


def _audit(wanted: int) -> tuple[float, int]:
    """Return the CPU seconds and the most bytes of memory above the start."""
    process, audit = psutil.Process(), Audit()
    gc.collect()
    before, most, seconds = process.memory_info().rss, 0, 0.0
    for message in _stored(wanted):
        began = time.process_time()
        audit.add(message.id, message.body)
        seconds += time.process_time() - began
        most = max(most, process.memory_info().rss - before)
    began = time.process_time()
    report = audit.report("")
    seconds += time.process_time() - began
    if report.records != wanted or report.counts:
        raise RuntimeError(f"the audit found {report.records} records, {report.counts}")
    return seconds, most


def _concluded(replicas: int) -> Row:
    """Measure the report of a fleet after all objects are read, with its text."""
    audit = Audit()
    for number in range(replicas):
        history = ReplicaHistory(replica=f"r-{number}", pod_uid=f"uid-{number}", seed=number)
        records = [history.measured() for _ in range(FLEET_RECORDS)]
        for message in objects(records, size=FLEET_RECORDS):
            audit.add(message.id, message.body)
    began = time.process_time()
    report = audit.report("")
    lines = sum(1 for _ in text(report))
    seconds = time.process_time() - began
    if len(report.replicas) != replicas or report.counts or lines < replicas:
        raise RuntimeError(f"the audit found {len(report.replicas)} replicas, {report.counts}")
    title = f"verifier, {replicas:,} replicas x {FLEET_RECORDS} records: report, CPU"
    return row("verifier", title, [seconds], "s")


def _stored(wanted: int) -> Iterator[Message]:
    """Yield objects with that many records; the pods alternate as in the order of keys."""
    histories = [
        ReplicaHistory(replica=f"r-{n}", pod_uid=f"uid-{n}", seed=n) for n in range(REPLICAS)
    ]
    left = wanted
    while left:
        for history in histories:
            size = min(RECORDS, left)
            if size:
                yield from objects([history.measured() for _ in range(size)], size=RECORDS)
            left -= size
