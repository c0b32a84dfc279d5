"""Measure the memory before any work: the part that each layer adds when it is imported."""

import json
import os
import subprocess

from lab.bench.figures import Row, row
from lab.bench.image import packages
from lab.bench.lab import Lab
from lab.real.parts.install import ROOT

LAYERS = (
    ("Python itself", "sys"),
    ("asyncio and ssl", "asyncio"),
    ("aiohttp, client and server", "byoc_agents.app.http_server"),
    (
        "msgspec, structlog, prometheus-client, tenacity",
        "byoc_agents.app.settings,byoc_agents.app.metrics",
    ),
    ("the core: SQLite, spool, ledger, gate", "byoc_agents.app.run"),
    ("aiobotocore and botocore", "byoc_agents.egress.aws"),
    (
        "the three daemons",
        "byoc_agents.billing.daemon,byoc_agents.state.daemon,byoc_agents.alerts.daemon",
    ),
)
SCRIPT = """
import importlib, json, sys
sys.path[:0] = {paths!r}
from byoc_agents.app import deferred_imports
deferred_imports.install()
found = []
for modules in {modules!r}:
    for module in modules.split(","):
        importlib.import_module(module)
    pages = int(open("/proc/self/statm").read().split()[1])
    found.append(pages * 4096 / 2**20)
print(json.dumps(found))
"""


def measure(lab: Lab) -> list[Row]:
    """Import layer after layer in a new process, once per run."""
    steps: list[list[float]] = []
    for _ in range(lab.runs(3)):
        sizes = _sizes(lab)
        steps.append([b - a for a, b in zip([0.0, *sizes], sizes, strict=False)])
    return [
        row("imports", f"import: {name}", [step[number] for step in steps], "MiB")
        for number, (name, _) in enumerate(LAYERS)
    ]


def _sizes(lab: Lab) -> list[float]:
    paths, modules = [str(ROOT / "agents"), str(packages())], [modules for _, modules in LAYERS]
    script = SCRIPT.format(paths=paths, modules=modules)
    environ = {**os.environ, **lab.image.environ}
    done = subprocess.run(
        lab.image.run(script), env=environ, capture_output=True, text=True, check=True
    )
    found: list[float] = json.loads(done.stdout)
    return found
