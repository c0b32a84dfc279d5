"""Measure the queries of the page `/fleet`: `python -m lab.control_plane.page --replicas 10000`.

Those of the metrics about silence are measured as well.

The store is chdb over HTTP, with half an hour of messages and 25 minutes of usage of the fleet.
With `--copies N` all rows are there N times more, each copy five weeks older than the one before
it: what that adds to the time is the cost of history.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import aiohttp
import msgspec

from byoc_agents.app.cloudevents import rfc3339
from byoc_control_plane.fleet import QUERIES, fill_query
from byoc_control_plane.progress import DAEMONS, DELAYED, PROGRESS, SILENT
from byoc_control_plane.store import HttpStore, Store, create_tables, fetch_rows
from lab.bench.machine import measured
from lab.control_plane.fleet_rows import END_MS, store_fleet
from lab.control_plane.processes import plane_environment
from lab.control_plane.simulation import START_MS
from lab.demo.process import started, written

SILENCE = {  # of the metrics
    "silent": SILENT,
    "daemons": DAEMONS,
    "progress": PROGRESS,
    "delayed": DELAYED,
}
DAYS = 14
DAY_MS = 86_400_000
WEEKS = 5  # between two copies: each is in another month
TIMES = {  # the columns of a copy that are moved
    "byoc_usage": ("charge_period_start", "charge_period_end"),
    "byoc_state": ("time", "arrived_at", "state_since"),
    "byoc_alerts": ("time", "arrived_at", "received_at", "starts_at", "started_at"),
}


async def add_copy(store: Store, number: int) -> None:
    """Insert all rows of the fleet again with other ids, `number` times WEEKS earlier."""
    first = f"'{rfc3339(START_MS - DAY_MS).removesuffix('Z')}'"
    for table, columns in TIMES.items():
        moved = ", ".join(f"{one} - INTERVAL {number * WEEKS} WEEK AS {one}" for one in columns)
        select = f"SELECT * REPLACE(concat(id, '-{number}') AS id, {moved})"
        # In one SELECT, the condition would be about the moved column.
        rows = f"(SELECT * FROM {table} WHERE {columns[0]} >= {first})"
        await store.run(f"INSERT INTO {table} {select} FROM {rows}")


async def measure(store: Store, queries: Mapping[str, str], runs: int) -> dict[str, float]:
    """Return the median seconds of each query."""
    found: dict[str, list[float]] = {name: [] for name in queries}
    for _ in range(runs):
        for name, query in queries.items():
            begun = time.perf_counter()
            await fetch_rows(store, query)
            found[name].append(time.perf_counter() - begun)
    return {name: round(median(times), 3) for name, times in found.items()}


async def run(directory: Path, replicas: int, copies: int, runs: int) -> dict[str, object]:
    """Fill a store and read the page; return the rows and the seconds."""
    log = directory / "log"
    argv = [sys.executable, "-m", "lab.control_plane.chdb_http", str(directory / "chdb")]
    async with started(argv, log, plane_environment()) as child, aiohttp.ClientSession() as session:
        store = HttpStore((await written(log, "http://", child, 60)).strip(), session)
        await create_tables(store)
        await store.run("SYSTEM STOP TTL MERGES")  # the fleet is of a fixed day
        await store_fleet(store, replicas)
        for number in range(1, copies + 1):
            await add_copy(store, number)
        (records,) = await fetch_rows(store, "SELECT count() AS n FROM byoc_usage")
        (messages,) = await fetch_rows(store, "SELECT count() AS n FROM byoc_state")
        daemons = await fetch_rows(store, DAEMONS)
        since = rfc3339(END_MS - DAYS * DAY_MS)[:10]
        filled = {name: fill_query(one, END_MS + 5_000, since) for name, one in QUERIES.items()}
        seconds = await measure(store, filled, runs)
        silence = await measure(store, SILENCE, runs)
    return {
        "replicas": replicas,
        "daemons": sum(row["daemons"] for row in daemons),
        "records": records["n"],
        "messages": messages["n"],
        "runs": runs,
        "page_seconds": round(sum(seconds.values()), 2),
        "query_seconds": seconds,
        "silence_seconds": round(sum(silence.values()), 3),
        "measured": measured(),
    }


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.control_plane.page", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--replicas", type=int, default=10_000)
    parser.add_argument("--copies", type=int, default=0, help="of all rows, in earlier months")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(run(Path(directory), options.replicas, options.copies, options.runs))
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
