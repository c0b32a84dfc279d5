"""A million records through the audit: what it remembers, and that one missing still shows."""

from collections.abc import Iterator

import psutil
import pytest

from byoc_agents.audit import Audit
from byoc_agents.billing.record import UsageRecord
from byoc_agents.delivery.sink import Message
from lab.fakes.billing import Story, objects

pytestmark = pytest.mark.real

REPLICAS = 10
OBJECTS = 334  # of each replica
RECORDS = 300  # of each object
MAX_BYTES = 24 * 1024**2  # the ids are 8 MiB, one object with its records and the imports the rest


def interleaved() -> Iterator[Message]:
    """Yield a million records, the pods' objects mixed as key order mixes them."""
    stories = [Story(replica=f"r-{n}", pod_uid=f"uid-{n}", seed=n) for n in range(REPLICAS)]
    for number in range(OBJECTS):
        for story in stories:
            yield from objects(told(story, skip=number == 200 and story.seed == 3), size=RECORDS)


def told(story: Story, *, skip: bool) -> list[UsageRecord]:
    records = [story.measured() for _ in range(RECORDS)]
    return records[:-1] if skip else records


def test_a_million_records_cost_24_mebibytes_at_most() -> None:
    """Measured as resident memory: what the decompressor and the allocator keep counts as well."""
    process, audit, most = psutil.Process(), Audit(), 0
    before = process.memory_info().rss
    for message in interleaved():
        audit.add(message.id, message.body)
        most = max(most, process.memory_info().rss - before)
    report = audit.report("")
    print(f"{most / 1024**2:.1f} MiB at most")
    assert report.records == REPLICAS * OBJECTS * RECORDS - 1
    assert report.counts == {"missing_sequence": 1}
    assert most < MAX_BYTES
