"""Measure how fast one core archives objects: `python -m lab.bench.compact --objects 100000`.

The S3 fake runs in a process of its own, and its CPU does not count. `--sources memory` measures
the compactor without any HTTP: the checks, the archive and the digests. `--sources directory` reads
and deletes files. With S3, the CPU of aiobotocore's GET of the same objects is measured as well.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

from aiobotocore.session import get_session

from byoc_agents.billing.archive import Shard
from byoc_control_plane.bucket import Bucket, Listed
from byoc_control_plane.compact import open_bucket
from byoc_control_plane.compactor import Compactor, Tally
from byoc_control_plane.directory import DirectoryBucket
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.settings import CompactorSettings
from lab.bench.machine import measured, peak_rss_mib
from lab.fakes.billing import ReplicaHistory, objects
from lab.fakes.s3 import FakeS3

BEFORE = "2026-11-23T13"
MINUTES = 60  # records of one pod in the hour
LIBRARY_GETS = 1000
RECORDS = 15  # of one object, at the default pace
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def generate(wanted: int, records: int) -> dict[str, bytes]:
    """Return `count` objects of one hour with `records` records each."""
    found: dict[str, bytes] = {}
    for number in range(-(-wanted * records // MINUTES)):
        history = ReplicaHistory(replica=f"r-{number}", pod_uid=f"uid-{number:08}", seed=number)
        for message in objects((history.measured() for _ in range(MINUTES)), size=records):
            found[message.id] = message.body
    return dict(sorted(found.items())[:wanted])


def serve_bucket(wanted: int, records: int, response: Connection, stop: Event) -> None:
    """Serve the objects until asked to stop; send the URL, then the number of objects left."""

    async def run() -> None:
        async with FakeS3() as fake:
            fake.objects = generate(wanted, records)
            response.send(fake.url)
            while not stop.is_set():  # noqa: ASYNC110  another process sets it
                await asyncio.sleep(0.2)
            response.send(len(fake.objects))

    asyncio.run(run())


@asynccontextmanager
async def served(wanted: int, records: int) -> AsyncIterator[str]:
    """Yield the URL of a bucket in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    stop = context.Event()
    child = context.Process(target=serve_bucket, args=(wanted, records, theirs, stop))
    child.start()
    try:
        yield await asyncio.to_thread(ours.recv)
        stop.set()
        left = await asyncio.to_thread(ours.recv)
        if left % 2:
            raise RuntimeError(f"{left} objects left: expected archives and manifests only")
    finally:
        stop.set()
        child.join(10)


def write(root: Path, stored: dict[str, bytes]) -> None:
    """Write the objects as files."""
    for key, body in stored.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


class MemoryBucket(Bucket):
    """A bucket in this process, to measure the compactor alone."""

    def __init__(self, stored: dict[str, bytes]) -> None:
        """Store these objects."""
        super().__init__(None, "memory")
        self._stored = stored

    async def list_objects(self, prefix: str) -> AsyncIterator[Listed]:
        """See `Bucket.list_objects`."""
        for key in sorted(key for key in self._stored if key.startswith(prefix)):
            yield Listed(key, len(self._stored[key]))

    async def get_in_order(
        self, items: AsyncIterable[Listed]
    ) -> AsyncGenerator[tuple[Listed, bytes | str | None], None]:
        """See `Bucket.get_in_order`."""
        async for item in items:
            yield item, self._stored.get(item.key)

    async def put_once(self, key: str, body: bytes, *_: str) -> None:
        """See `Bucket.put_once`."""
        self._stored[key] = body

    async def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """See `Bucket.delete`."""
        for key in keys:
            del self._stored[key]
        return {}


Figures = dict[str, float | str]


async def measure(wanted: int, records: int, source: str) -> Figures:
    """Archive the objects; return the figures."""
    if source == "memory":
        stored = generate(wanted, records)
        size = round(sum(map(len, stored.values())) / wanted)
        found = await _archive(MemoryBucket(stored), wanted, records)
        return found | {"bytes_per_object": size}
    if source == "directory":
        with tempfile.TemporaryDirectory() as root:
            write(Path(root), generate(wanted, records))
            return await _archive(DirectoryBucket(Path(root)), wanted, records)
    os.environ |= KEYS
    async with served(wanted, records) as url:
        own = CompactorSettings(bucket="usage", region="eu-west-1")
        async with open_bucket(own, KEYS | {"AWS_ENDPOINT_URL_S3": url}) as bucket:
            floor = await _measure_library(own, url)
            found = await _archive(bucket, wanted, records)
            ours = found["cpu_us_per_object"]
            ratio = round(float(ours) / floor, 2)
            return found | {"aiobotocore_get_us": round(floor), "ratio": ratio}


async def _measure_library(own: CompactorSettings, url: str) -> float:
    """Return the CPU of one GET with aiobotocore and nothing else, microseconds."""
    place = {"endpoint_url": url, "region_name": own.region}
    async with get_session().create_client("s3", **place) as client:
        bucket = Bucket(client, own.bucket)

        async def first() -> AsyncIterator[Listed]:
            count = 0
            async for item in bucket.list_objects("v1/org="):
                yield item
                count += 1
                if count == LIBRARY_GETS:
                    return

        items = [item async for item in first()]

        async def each() -> AsyncIterator[Listed]:
            for item in items:
                yield item

        began = time.process_time()
        async for _ in bucket.get_in_order(each()):
            pass
        return (time.process_time() - began) / len(items) * 1e6


async def _archive(bucket: Bucket, wanted: int, records: int) -> Figures:
    made = Compactor(bucket, "v1/", Shard(0, 1), PlaneMetrics())
    began, cpu_began = time.monotonic(), time.process_time()
    tally: Tally = await made.run(BEFORE)
    wall, cpu = time.monotonic() - began, time.process_time() - cpu_began
    if (tally.archived, tally.deleted, tally.held) != (wanted, wanted, 0):
        raise RuntimeError(f"not everything was archived: {tally}")
    return {
        "objects": wanted,
        "records_per_object": records,
        "archives": tally.archives,
        "wall_seconds": round(wall, 1),
        "cpu_us_per_object": round(cpu / wanted * 1e6),
        "objects_per_core_second": round(wanted / cpu),
        "load_average": round(os.getloadavg()[0], 1),
        "peak_rss_mib": round(peak_rss_mib()),
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m lab.bench.compact", description=__doc__)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--sources", choices=["s3", "directory", "memory"], default="s3")
    parser.add_argument("--records", type=int, default=RECORDS, help="records of one object")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.objects, options.records, options.sources))
    sys.stdout.write(json.dumps(figures | {"measured": measured()}) + "\n")


if __name__ == "__main__":
    main()
