"""`byoc-agents verify`: records a second and the most memory, on a million records or ten."""

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil

from byoc_agents.audit import Audit
from byoc_agents.delivery.sink import Message
from lab.bench.figures import Row, row
from lab.bench.lab import MIB, Lab
from lab.fakes.billing import Story, objects

REPLICAS, RECORDS = 10, 300  # records of one object


def measure(lab: Lab) -> list[Row]:
    """Audit a bucket as its keys come; making the objects is not counted."""
    sizes = [100_000] if lab.quick else [millions * 1_000_000 for millions in lab.millions]
    with ProcessPoolExecutor(
        max_workers=1, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as fresh:  # in a process that has held other things, memory says nothing
        return [row for rows in fresh.map(_audited, sizes) for row in rows]


def _audited(wanted: int) -> list[Row]:
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
    title = f"verifier, {wanted:,} records"
    return [
        row("verifier", f"{title}: records a second of CPU", [wanted / seconds], "records/s"),
        row("verifier", f"{title}: memory above the start", [most / MIB], "MiB"),
    ]


def _stored(wanted: int) -> Iterator[Message]:
    """Yield objects in which so many records lie, the pods' mixed as key order mixes them."""
    stories = [Story(replica=f"r-{n}", pod_uid=f"uid-{n}", seed=n) for n in range(REPLICAS)]
    left = wanted
    while left:
        for story in stories:
            size = min(RECORDS, left)
            if size:
                yield from objects([story.measured() for _ in range(size)], size=RECORDS)
            left -= size
