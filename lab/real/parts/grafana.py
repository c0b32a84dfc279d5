"""Grafana's component library from npm, without its server: what draws and formats a panel.

It is 0.5 GB with what it depends on. Only esbuild and Node run it; nothing of it is published.
"""

import shutil
from pathlib import Path

from lab.real.parts import install

SOURCES = install.ROOT / "lab" / "dashboard" / "web"
PLACE = install.CACHE / "grafana-components"
PINNED = ("package.json", "package-lock.json")


def components() -> Path:
    """Return a directory with `node_modules`, as the lock file has them."""
    pins = [(SOURCES / name).read_text() for name in PINNED]
    with install.build_once(PLACE, *pins) as missing:
        if missing:
            install.require_programs("npm", "node")
            PLACE.mkdir(parents=True)
            for name in PINNED:
                shutil.copy(SOURCES / name, PLACE)
            quiet = ("--no-audit", "--no-fund", "--loglevel=error")
            install.run_command(["npm", "ci", "--ignore-scripts", *quiet], PLACE)
    return PLACE


def bundle(source: str, out: Path, *options: str) -> None:
    """Bundle a script of `lab/dashboard/web` and the library into one file. Raises PartError."""
    modules = components() / "node_modules"
    install.run_command(
        ["env", f"NODE_PATH={modules}", str(modules / ".bin" / "esbuild"), str(SOURCES / source),
         "--bundle", f"--outfile={out}", "--log-level=error", "--jsx=automatic",
         '--define:process.env.NODE_ENV="production"', *options]
    )  # fmt: skip
