"""kubernetes-validate (every schema of Kubernetes 1.25 to 1.37) and checkov, outside of `.venv`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab.real.parts import install
from lab.real.parts.process import PartError

PINS = install.ROOT / "lab" / "real" / "manifests-constraints.txt"
UV = "uv==0.13.9"  # pip takes a minute for these 300 MiB, uv seven seconds
# Reads [[version, document], ...], answers one line a document: "" or what is wrong with it.
VALIDATE = """
import functools, json, sys
import kubernetes_validate as k
from kubernetes_validate import utils
utils.schema_contents = functools.lru_cache(maxsize=None)(utils.schema_contents)
def wrong(version, document):
    try:
        k.validate(document, version, strict=True)
    except k.SchemaNotFoundError as error:
        return "unknown: " + error.message
    except k.ValidationError as error:
        return "/".join(map(str, error.path)) + ": " + error.message[:500]
    return ""
print(json.dumps([wrong(*one) for one in json.load(sys.stdin)]))
"""


def packages() -> Path:
    """Return a directory for PYTHONPATH with both."""
    place = install.CACHE / f"manifests-py{sys.version_info[0]}{sys.version_info[1]}"
    with install.build_once(place, PINS.read_text(), UV, sys.version) as missing:
        if missing:
            _fetch(place)
    return place


def mistakes(documents: list[tuple[str, Any]]) -> list[str]:
    """Return the mistakes per (Kubernetes version, document); `unknown: ...` without schema."""
    found: list[str] = json.loads(_python(["-c", VALIDATE], json.dumps(documents)))
    return found


def checkov(manifests: Path) -> list[dict[str, Any]]:
    """Return checkov's failed checks of the manifests in a directory."""
    flags = ["--framework", "kubernetes", "--skip-download", "--compact", "-o", "json"]
    output = _python(["-m", "checkov.main", "-d", str(manifests), "--soft-fail", *flags])
    found: list[dict[str, Any]] = json.loads(output)["results"]["failed_checks"]
    return found


def _fetch(place: Path) -> None:
    """Fetch with uv, or with pip if uv is missing or reaches no index."""
    tool = place / "uv"
    wanted = ["--no-deps", "--target", str(place), "-r", str(PINS)]
    try:
        install.run_pip(Path(sys.executable), "--no-deps", "--target", str(tool), UV)
        uv = [str(tool / "bin" / "uv"), "pip", "install", "-q", "--python", sys.executable]
        install.run_command([*uv, *wanted])
    except PartError:
        install.run_pip(Path(sys.executable), "--no-compile", *wanted)


def _python(arguments: list[str], given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",  # neither finds our own modules by accident
        env={**os.environ, "PYTHONPATH": str(packages()), "BC_SKIP_MAPPING": "TRUE"},
    )
    if done.returncode:
        raise PartError(f"{arguments[:2]}: {done.stderr[-2000:]}")
    return done.stdout
