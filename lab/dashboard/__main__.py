"""Draw the Grafana dashboard: `python -m lab.dashboard --fleet problems --width 1024`.

The queries are asked of chdb with a fleet of the simulation. Grafana's component library makes the
panels from the responses, in Debian's Chromium. Grafana's server is not part of it: options that
only the code of the server's panels reads are approximated by `web/page.tsx`, and the row of
variables is not drawn. Without arguments it writes the pictures of docs/control-plane.md.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from byoc_control_plane.store import HttpStore, Store, create_tables
from lab.control_plane.processes import ROOT, plane_environment
from lab.dashboard.fleets import DAY_MS, DAYS, FLEETS, NOW_MS
from lab.dashboard.queries import View, read_frames
from lab.demo.process import started, written
from lab.fakes.http import FakeHttp, Reply, Request
from lab.real.parts import grafana, install
from lab.real.parts.chromium import Tab, tab

BOARD = ROOT / "control-plane" / "byoc_control_plane" / "dashboards" / "byoc-fleet.json"
PLACE = ROOT / "docs" / "pictures"
SCHEMES = ("light", "dark")
FIRST_HEIGHT = 1000  # of the first window; the last one is as high as the page
PAGE_HEIGHT = "document.documentElement.scrollHeight"
MAX_BYTES = 250_000
# The page is drawn in several steps: wait until it has been the same for half a second.
SETTLED = """new Promise((resolve, reject) => {
  let before = '', same = 0;
  const look = () => {
    if (window.failed) return reject(window.failed);
    const now = window.drawn ? document.body.innerHTML : '';
    same = now && now === before ? same + 1 : 0;
    before = now;
    if (same < 10) return void setTimeout(look, 50);
    resolve(true);
  };
  look();
})"""
PAGE = b"""<!doctype html><meta charset="utf-8"><title>BYOC fleet</title>
<link rel="stylesheet" href="page.css"><div id="root"></div><script src="page.js"></script>"""
TYPES = {"e.js": "text/javascript", ".css": "text/css", "json": "application/json"}
ICONS = "/public/build/img/icons/"
ICON = re.compile(r"\w+/[\w-]+\.svg")
FONTS = {  # of Grafana's server, from a package of the same font
    "Inter-Regular": "@fontsource/inter/files/inter-latin-400-normal.woff2",
    "Inter-Medium": "@fontsource/inter/files/inter-latin-500-normal.woff2",
}


async def read_input(fleet: str, directory: Path) -> bytes:
    """Return what the page gets: the dashboard and the frames of each panel, as JSON."""
    log = directory / "log"
    argv = [sys.executable, "-m", "lab.control_plane.chdb_http", f"{directory}/chdb"]
    async with started(argv, log, plane_environment()) as child, aiohttp.ClientSession() as own:
        store = HttpStore((await written(log, "http://", child, 60)).strip(), own)
        await create_tables(store)
        await store.run("SYSTEM STOP TTL MERGES")  # the fleet is of a fixed day
        await FLEETS[fleet](store)
        return await make_input(store)


async def make_input(store: Store, board: dict[str, Any] | None = None) -> bytes:
    """Ask the queries of a filled store, those of the dashboard or of another one."""
    board = board or json.loads(BOARD.read_text())
    view = View(from_ms=NOW_MS - (DAYS + 1) * DAY_MS, to_ms=NOW_MS, interval_seconds=1800)
    frames = await read_frames(store, board, view)
    times = {"nowMs": view.to_ms, "fromMs": view.from_ms}
    return msgspec.json.encode({"board": board, "frames": frames, **times})


async def draw(content: bytes, width: int, image_format: str) -> dict[str, bytes]:
    """Return a picture of the whole dashboard in each scheme."""
    pictures = {}
    with tempfile.TemporaryDirectory() as directory:
        grafana.bundle("page.tsx", Path(directory) / "page.js", "--loader:.ttf=empty")
        files = {"/input.json": content, "/": PAGE}
        for name in ("page.js", "page.css"):
            files[f"/{name}"] = (Path(directory) / name).read_bytes()
        modules = grafana.components() / "node_modules"

        def answer(request: Request) -> Reply:
            path = request.path
            if path in files:
                return Reply(200, {"content-type": TYPES.get(path[-4:], "text/html")}, files[path])
            name = path.rpartition("/")[2].partition(".")[0]
            if name in FONTS:
                return Reply(200, {}, (modules / FONTS[name]).read_bytes())
            icon = path.removeprefix(ICONS)
            if icon != path and ICON.fullmatch(icon):
                svg = (modules / "@grafana/ui/dist/public/img/icons" / icon).read_bytes()
                return Reply(200, {"content-type": "image/svg+xml"}, svg)
            return Reply(404)

        async with FakeHttp(apply=answer) as server, tab() as browser:
            for scheme in SCHEMES:
                pictures[scheme] = await _picture(browser, server.url, width, scheme, image_format)
    return pictures


async def _picture(browser: Tab, url: str, width: int, scheme: str, image_format: str) -> bytes:
    await browser.look(width, FIRST_HEIGHT, scheme)
    await browser.open(url)
    await browser.evaluate(SETTLED)
    await browser.look(width, await browser.evaluate(PAGE_HEIGHT), scheme)
    await browser.evaluate(SETTLED)
    return await browser.screenshot(image_format)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pictures and print their sizes; return 1 if one is too large for a document."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.dashboard", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--fleet", choices=FLEETS, default="normal")
    parser.add_argument("--width", type=int, default=1600)
    parser.add_argument("--format", choices=("png", "webp"), default="webp")
    parser.add_argument("--directory", type=Path, default=PLACE)
    parser.add_argument("--prefix", default="dashboard", help="of the names of the files")
    options = parser.parse_args(argv)
    install.chdb()
    options.directory.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        content = asyncio.run(read_input(options.fleet, Path(directory)))
    pictures = asyncio.run(draw(content, options.width, options.format))
    for scheme, picture in pictures.items():
        path = options.directory / f"{options.prefix}-{scheme}.{options.format}"
        path.write_bytes(picture)
        sys.stdout.write(f"{path.name}: {len(picture)} bytes\n")
    return int(options.format == "webp" and max(map(len, pictures.values())) > MAX_BYTES)


if __name__ == "__main__":
    sys.exit(main())
