"""Kill the compactor with SIGKILL, and compact a million objects, on a directory.

`python -m lab.control_plane.compaction kills --kills 1000`: a child process compacts a directory
and is killed at the n-th access to the file system, then the next one at another access, until one
ends by itself. After each kill `verify` must report the same as before, and in the end each file
must have the bytes of a run that was not killed. `points` kills one run before each of its first
1,000 accesses, once, and compares the same.

`python -m lab.control_plane.compaction million`: makes the objects in the S3 fake, or with
`--sources directory` on the disk, and compares the report of `verify` before and after a run, which
is the only work of its process. Prints its memory and CPU.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import structlog
from aiobotocore.session import get_session

from byoc_agents.audit import Audit, Report
from byoc_agents.audit.bucket import S3Connection, read_url
from byoc_agents.audit.readers import Hours, read_directory
from byoc_agents.billing.archive import Shard
from byoc_agents.billing.objects import HOUR_MS
from byoc_agents.message import Message
from byoc_control_plane.compact import open_bucket
from byoc_control_plane.compactor import Compactor
from byoc_control_plane.directory import DirectoryBucket
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.settings import CompactorSettings
from lab.bench.machine import measured, peak_rss_mib
from lab.fakes.billing import NOON_MS, ReplicaHistory, eventful, objects
from lab.fakes.s3 import FakeS3

BEFORE = "2026-12-31T00"  # all hours are closed
ACCESSES = frozenset({"open", "os.scandir", "os.link", "os.remove", "os.mkdir", "tempfile.mkstemp"})
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
MAX_SOURCES = 20  # of one archive of the killed runs, so that there are several


def compact(root: Path, max_sources: int = 50_000) -> None:
    """Compact a directory in this process; log errors only."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    bucket = DirectoryBucket(root)
    made = Compactor(bucket, "v1/", Shard(0, 1), PlaneMetrics(), max_sources=max_sources)
    asyncio.run(made.run(BEFORE))


def compact_until(root: Path, access: int) -> bool:
    """Compact in a child that kills itself before one access; return whether it was killed."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return os.WTERMSIG(status) == signal.SIGKILL
        if os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"the compactor ended with {status}: expected 0 or SIGKILL")
        return False
    count = 0

    def kill(event: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in ACCESSES:
            count += 1
            if count == access:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(kill)
        compact(root, MAX_SOURCES)
        code = 0
    finally:
        os._exit(code)


def verify(root: Path) -> Report:
    """Return the report of `byoc-agents verify`, without the name of the directory."""
    audit = Audit()
    read_directory(audit, root, Hours(), lambda _objects: None)
    return audit.report("v1/")


def contents(root: Path) -> dict[str, bytes]:
    """Return path -> bytes of all files but a killed writer's."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def landing(replicas: int = 4) -> list[Message]:
    """Return the objects of the killed runs, 15 per replica: gaps, restarts and two epochs."""
    names = range(replicas)
    histories = [ReplicaHistory(replica=f"r-{n}", pod_uid=f"uid-{n}", seed=n) for n in names]
    return [one for history in histories for one in objects(eventful(history), size=3)]


def write(root: Path, messages: list[Message]) -> None:
    """Write the objects as the scraper does with `file://`."""
    for message in messages:
        path = root / message.id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message.body)


def kill_often(wanted: int, seed: int, directory: Path) -> dict[str, int]:
    """Kill so often; return the figures. Raises RuntimeError if anything differs."""
    random, messages = Random(seed), landing()
    whole = directory / "whole"
    write(whole, messages)
    originals = verify(whole)
    compact_until(whole, 0)
    expected = contents(whole)
    killed, rounds, points = 0, 0, set[int]()
    while killed < wanted:
        root = directory / "killed"
        write(root, messages)
        access = 1 + rounds % 400  # each point once, then again
        while compact_until(root, access):
            killed += 1
            points.add(access)
            if verify(root) != originals:
                raise RuntimeError(f"seed {seed}, kill {killed}: verify differs from before")
            access = random.randrange(1, 200)
        if contents(root) != expected or verify(root) != originals:
            raise RuntimeError(f"seed {seed}, kill {killed}: other files than without a kill")
        rounds += 1
        shutil.rmtree(root)
    return {"objects": len(messages), "kills": killed, "points": len(points), "runs": rounds}


def kill_at_each(points: int, directory: Path) -> dict[str, int]:
    """Kill a run before each of its first accesses; return the figures.

    Raises RuntimeError if anything differs.
    """
    messages, whole, root = landing(-(-points // 50)), directory / "whole", directory / "killed"
    write(whole, messages)
    originals = verify(whole)
    compact_until(whole, 0)
    expected = contents(whole)
    for access in range(1, points + 1):
        write(root, messages)
        if not compact_until(root, access):
            raise RuntimeError(f"a run has fewer than {access} accesses")
        if verify(root) != originals:
            raise RuntimeError(f"killed at access {access}: verify differs from before")
        if compact_until(root, 0) or contents(root) != expected or verify(root) != originals:
            raise RuntimeError(f"killed at access {access}: other files than without a kill")
        shutil.rmtree(root)
    return {"objects": len(messages), "kills": points, "points": points, "runs": points}


def hours_of(wanted: int, records: int, hours: int = 24) -> Iterator[Message]:
    """Yield so many objects of one day: of each replica one per hour."""
    for number in range(-(-wanted // hours)):
        history = ReplicaHistory(
            organization_id=f"org-{number // 1000}",
            service_id=f"service-{number // 10}",
            replica=f"r-{number}",
            pod_uid=f"uid-{number:08}",
            seed=number,
        )
        for hour in range(min(hours, wanted - hours * number)):
            history.now_ms = NOON_MS + hour * HOUR_MS
            yield from objects((history.measured() for _ in range(records)), size=records)


def run_alone(root: str, response: Connection) -> None:
    """Compact; send CPU in seconds and peak memory in MiB."""
    compact(Path(root))
    response.send(used_so_far())


def used_so_far() -> tuple[float, float]:
    """Return CPU in seconds and peak memory in MiB of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, peak_rss_mib()


def compact_many(wanted: int, records: int, directory: Path, hours: int = 24) -> dict[str, Any]:
    """Compact so many objects; return the figures. Raises RuntimeError if a report differs."""
    written = 0
    for message in hours_of(wanted, records, hours):
        write(directory, [message])
        written += 1
    before = verify(directory)
    load = os.getloadavg()[0]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    began = time.monotonic()
    child = context.Process(target=run_alone, args=(str(directory), theirs))
    child.start()
    theirs.close()
    cpu, peak = ours.recv()
    child.join()
    wall = time.monotonic() - began
    after = verify(directory)
    left = sum(1 for path in directory.rglob("v1/org=*/**/*") if path.is_file())
    return figures_of(written, (before, after, left), (cpu, peak, wall, load))


def figures_of(
    written: int, found: tuple[Report, Report, int], used: tuple[float, float, float, float]
) -> dict[str, Any]:
    """Return the figures of a run. Raises RuntimeError if the two reports differ."""
    (before, after, left), (cpu, peak, wall, load) = found, used
    if left or msgspec.json.encode(before) != msgspec.json.encode(after):
        raise RuntimeError(f"{left} objects left, or verify of the archives differs")
    return {
        "objects": written,
        "records": before.records,
        "wall_seconds": round(wall, 1),
        "cpu_us_per_object": round(cpu / written * 1e6),
        "objects_per_core_second": round(written / cpu),
        "peak_rss_mib": round(peak),
        "load_average": round(load, 1),
        "verify": "equal",
    }


def serve_million(wanted: int, records: int, hours: int, response: Connection) -> None:
    """Serve the objects from memory, until asked to stop.

    Sends the report of `verify` on the originals and the URL; then, at each request, how many
    objects are left in addition to the archives.
    """

    async def run() -> None:
        async with FakeS3() as fake:
            audit = Audit()
            messages = {one.id: one.body for one in hours_of(wanted, records, hours)}
            for key in sorted(messages):
                audit.add(key, messages[key])
                fake.objects[key] = messages[key]
            messages.clear()
            response.send((audit.report("v1/"), fake.url))
            while await asyncio.to_thread(response.recv) != "stop":
                response.send(sum(1 for key in fake.objects if key.startswith("v1/org=")))

    asyncio.run(run())


def run_alone_over_http(url: str, response: Connection) -> None:
    """Compact a bucket; send CPU in seconds and peak memory in MiB."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    os.environ.update(KEYS)
    own = CompactorSettings(bucket="usage", region="eu-west-1")

    async def run() -> None:
        async with open_bucket(own, KEYS | {"AWS_ENDPOINT_URL_S3": url}) as bucket:
            await Compactor(bucket, "v1/", Shard(0, 1), PlaneMetrics()).run(BEFORE)

    asyncio.run(run())
    response.send(used_so_far())


def compact_over_http(wanted: int, records: int, hours: int) -> dict[str, Any]:
    """Compact a bucket of the S3 fake in a process of its own; return the figures.

    The originals are verified in the fake's memory, and the archives over HTTP. Raises
    RuntimeError if the reports differ.
    """
    context = multiprocessing.get_context("spawn")
    (store, theirs), (ours, childs) = context.Pipe(), context.Pipe()
    fake = context.Process(target=serve_million, args=(wanted, records, hours, theirs))
    fake.start()
    try:
        before, url = store.recv()
        sys.stderr.write(f"{before.records} records are served\n")
        load, began = os.getloadavg()[0], time.monotonic()
        child = context.Process(target=run_alone_over_http, args=(url, childs))
        child.start()
        childs.close()
        cpu, peak = ours.recv()
        child.join()
        wall = time.monotonic() - began
        sys.stderr.write(f"compacted: {cpu:.0f} s of CPU, {peak:.0f} MiB\n")
        store.send("count")
        left = store.recv()
        audit, keys = Audit(), {"aws_access_key_id": "test", "aws_secret_access_key": "test"}

        def connect() -> S3Connection:
            made: S3Connection = get_session().create_client(
                "s3", endpoint_url=url, region_name="eu-west-1", **keys
            )
            return made

        read_url(audit, "s3://usage/v1/", Hours(), lambda _objects: None, connect)
        after = audit.report("v1/")
        store.send("stop")
    finally:
        fake.terminate()
        fake.join()
    return figures_of(wanted, (before, after, left), (cpu, peak, wall, load))


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m lab.control_plane.compaction")
    steps = parser.add_subparsers(dest="step", required=True)
    kills = steps.add_parser("kills")
    kills.add_argument("--kills", type=int, default=1000)
    kills.add_argument("--seed", type=int, default=0)
    each = steps.add_parser("points")
    each.add_argument("--points", type=int, default=1000)
    million = steps.add_parser("million")
    million.add_argument("--objects", type=int, default=1_000_000)
    million.add_argument("--records", type=int, default=1, help="records of one object")
    million.add_argument("--hours", type=int, default=24, help="of each replica, 1 to 24")
    million.add_argument("--sources", choices=["s3", "directory"], default="s3")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        if options.step == "kills":
            figures: dict[str, Any] = kill_often(options.kills, options.seed, root)
        elif options.step == "points":
            figures = kill_at_each(options.points, root)
        elif options.sources == "s3":
            figures = compact_over_http(options.objects, options.records, options.hours)
        else:
            figures = compact_many(options.objects, options.records, root, options.hours)
    sys.stdout.write(json.dumps(figures | {"measured": measured()}) + "\n")


if __name__ == "__main__":
    main()
