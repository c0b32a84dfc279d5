"""Write pictures of the page `/fleet` to docs/pictures: `python -m lab.control_plane.pictures`.

The store is chdb with a fleet of the simulation, the page is that of a process of `run`, and the
browser is Debian's Chromium. One picture is in light colors and one in dark ones.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from byoc_control_plane.fleet_access import PATH, FleetAccess
from byoc_control_plane.metrics import PlaneMetrics, serve_metrics
from byoc_control_plane.store import HttpStore, create_tables
from lab.control_plane.fleet_rows import END_MS, store_fleet
from lab.control_plane.processes import ROOT, plane_environment
from lab.demo.process import started, written
from lab.fakes.core import FakeClock
from lab.real.parts.chromium import tab

PLACE = ROOT / "docs" / "pictures"
SCHEMES = ("light", "dark")
WIDTH, HEIGHT = 1280, 1000  # of the first window; the last one is as high as the page
PAGE_HEIGHT = "document.documentElement.scrollHeight"
MAX_BYTES = 250_000


async def take(replicas: int) -> dict[str, bytes]:
    """Return a picture of the whole page in each scheme, as WebP."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        argv = [sys.executable, "-m", "lab.control_plane.chdb_http", f"{directory}/chdb"]
        async with started(argv, log, plane_environment()) as child, aiohttp.ClientSession() as own:
            store = HttpStore((await written(log, "http://", child, 60)).strip(), own)
            await create_tables(store)
            await store.run("SYSTEM STOP TTL MERGES")  # the fleet is of a fixed day
            await store_fleet(store, replicas)
            metrics = PlaneMetrics()
            access = FleetAccess(store, FakeClock(wall_ms=END_MS + 5_000), metrics, lambda: "")
            pages = {PATH: access.handle}
            async with (
                serve_metrics(metrics, ("127.0.0.1", 0), pages) as (host, port),
                tab() as browser,
            ):
                for scheme in SCHEMES:
                    await browser.look(WIDTH, HEIGHT, scheme)
                    await browser.open(f"http://{host}:{port}{PATH}")
                    await browser.look(WIDTH, await browser.evaluate(PAGE_HEIGHT), scheme)
                    found[scheme] = await browser.screenshot("webp")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures and print their sizes; return 1 if one is too large for a document."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.control_plane.pictures", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--replicas", type=int, default=300)
    parser.add_argument("--directory", type=Path, default=PLACE)
    options = parser.parse_args(argv)
    options.directory.mkdir(exist_ok=True)
    taken = asyncio.run(take(options.replicas))
    for scheme, picture in taken.items():
        path = options.directory / f"fleet-{scheme}.webp"
        path.write_bytes(picture)
        sys.stdout.write(f"{path.name}: {len(picture)} bytes\n")
    return int(max(map(len, taken.values())) > MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
