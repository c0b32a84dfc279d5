"""Compare a usage record's bytes and CPU with JSON and gzip, which most exporters send."""

import gzip
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from byoc_agents.app.cloudevents import encode
from byoc_agents.billing.objects import seal
from byoc_agents.billing.record import UsageRecord
from lab.bench.figures import Row, ratios, row
from lab.bench.lab import Lab
from lab.fakes.billing import ReplicaHistory

RECORDS = 300  # five hours of minutes; an object at the default pace has 5, a backlog up to 1,000
PACED = 5  # records of an object at the default pace


def measure(lab: Lab) -> list[Row]:
    """Seal the same records both ways, in turn."""
    rows = []
    for count in (PACED, RECORDS):
        history = ReplicaHistory()
        rows += _compared([history.measured() for _ in range(count)], lab.runs(15, 5))
    return rows


def _compared(records: Sequence[UsageRecord], rounds: int) -> list[Row]:
    plain = [msgspec.to_builtins(record, builtin_types=()) for record in records]
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(_microseconds(lambda: _ours(records), len(records)))
        theirs.append(_microseconds(lambda: _json_gzip(plain), len(records)))
    small, large = len(_ours(records)) / len(records), len(_json_gzip(plain)) / len(records)
    of = f"of an object of {len(records)}"
    return [
        row("records", f"bytes per record {of}: ours / JSON + gzip", [small / large], "x"),
        row("records", f"CPU per record {of}: ours / JSON + gzip", ratios(ours, theirs), "x"),
        row("records", f"bytes per record {of}", [small], "bytes"),
        row("records", f"CPU per record {of}, encoded and sealed", ours, "us"),
        row("records", f"CPU per record {of}, json.dumps and gzip", theirs, "us"),
    ]


def _ours(records: Sequence[UsageRecord]) -> bytes:
    return seal([encode(record) for record in records], created_at_ms=0).body


def _json_gzip(records: Sequence[dict[str, Any]]) -> bytes:
    lines = [json.dumps(record, default=str).encode() for record in records]
    return gzip.compress(b"\n".join(lines), mtime=0)


def _microseconds(work: Callable[[], object], records: int) -> float:
    times = max(1, 2000 // records)
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) * 1e6 / times / records
