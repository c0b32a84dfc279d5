"""Run Helm on the chart, and cache its output for the tests."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lab.real.parts import helm, install

CHART = install.ROOT / "helm" / "byoc-agents"
CI = sorted((CHART / "ci").glob("*-values.yaml"))
EXAMPLES = sorted((CHART / "examples").glob("*/values.yaml"))
NEW, OLD = "1.34.0", "1.28.0"  # with native sidecars, and without
RELEASE, NAMESPACE = "byoc-agents", "clickhouse"
Manifest = dict[str, Any]


def name(values: Path) -> str:
    """Return the name of a file of values: `default`, `altinity`."""
    return values.name.removesuffix("-values.yaml")


def run(version: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm; the caller checks the exit code."""
    command = [str(helm.helm(version)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@cache
def text(values: Path, *flags: str, version: str = helm.VERSIONS[0], kubernetes: str = NEW) -> str:
    """Return the output of `helm template`. Raises AssertionError with Helm's error."""
    where = ["--namespace", NAMESPACE, "--kube-version", kubernetes]
    done = run(version, "template", RELEASE, str(CHART), "-f", str(values), *where, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(
    values: Path, *flags: str, version: str = helm.VERSIONS[0], kubernetes: str = NEW
) -> list[Manifest]:
    """Return the documents, in Helm's order; the caller may change them."""
    found: list[Manifest] = json.loads(
        _parsed(text(values, *flags, version=version, kubernetes=kubernetes))
    )
    return found


@cache
def _parsed(rendered: str) -> str:
    """Return the documents as JSON: PyYAML takes half a second for a render."""
    return json.dumps([document for document in yaml.safe_load_all(rendered) if document])


def printed(values: Path, *more: str, kubernetes: str = NEW) -> str:
    """Return the additions to another owner's pods, as `sidecars.print` prints them."""
    flags = ("--set", "sidecars.print=true", "--show-only", "templates/sidecars.yaml")
    return text(values, *flags, *more, kubernetes=kubernetes).split("\n", 2)[2]
