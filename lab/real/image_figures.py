"""Measure an image: `python -m lab.real.image_figures` builds it and prints a table.

The start time is from the engine's time of the start to the log event `admin.listening`, the median
of some runs. The CPU, which other load does not change, is the kernel's count for the container.
"""

import datetime as dt
import json
import statistics
import sys
import tempfile
from pathlib import Path

import botocore

from lab.real.parts.docker import Container, Engine, engine
from lab.real.parts.images import ALL_IN_ONE, DAEMONS, hardened, make, run_options, tag
from lab.real.scraper import eventually

RUNS = 5
MIB = 2**20
CPUACCT = Path("/sys/fs/cgroup/cpuacct/docker")
DATA = "/opt/byoc-agents/lib/botocore/data"
# Memory that S3's and SQS's clients add to a process, MiB
CLIENTS = """
import asyncio, sys
sys.path[:0] = ["/opt/byoc-agents/code", "/opt/byoc-agents/lib"]
from aiobotocore.session import AioSession
import byoc_agents.app.run, byoc_agents.sinks.s3, byoc_agents.sinks.sqs

def rss():
    text = open("/proc/self/smaps_rollup").read()
    return int(text.split("Rss:")[1].split()[0]) / 1024

async def main():
    before, session = rss(), AioSession()
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "eu-west-1"}
    s3 = await session.create_client("s3", **keys).__aenter__()
    sqs = await session.create_client("sqs", **keys).__aenter__()
    await s3.generate_presigned_url("put_object", {"Bucket": "b", "Key": "k"})
    await sqs.generate_presigned_url("send_message_batch", {"QueueUrl": "q", "Entries": []})
    print(rss() - before)

asyncio.run(main())
"""


def started(container: Container) -> float | None:
    """Return the seconds from start to listening; None before that."""
    lines = [json.loads(line) for line in container.logs().splitlines()]
    times = [line["timestamp"] for line in lines if line["event"] == "admin.listening"]
    if not times:
        return None
    began = container.inspect()["State"]["StartedAt"][:26].rstrip("Z")
    start = dt.datetime.fromisoformat(began).replace(tzinfo=dt.UTC)
    return (dt.datetime.fromisoformat(times[0]) - start).total_seconds()


def one_start(docker: Engine, name: str) -> tuple[float, float, float]:
    """Start once; return seconds to listening, core seconds and MiB resident."""
    options = [*hardened(), "--health-interval=1h", "--network=none"]
    options += run_options(*(DAEMONS if name == ALL_IN_ONE else [name]))
    with docker.run(tag(name), options=options) as container:
        seconds = eventually(lambda: started(container)) or 0.0
        used = int((CPUACCT / container.id / "cpuacct.usage").read_text()) / 1e9
        status = Path(f"/proc/{container.pid}/status").read_text()
        return seconds, used, int(status.split("VmRSS:")[1].split()[0]) / 1024


def clients(docker: Engine, *options: str) -> float:
    """Return the memory of botocore's clients in MiB."""
    run = ["run", "--rm", "--network=none", "--entrypoint=python3", *options, tag(ALL_IN_ONE)]
    return float(docker.output(*run, "-IS", "-c", CLIENTS))


def report(docker: Engine) -> None:
    """Print the table."""
    total = docker.image(tag(ALL_IN_ONE))["Size"] / MIB
    print(f"size: {total:.0f} MiB, with Python and its libraries")
    for name in (*DAEMONS, ALL_IN_ONE):
        runs = [one_start(docker, name) for _ in range(RUNS)]
        seconds, cpu, rss = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name:16} listens after {seconds:.2f} s, {cpu:.2f} core s; {rss:.0f} MiB resident")
    own = Path(botocore.__file__).parent / "data"
    whole = clients(docker, f"--volume={own}:{DATA}:ro")
    print(f"S3 and SQS clients: {clients(docker):.1f} MiB, {whole:.1f} with botocore's data uncut")


def main() -> int:
    """Build with a separate engine, then measure."""
    with engine() as docker, tempfile.TemporaryDirectory() as directory:
        make(docker, Path(directory))
        report(docker)
    return 0


if __name__ == "__main__":
    sys.exit(main())
